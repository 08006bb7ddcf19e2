package ipam_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// The model is the simplest thing that does what Whereabouts' documentation says: a
// list of claims, searched address by address.
type model struct{ claims []modelClaim }

type modelClaim struct {
	pool, name, pod, container, ifName string
	addr                               netip.Addr
}

func (m *model) find(match func(modelClaim) bool) *modelClaim {
	for i := range m.claims {
		if match(m.claims[i]) {
			return &m.claims[i]
		}
	}
	return nil
}

// add gives the address of one pool, or false when there is none.
func (m *model) add(pool ipam.Pool, owner ipam.Owner) (netip.Addr, bool) {
	old := m.find(func(c modelClaim) bool {
		return c.pool == pool.Name && c.pod == owner.Pod() && c.ifName == owner.IfName
	})
	switch {
	case old != nil && pool.Excluded(old.addr):
		gone := *old
		m.claims = slices.DeleteFunc(m.claims, func(c modelClaim) bool { return c == gone })
	case old != nil:
		old.container = owner.ContainerID
		return old.addr, true
	}
	for a := pool.First; a.Compare(pool.Last) <= 0; a = a.Next() {
		name := pool.ClaimName(a)
		held := m.find(func(c modelClaim) bool { return c.name == name || c.pod == owner.Pod() && c.addr == a })
		if held == nil && !pool.Excluded(a) {
			m.claims = append(m.claims, modelClaim{pool.Name, name, owner.Pod(), owner.ContainerID, owner.IfName, a})
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (m *model) del(container, ifName string) {
	m.claims = slices.DeleteFunc(m.claims, func(c modelClaim) bool { return c.container == container && c.ifName == ifName })
}

// Any sequence of ADD, re-ADD and DEL of a few pods on a few small networks gives the
// model's addresses, and leaves its claims.
func TestAllocatorAgainstTheModel(t *testing.T) {
	confs := []string{
		`{"range": "10.0.0.0/29"}`,
		`{"range": "10.0.0.0/29", "range_start": "10.0.0.4", "exclude": ["10.0.0.5"]}`,
		`{"range": "10.0.0.0/28", "exclude": ["10.0.0.0/30"]}`,
		`{"range": "10.0.0.0/29", "network_name": "blue"}`,
		`{"range": "10.0.0.0/29", "enable_overlapping_ranges": false}`,
		`{"range": "fd00::/125"}`,
	}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(run))
		run++
		store, m := open(rt, dir), &model{}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			// Without a pod the container is who counts; with one, a few containers follow each other.
			n := rapid.IntRange(1, 6).Draw(rt, "pod")
			owner := ipam.Owner{IfName: rapid.SampledFrom([]string{"net1", "net2"}).Draw(rt, "interface"), ContainerID: fmt.Sprintf("c%d", n)}
			if n > 1 {
				owner.PodRef = fmt.Sprintf("ns/pod%d", n)
				owner.ContainerID += rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "container")
			}
			conf := rapid.SampledFrom(confs).Draw(rt, "network")
			alloc, _ := allocator(rt, store, conf, owner)
			if rapid.IntRange(0, 2).Draw(rt, "verb") == 0 {
				require.NoError(rt, alloc.Del(t.Context()))
				m.del(owner.ContainerID, owner.IfName)
				continue
			}
			want, ok := m.add(alloc.Pools[0], alloc.Owner)
			grant, err := alloc.Add(t.Context())
			if !ok {
				require.Equal(rt, cnierr.Exhausted, cnierr.CodeOf(err), "%v", err)
				continue
			}
			require.NoError(rt, err)
			require.Equal(rt, want, grant.Addresses[0].Addr())
		}
		names, err := os.ReadDir(dir + "/boot-this-boot/claims")
		require.NoError(rt, err)
		var got, want []string
		for _, e := range names {
			got = append(got, e.Name())
		}
		for _, c := range m.claims {
			want = append(want, c.name)
		}
		assert.ElementsMatch(rt, want, got)
	})
}
