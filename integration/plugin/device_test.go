package plugin

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lan is a flat network: a bridge in a namespace of its own, which is also the
// nodes' gateway, 192.168.77.1.
func newLAN(t *testing.T) space {
	t.Helper()
	lan := newSpace(t)
	lan.sh(t, `ip link add lan type bridge
		ip addr add 192.168.77.1/24 dev lan
		ip link set lan up`)
	return lan
}

// onLAN makes a node with eth0 on the LAN, an address of the pods' own subnet there
// and a default route by it, as most single-NIC clusters have.
func onLAN(t *testing.T, lan space, index int) *node {
	t.Helper()
	n := newNode(t, index)
	n.sh(t, `ip link add eth0 type veth peer name node%[1]d netns %[2]s
		ip addr add %[3]s/24 dev eth0
		ip link set eth0 up
		ip route add default via 192.168.77.1`, index, lan.name(), nicAddr(index))
	lan.sh(t, "ip link set node%d master lan up", index)
	return n
}

func nicAddr(index int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 77, 200 + byte(index)}) }
func flatShim(index int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, 77, 16 + byte(index) - 1})
}

// flat is the network on the LAN. The host range isn't the subnet's first block, so
// that all of its addresses count.
func (n *node) flat() conf {
	start := 32 * n.file.Index
	return parse(`{
		"cniVersion": "1.1.0", "name": "flat", "type": "lhstorage",
		"parent": {"type": "device", "name": "eth0"}, "hostShim": {"range": "192.168.77.16/28"},
		"ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "192.168.77.0/24", "rangeStart": "192.168.77.%d", "rangeEnd": "192.168.77.%d"}]]}
	}`, n.hostLocal(), start, start+31)
}

func TestFlatNIC(t *testing.T) {
	t.Parallel()
	for _, rpFilter := range []string{"0", "1", "2"} {
		t.Run("rp_filter "+rpFilter, func(t *testing.T) {
			t.Parallel()
			lan := newLAN(t)
			n1, n2 := onLAN(t, lan, 1), onLAN(t, lan, 2)
			for _, n := range []*node{n1, n2} {
				for _, key := range []string{"all", "default", "eth0"} {
					n.sysctl(t, "ipv4/conf/"+key+"/rp_filter", rpFilter)
				}
			}
			own := func(n *node) string {
				return n.sh(t, "ip -o -4 addr show dev eth0; ip route show default; ip route show dev eth0; ip -d link show dev eth0 | grep -v promisc")
			}
			before := []string{own(n1), own(n2)}
			nic := n2.flow(t, "host to the other host's NIC", nicAddr(1))

			a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
			n1.add(t, a, n1.flat())
			n1.add(t, beside, n1.flat())
			n2.add(t, b, n2.flat())
			requireLossless(t, nic)

			requireLegs(t, append(legsOf(n1, n2, flatShim(1), flatShim(2), a, beside, b),
				leg{"host-NIC of the other host", n1.space, nicAddr(2)},
				leg{"pod-NIC of the other host", a.space, nicAddr(2)},
				leg{"pod-NIC of the other host, back", b.space, nicAddr(1)},
				leg{"host-gateway", n1.space, netip.MustParseAddr("192.168.77.1")},
				leg{"gateway-NIC", lan, nicAddr(1)},
			)...)
			after := []string{own(n1), own(n2)}
			assert.Equal(t, before, after, "addresses, routes and NIC are as they were")
			filter := n1.sh(t, "cat /proc/sys/net/ipv4/conf/eth0/rp_filter")
			assert.Equal(t, map[string]string{"0": "0", "1": "2", "2": "2"}[rpFilter], filter, "a strict filter alone is touched")
			assert.Equal(t, []string{flatShim(1).String() + "/32"}, n1.addrs(t, "lhnet1-host"))
		})
	}
}

// The last pod's DEL leaves the NIC alone.
func TestFlatNICAfterDel(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1 := onLAN(t, lan, 1)
	p := n1.pod(t, "a")
	n1.add(t, p, n1.flat())
	n1.must(t, "DEL", p, n1.flat())
	n1.requireNothingOf(t, p)
	assert.Equal(t, []string{nicAddr(1).String() + "/24"}, n1.addrs(t, "eth0"))
	requireLegs(t, leg{"host-gateway", n1.space, netip.MustParseAddr("192.168.77.1")})
}

