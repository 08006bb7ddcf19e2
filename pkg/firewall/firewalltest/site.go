package firewalltest

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Port is that of services that are attacked; others have the next one, and the one after that.
const Port = 7777

// Node is a node that is attacked, with a pod.
type Node struct {
	Host       Host
	VTEP       netip.Addr
	ParentMAC  net.HardwareAddr
	Shim       netip.Addr
	Pod        Host
	PodAddress netip.Addr
	PodMAC     net.HardwareAddr
}

// Site is a storage network of two nodes on a LAN, and a stranger there. Each of its methods makes ready for an attack; what it returns attacks
// and asserts that it succeeds, where the site is open, or that it fails. What must go on is asserted each time.
type Site struct {
	Stranger Host
	Device   string // the stranger's, on the LAN
	VNI      byte
	Range    netip.Prefix
	Nodes    [2]Node
}

func (h Host) sh(t *testing.T, format string, args ...any) {
	t.Helper()
	require.NoError(t, h.Do(func(ns.NetNS) error {
		script := fmt.Sprintf(format, args...)
		if out, err := exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil { //nolint:gosec // this package's scripts
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	}))
}

// Tunnel sends frames to a pod in the tunnel from a host of the underlay that is no peer, with its own address and with a peer's.
func (s Site) Tunnel(t *testing.T) func(open bool) {
	node1, node2 := s.Nodes[0], s.Nodes[1]
	at := netip.AddrPortFrom(node1.PodAddress, Port)
	hears := node1.Pod.Hears(t, at)
	own := netip.MustParseAddr("10.100.200.200")
	s.Stranger.sh(t, "ip addr replace %s/32 dev %s", own, s.Device)
	packet := func(payload string) []byte {
		return Datagram(netip.AddrPortFrom(s.Range.Addr().Next(), 1), at, payload)
	}
	return func(open bool) {
		assert.Equal(t, open, hears(open, func(payload string) { s.Stranger.Tunnel(t, s.VNI, own, node1.VTEP, node1.PodMAC, packet(payload)) }), "from a stranger's address")
		assert.True(t, hears(true, func(payload string) {
			s.Stranger.Tunnel(t, s.VNI, node2.VTEP, node1.VTEP, node1.PodMAC, packet(payload))
		}), "from a peer's address")
	}
}

// Parent sends to the parent's own MAC, for the host's shim and for a pod behind it: what guards the shim would be walked around.
func (s Site) Parent(t *testing.T) func(open bool) {
	node1, node2 := s.Nodes[0], s.Nodes[1]
	at := netip.AddrPortFrom(node1.Shim, Port+2)
	hears := node1.Host.Hears(t, at)
	return func(open bool) {
		assert.Equal(t, open, hears(open, func(payload string) {
			s.Stranger.Tunnel(t, s.VNI, node2.VTEP, node1.VTEP, node1.ParentMAC, Datagram(netip.AddrPortFrom(node2.Shim, 1), at, payload))
		}), "to the parent's MAC")
	}
}

// Routing lets the underlay use a node as its router to the storage network, and a pod as its way out.
func (s Site) Routing(t *testing.T) func(open bool) {
	node1, node2 := s.Nodes[0], s.Nodes[1]
	s.Stranger.sh(t, "ip route replace %s via %s", s.Range, node1.VTEP)
	out := netip.MustParseAddr("10.100.200.201")
	s.Stranger.sh(t, "ip addr replace %s/32 dev %s", out, s.Device)
	node1.Pod.sh(t, "ip route replace %s via %s", out, node1.Shim)
	ways := map[string]struct {
		from, to Host
		at       netip.Addr
	}{
		"in, to a pod of the node": {s.Stranger, node1.Pod, node1.PodAddress},
		"in, to another's pod":     {s.Stranger, node2.Pod, node2.PodAddress},
		"in, to the shim":          {s.Stranger, node1.Host, node1.Shim},
		"out":                      {node1.Pod, s.Stranger, out},
	}
	type heard = func(want bool, send func(payload string)) bool
	listeners := map[string]heard{}
	for name, w := range ways {
		listeners[name] = w.to.Hears(t, netip.AddrPortFrom(w.at, Port+1))
	}
	return func(open bool) {
		for name, w := range ways {
			assert.Equal(t, open, listeners[name](open, func(payload string) {
				w.from.UDP(t, netip.AddrPortFrom(w.at, Port+1), payload)
			}), name)
		}
	}
}

// Services connects pods to a service of a host, over its shim; connections that are open go on.
func (s Site) Services(t *testing.T) func(open bool) {
	node1 := s.Nodes[0]
	at := netip.AddrPortFrom(node1.Shim, Port)
	node1.Host.Echo(t, at)
	early := s.Nodes[1].Pod.Dial(t, at)
	require.NotNil(t, early)
	node1.Pod.Echo(t, netip.AddrPortFrom(node1.PodAddress, Port))
	fromHost := node1.Host.Dial(t, netip.AddrPortFrom(node1.PodAddress, Port))
	require.NotNil(t, fromHost)
	udp := node1.Host.Hears(t, at)
	return func(open bool) {
		for i, node := range s.Nodes {
			assert.Equal(t, open, node.Pod.Dial(t, at) != nil, "pod of node%d to a service of node1", i+1)
			assert.Equal(t, open, udp(open, func(payload string) { node.Pod.UDP(t, at, payload) }), "pod of node%d, UDP", i+1)
		}
		assert.True(t, Answers(early), "a pod's connection that was open before")
		assert.True(t, Answers(fromHost), "the host's connection that was open before")
	}
}
