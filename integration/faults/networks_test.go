package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// hostLocal is an IPAM section with routes, which host-local passes on.
func (b *bed) hostLocal() string {
	return fmt.Sprintf(`{"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "10.100.1.0/24", "rangeStart": "10.100.1.16", "rangeEnd": "10.100.1.47"}]],
		"routes": [{"dst": "10.200.0.0/24", "gw": "10.100.1.1"}, {"dst": "10.201.0.0/24", "gw": "10.100.1.1"}]}`, filepath.Join(b.Dir, "host-local"))
}

func overVXLAN(shim, ipam string) conf {
	return parse(fmt.Sprintf(`{
		"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
		"parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "mtu": 8900,
			"vtep": {"cidr": "10.100.100.0/24", "interface": "vt0", "routes": "static", "via": {"10.100.100.2": "under0"}},
			"peers": ["10.100.100.1", "10.100.100.2"]},
		"hostShim": {"range": %s}, "ipam": %s}`, shim, ipam))
}

// vxlan is a network with host-local.
func vxlan(b *bed) conf { return overVXLAN(`"10.100.1.0/28"`, b.hostLocal()) }

// dual is a dual-stack network with our IPAM plugin.
func dual(*bed) conf {
	return overVXLAN(`["10.100.1.0/28", "fd00:1::/120"]`, `{"type": "lhstorage-ipam",
		"ipRanges": [{"range": "10.100.1.0/24"}, {"range": "fd00:1::/64"}]}`)
}

// ours is an IPv4 network with our IPAM plugin.
func ours(*bed) conf {
	return overVXLAN(`"10.100.1.0/28"`, `{"type": "lhstorage-ipam", "range": "10.100.1.0/24"}`)
}

// flat is a network on a device that has an address of its own in it.
func flat(b *bed) conf {
	return parse(fmt.Sprintf(`{
		"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
		"parent": {"type": "device", "name": "under0"}, "hostShim": {"range": "10.100.1.0/28"}, "ipam": %s}`, b.hostLocal()))
}

// chained is our part of a list whose main plugin is stock macvlan.
func chained(*bed) conf {
	return parse(`{"cniVersion": "1.0.0", "name": "storage", "type": "lhstorage", "hostShim": {"range": "10.100.1.0/28"}}`)
}

