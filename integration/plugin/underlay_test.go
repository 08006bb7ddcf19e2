package plugin

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

// newSwitch is a switch that passes every VLAN and frames of 9000 bytes.
func newSwitch(t *testing.T) space {
	t.Helper()
	s := newSpace(t)
	s.sh(t, "ip link add switch mtu 9000 type bridge; ip link set switch up")
	return s
}

// plug makes devices of the node that are cabled to the switch.
func (n *node) plug(t *testing.T, s space, devices ...string) {
	t.Helper()
	for _, d := range devices {
		port := fmt.Sprintf("%s-%s", n.file.NodeName, d)
		n.sh(t, "ip link add %s mtu 9000 type veth peer name %s mtu 9000 netns %s; ip link set %[1]s up", d, port, s.name())
		s.sh(t, "ip link set %s master switch up", port)
	}
}

// bond makes bond0 of two cables: an active one and one that waits for its failure.
func (n *node) bond(t *testing.T, s space) {
	t.Helper()
	n.plug(t, s, "eth1", "eth2")
	n.sh(t, `ip link add bond0 type bond mode active-backup miimon 10
		for slave in eth1 eth2; do ip link set $slave down; ip link set $slave master bond0; done
		ip link set bond0 mtu 9000 up`)
}

// bridge makes the bridge that Harvester has for a cluster network, on device.
func (n *node) bridge(t *testing.T, device string) {
	t.Helper()
	n.sh(t, `ip link add storage-br mtu 9000 type bridge vlan_filtering 1
		ip link set %[1]s master storage-br
		ip link set storage-br up
		bridge vlan add vid 100 dev storage-br self
		bridge vlan add vid 100 dev %[1]s`, device)
}

// vlan is the network of vxlan on a VLAN.
func (n *node) vlan(device string) conf {
	return n.vxlan().with("parent", map[string]any{"type": "vlan", "device": device, "vlan": 100})
}

func TestVLANParent(t *testing.T) {
	t.Parallel()
	testnode.RequireKernel(t, "vlan", "bond")
	for _, tt := range []struct {
		name, device string
		underlay     func(t *testing.T, n *node, s space)
		bond         bool
	}{
		{"NIC", "eth1", func(t *testing.T, n *node, s space) { n.plug(t, s, "eth1") }, false},
		{"bond", "bond0", func(t *testing.T, n *node, s space) { n.bond(t, s) }, true},
		{"bridge", "storage-br", func(t *testing.T, n *node, s space) { n.plug(t, s, "eth1"); n.bridge(t, "eth1") }, false},
		{"bridge on a bond", "storage-br", func(t *testing.T, n *node, s space) { n.bond(t, s); n.bridge(t, "bond0") }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSwitch(t)
			n1, n2 := newNode(t, 1), newNode(t, 2)
			for _, n := range []*node{n1, n2} {
				tt.underlay(t, n, s)
			}
			a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
			n1.add(t, a, n1.vlan(tt.device))
			n1.add(t, beside, n1.vlan(tt.device))
			n2.add(t, b, n2.vlan(tt.device))
			// But from shim to shim: on a VLAN a shim takes the pods' part of the range only.
			legs := slices.DeleteFunc(legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b), func(l leg) bool { return l.name == "host-host" })
			requireLegs(t, legs...)
			assert.Equal(t, 9000, a.mtu(t, "lhnet1"), "a VLAN takes nothing of the MTU")
			requireLargest(t, n1.space, b.addr(), 9000)

			out := n1.must(t, "ADD", n1.pod(t, "again"), n1.vlan(tt.device))
			assert.Empty(t, string(out.Stderr), "a second ADD has nothing to change")
			if tt.bond {
				n1.failOver(t, b.addr())
				requireLegs(t, legs...)
			}
		})
	}
}

