package agent

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// What isn't ready now is guarded as it was last; what has never been ready is no reason to shut peers out.
func TestGuardedNetwork(t *testing.T) {
	n := Network{Plan: &netconf.Plan{Parent: netconf.Parent{Name: "vxlan-storage", Type: netconf.ParentVXLAN}, HostShim: &netconf.HostShim{Name: "lhnet1-host"}}}
	for _, state := range []*netState{nil, {}, {trouble: "amiss", place: place.Place{Peers: []netip.Addr{}}}} {
		g := guardedNetwork(n, state)
		assert.Nil(t, g.Peers, "not known: an empty list would shut everybody out")
		assert.Equal(t, "lhnet1-host", g.Shim, "it's closed all the same")
	}
	peers, vtep := []netip.Addr{netip.MustParseAddr("10.0.0.2")}, netip.MustParseAddr("10.0.0.1")
	g := guardedNetwork(n, &netState{done: true, trouble: "amiss", place: place.Place{VTEP: vtep, Peers: peers}, shim: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}})
	assert.Equal(t, peers, g.Peers)
	assert.Equal(t, vtep, g.VTEP)
	assert.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}, g.Addrs)
	n.Plan.HostShim = nil
	assert.Empty(t, guardedNetwork(n, nil).Shim)
}
