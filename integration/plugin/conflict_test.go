package plugin

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// foreign is a device that lhstorage doesn't know: a macvlan child of the parent in a
// namespace of its own. It returns the device's MAC.
func (n *node) foreign(t *testing.T, addresses ...string) string {
	t.Helper()
	s := newSpace(t)
	n.sh(t, "ip link add foreign0 link vxlan-storage netns %s type macvlan mode bridge", s.name())
	s.sh(t, "ip link set foreign0 up")
	for _, a := range addresses {
		s.sh(t, "ip addr add %s dev foreign0 nodad", a)
	}
	return s.mac(t, "foreign0")
}

// patient is a conflict detection with time enough for an answer on a busy machine.
func (c conf) patient() conf { return c.with("conflictDetection.window", "300ms") }

// own is the network with lhstorage-ipam, and pods' addresses from the given one on.
func (n *node) own(start string) conf {
	return n.vxlan().patient().with("ipam", map[string]any{"type": "lhstorage-ipam", "range": "10.100.1.0/24", "range_start": start})
}

// holders are the places in which a taken address can be.
var holders = []struct {
	name, device string // device: where the error says that it was seen
	take         func(t *testing.T, n1, n2 *node, address string) (mac string)
}{
	{"on another node", "lhnet1", func(t *testing.T, _, n2 *node, address string) string { return n2.foreign(t, address+"/24") }},
	{"on the same node", "lhnet1", func(t *testing.T, n1, _ *node, address string) string { return n1.foreign(t, address+"/24") }},
	{"on a device of this host", "to-node2", func(t *testing.T, n1, _ *node, address string) string {
		n1.sh(t, "ip addr add %s/32 dev to-node2", address)
		return n1.mac(t, "to-node2")
	}},
}

func TestTakenAddressWithOurIPAM(t *testing.T) {
	t.Parallel()
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			n1, n2 := twoNodes(t)
			n1.add(t, n1.pod(t, "first"), n1.own("10.100.1.30"))
			n2.add(t, n2.pod(t, "there"), n2.own("10.100.1.130"))
			mac := h.take(t, n1, n2, "10.100.1.31")
			h.take(t, n1, n2, "10.100.1.32")

			p := n1.pod(t, "a")
			out := n1.must(t, "ADD", p, n1.own("10.100.1.30"))
			assert.Equal(t, []string{"10.100.1.33/24"}, p.space.addrs(t, "lhnet1"), "the third free one, in the same ADD")
			for _, word := range []string{"10.100.1.31", mac, h.device, "10.100.1.32"} {
				assert.Contains(t, string(out.Stderr), word)
			}
			requireLegs(t, leg{"host-local", n1.space, netip.MustParseAddr("10.100.1.33")})

			// The quarantine outlives both the attachment and the intruder.
			n1.must(t, "DEL", p, n1.own("10.100.1.30"))
			n1.requireNothingOf(t, p)
			next := n1.pod(t, "next")
			n1.add(t, next, n1.own("10.100.1.30").with("conflictDetection.enabled", false))
			assert.Equal(t, netip.MustParseAddr("10.100.1.33"), next.addr())
		})
	}
}

// An ADD doesn't go on for ever where everything is taken.
func TestTooManyTakenAddresses(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	n2.add(t, n2.pod(t, "there"), n2.own("10.100.1.130"))
	n1.add(t, n1.pod(t, "here"), n1.own("10.100.1.130"))
	n2.foreign(t, "10.100.1.30/24", "10.100.1.31/24", "10.100.1.32/24", "10.100.1.33/24", "10.100.1.34/24")
	p := n1.pod(t, "a")
	_, err := n1.run(t, "ADD", p, n1.own("10.100.1.30"))
	requireRefusal(t, err, cnierr.DuplicateAddress, "10.100.1.33")
	n1.requireNothingOf(t, p)
	n1.add(t, p, n1.own("10.100.1.30"))
	assert.Equal(t, netip.MustParseAddr("10.100.1.35"), p.addr(), "what was declined stays so: the next ADD gets further")
}

