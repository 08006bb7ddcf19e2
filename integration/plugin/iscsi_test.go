package plugin

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	volumeBytes = 64 << 20
	iqn         = "iqn.2019-10.io.longhorn:volume"

	// How long an initiator may take to find its target again: its time-outs, which
	// the test sets low, and a slow machine.
	recovery = 2 * time.Minute
)

// thisMachine is the machine itself as node 1: an iSCSI initiator is in no other
// netns than the kernel's first. Node 2 is a simulated one beside it.
func thisMachine(t *testing.T) (n1, n2 *node) {
	t.Helper()
	testnode.RequireVM(t)
	netns, err := ns.GetNS("/proc/1/ns/net")
	require.NoError(t, err)
	n1 = &node{space: space{netns}, dir: t.TempDir(), bin: binaries(t)}
	n1.identify(t, nodefile.File{NodeName: "node1", Index: 1})
	n2 = newNode(t, 2)
	connect(t, n1, n2, "10.100.0.0/31", "10.100.0.1/31")
	t.Cleanup(func() {
		n1.sh(t, "for d in to-node2 lhnet1-host vxlan-storage dummy0; do ip link del $d 2>/dev/null || true; done")
		assert.NoError(t, netns.Close())
	})
	return n1, n2
}

// stockPod is a pod of stock macvlan on a parent that a script has made, with the
// host's address where people put it who have no shim, and the pod's network.
func (n *node) stockPod(t *testing.T) (*pod, conf) {
	t.Helper()
	n.sh(t, `ip link add vxlan-storage type vxlan id 100 local 10.100.100.1 dstport 4789
		ip addr add 10.100.1.1/24 dev vxlan-storage
		ip link set vxlan-storage up`)
	p := n.pod(t, "stock")
	c := conf{"cniVersion": "1.1.0", "name": "stock", "type": "macvlan", "master": "vxlan-storage", "ipam": n.vxlan()["ipam"]}
	n.add(t, p, c)
	return p, c
}

// program is one that runs until the test kills it.
type program struct {
	cmd *exec.Cmd
	log string
}

