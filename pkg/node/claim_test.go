package node

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// A node that comes up with the API away asks once, however many rounds it needs.
func TestTheClusterIsAskedOnceInACall(t *testing.T) {
	asked := 0
	last := place.Place{Index: 2, VTEP: netip.MustParseAddr("10.100.100.2")}
	r := &run{
		plan: &netconf.Plan{Parent: netconf.Parent{Type: netconf.ParentVXLAN}}, last: last,
		Ensurer: &Ensurer{Kernel: kernel.NewFake(), Claim: func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
			asked++
			return place.Place{}, cnierr.New(cnierr.TryAgain, "the API server is away")
		}},
	}
	for range 3 {
		p, err := r.find(t.Context(), place.Seen{})
		require.NoError(t, err)
		assert.Equal(t, last, p)
	}
	assert.Equal(t, 1, asked)
	assert.False(t, r.renewed, "so the next call asks again")
}

// A node that was started a moment after the last answer hears of the peers that came in that moment.
func TestANodeThatHasNoParentAsks(t *testing.T) {
	w := inCluster(t, prepared()(), "192.168.7.2")
	asked := 0
	claim := w.e.Claim
	w.e.Claim = func(ctx context.Context, p *netconf.Plan, s place.Seen, l place.Place) (place.Place, error) {
		asked++
		return claim(ctx, p, s, l)
	}
	require.NoError(t, w.ensure(vxlan()))
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, 1, asked, "the last answer is young")
	link, err := w.f.Link("vxlan-storage")
	require.NoError(t, err)
	require.NoError(t, w.f.DelLink(link.Index))
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, 2, asked)
}

// Of many pods that start after a quiet minute one asks; the others go by the last answer.
func TestOneOfManyAsks(t *testing.T) {
	w := inCluster(t, prepared()(), "192.168.7.2")
	require.NoError(t, w.ensure(vxlan()))
	files, err := filepath.Glob(filepath.Join(w.e.Node.StateDir, "place", "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(files[0], old, old))
	asked := 0
	claim := w.e.Claim
	w.e.Claim = func(ctx context.Context, p *netconf.Plan, s place.Seen, l place.Place) (place.Place, error) {
		asked++
		require.Less(t, asked, 3)
		require.NoError(t, w.ensure(vxlan()), "another pod, while this one waits for its answer")
		return claim(ctx, p, s, l)
	}
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, 1, asked)
}

// The entry of a peer that has left goes at once, one that a script made stays until it is known that no node is missing.
func TestStaleEntriesInACluster(t *testing.T) {
	w := inCluster(t, prepared()(), "192.168.7.2")
	p := place.Place{Index: 2, VTEP: addrs("10.100.100.2")[0], Shim: addrs("10.100.1.2"), Peers: addrs("10.100.100.1", "10.100.100.3")}
	w.e.Live = true
	w.e.Claim = func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) { return p, nil }
	require.NoError(t, w.ensure(vxlan()))
	flood("10.100.100.9")(w.f) // of a script
	w.quiet(vxlan())
	p.Peers = addrs("10.100.100.3")
	require.NoError(t, w.ensure(vxlan()))
	assert.NotContains(t, w.f.Dump(), "flood 10.100.100.1\n")
	assert.Contains(t, w.f.Dump(), "flood 10.100.100.9\n")
	w.quiet(vxlan())
	p.Complete = true
	require.NoError(t, w.ensure(vxlan()))
	assert.NotContains(t, w.f.Dump(), "flood 10.100.100.9\n")
	assert.Contains(t, w.f.Dump(), "flood 10.100.100.3\n")
	w.quiet(vxlan())
	assert.NotContains(t, w.place(vxlan()), "omplete")
}
