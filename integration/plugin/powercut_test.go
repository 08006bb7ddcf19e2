package plugin

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// The two lives of a machine whose power is cut in between: a VM that is booted
// twice with the same disk, see TestPowerCut in integration/vm. The machine is
// node 1 and a node of a cluster, whose API server it reaches in its first life.

// machineWithDisk is the machine itself as node 1, with its files on the disk, all
// but /run; node 2 is a simulated one beside it.
func machineWithDisk(t *testing.T) (n1, n2 *node) {
	t.Helper()
	kubeconfig := os.Getenv(testnode.VMKubeconfig)
	if kubeconfig == "" {
		t.Skip("only in a VM with a disk and a cluster: TestPowerCut in integration/vm boots it")
	}
	n1, n2 = thisMachine(t)
	n1.dir = "/mnt/disk"
	// commit: what nobody syncs is not to reach the disk by chance.
	n1.sh(t, `modprobe virtio_blk; modprobe ext4
		mkdir -p %[1]s; mount -o commit=300 /dev/vda %[1]s
		mkdir -p %[1]s/run; mount -t tmpfs run %[1]s/run`, n1.dir)
	n1.identify(t, nodefile.File{NodeName: "node1", Kubeconfig: kubeconfig})
	return n1, n2
}

// inCluster is the network of vxlan with the peers that the cluster knows.
func (n *node) inCluster() conf { return n.vxlan().with("parent.peers", nil) }

// identity is what peers know a node by.
type identity struct {
	Shim, VTEP []string
	MAC        string
}

func (n *node) whoAmI(t *testing.T) identity {
	t.Helper()
	return identity{n.addrs(t, "lhnet1-host"), n.addrs(t, "dummy0"), n.mac(t, "lhnet1-host")}
}

func (n *node) keptFile() string     { return filepath.Join(n.dir, "identity.json") }
func (n *node) unsyncedFile() string { return filepath.Join(n.dir, "unsynced") }

func TestPowerCutBefore(t *testing.T) {
	n1, n2 := machineWithDisk(t)
	// What QEMU offers on its own network.
	n1.sh(t, `modprobe virtio_net; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.2.2`)
	b := n2.pod(t, "b")
	n2.add(t, b, n2.vxlan())
	a, beside := n1.pod(t, "a"), n1.pod(t, "beside")
	n1.add(t, a, n1.inCluster())
	n1.add(t, beside, n1.inCluster())
	requireLegs(t, legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b)...)

	kept, err := json.Marshal(n1.whoAmI(t))
	require.NoError(t, err)
	writeSynced(t, n1.keptFile(), kept)
	require.NoError(t, os.WriteFile(n1.unsyncedFile(), kept, 0o600))
}

func writeSynced(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = f.Write(data)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func TestPowerCutAfter(t *testing.T) {
	n1, n2 := machineWithDisk(t)
	_, err := os.Stat(n1.unsyncedFile())
	require.ErrorIs(t, err, fs.ErrNotExist, "it was a power cut: what nobody had synced is gone")
	// A cable that leads nowhere: whoever calls the API server waits.
	n1.sh(t, `ip link add cut type dummy; ip addr add 10.0.2.15/24 dev cut; ip link set cut arp off up; ip route add default via 10.0.2.2 dev cut`)
	b := n2.pod(t, "b")
	n2.add(t, b, n2.vxlan())
	_, err = n1.try("ip link show dev vxlan-storage")
	require.Error(t, err, "the kernel has nothing")

	// A sandbox of its own, as any after a boot: whether host-local's note of the old one had reached the disk is chance.
	a := n1.pod(t, "a-after-the-boot")
	out := n1.must(t, "ADD", a, n1.inCluster())
	assert.Contains(t, string(out.Stderr), "going by the last answer, index 1")
	t.Logf("the first ADD of the second life: %s %s", out.Wall, out.Stderr)
	data, err := os.ReadFile(n1.keptFile())
	require.NoError(t, err)
	var kept identity
	require.NoError(t, json.Unmarshal(data, &kept))
	assert.Equal(t, []string{shimAddr(1).String() + "/24"}, kept.Shim)
	assert.Equal(t, kept, n1.whoAmI(t), "the node is who it was")
	requireLegs(t, leg{"host-host", n1.space, shimAddr(2)}, leg{"host-host back", n2.space, shimAddr(1)}, leg{"host-remote", n1.space, b.addr()})

	// An address from the cluster can't be had now, and that is said.
	began := time.Now()
	_, err = n1.run(t, "ADD", n1.pod(t, "c"), n1.inCluster().with("ipam", map[string]any{"type": "lhstorage-ipam", "range": "10.100.1.0/24"}))
	requireRefusal(t, err, cnierr.TryAgain, "gave no answer")
	assert.NotContains(t, err.Error(), "could not all be undone", "the release of what may have been claimed is queued on disk")
	t.Logf("an ADD that needs the API server: refused after %s: %v", time.Since(began).Round(time.Millisecond), err)
	requireLegs(t, leg{"host-host", n1.space, shimAddr(2)})
}
