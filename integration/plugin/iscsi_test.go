package plugin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	"golang.org/x/sys/unix"

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

// volume is a disk and the target that serves it, as Longhorn's v1 engine does: a
// tgtd in a pod, on all of the pod's addresses.
type volume struct {
	disk, socket string
	tgtd         *program
}

func newVolume(t *testing.T) *volume {
	t.Helper()
	dir := t.TempDir()
	// Its own file system: of a file on an overlay, which the VM's root is, NVMe's
	// target takes the blocks to be one byte long.
	require.NoError(t, unix.Mount("volume", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	v := &volume{disk: filepath.Join(dir, "disk"), socket: filepath.Join(dir, "socket")}
	require.NoError(t, os.WriteFile(v.disk, nil, 0o600))
	require.NoError(t, os.Truncate(v.disk, volumeBytes))
	return v
}

// serve starts the target in a pod.
func (v *volume) serve(t *testing.T, p *pod) {
	t.Helper()
	env := []string{"TGT_IPC_SOCKET=" + v.socket}
	v.tgtd = p.start(t, env, "tgtd", "-f")
	for _, command := range []string{
		"--op new --mode target --tid 1 --targetname " + iqn,
		"--op new --mode logicalunit --tid 1 --lun 1 --backing-store " + v.disk,
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

// configFS is where targets inside the kernel are set up.
const configFS = "/sys/kernel/config"

const mountConfigFS = "modprobe configfs; mountpoint -q " + configFS + " || mount -t configfs none " + configFS + "\n"

// serveLIO starts a target inside the kernel, which listens in the pod that sets it up.
func serveLIO(t *testing.T, p *pod, v *volume) {
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
		echo 1 >%[4]s/enable`, disk, v.disk, volumeBytes, tpg, p.addr())
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

// logIn attaches the volume at an address and returns its block device.
func logIn(t *testing.T, at netip.Addr) string {
	t.Helper()
	out, err := iscsiadm(t, time.Minute, "-m discovery -t sendtargets -p "+at.String())
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
		_, err := os.Stat(device)
		return err == nil
	}, time.Minute, 50*time.Millisecond, "a block device appears")
	return device
}

func logOut(t *testing.T, at netip.Addr) {
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
	v := newVolume(t)
	stock, c := n1.stockPod(t)
	v.serve(t, stock)
	out, err := iscsiadm(t, 30*time.Second, "-m discovery -t sendtargets -p "+stock.addr().String())
	require.Error(t, err, "stock macvlan: %s", out)
	t.Logf("stock macvlan: %v: %s", err, strings.TrimSpace(out))
	v.tgtd.kill()
	n1.must(t, "DEL", stock, c)

	local, remote := n1.pod(t, "local"), n2.pod(t, "remote")
	n1.add(t, local, n1.vxlan())
	n2.add(t, remote, n2.vxlan())
	t.Run("target on this node", func(t *testing.T) {
		v.serve(t, local)
		defer v.tgtd.kill()
		requireFileSystem(t, n1, logIn(t, local.addr()))
		logOut(t, local.addr())
	})
	t.Run("target on another node", func(t *testing.T) {
		v.serve(t, remote)
		defer v.tgtd.kill()
		requireFileSystem(t, n1, logIn(t, remote.addr()))
		logOut(t, remote.addr())
	})
	t.Run("target in the kernel", func(t *testing.T) {
		serveLIO(t, local, newVolume(t))
		requireFileSystem(t, n1, logIn(t, local.addr()))
		logOut(t, local.addr())
	})
	t.Run("faults under I/O", func(t *testing.T) { faultsUnderIO(t, n1, v, local) })
}

// requireFileSystem formats a device, writes a file and reads it back from the
// device, not from memory.
func requireFileSystem(t *testing.T, n *node, device string) {
	t.Helper()
	shim := func() string { return n.sh(t, "cat /sys/class/net/lhnet1-host/statistics/tx_bytes") }
	before := shim()
	sums := n.sh(t, `mkdir -p /mnt/volume
		mkfs.ext4 -q -F %[1]s
		mount %[1]s /mnt/volume
		head -c 16M /dev/urandom >/mnt/volume/file
		sha256sum </mnt/volume/file
		umount /mnt/volume
		echo 3 >/proc/sys/vm/drop_caches
		mount -o ro %[1]s /mnt/volume
		sha256sum </mnt/volume/file
		umount /mnt/volume`, device)
	lines := strings.Split(sums, "\n")
	require.Len(t, lines, 2)
	assert.Equal(t, lines[0], lines[1], "checksum of what was written and of what was read")
	assert.NotEqual(t, before, shim(), "the shim carried it")
}

const blockBytes = 64 << 10

// block is what belongs in block n of the device in round r, with room for the
// alignment that direct I/O wants.
func block(round, n int) []byte {
	data := aligned()
	for at := 0; at < blockBytes; at += sha256.Size {
		sum := sha256.Sum256(fmt.Appendf(nil, "round %d block %d at %d", round, n, at))
		copy(data[at:], sum[:])
	}
	return data
}

// aligned is memory for a block that direct I/O takes.
func aligned() []byte {
	data, err := unix.Mmap(-1, 0, blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return data
}

// writer writes blocks to a device, one after the other and past all caches, until
// it is told to stop.
type writer struct {
	stop    chan struct{}
	done    chan struct{}
	written chan int // each block that the device has
	rounds  []int    // of each block the last round; read it after done
	err     error
}

const writerBlocks = 256 // 16 MiB

func startWriter(device string) *writer {
	w := &writer{stop: make(chan struct{}), done: make(chan struct{}), written: make(chan int, 1<<20), rounds: make([]int, writerBlocks)}
	go func() {
		defer close(w.done)
		w.err = w.run(device)
	}()
	return w
}

func (w *writer) run(device string) error {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // what was done with it has been checked
	for total := 0; ; total++ {
		select {
		case <-w.stop:
			return nil
		default:
		}
		n, round := total%writerBlocks, 1+total/writerBlocks
		data := block(round, n)
		_, err := f.WriteAt(data, int64(n)*blockBytes)
		if err := errors.Join(err, unix.Munmap(data)); err != nil {
			return fmt.Errorf("write block %d: %w", total, err)
		}
		w.rounds[n] = round
		w.written <- total
	}
}

// progress waits until the device has taken blocks that were begun after the call.
func (w *writer) progress(t *testing.T, what string) {
	t.Helper()
	begin := time.Now()
	for len(w.written) > 0 {
		<-w.written
	}
	for range 5 {
		select {
		case <-w.written:
		case <-w.done:
			t.Fatalf("%s: %v", what, w.err)
		case <-time.After(recovery):
			t.Fatalf("%s: the device takes nothing for %s", what, recovery)
		}
	}
	t.Logf("%s: 5 blocks written %s after", what, time.Since(begin).Round(10*time.Millisecond))
}

// requireData reads all blocks back from the device.
func (w *writer) requireData(t *testing.T, device string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // what was done with it has been checked
	got := aligned()
	for n, round := range w.rounds {
		if round == 0 {
			continue
		}
		_, err := f.ReadAt(got, int64(n)*blockBytes)
		require.NoError(t, err)
		want := block(round, n)
		require.Equal(t, sha256.Sum256(want), sha256.Sum256(got), "block %d of round %d", n, round)
		require.NoError(t, unix.Munmap(want))
	}
	require.NoError(t, unix.Munmap(got))
}

func faultsUnderIO(t *testing.T, n1 *node, v *volume, p *pod) {
	v.serve(t, p)
	device := logIn(t, p.addr())
	w := startWriter(device)
	w.progress(t, "before anything happens")

	v.tgtd.kill()
	v.serve(t, p)
	w.progress(t, "target restarted")

	n1.sh(t, "ip link del lhnet1-host")
	n1.add(t, n1.pod(t, "another"), n1.vxlan())
	w.progress(t, "shim deleted and made again")

	n1.sh(t, "ip link set vxlan-storage mtu 1400")
	w.progress(t, "parent's MTU lowered")
	assert.Equal(t, []int{1400, 1400, 1400}, mtus(t, n1, p))
	// The parent was a script's, so its MTU is what is asked for, if anything is.
	n1.add(t, n1.pod(t, "third"), n1.vxlan().with("parent.mtu", 8950))
	w.progress(t, "parent's MTU raised again")
	assert.Equal(t, []int{8950, 8950, 8950}, mtus(t, n1, p))

	address := p.addr()
	again := n1.pod(t, "again")
	v.move(t, n1, p, again, n1.vxlan().with("ipam", map[string]any{"type": "static", "addresses": []any{map[string]any{"address": address.String() + "/24"}}}))
	require.Equal(t, address, again.addr())
	w.progress(t, "pod made again, with its address")

	close(w.stop)
	<-w.done
	require.NoError(t, w.err)
	w.requireData(t, device)

	// With another address Longhorn attaches anew.
	logOut(t, address)
	elsewhere := n1.pod(t, "elsewhere")
	v.move(t, n1, again, elsewhere, n1.vxlan())
	require.NotEqual(t, address, elsewhere.addr())
	device = logIn(t, elsewhere.addr())
	w.requireData(t, device)
	logOut(t, elsewhere.addr())
}

// move takes the target from one pod, which ends, to another, which is new.
func (v *volume) move(t *testing.T, n *node, from, to *pod, c conf) {
	t.Helper()
	v.tgtd.kill()
	n.must(t, "DEL", from, n.vxlan())
	n.add(t, to, c)
	v.serve(t, to)
}
