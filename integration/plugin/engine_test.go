package plugin

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// engine is how a volume gets from a pod to a host: one of Longhorn's data paths.
type engine interface {
	serve(t *testing.T, p *pod)                         // starts a target in a pod
	end(t *testing.T)                                   // the target is gone, as if its process had died
	find(t *testing.T, at netip.Addr) (string, error)   // asks the target, from the host; what the tool said
	attach(t *testing.T, at netip.Addr) (device string) // until its block device is there
	detach(t *testing.T, at netip.Addr)
}

// usable says that a block device is there to be used: its node is made before it can
// be opened, and its size is zero until the target has been asked.
func usable(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // it was only read
	size, err := f.Seek(0, io.SeekEnd)
	return err == nil && size == volumeBytes
}

// newDisk is the file that a target serves.
func newDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// Its own file system: of a file on an overlay, which the VM's root is, NVMe's
	// target takes the blocks to be one byte long.
	require.NoError(t, unix.Mount("volume", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	disk := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, volumeBytes))
	return disk
}

// requireStockFails says that a host doesn't reach the target of its own pod with
// stock macvlan, that the reason is the way there, and that the target is well: a pod
// beside it reaches it.
func requireStockFails(t *testing.T, n *node, e engine) {
	t.Helper()
	p, c := n.stockPod(t)
	beside := n.pod(t, "beside")
	n.add(t, beside, c)
	e.serve(t, p)
	requireLegs(t, leg{"pod beside", beside.space, p.addr()})
	out, err := e.find(t, p.addr())
	require.Error(t, err, "stock macvlan: %s", out)
	assert.Regexp(t, "(?i)host is unreachable|no route to host|timed out", out)
	t.Logf("stock macvlan: %v: %s", err, strings.TrimSpace(out))
	e.end(t)
	n.must(t, "DEL", p, c)
	n.must(t, "DEL", beside, c)
}

// requireVolumes says that the host can use a volume of its own pod and one of
// another node's.
func requireVolumes(t *testing.T, n *node, e engine, local, remote *pod) {
	t.Helper()
	for name, p := range map[string]*pod{"target on this node": local, "target on another node": remote} {
		t.Run(name, func(t *testing.T) {
			e.serve(t, p)
			defer e.end(t)
			requireFileSystem(t, n, e.attach(t, p.addr()))
			e.detach(t, p.addr())
		})
	}
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

// faultsUnderIO has happen to a volume in use what happens in a cluster, one after
// the other. Each time the device takes blocks again, and in the end it has them all.
func faultsUnderIO(t *testing.T, n1 *node, e engine, p *pod) {
	e.serve(t, p)
	device := e.attach(t, p.addr())
	w := startWriter(device)
	w.progress(t, "before anything happens")

	e.end(t)
	e.serve(t, p)
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
	move(t, n1, e, p, again, n1.vxlan().with("ipam", map[string]any{"type": "static", "addresses": []any{map[string]any{"address": address.String() + "/24"}}}))
	require.Equal(t, address, again.addr())
	w.progress(t, "pod made again, with its address")

	close(w.stop)
	<-w.done
	require.NoError(t, w.err)
	w.requireData(t, device)

	// With another address Longhorn attaches anew.
	e.detach(t, address)
	elsewhere := n1.pod(t, "elsewhere")
	move(t, n1, e, again, elsewhere, n1.vxlan())
	require.NotEqual(t, address, elsewhere.addr())
	device = e.attach(t, elsewhere.addr())
	w.requireData(t, device)
	e.detach(t, elsewhere.addr())
	e.end(t)
}

// move takes the target from one pod, which ends, to another, which is new.
func move(t *testing.T, n *node, e engine, from, to *pod, c conf) {
	t.Helper()
	e.end(t)
	n.must(t, "DEL", from, n.vxlan())
	n.add(t, to, c)
	e.serve(t, to)
}
