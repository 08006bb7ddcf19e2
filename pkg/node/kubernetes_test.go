package node

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// inCluster is a node whose cluster gives it index 2 and knows it by an address.
func inCluster(t *testing.T, f *kernel.Fake, kubernetes string) *world {
	w := newWorld(t, f, 0)
	w.e.Claim = func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
		return place.Place{
			Index: 2, VTEP: addrs("10.100.100.2")[0], Shim: addrs("10.100.1.2"), Peers: addrs("10.100.100.1", "10.100.100.3"),
			Kubernetes: addrs(kubernetes),
		}, nil
	}
	return w
}

// A Kubernetes address on the parent stays there. In the network's range it makes
// the parent one that the shim stands beside.
func TestKubernetesAddressStays(t *testing.T) {
	for _, c := range []struct {
		name             string
		on               []string // the parent before
		kubernetes       string
		parent, shim     string // what they have afterwards
		arpIgnore, route string
	}{
		{"in the range", []string{"10.100.1.200/24"}, "10.100.1.200", "10.100.1.200/24", "10.100.1.2/32", "1", "10.100.1.128/25"},
		{"in the range, and the storage address", []string{"10.100.1.200/24", "10.100.1.77/24"}, "10.100.1.200", "10.100.1.77/24\n  address 10.100.1.200/24", "10.100.1.2/32", "1", "10.100.1.128/25"},
		{"elsewhere", []string{"172.16.0.2/24", "10.100.1.2/24"}, "172.16.0.2", "172.16.0.2/24", "10.100.1.2/24", "", ""},
		{"another device's", []string{"10.100.1.2/24"}, "192.168.7.2", "", "10.100.1.2/24", "8", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := inCluster(t, prepared(scriptParent, on(vx, c.on...))(), c.kubernetes)
			require.NoError(t, w.ensure(vxlan()))
			dump := w.f.Dump()
			if c.parent != "" {
				assert.Contains(t, dump, "vxlan vxlan-storage mtu 1400 up vni 100 port 4789 local 10.100.100.2 learning true\n  address "+c.parent+"\n  flood")
			} else {
				assert.Contains(t, dump, "local 10.100.100.2 learning true\n  flood")
			}
			assert.Contains(t, dump, "macvlan lhnet1-host mtu 1400 up on vxlan-storage mode bridge\n  address "+c.shim+"\n")
			if c.arpIgnore != "" {
				assert.Contains(t, dump, "net/ipv4/conf/vxlan-storage/arp_ignore="+c.arpIgnore+"\n")
			} else {
				assert.NotContains(t, dump, "vxlan-storage/arp_ignore=8", "it would answer for nothing")
			}
			if c.route != "" {
				assert.Contains(t, dump, c.route, "pods are reached over the shim")
			}
			w.quiet(vxlan())
			assert.Contains(t, w.place(vxlan()), `"kubernetes":["`+c.kubernetes+`"]`, "also while the API server is away")
		})
	}
}

// A parent that would have to be made again isn't, though nothing hangs on it.
func TestParentWithAKubernetesAddressIsNotDeleted(t *testing.T) {
	w := inCluster(t, prepared(scriptParent, on(vx, "172.16.0.2/24"))(), "172.16.0.2")
	before := w.f.Dump()
	err := w.ensure(with(vxlan(), func(p *netconf.Plan) { p.Parent.VNI = 7 }))
	assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "this node's Kubernetes address 172.16.0.2")
	assert.Equal(t, before, w.f.Dump())
}
