package faults

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// together calls functions at once and returns their errors.
func together(calls ...func() error) []error {
	errs := make([]error, len(calls))
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			<-gate
			errs[i] = call()
		})
	}
	close(gate)
	wg.Wait()
	return errs
}

// A runtime that gave up on a call, or was restarted, may call again while the first
// call still runs: one ADD wins, and its pod has its address to itself.
func TestTwoADDsOfOneAttachment(t *testing.T) {
	for name, network := range map[string]func(*bed) conf{"host-local": vxlan, "lhstorage-ipam": ours} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, network)
			readyNode(t, b)
			for i := range 8 {
				p, other := b.pod(t, fmt.Sprint("a", i)), *b.pods[0]
				other.NetNS, other.name = p.NetNS, p.name
				errs := together(
					func() error { return b.addUntil(t.Context(), p) },
					func() error { return b.addUntil(t.Context(), &other) },
				)
				if errs[0] != nil {
					errs[0], errs[1] = errs[1], errs[0]
					p.attached, p.addrs = true, other.addrs
				}
				require.NoError(t, errs[0])
				requireRefused(t, errs[1], cnierr.InvalidEnvironment, "DEL it first")
				b.requireTraffic(t, p)
				b.requireNothing(t) // that isn't p's
				b.del(t, p)
				b.requireClean(t)
			}
		})
	}
}

func TestADDAndDELOfOneAttachment(t *testing.T) {
	for name, network := range map[string]func(*bed) conf{"host-local": vxlan, "lhstorage-ipam": ours} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, network)
			readyNode(t, b)
			for i := range 8 {
				p := b.pod(t, fmt.Sprint("a", i))
				for _, err := range together(
					func() error { return b.addUntil(t.Context(), p) },
					func() error { _, err := b.call(t.Context(), "DEL", p); return err },
				) {
					assert.NoError(t, err, "one comes after the other, either way")
				}
				b.del(t, p)
				b.requireClean(t)
			}
		})
	}
}

// The first pods of a node start at the same time: one makes it ready, the other
// waits.
func TestFirstADDsAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		network func(*bed) conf
		node    func(*testing.T, *bed)
		rounds  int
		links   []string
	}{
		"VXLAN":      {vxlan, nodeWithVTEPDevice, 20, []string{"under0", "under1", "vt0", "vxlan-storage", "lhnet1-host"}},
		"adoption":   {vxlan, scriptedNode, 10, []string{"under0", "under1", "vt0", "vxlan-storage", "lhnet1-host"}},
		"flat":       {flat, flatNode, 10, []string{"under0", "under1", "lhnet1-host"}},
		"dual stack": {dual, nodeWithVTEPDevice, 3, []string{"under0", "under1", "vt0", "vxlan-storage", "lhnet1-host"}},
	} {
		for i := range c.rounds {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				t.Parallel()
				b := newBed(t, plain, c.network)
				c.node(t, b)
				pods := []*pod{b.pod(t, "a"), b.pod(t, "b"), b.pod(t, "c")}
				for _, err := range together(
					func() error { return b.addUntil(t.Context(), pods[0]) },
					func() error { return b.addUntil(t.Context(), pods[1]) },
					func() error { return b.addUntil(t.Context(), pods[2]) },
				) {
					require.NoError(t, err)
				}
				assert.ElementsMatch(t, c.links, b.links(t), "one parent, one shim")
				assert.NotEqual(t, pods[0].addrs, pods[1].addrs)
				assert.NotEqual(t, pods[0].addrs, pods[2].addrs)
				assert.NotEqual(t, pods[1].addrs, pods[2].addrs)
				for _, p := range pods {
					b.requireTraffic(t, p)
				}
				for _, p := range pods {
					b.del(t, p)
				}
				b.requireClean(t)
			})
		}
	}
}
