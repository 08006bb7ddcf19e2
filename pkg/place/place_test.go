package place

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// vxlan is the network of the README; device is the same on a NIC.
func vxlan() *netconf.Plan {
	return &netconf.Plan{
		Parent: netconf.Parent{
			Type: netconf.ParentVXLAN, Name: "vxlan-storage", VNI: 100, Port: 4789,
			VTEP: netconf.VTEP{CIDR: netip.MustParsePrefix("10.100.100.0/24"), Interface: "dummy0"},
		},
		HostShim: &netconf.HostShim{Name: "lhnet1-host", Ranges: prefixes("10.100.1.0/28"), Networks: prefixes("10.100.1.0/24")},
	}
}

func device() *netconf.Plan {
	p := vxlan()
	p.Parent = netconf.Parent{Type: netconf.ParentDevice, Name: "eth1"}
	return p
}

func dual(ranges ...string) *netconf.Plan {
	p := vxlan()
	p.HostShim.Ranges, p.HostShim.Networks = nil, nil
	for _, r := range ranges {
		p.HostShim.Ranges = append(p.HostShim.Ranges, netip.MustParsePrefix(r))
		network := "10.100.1.0/24"
		if strings.Contains(r, ":") {
			network = "fd00::/64"
		}
		p.HostShim.Networks = append(p.HostShim.Networks, netip.MustParsePrefix(network))
	}
	return p
}

func with(p *netconf.Plan, change func(*netconf.Plan)) *netconf.Plan {
	change(p)
	return p
}

func pin(p *netconf.Plan, to ...string) *netconf.Plan {
	p.HostShim.Addresses = addrs(to...)
	return p
}