// failOver has the node's bond lose its active cable, and get it back, while
// packets go to an address of the other node and back. How many are lost in that
// is the bond's affair; that it ends is ours.
func (n *node) failOver(t *testing.T, to netip.Addr) {
	t.Helper()
	f := n.flow(t, "over the bond", to)
	n.sh(t, "ip link set eth1 down")
	n.waitActive(t, "eth2")
	n.waitCarries(t, to)
	n.sh(t, "ip link set eth1 up; ip link set eth2 down")
	n.waitActive(t, "eth1")
	n.waitCarries(t, to)
	n.sh(t, "ip link set eth2 up")
	f.end()
	require.NoError(t, f.err)
	t.Logf("two failovers: %d of %d packets lost", f.lost, f.sent)
	assert.Less(t, f.lost, f.sent, "something passed all the while")
}

// waitCarries waits until the bond carries packets again.
func (n *node) waitCarries(t *testing.T, to netip.Addr) {
	t.Helper()
	require.Eventually(t, func() bool {
		result, err := n.ping(t.Context(), to, 10, 5*time.Millisecond)
		return err == nil && result.Received == 10
	}, time.Minute, 20*time.Millisecond, "packets pass again")
}

func (n *node) waitActive(t *testing.T, slave string) {
	t.Helper()
	require.Eventually(t, func() bool {
		active, err := n.try("ip -d -j link show dev bond0 | grep -o '\"active_slave\":\"%s\"'", slave)
		return err == nil && active != ""
	}, 30*time.Second, 20*time.Millisecond, "%s becomes the active slave", slave)
}

// requireLargest says that IP packets of mtu bytes pass unfragmented, and none that
// is larger.
func requireLargest(t *testing.T, from space, to netip.Addr, mtu int) {
	t.Helper()
	ping := func(payload int) probe.PingResult {
		var result probe.PingResult
		require.NoError(t, from.netns.Do(func(ns.NetNS) (err error) {
			result, err = probe.Ping(t.Context(), probe.PingOptions{Target: to, Count: 3, Wait: late, Payload: payload, DontFragment: true})
			return err
		}))
		return result
	}
	fits := probe.PayloadFor(to, mtu)
	assert.Equal(t, 3, ping(fits).Received, "answers to pings of %d bytes", fits)
	tooLarge := ping(fits + 1)
	assert.Zero(t, tooLarge.Received, "answers to pings of %d bytes", fits+1)
	assert.Error(t, tooLarge.SendErr, "the sender is told")
	t.Logf("with DF set pings of %d bytes pass, pings of %d don't: %v", fits, fits+1, tooLarge.SendErr)
}

// The source design's tunnel on a Harvester-like underlay, with jumbo frames.
func TestVXLANOverVLANOverBond(t *testing.T) {
	t.Parallel()
	testnode.RequireKernel(t, "vlan", "bond", "dummy")
	for _, tt := range []struct {
		name        string
		conf        func(*node) conf
		vtep, under string // both in front of the node's number
		length, mtu int
	}{
		{"IPv4", (*node).vxlan, "10.100.100.", "10.100.0.", 24, 8950},
		{"IPv6", func(n *node) conf { return n.vxlan().overIPv6() }, "fd00:64::", "fd00:31::", 64, 8930},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSwitch(t)
			n1, n2 := newNode(t, 1), newNode(t, 2)
			// On a LAN the way to a peer's VTEP is the peer's address there.
			via := map[string]string{tt.vtep + "1": tt.under + "1", tt.vtep + "2": tt.under + "2"}
			network := func(n *node) conf { return tt.conf(n).with("parent.vtep.via", via) }
			for _, n := range []*node{n1, n2} {
				n.bond(t, s)
				n.sh(t, "ip link add bond0.50 link bond0 type vlan id 50; ip addr add %s%d/%d dev bond0.50 nodad; ip link set bond0.50 up",
					tt.under, n.file.Index, tt.length)
			}
			a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
			n1.add(t, a, network(n1))
			n1.add(t, beside, network(n1))
			n2.add(t, b, network(n2))
			legs := legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b)
			requireLegs(t, legs...)
			assert.Equal(t, tt.mtu, a.mtu(t, "lhnet1"))
			for _, from := range []space{n1.space, a.space} {
				requireLargest(t, from, b.addr(), tt.mtu)
			}
			assert.Len(t, n1.addrs(t, "dummy0"), 1, "the VTEP is on a dummy")
			n1.failOver(t, b.addr())
			requireLegs(t, legs...)
		})
	}
}