// A shim that a script made beside the NIC has the subnet's whole length, so the
// host reaches its own pods or the rest of the subnet by chance. Adopted, it keeps
// its address, but not that length, and what ran goes on.
func TestFlatNICAdoptsAScriptsShim(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1, n2 := onLAN(t, lan, 1), onLAN(t, lan, 2)
	for _, n := range []*node{n1, n2} {
		n.sh(t, `ip link add link eth0 lhnet1-host type macvlan mode bridge
			sysctl -qw net.ipv4.conf.lhnet1-host.arp_ignore=1
			ip addr add %s/24 dev lhnet1-host
			ip link set lhnet1-host up`, flatShim(n.file.Index+1)) // not the one of its index
	}
	flow := n2.flow(t, "host to the other host's shim", flatShim(2))
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	n1.add(t, a, n1.flat())
	n1.add(t, beside, n1.flat())
	n2.add(t, b, n2.flat())
	requireLossless(t, flow)
	assert.Equal(t, []string{flatShim(2).String() + "/32"}, n1.addrs(t, "lhnet1-host"))
	requireLegs(t, append(legsOf(n1, n2, flatShim(2), flatShim(3), a, beside, b),
		leg{"host-NIC of the other host", n1.space, nicAddr(2)},
		leg{"host-gateway", n1.space, netip.MustParseAddr("192.168.77.1")})...)
}

// learned are the MACs that asker learns for addr in n tries that each begin with
// an empty neighbour table.
func learned(t *testing.T, asker space, device string, addr netip.Addr, tries int) map[string]int {
	t.Helper()
	macs := map[string]int{}
	for range tries {
		asker.sh(t, "ip neigh flush dev %s", device)
		_, err := asker.try("ping -c 1 -W 5 -q %s", addr)
		require.NoError(t, err)
		for _, entry := range asker.listing(t, "ip -j neigh show to %s dev %s", addr, device) {
			macs[fmt.Sprint(entry["lladdr"])]++
		}
	}
	return macs
}

const flushes = 20

func TestPeersLearnTheShimOverVXLAN(t *testing.T) {
	t.Parallel()
	for _, rpFilter := range []string{"0", "2"} {
		t.Run("rp_filter "+rpFilter, func(t *testing.T) {
			t.Parallel()
			n1, n2 := twoNodes(t)
			n1.sysctl(t, "ipv4/conf/all/rp_filter", rpFilter)
			b := n2.pod(t, "b")
			n1.add(t, n1.pod(t, "a"), n1.vxlan())
			n2.add(t, b, n2.vxlan())
			want := map[string]int{n1.mac(t, "lhnet1-host"): flushes}
			assert.Equal(t, want, learned(t, n2.space, "lhnet1-host", shimAddr(1), flushes), "by the other host")
			assert.Equal(t, want, learned(t, b.space, "lhnet1", shimAddr(1), flushes), "by a pod there")

			n1.sysctl(t, "ipv4/conf/vxlan-storage/arp_ignore", "0")
			wrong := learned(t, b.space, "lhnet1", shimAddr(1), flushes)
			t.Logf("with rp_filter "+rpFilter+", without arp_ignore=8 a peer learned the parent's MAC in %d of %d tries", wrong[n1.mac(t, "vxlan-storage")], flushes)
		})
	}
}

func TestPeersLearnTheShimOnANIC(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1, n2 := onLAN(t, lan, 1), onLAN(t, lan, 2)
	a, b := n1.pod(t, "a"), n2.pod(t, "b")
	n1.add(t, a, n1.flat())
	n2.add(t, b, n2.flat())
	shim, nic := n1.mac(t, "lhnet1-host"), n1.mac(t, "eth0")
	assert.Equal(t, map[string]int{shim: flushes}, learned(t, n2.space, "eth0", flatShim(1), flushes), "by the other host")
	assert.Equal(t, map[string]int{shim: flushes}, learned(t, b.space, "lhnet1", flatShim(1), flushes), "by a pod there")
	assert.Equal(t, map[string]int{nic: flushes}, learned(t, lan, "lan", nicAddr(1), flushes), "the NIC still answers for itself")

	n1.sysctl(t, "ipv4/conf/eth0/arp_ignore", "0")
	wrong := learned(t, n2.space, "eth0", flatShim(1), flushes)
	t.Logf("without arp_ignore=1 on the NIC the other host learned its MAC for the shim's address in %d of %d tries", wrong[nic], flushes)
	assert.Positive(t, wrong[nic], "what the setting is for")
	wrong = learned(t, b.space, "lhnet1", flatShim(1), flushes)
	t.Logf("without arp_ignore=1 on the NIC a pod learned its MAC for the shim's address in %d of %d tries", wrong[nic], flushes)

	// Only ever raised: an operator's stricter value stays, also the one for all devices.
	n1.sysctl(t, "ipv4/conf/eth0/arp_ignore", "2")
	n1.add(t, n1.pod(t, "c"), n1.flat())
	assert.Equal(t, "2", n1.sh(t, "cat /proc/sys/net/ipv4/conf/eth0/arp_ignore"))
	n1.sysctl(t, "ipv4/conf/eth0/arp_ignore", "0")
	n1.add(t, n1.pod(t, "d"), n1.flat())
	assert.Equal(t, "1", n1.sh(t, "cat /proc/sys/net/ipv4/conf/eth0/arp_ignore"), "repaired by the next ADD")
}