func (b *bed) macvlan() conf {
	return parse(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "storage", "type": "macvlan", "master": "under0", "mode": "bridge", "ipam": %s}`, b.hostLocal()))
}

// nodeWithVTEPDevice has the device for the VTEP, down.
func nodeWithVTEPDevice(t *testing.T, b *bed) {
	b.sh(t, "ip link add vt0 address 02:00:00:00:00:03 type bridge")
}

// readyNode has a pod that is attached already.
func readyNode(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	b.add(t, b.pod(t, "neighbour"))
}

// scriptedNode has what a script made before: a parent with everything that can be
// put right in place, the host's addresses on it, a shim that is down.
func scriptedNode(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	b.sh(t, `
		ip link set vt0 up; ip addr add 10.100.100.1/32 dev vt0
		ip link add vxlan-storage address 02:00:00:00:00:04 mtu 1450 type vxlan id 100 dstport 4789 nolearning
		bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.7
		ip addr add 10.100.1.1/24 dev vxlan-storage
		ip addr add 10.100.1.9/24 dev vxlan-storage
		ip route add 10.100.100.7/32 dev under0 proto 211
		ip link add lhnet1-host link vxlan-storage address 02:00:00:00:00:05 type macvlan mode bridge`)
	require.NotContains(t, b.sh(t, "ip link show vxlan-storage"), ",UP")
}

// lowNode was made by us, with a pod, and then somebody lowered the MTU.
func lowNode(t *testing.T, b *bed) {
	readyNode(t, b)
	b.sh(t, "ip link set vxlan-storage mtu 1400")
}

// otherVNI has a parent of ours with a VNI that the network no longer has.
func otherVNI(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	b.sh(t, "ip link add vxlan-storage type vxlan id 99 dstport 4789 local 10.100.100.1")
}

// guardedParent has a parent that was about to be deleted when its network changed
// back.
func guardedParent(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	p := b.pod(t, "earlier")
	b.conf["parent"].(map[string]any)["vni"] = 99
	require.Error(t, b.tryAdd(t, p, fault("ensure.shim.create=error")))
	b.conf = vxlan(b)
	_, err := b.call(t.Context(), "ADD", p, fault("ensure.parent.guarded=kill"))
	requireKilled(t, err)
	b.conf["parent"].(map[string]any)["vni"] = 99
}

// flatNode has an address of the network on the parent, and a route of an earlier
// host range.
func flatNode(t *testing.T, b *bed) {
	b.sh(t, `
		ip addr add 10.100.1.200/24 dev under0
		ip link add lhnet1-host link under0 address 02:00:00:00:00:05 type macvlan mode bridge; ip link set lhnet1-host up
		ip route add 10.100.9.0/24 dev lhnet1-host proto 211`)
}

// takenAddresses has the lowest addresses of the pods' range on a device of its own.
func takenAddresses(t *testing.T, b *bed) {
	readyNode(t, b)
	b.sh(t, "ip addr add 10.100.1.17/32 dev lo")
}

func bareNode(*testing.T, *bed) {}

// duplicateShim has a shim whose IPv6 address the kernel found to be a duplicate;
// the other holder is gone by now.
func duplicateShim(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	other := b.pod(t, "holder")
	b.sh(t, fmt.Sprintf(`
		ip link set vt0 up; ip addr add 10.100.100.1/32 dev vt0
		ip link add vxlan-storage address 02:00:00:00:00:04 mtu 8900 type vxlan id 100 dstport 4789 local 10.100.100.1; ip link set vxlan-storage up
		ip link add lhnet1 netns %[1]s link vxlan-storage type macvlan mode bridge
		ip -n %[1]s addr add fd00:1::1/64 dev lhnet1 nodad; ip -n %[1]s link set lhnet1 up
		ip link add lhnet1-host link vxlan-storage address 02:00:00:00:00:05 type macvlan mode bridge
		echo 0 > /proc/sys/net/ipv6/conf/lhnet1-host/router_solicitation_delay
		ip link set lhnet1-host up; ip addr add fd00:1::1/64 dev lhnet1-host
		for i in $(seq 100); do ip -6 addr show dev lhnet1-host dadfailed | grep -q fd00 && break; sleep 0.05; done
		ip -6 addr show dev lhnet1-host dadfailed | grep -q fd00
		ip -n %[1]s link del lhnet1`, filepath.Base(other.Path())))
}

// shortShim has a shim whose address came without the network's length.
func shortShim(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	b.sh(t, `
		ip link set vt0 up; ip addr add 10.100.100.1/32 dev vt0
		ip link add vxlan-storage address 02:00:00:00:00:04 mtu 8900 type vxlan id 100 dstport 4789 local 10.100.100.1; ip link set vxlan-storage up
		ip link add lhnet1-host link vxlan-storage address 02:00:00:00:00:05 type macvlan mode bridge
		ip link set lhnet1-host up; ip addr add 10.100.1.1/32 dev lhnet1-host`)
}

// tentativeShim has a shim whose IPv6 address nobody can use yet: the ADD that set it
// was killed.
func tentativeShim(t *testing.T, b *bed) {
	nodeWithVTEPDevice(t, b)
	b.sh(t, "echo 3 > /proc/sys/net/ipv6/conf/default/dad_transmits") // so that it lasts until the test looks
	_, err := b.call(t.Context(), "ADD", b.pod(t, "killed"), fault("ensure.shim.address.set#2=kill"))
	requireKilled(t, err)
}

// claimed has an address that its earlier sandbox got, of which nothing else is
// left.
func claimed(t *testing.T, b *bed, p *pod) {
	earlier := b.pod(t, "a-earlier")
	_, err := b.call(t.Context(), "ADD", earlier, podName(p.name), fault("add.child=kill"))
	requireKilled(t, err)
	require.NoError(t, os.Remove(filepath.Join(b.Run, "attachments", "c-a-earlier@lhnet1.json")))
	b.strangers = append(b.strangers, earlier.container())
}

func attached(t *testing.T, b *bed, p *pod) { b.add(t, p) }

func nodeWithMacvlan(_ *testing.T, b *bed) { b.main = b.macvlan() }