// start starts a program in the namespace. A test that ends kills it.
func (s space) start(t *testing.T, env []string, argv ...string) *program {
	t.Helper()
	p := &program{exec.Command(argv[0], argv[1:]...), filepath.Join(t.TempDir(), filepath.Base(argv[0])+".log")}
	log, err := os.Create(p.log)
	require.NoError(t, err)
	defer log.Close() //nolint:errcheck // the program has its own descriptor
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = append(os.Environ(), env...), log, log
	require.NoError(t, s.netns.Do(func(ns.NetNS) error { return p.cmd.Start() }))
	t.Cleanup(func() {
		p.kill()
		if text, err := os.ReadFile(p.log); t.Failed() && err == nil {
			t.Logf("%s said:\n%s", argv[0], text)
		}
	})
	return p
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// iSCSI is Longhorn's v1 engine: a tgtd in a pod, on all of the pod's addresses, and
// the kernel's initiator.
type iSCSI struct {
	disk string
	tgtd *program
}

func (e *iSCSI) serve(t *testing.T, p *pod) {
	t.Helper()
	env := []string{"TGT_IPC_SOCKET=" + e.disk + ".socket"}
	e.tgtd = p.start(t, env, "tgtd", "-f")
	for _, command := range []string{
		"--op new --mode target --tid 1 --targetname " + iqn,
		"--op new --mode logicalunit --tid 1 --lun 1 --backing-store " + e.disk,
		"--op bind --mode target --tid 1 --initiator-address ALL",
	} {
		var out string
		if !assert.Eventually(t, func() (done bool) {
			text, err := p.try("%s tgtadm --lld iscsi %s 2>&1", env[0], command)
			out = text
			return err == nil
		}, 30*time.Second, 100*time.Millisecond) {
			t.Fatalf("tgtadm %s: %s", command, out)
		}
	}
}

func (e *iSCSI) end(*testing.T) { e.tgtd.kill() }

// configFS is where targets inside the kernel are set up.
const configFS = "/sys/kernel/config"

const mountConfigFS = "modprobe configfs; mountpoint -q " + configFS + " || mount -t configfs none " + configFS + "\n"

// serveLIO starts a target inside the kernel, which listens in the pod that sets it up.
func serveLIO(t *testing.T, p *pod, file string) {
	t.Helper()
	tpg := configFS + "/target/iscsi/" + iqn + "/tpgt_1"
	disk := configFS + "/target/core/fileio_0/disk"
	p.sh(t, mountConfigFS+`modprobe target_core_file; modprobe iscsi_target_mod
		mkdir -p %[1]s
		echo fd_dev_name=%[2]s,fd_dev_size=%[3]d >%[1]s/control
		echo 1 >%[1]s/enable
		mkdir -p %[4]s/lun/lun_0
		ln -s %[1]s %[4]s/lun/lun_0/disk
		echo 0 >%[4]s/attrib/authentication
		echo 0 >%[4]s/attrib/demo_mode_write_protect
		echo 1 >%[4]s/attrib/cache_dynamic_acls
		echo 1 >%[4]s/attrib/generate_node_acls
		mkdir %[4]s/np/%[5]s:3260
		echo 1 >%[4]s/enable`, disk, file, volumeBytes, tpg, p.addr())
	t.Cleanup(func() {
		p.sh(t, `echo 0 >%[1]s/enable
			rmdir %[1]s/np/*; rm %[1]s/lun/lun_0/disk; rmdir %[1]s/lun/lun_0 %[1]s %[2]s; rmdir %[3]s`, tpg, filepath.Dir(tpg), disk)
	})
}

// iscsiadm runs the initiator's tool as Longhorn does: from anywhere, in the
// namespaces of the machine's first process.
func iscsiadm(t *testing.T, limit time.Duration, args string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	argv := append([]string{"--mount=/proc/1/ns/mnt", "--net=/proc/1/ns/net", "iscsiadm"}, strings.Fields(args)...)
	out, err := exec.CommandContext(ctx, "nsenter", argv...).CombinedOutput()
	return string(out), errors.Join(err, ctx.Err())
}

// startInitiator starts the daemon of open-iscsi with time-outs that fit a test.
func startInitiator(t *testing.T, n *node) {
	t.Helper()
	n.sh(t, "modprobe iscsi_tcp; modprobe sd_mod")
	for file, text := range map[string]string{
		"/etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.2004-10.com.longhorn:vm\n",
		"/etc/iscsi/iscsid.conf": `node.startup = manual
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.login_timeout = 5
node.conn[0].timeo.logout_timeout = 5
node.conn[0].timeo.noop_out_interval = 2
node.conn[0].timeo.noop_out_timeout = 2
node.session.initial_login_retry_max = 4
discovery.sendtargets.reopen_max = 1
discovery.sendtargets.timeo.login_timeout = 5
`,
	} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	n.start(t, nil, "iscsid", "-f")
	require.Eventually(t, func() bool {
		out, _ := iscsiadm(t, 10*time.Second, "-m session")
		return strings.Contains(out, "No active sessions")
	}, 30*time.Second, 100*time.Millisecond, "iscsid answers")
}

func (*iSCSI) find(t *testing.T, at netip.Addr) (string, error) {
	t.Helper()
	return iscsiadm(t, time.Minute, "-m discovery -t sendtargets -p "+at.String())
}

func (e *iSCSI) attach(t *testing.T, at netip.Addr) string {
	t.Helper()
	out, err := e.find(t, at)
	require.NoError(t, err, out)
	require.Contains(t, out, iqn)
	out, err = iscsiadm(t, time.Minute, "-m node -T "+iqn+" -p "+at.String()+" --login")
	require.NoError(t, err, out)
	var device string
	require.Eventually(t, func() bool {
		found, _ := filepath.Glob("/sys/class/iscsi_session/session*/device/target*/*/block/sd*")
		if len(found) == 0 {
			return false
		}
		device = "/dev/" + filepath.Base(found[0])
		return usable(device)
	}, time.Minute, 50*time.Millisecond, "a block device appears")
	return device
}

func (*iSCSI) detach(t *testing.T, at netip.Addr) {
	t.Helper()
	out, err := iscsiadm(t, time.Minute, "-m node -T "+iqn+" -p "+at.String()+" --logout")
	require.NoError(t, err, out)
	out, err = iscsiadm(t, time.Minute, "-m node -T "+iqn+" -p "+at.String()+" -o delete")
	require.NoError(t, err, out)
}

// Longhorn's v1 data path, all of it but Longhorn: with stock macvlan the host
// can't reach the target of its own pod; with lhstorage it can, and keeps what it
// wrote whatever happens to target, pod, shim and parent in the meantime.
func TestKernelISCSI(t *testing.T) {
	n1, n2 := thisMachine(t)
	startInitiator(t, n1)
	e := &iSCSI{disk: newDisk(t)}
	requireStockFails(t, n1, e)
	local, remote := n1.pod(t, "local"), n2.pod(t, "remote")
	n1.add(t, local, n1.vxlan())
	n2.add(t, remote, n2.vxlan())
	requireVolumes(t, n1, e, local, remote)
	t.Run("target in the kernel", func(t *testing.T) {
		serveLIO(t, local, newDisk(t))
		requireFileSystem(t, n1, e.attach(t, local.addr()))
		e.detach(t, local.addr())
	})
	t.Run("faults under I/O", func(t *testing.T) { faultsUnderIO(t, n1, e, local) })
}
