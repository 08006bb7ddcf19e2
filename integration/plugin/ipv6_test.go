package plugin

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

// ipv6 is the network of vxlan with IPv6 addresses alone.
func (n *node) ipv6() conf {
	c := n.vxlan().with("hostShim.range", "fd00:10:100:1::/124", "ipam.ranges", nil)
	return c.with("ipam.ranges", []any{n.ipv6Ranges()})
}

func (n *node) ipv6Ranges() []any {
	host := map[int]string{1: "11", 2: "12"}[n.file.Index]
	return []any{map[string]any{
		"subnet": "fd00:10:100:1::/64", "rangeStart": "fd00:10:100:1::" + host + "0", "rangeEnd": "fd00:10:100:1::" + host + "f",
	}}
}

// dual is the network with addresses of both families.
func (n *node) dual() conf {
	c := n.vxlan()
	ranges := c["ipam"].(map[string]any)["ranges"].([]any)
	return c.with("hostShim.range", []string{"10.100.1.0/28", "fd00:10:100:1::/124"}, "ipam.ranges", append(ranges, n.ipv6Ranges()))
}

// overIPv6 has the tunnel go over an IPv6 underlay.
func (c conf) overIPv6() conf {
	return c.with("parent.vtep.cidr", "fd00:64::/64",
		"parent.vtep.via", map[string]string{"fd00:64::1": "to-node1", "fd00:64::2": "to-node2"},
		"parent.peers", []string{"fd00:64::1", "fd00:64::2"})
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		conf   func(*node) conf
		v4, v6 bool
		under6 bool
		mtu    int
	}{
		{"dual stack over IPv4", (*node).dual, true, true, false, 8950},
		{"IPv6 over IPv4", (*node).ipv6, false, true, false, 8950},
		{"IPv4 over IPv6", func(n *node) conf { return n.vxlan().overIPv6() }, true, false, true, 8930},
		{"dual stack over IPv6", func(n *node) conf { return n.dual().overIPv6() }, true, true, true, 8930},
		{"IPv6 over IPv6", func(n *node) conf { return n.ipv6().overIPv6() }, false, true, true, 8930},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n1, n2 := newNode(t, 1), newNode(t, 2)
			if tt.under6 {
				connect(t, n1, n2, "fd00:31::/127", "fd00:31::1/127")
			} else {
				connect(t, n1, n2, "10.100.0.0/31", "10.100.0.1/31")
			}
			a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
			n1.add(t, a, tt.conf(n1))
			n2.add(t, b, tt.conf(n2))
			out := n1.must(t, "ADD", beside, tt.conf(n1))
			// The kernel's own timing has an address tentative for up to 2 s.
			assert.NotContains(t, beside.sh(t, "ip -6 addr show dev lhnet1 scope global"), "tentative", "usable when ADD returns")
			assert.NotContains(t, n1.sh(t, "ip -6 addr show dev lhnet1-host scope global"), "tentative")
			t.Logf("ADD on a node that is ready, with conflict detection: %s", out.Wall)
			for _, ip := range decode(t, "1.1.0", out.Stdout).IPs {
				addr, _ := netip.AddrFromSlice(ip.Address.IP)
				beside.addrs = append(beside.addrs, addr.Unmap())
			}

			if tt.v4 {
				requireLegs(t, legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b)...)
			}
			if tt.v6 {
				shim1, shim2 := netip.MustParseAddr("fd00:10:100:1::1"), netip.MustParseAddr("fd00:10:100:1::2")
				requireLegs(t, legsOf(n1, n2, shim1, shim2, a, beside, b)...)
			}
			assert.Equal(t, tt.mtu, a.mtu(t, "lhnet1"))
			assert.Empty(t, n1.addrs(t, "vxlan-storage"))
			for n, p := range map[*node]*pod{n1: a, n2: b} {
				n.must(t, "DEL", p, tt.conf(n))
				n.requireNothingOf(t, p)
			}
		})
	}
}