func TestPrecedence(t *testing.T) {
	const vtep2, vtep7 = "10.100.100.2", "10.100.100.7"
	for _, c := range []struct {
		name  string
		plan  *netconf.Plan
		index int
		seen  Seen
		last  Place
		want  Place
	}{
		{"index", vxlan(), 2, Seen{}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"held by the shim", vxlan(), 0, Seen{OnShim: addrs("10.100.1.5")}, Place{},
			Place{Index: 5, VTEP: addrs("10.100.100.5")[0], Shim: addrs("10.100.1.5")}},
		{"held by the shim, not the index", vxlan(), 2, Seen{OnShim: addrs("10.100.1.5")}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.5")}},
		{"held by the parent", vxlan(), 0, Seen{OnParent: addrs("10.100.1.5")}, Place{},
			Place{Index: 5, VTEP: addrs("10.100.100.5")[0], Shim: addrs("10.100.1.5")}},
		{"shim before parent", vxlan(), 0, Seen{OnShim: addrs("10.100.1.5"), OnParent: addrs("10.100.1.6")}, Place{},
			Place{Index: 5, VTEP: addrs("10.100.100.5")[0], Shim: addrs("10.100.1.5")}},
		{"a NIC's own address isn't the shim's", device(), 2, Seen{OnParent: addrs("10.100.1.5")}, Place{},
			Place{Index: 2, Shim: addrs("10.100.1.2")}},
		{"outside the host range isn't held", vxlan(), 2, Seen{OnShim: addrs("10.100.1.77")}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"pinned before last and index", pin(vxlan(), "10.100.1.9"), 2, Seen{}, Place{Index: 2, Shim: addrs("10.100.1.4")},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.9")}},
		{"pinned tells the index", pin(vxlan(), "10.100.1.9"), 0, Seen{}, Place{},
			Place{Index: 9, VTEP: addrs("10.100.100.9")[0], Shim: addrs("10.100.1.9")}},
		{"pinned and held agree", pin(vxlan(), "10.100.1.9"), 0, Seen{OnShim: addrs("10.100.1.9")}, Place{},
			Place{Index: 9, VTEP: addrs("10.100.100.9")[0], Shim: addrs("10.100.1.9")}},
		{"held twice: the pinned one", pin(vxlan(), "10.100.1.9"), 0, Seen{OnShim: addrs("10.100.1.3", "10.100.1.9")}, Place{},
			Place{Index: 9, VTEP: addrs("10.100.100.9")[0], Shim: addrs("10.100.1.9")}},
		{"held twice: the one of before", vxlan(), 0, Seen{OnShim: addrs("10.100.1.3", "10.100.1.9")}, Place{Index: 9, Shim: addrs("10.100.1.9")},
			Place{Index: 9, VTEP: addrs("10.100.100.9")[0], Shim: addrs("10.100.1.9")}},
		{"last before the index", vxlan(), 2, Seen{}, Place{Index: 2, Shim: addrs("10.100.1.5"), VTEP: addrs(vtep7)[0]},
			Place{Index: 2, VTEP: addrs(vtep7)[0], Shim: addrs("10.100.1.5")}},
		{"reboot: last alone", vxlan(), 0, Seen{}, Place{Index: 5, Shim: addrs("10.100.1.5"), VTEP: addrs("10.100.100.5")[0]},
			Place{Index: 5, VTEP: addrs("10.100.100.5")[0], Shim: addrs("10.100.1.5")}},
		{"last of another range isn't used, its index is", vxlan(), 0, Seen{}, Place{Index: 5, Shim: addrs("192.168.0.9"), VTEP: addrs("192.168.1.9")[0]},
			Place{Index: 5, VTEP: addrs("10.100.100.5")[0], Shim: addrs("10.100.1.5")}},
		{"a held address tells the index before the disk does", vxlan(), 0, Seen{OnShim: addrs("10.100.1.9")}, Place{Index: 2},
			Place{Index: 9, VTEP: addrs("10.100.100.9")[0], Shim: addrs("10.100.1.9")}},
		{"VTEP tells the index", vxlan(), 0, Seen{Local: addrs("192.168.0.1", vtep7)}, Place{},
			Place{Index: 7, VTEP: addrs(vtep7)[0], Shim: addrs("10.100.1.7")}},
		{"index before the VTEP's", vxlan(), 2, Seen{Local: addrs(vtep7)}, Place{},
			Place{Index: 2, VTEP: addrs(vtep7)[0], Shim: addrs("10.100.1.2")}},
		{"VTEP tells the index, without a shim too", with(vxlan(), func(p *netconf.Plan) { p.HostShim = nil }), 0, Seen{Local: addrs(vtep7)}, Place{},
			Place{Index: 7, VTEP: addrs(vtep7)[0]}},
		{"two addresses in the VTEP range: the tunnel's", vxlan(), 2, Seen{Local: addrs(vtep2, vtep7), Tunnel: addrs(vtep7)[0]}, Place{},
			Place{Index: 2, VTEP: addrs(vtep7)[0], Shim: addrs("10.100.1.2")}},
		{"then the one of before", vxlan(), 2, Seen{Local: addrs(vtep2, vtep7)}, Place{Index: 2, VTEP: addrs(vtep7)[0]},
			Place{Index: 2, VTEP: addrs(vtep7)[0], Shim: addrs("10.100.1.2")}},
		{"a Kubernetes address on the shim is the shim's", vxlan(), 2, Seen{OnShim: addrs("10.100.1.5"), OnParent: addrs("10.100.1.5"), Kubernetes: addrs("10.100.1.5")}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.5")}},
		{"one on the parent outside the host range is nobody's", vxlan(), 2, Seen{OnParent: addrs("10.100.1.77"), Kubernetes: addrs("10.100.1.77")}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"then the lowest", vxlan(), 2, Seen{Local: addrs(vtep7, vtep2)}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"a tunnel address that the node hasn't isn't held", vxlan(), 2, Seen{Tunnel: addrs("10.100.100.9")[0]}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"the operator moves the node", vxlan(), 3, Seen{}, Place{Index: 2, Shim: addrs("10.100.1.2"), VTEP: addrs(vtep2)[0]},
			Place{Index: 3, VTEP: addrs("10.100.100.3")[0], Shim: addrs("10.100.1.3")}},
		{"which doesn't touch what is held", vxlan(), 3, Seen{OnShim: addrs("10.100.1.2"), Local: addrs(vtep2)}, Place{Index: 2},
			Place{Index: 3, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2")}},
		{"peers: not one's own, sorted, once", with(vxlan(), func(p *netconf.Plan) {
			p.Parent.Peers = addrs("10.100.100.3", vtep2, "10.100.100.1", "10.100.100.3")
		}), 2, Seen{}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2"), Peers: addrs("10.100.100.1", "10.100.100.3")}},
		{"a list of one's own is a list of none", with(vxlan(), func(p *netconf.Plan) { p.Parent.Peers = addrs(vtep2) }), 2, Seen{}, Place{},
			Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("10.100.1.2"), Peers: []netip.Addr{}}},
		{"a VTEP among the peers", with(vxlan(), func(p *netconf.Plan) {
			p.Parent.VTEP.CIDR, p.Parent.Peers = netip.Prefix{}, addrs("192.168.7.1", "192.168.7.2")
		}), 2, Seen{Local: addrs("192.168.7.2", "10.0.0.1")}, Place{},
			Place{Index: 2, VTEP: addrs("192.168.7.2")[0], Shim: addrs("10.100.1.2"), Peers: addrs("192.168.7.1")}},
		{"IPv6", with(dual("fd00::/124"), func(p *netconf.Plan) { p.Parent.VTEP.CIDR = netip.MustParsePrefix("fd09::/64") }), 3, Seen{}, Place{},
			Place{Index: 3, VTEP: addrs("fd09::3")[0], Shim: addrs("fd00::3")}},
		{"dual stack", dual("10.100.1.0/28", "fd00::/124"), 3, Seen{}, Place{},
			Place{Index: 3, VTEP: addrs("10.100.100.3")[0], Shim: addrs("10.100.1.3", "fd00::3")}},
		{"the second family held, the first derived", dual("10.100.1.0/28", "fd00::/124"), 0, Seen{OnShim: addrs("fd00::4")}, Place{},
			Place{Index: 4, VTEP: addrs("10.100.100.4")[0], Shim: addrs("10.100.1.4", "fd00::4")}},
		{"the first family held, the second derived", dual("10.100.1.0/28", "fd00::/124"), 0, Seen{OnParent: addrs("10.100.1.4")}, Place{},
			Place{Index: 4, VTEP: addrs("10.100.100.4")[0], Shim: addrs("10.100.1.4", "fd00::4")}},
		{"a family added after a reboot", dual("10.100.1.0/28", "fd00::/124"), 0, Seen{}, Place{Index: 4, Shim: addrs("10.100.1.4")},
			Place{Index: 4, VTEP: addrs("10.100.100.4")[0], Shim: addrs("10.100.1.4", "fd00::4")}},
		{"an IPv6 address far in: no index, but kept", with(dual("fd00::/65"), func(p *netconf.Plan) { p.HostShim.Networks = prefixes("fd00::/64") }),
			2, Seen{OnShim: addrs("fd00::1:0:0:1")}, Place{}, Place{Index: 2, VTEP: addrs(vtep2)[0], Shim: addrs("fd00::1:0:0:1")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Resolve(c.plan, nodefile.File{NodeName: "n", Index: c.index}, c.seen, c.last)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
			again, err := Resolve(c.plan, nodefile.File{NodeName: "n", Index: c.index}, c.seen, got)
			require.NoError(t, err)
			assert.Equal(t, got, again, "fed back as the last answer")
		})
	}
}

func TestFaultsComeAtOnce(t *testing.T) {
	both := dual("10.100.1.0/28", "fd00::/124")
	for _, c := range []struct {
		name  string
		plan  *netconf.Plan
		index int
		seen  Seen
		want  []string
	}{
		{"nothing known", both, 0, Seen{}, []string{
			"no address of host range 10.100.1.0/28", "no address of host range fd00::/124", "parent.vtep.cidr 10.100.100.0/24", "set index in the node file",
		}},
		{"beyond all", both, 4000, Seen{}, []string{
			"index 4000 is beyond host range 10.100.1.0/28", "index 4000 is beyond host range fd00::/124", "index 4000 is beyond parent.vtep.cidr 10.100.100.0/24",
		}},
		{"absurd, in a range without end", dual("fd00::/65"), 1 << 40, Seen{}, []string{"index 1099511627776 is beyond host range fd00::/65"}},
		{"pins against what is held", pin(dual("10.100.1.0/28", "fd00::/124"), "10.100.1.9", "fd00::9"), 0,
			Seen{OnShim: addrs("10.100.1.2", "fd00::2")}, []string{
				"hostShim.address is 10.100.1.9, but this node already has 10.100.1.2",
				"hostShim.address is fd00::9, but this node already has fd00::2",
			}},
		{"a Kubernetes address that would have to move", vxlan(), 2, Seen{OnParent: addrs("10.100.1.5"), Kubernetes: addrs("192.168.7.2", "10.100.1.5")}, []string{
			"10.100.1.5 on vxlan-storage is this node's Kubernetes address", "never moved", "host range 10.100.1.0/28", "--node-ip",
		}},
		{"no VTEP among the peers", with(vxlan(), func(p *netconf.Plan) {
			p.Parent.VTEP.CIDR, p.Parent.Peers = netip.Prefix{}, addrs("192.168.7.1", "192.168.7.2")
		}), 2, Seen{}, []string{"parent.peers (192.168.7.1, 192.168.7.2)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Resolve(c.plan, nodefile.File{NodeName: "node-7", Index: c.index}, c.seen, Place{})
			assert.Zero(t, got)
			assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
			for _, text := range append(c.want, "node-7", "vxlan-storage") {
				assert.ErrorContains(t, err, text)
			}
		})
	}
}

// A node by whose VTEP alone something is known may have any index.
func TestHeld(t *testing.T) {
	lan := with(vxlan(), func(p *netconf.Plan) { p.Parent.VTEP.CIDR = prefixes("192.168.7.0/24")[0] })
	for _, c := range []struct {
		name  string
		plan  *netconf.Plan
		seen  Seen
		vtep  string
		index int
	}{
		{"nothing", vxlan(), Seen{}, "invalid IP", 0},
		{"a script's", vxlan(), Seen{Local: addrs("10.100.100.7")}, "10.100.100.7", 7},
		{"of a LAN", lan, Seen{Local: addrs("10.0.0.1", "192.168.7.117")}, "192.168.7.117", 117},
		{"among the peers", with(vxlan(), func(p *netconf.Plan) { p.Parent.VTEP.CIDR, p.Parent.Peers = netip.Prefix{}, addrs("192.168.7.2") }), Seen{Local: addrs("192.168.7.2")}, "192.168.7.2", 0},
		{"a NIC has none", device(), Seen{Local: addrs("10.100.100.7")}, "invalid IP", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			vtep, index := Held(c.plan, c.seen)
			assert.Equal(t, c.vtep, vtep.String())
			assert.Equal(t, c.index, index)
			assert.Zero(t, Index(c.plan, nodefile.File{}, c.seen, Place{}))
		})
	}
}

func TestUsable(t *testing.T) {
	for _, c := range []struct{ hosts, network, want string }{
		{"10.100.1.0/28", "10.100.1.0/24", "10.100.1.1-10.100.1.15"},
		{"10.100.1.240/28", "10.100.1.0/24", "10.100.1.240-10.100.1.254"},
		{"10.100.1.16/28", "10.100.1.0/24", "10.100.1.16-10.100.1.31"},
		{"10.100.1.0/24", "10.100.1.0/24", "10.100.1.1-10.100.1.254"},
		{"10.100.1.0/28", "", "10.100.1.1-10.100.1.14"},
		{"10.100.1.7/32", "10.100.1.0/24", "10.100.1.7-10.100.1.7"},
		{"10.100.1.7/32", "", "10.100.1.7-10.100.1.7"},
		{"10.100.1.6/31", "", "10.100.1.6-10.100.1.7"},
		{"10.100.1.0/30", "", "10.100.1.1-10.100.1.2"},
		{"0.0.0.0/0", "", "0.0.0.1-255.255.255.254"},
		{"255.255.255.240/28", "255.255.255.0/24", "255.255.255.240-255.255.255.254"},
		{"fd00::/124", "fd00::/64", "fd00::1-fd00::f"},
		{"fd00::10/124", "fd00::/64", "fd00::10-fd00::1f"},
		{"fd00::2/127", "", "fd00::2-fd00::3"},
		{"fd00::2/128", "fd00::/64", "fd00::2-fd00::2"},
	} {
		var network netip.Prefix
		if c.network != "" {
			network = netip.MustParsePrefix(c.network)
		}
		assert.Equal(t, c.want, Usable(netip.MustParsePrefix(c.hosts), network).String(), "%s in %s", c.hosts, c.network)
	}
}

// An address and the index that it stands for lead to each other.
func TestIndexAndAddressAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := prefixes("10.100.1.0/28", "10.100.1.16/28", "10.100.1.240/28", "10.100.0.0/18", "fd00::/124", "fd00::/64", "10.0.0.6/31", "10.0.0.6/32")
		r := Usable(rapid.SampledFrom(hosts).Draw(t, "hosts"), rapid.SampledFrom(append(hosts[:0:0], hosts[0], netip.Prefix{})).Draw(t, "network"))
		index := rapid.IntRange(-2, 1<<17).Draw(t, "index")
		addr, ok := nth(r, index)
		if !ok {
			assert.Zero(t, ordinal(r, r.From().Prev()))
			return
		}
		assert.Equal(t, index, ordinal(r, addr))
	})
}

// Any number of nodes, started in any order, some of which hold their addresses
// already (by a script that counted as we do, or oddly, in some part): no two get
// one address or VTEP, nobody loses what it holds, and asking again gives the same.
func TestNoTwoNodesGetOneAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan := dual("10.100.1.0/26", "fd00::/122")
		n := rapid.IntRange(2, 20).Draw(t, "nodes")
		shims, vteps := map[netip.Addr]int{}, map[netip.Addr]int{}
		order := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 1)).Perm(n)
		for _, i := range order {
			index := i + 1
			node := nodefile.File{NodeName: fmt.Sprint("n", index), Index: index}
			seen, held := holding(t, index)
			p, err := Resolve(plan, node, seen, Place{})
			require.NoError(t, err)
			for _, a := range p.Shim {
				assert.NotContains(t, shims, a)
				shims[a] = index
			}
			assert.NotContains(t, vteps, p.VTEP)
			vteps[p.VTEP] = index
			for _, a := range held {
				assert.True(t, slices.Contains(p.Shim, a) || p.VTEP == a, "%v lost %v: %v", index, a, p)
			}
			assert.Equal(t, p, again(t, plan, node, p))
		}
		assert.Len(t, vteps, n)
		assert.Len(t, slices.Collect(maps.Keys(shims)), 2*n)
	})
}