func TestTakenAddressWithAnotherIPAM(t *testing.T) {
	t.Parallel()
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			n1, n2 := twoNodes(t)
			n1.add(t, n1.pod(t, "first"), n1.vxlan())
			n2.add(t, n2.pod(t, "there"), n2.vxlan())
			mac := h.take(t, n1, n2, "10.100.1.17")
			p := n1.pod(t, "a")
			_, err := n1.run(t, "ADD", p, n1.vxlan().patient())
			requireRefusal(t, err, cnierr.DuplicateAddress, "10.100.1.17", mac, h.device)
			n1.requireNothingOf(t, p)

			// Switched off, it isn't looked for.
			n1.add(t, n1.pod(t, "b"), n1.vxlan().with("conflictDetection.enabled", false,
				"ipam", map[string]any{"type": "static", "addresses": []any{map[string]any{"address": "10.100.1.17/24"}}}))
		})
	}
}

func TestTakenIPv6Address(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"on another node", "on the same node"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			n1, n2 := twoNodes(t)
			n1.add(t, n1.pod(t, "first"), n1.ipv6())
			n2.add(t, n2.pod(t, "there"), n2.ipv6())
			holder := n2
			if where == "on the same node" {
				holder = n1
			}
			mac := holder.foreign(t, "fd00:10:100:1::111/64")
			p := n1.pod(t, "a")
			_, err := n1.run(t, "ADD", p, n1.ipv6().patient())
			requireRefusal(t, err, cnierr.DuplicateAddress, "fd00:10:100:1::111", mac, "lhnet1")
			n1.requireNothingOf(t, p)
		})
	}
}

func TestTakenIPv6AddressWithOurIPAM(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	own := func(n *node) conf {
		return n.ipv6().patient().with("ipam", map[string]any{"type": "lhstorage-ipam", "range": "fd00:10:100:1::/64", "range_start": "fd00:10:100:1::30"})
	}
	n1.add(t, n1.pod(t, "first"), own(n1))
	n2.add(t, n2.pod(t, "there"), own(n2).with("ipam.range_start", "fd00:10:100:1::130"))
	n2.foreign(t, "fd00:10:100:1::31/64")
	p := n1.pod(t, "a")
	n1.add(t, p, own(n1))
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("fd00:10:100:1::32")}, p.addrs)
	assert.Equal(t, []string{"fd00:10:100:1::32/64"}, p.space.addrs(t, "lhnet1"))
}

func TestTakenShimAddress(t *testing.T) {
	t.Parallel()
	t.Run("IPv4", func(t *testing.T) {
		t.Parallel()
		n1, n2 := twoNodes(t)
		n2.add(t, n2.pod(t, "there"), n2.vxlan())
		mac := n2.foreign(t, "10.100.1.1/24")
		p := n1.pod(t, "a")
		_, err := n1.run(t, "ADD", p, n1.vxlan().patient())
		requireRefusal(t, err, cnierr.DuplicateAddress, "10.100.1.1", mac, "lhnet1-host")
		assert.Empty(t, n1.addrs(t, "lhnet1-host"))
		n1.requireNothingOf(t, p)
	})
	t.Run("IPv6", func(t *testing.T) {
		t.Parallel()
		n1, n2 := twoNodes(t)
		n2.add(t, n2.pod(t, "there"), n2.ipv6())
		n2.foreign(t, "fd00:10:100:1::1/64")
		p := n1.pod(t, "a")
		_, err := n1.run(t, "ADD", p, n1.ipv6().patient())
		requireRefusal(t, err, cnierr.DuplicateAddress, "fd00:10:100:1::1", "lhnet1-host")
		assert.Empty(t, n1.addrs(t, "lhnet1-host"))
		n1.requireNothingOf(t, p)
	})
	t.Run("on another device of this host", func(t *testing.T) {
		t.Parallel()
		n1, _ := twoNodes(t)
		n1.sh(t, "ip addr add 10.100.1.1/32 dev to-node2")
		p := n1.pod(t, "a")
		_, err := n1.run(t, "ADD", p, n1.vxlan())
		requireRefusal(t, err, cnierr.DuplicateAddress, "10.100.1.1", "to-node2")
		n1.requireNothingOf(t, p)
		require.Empty(t, n1.addrs(t, "lhnet1-host"))
	})
}
