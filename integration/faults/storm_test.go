package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
)

// Calls of several pods at once are killed at random instants, and made again or
// taken back. At the end nothing is left, no two pods had one address at a time, and
// who wasn't touched lost no packet.
func TestKilledAtRandom(t *testing.T) {
	for _, ipam := range []struct {
		name    string
		network func(*bed) conf
	}{
		{"host-local", vxlan},
		{"lhstorage-ipam", ours},
	} {
		t.Run(ipam.name, func(t *testing.T) {
			b := newBed(t, plain, ipam.network)
			nodeWithVTEPDevice(t, b)
			still, beside := b.pod(t, "still"), b.pod(t, "beside")
			b.add(t, still)
			b.add(t, beside)
			indexes := b.indexes(t)
			stop := testnode.Traffic(t, beside, still.addrs[0])

			var holders holders
			var wg sync.WaitGroup
			end := time.Now().Add(stormTime)
			for i := range 4 {
				p := b.pod(t, fmt.Sprint("torn", i))
				wg.Go(func() { torment(t, b, p, &holders, end) })
			}
			wg.Wait()

			stop()
			assert.Equal(t, indexes, b.indexes(t), "parent and shim must be the ones that were there")
			b.del(t, still)
			b.del(t, beside)
			b.dropEmptyClaims(t)
			b.requireClean(t)
			t.Logf("%d calls killed, %d had finished before, %d refused", holders.killed, holders.finished, holders.refused)
			assert.Greater(t, holders.killed, 20, "too few calls were killed for the test to mean something")
		})
	}
}

const stormTime = 8 * time.Second

// holders are the addresses in use; one belongs to one pod at a time.
type holders struct {
	sync.Mutex
	by                        map[netip.Addr]string
	killed, finished, refused int
}

func (h *holders) take(t *testing.T, p *pod) {
	h.Lock()
	defer h.Unlock()
	if h.by == nil {
		h.by = map[netip.Addr]string{}
	}
	for _, a := range p.addrs {
		assert.Empty(t, h.by[a], "%s was given to pod %s too", a, p.name)
		h.by[a] = p.name
	}
}

// give is called before an address is given back, so that no later holder is
// blamed.
func (h *holders) give(p *pod) {
	h.Lock()
	defer h.Unlock()
	for _, a := range p.addrs {
		delete(h.by, a)
	}
	p.addrs = nil
}

func (h *holders) count(err error) {
	h.Lock()
	defer h.Unlock()
	switch {
	case err == nil:
		h.finished++
	case strings.Contains(err.Error(), "signal: killed") && !strings.Contains(err.Error(), "IPAM plugin"):
		h.killed++
	default:
		h.refused++
	}
}

// torment makes calls for one pod until end and kills each at a random instant,
// then ends as a runtime does: with a DEL that is let be.
func torment(t *testing.T, b *bed, p *pod, h *holders, end time.Time) {
	for time.Now().Before(end) {
		verb := []string{"ADD", "ADD", "DEL"}[rand.IntN(3)]
		if verb == "DEL" {
			h.give(p)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(60*time.Millisecond))))
		var err error
		if verb == "ADD" {
			err = b.addUntil(ctx, p)
		} else {
			_, err = b.call(ctx, verb, p)
		}
		cancel()
		h.count(err)
		if verb == "ADD" && err == nil {
			h.take(t, p)
		}
		switch rand.IntN(3) {
		case 0: // the next call, whatever it is
		case 1:
			h.give(p)
			assert.NoError(t, b.tryDel(t, p))
		case 2:
			if err := b.tryAdd(t, p); err != nil { // it had been attached before
				assert.ErrorContains(t, err, "DEL it first")
				h.give(p)
				assert.NoError(t, b.tryDel(t, p))
				assert.NoError(t, b.tryAdd(t, p))
			}
			h.take(t, p)
		}
	}
	h.give(p)
	assert.NoError(t, b.tryDel(t, p))
}

// indexes are those of the node's parent and shim: another index is another device.
func (b *bed) indexes(t *testing.T) string {
	t.Helper()
	text := ""
	require.NoError(t, b.Host.Do(func(ns.NetNS) error {
		for _, name := range []string{"vxlan-storage", "lhnet1-host"} {
			device, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			text += fmt.Sprintln(name, device.Index)
		}
		return nil
	}))
	return text
}

// dropEmptyClaims removes what host-local leaves when it is killed between making a
// claim's file and writing into it: an address that no later call can tell the
// owner of.
func (b *bed) dropEmptyClaims(t *testing.T) {
	t.Helper()
	dir := filepath.Join(b.Dir, "host-local")
	files, err := testnode.Files(dir)
	require.NoError(t, err)
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		if _, err := netip.ParseAddr(filepath.Base(name)); err == nil && info.Size() == 0 {
			t.Logf("host-local leaked %s", name)
			require.NoError(t, os.Remove(filepath.Join(dir, name)))
		}
	}
}