// holding draws what a node has before lhstorage comes.
func holding(t *rapid.T, index int) (seen Seen, held []netip.Addr) {
	// The odd ones lie beyond the indexes in use: 40 + index.
	number := index
	if rapid.Bool().Draw(t, "odd") {
		number += 40
	}
	v4, v6, vtep := netip.AddrFrom4([4]byte{10, 100, 1, byte(number)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", number)),
		netip.AddrFrom4([4]byte{10, 100, 100, byte(number)})
	for _, a := range []netip.Addr{v4, v6} {
		switch rapid.IntRange(0, 2).Draw(t, "where") {
		case 0:
			seen.OnShim = append(seen.OnShim, a)
			held = append(held, a)
		case 1:
			seen.OnParent = append(seen.OnParent, a)
			held = append(held, a)
		}
	}
	if rapid.Bool().Draw(t, "vtep") {
		seen.Local = append(seen.Local, vtep)
		held = append(held, vtep)
	}
	seen.Local = append(seen.Local, seen.OnShim...)
	return seen, held
}

// again asks once more, with the answer in the kernel and on disk, on disk alone
// (after a reboot), and in the kernel alone, without the index (a lost node file).
func again(t *rapid.T, plan *netconf.Plan, node nodefile.File, p Place) Place {
	all := append(slices.Clone(p.Shim), p.VTEP)
	kernel := Seen{OnShim: slices.Clone(p.Shim), Local: all, Tunnel: p.VTEP}
	unnamed := node
	unnamed.Index = 0
	switch rapid.IntRange(0, 3).Draw(t, "again") {
	case 0:
		return resolve(t, plan, node, kernel, p)
	case 1:
		return resolve(t, plan, node, Seen{}, p)
	case 2:
		slices.Reverse(kernel.OnShim)
		return resolve(t, plan, node, kernel, Place{})
	default:
		got := resolve(t, plan, unnamed, kernel, p)
		got.Index = p.Index // the addresses stay; the number may be that of an address
		return got
	}
}

func resolve(t *rapid.T, plan *netconf.Plan, node nodefile.File, seen Seen, last Place) Place {
	p, err := Resolve(plan, node, seen, last)
	require.NoError(t, err)
	return p
}

// Stable, locally administered, unicast, and different for each node, address,
// parent and role.
func TestMAC(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"n1", "n11", "localhost"} {
		for _, id := range addrs("10.0.0.1", "10.0.0.11", "fd00::1") {
			for _, parent := range []string{"vxlan-storage", "eth0"} {
				for _, role := range []string{"parent", "shim lhnet1-host", "shim lhnet2-host"} {
					mac := MAC(nodefile.File{NodeName: name}, parent, role, id)
					assert.Len(t, mac, 6)
					assert.Equal(t, byte(2), mac[0]&3, "local and unicast: %s", mac)
					assert.Equal(t, mac, MAC(nodefile.File{NodeName: name, RunDir: "/x"}, parent, role, id))
					who := fmt.Sprint(name, id, parent, role)
					assert.NotContains(t, seen, mac.String(), "%s", who)
					seen[mac.String()] = who
				}
			}
		}
	}
	// Kept through upgrades: a change would make every parent an adopted one.
	assert.Equal(t, "c6:c4:5e:36:2a:29", MAC(nodefile.File{NodeName: "node1"}, "vxlan-storage", "parent", netip.MustParseAddr("10.100.100.1")).String())
}
