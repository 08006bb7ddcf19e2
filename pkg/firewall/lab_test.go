package firewall_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	parent  = "vxlan-storage"
	shimDev = "lhnet1-host"
	service = 7777 // a port of a host's or pod's
	vni     = 100
)

// site is a lab whose nodes can have the firewall.
type site struct {
	*lab.Lab
	t *testing.T
}

// netns enters a namespace of the lab by the end of its name: node1,
// node1.pod1, or lan, which is on the underlay and no node.
func (s site) netns(name string) host {
	s.t.Helper()
	netns, err := ns.GetNS(filepath.Join("/run/netns", s.Options().Name+"."+name))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, netns.Close()) })
	return host{netns}
}

// desired is the firewall of a node as its kernel and the lab say it must be.
func (s site) desired(node lab.Node) firewall.Desired {
	s.t.Helper()
	h := s.netns(node.Name)
	k, err := kernel.In(h.NetNS)
	require.NoError(s.t, err)
	defer k.Close()
	n := firewall.Network{Parent: netconf.Parent{Type: netconf.ParentType(s.Options().Parent), Name: node.Parent}, Shim: shimDev, VTEP: node.VTEP}
	all, err := k.Addrs()
	require.NoError(s.t, err)
	link, err := k.Link(shimDev)
	require.NoError(s.t, err)
	for _, a := range kernel.AddrsOf(all, link.Index) {
		if !a.Prefix.Addr().IsLinkLocalUnicast() {
			n.Addrs = append(n.Addrs, netip.PrefixFrom(a.Prefix.Addr(), s.Options().Range.Bits()))
		}
	}
	if s.Options().Parent == lab.ParentVXLAN {
		n.Peers = []netip.Addr{}
		for _, peer := range s.Nodes() {
			if peer.Name != node.Name {
				n.Peers = append(n.Peers, peer.VTEP)
			}
		}
	}
	d, err := firewall.Describe(k, []firewall.Network{n}, nil)
	require.NoError(s.t, err)
	return d
}

// on puts the firewall on all nodes, and off takes it away.
func (s site) on() {
	for _, node := range s.Nodes() {
		d := s.desired(node)
		require.NotEmpty(s.t, s.netns(node.Name).ensure(s.t, d))
		require.Empty(s.t, s.netns(node.Name).ensure(s.t, d))
	}
}

func (s site) off() {
	for _, node := range s.Nodes() {
		s.netns(node.Name).remove(s.t)
	}
}

func (s site) shim(node string) netip.Addr {
	n, err := s.Node(node)
	require.NoError(s.t, err)
	return s.desired(n).Shims[0].Addresses[0]
}

func (s site) pod(node string) (lab.Pod, netip.Addr) {
	pod, err := s.Pod(node, "pod1")
	require.NoError(s.t, err)
	return pod, pod.Addresses[0].Addr()
}

// noLoss requires all legs to hold, in packets of the full MTU too.
func (s site) noLoss() {
	s.t.Helper()
	mtu := s.Options().MTU
	if s.Options().Parent == lab.ParentVXLAN {
		mtu -= 50
	}
	for _, size := range []int{0, mtu} {
		legs, err := s.Matrix(s.t.Context(), lab.MatrixOptions{MTU: size})
		require.NoError(s.t, err)
		assert.NotEmpty(s.t, legs)
		assert.Empty(s.t, lab.Failed(legs))
	}
}

// hears opens a UDP service in a namespace; the function tells whether what send
// sends arrives. What must arrive is sent until it does, what must not a few times.
func (h host) hears(t *testing.T, at netip.AddrPort) func(want bool, send func(payload string)) bool {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	round := 0
	return func(want bool, send func(payload string)) bool {
		round++
		tries := 3
		if want {
			tries = 100
		}
		payload := fmt.Sprintf("round %d", round)
		for range tries {
			send(payload)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			buf := make([]byte, 1500)
			for {
				n, err := conn.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				require.NoError(t, err)
				if string(buf[:n]) == payload { // none of an earlier round, which was late
					return true
				}
			}
		}
		return false
	}
}

// udp sends a datagram from a namespace.
func (h host) udp(t *testing.T, to netip.AddrPort, payload string) {
	require.NoError(t, h.Do(func(ns.NetNS) error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte(payload))
		return errors.Join(err, conn.Close())
	}))
}

// datagram is an IPv4 packet with a UDP datagram, without the checksum that is
// optional.
func datagram(from, to netip.AddrPort, payload string) []byte {
	length := 28 + len(payload)
	p := make([]byte, 28, length)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

// tunnel sends a frame to a VTEP as VXLAN does (RFC 7348), with any source: what
// a program on the underlay can do.
func (h host) tunnel(t *testing.T, source, vtep netip.Addr, mac net.HardwareAddr, packet []byte) {
	frame := []byte{8, 0, 0, 0, 0, 0, vni, 0}
	frame = append(frame, mac...)
	frame = append(frame, 2, 0, 0, 0, 0, 1, 8, 0)
	outer := datagram(netip.AddrPortFrom(source, 50000), netip.AddrPortFrom(vtep, 4789), string(append(frame, packet...)))
	require.NoError(t, h.Do(func(ns.NetNS) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, outer, 0, &unix.SockaddrInet4{Addr: vtep.As4()}), unix.Close(fd))
	}))
}

// What the firewall is for, each shown without it first: nobody but a peer gets
// into the tunnel, the parent takes nothing, nothing is routed in or out, the
// host's services are closed; and what must go on goes on.
func TestFirewall(t *testing.T) {
	for _, backend := range backendNames {
		t.Run(backend, func(t *testing.T) {
			s := site{labtest.Up(t, lab.Options{Topology: lab.TopologyLAN, Nodes: 2}), t}
			labtest.AddPodPerNode(t, s.Lab)
			for _, node := range s.Nodes() {
				s.netns(node.Name).hint(t, backend)
				if backend == "legacy" { // a pod network's tunnel has the same port
					s.netns(node.Name).sh(t, "ip link add vxlan.other up type vxlan id 4096 dstport 4789 local %s", node.VTEP)
				}
				s.netns(node.Name).sh(t, `sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.%s.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0`, parent)
			}
			for _, tt := range []struct {
				name string
				test func(s site) (check func(open bool))
			}{
				{"tunnel", tunnelFromStranger},
				{"parent", framesToTheParent},
				{"routing", routingThroughANode},
				{"services", servicesOfTheHost},
			} {
				t.Run(tt.name, func(t *testing.T) {
					s := site{s.Lab, t}
					check := tt.test(s)
					check(true)
					s.on()
					check(false)
					s.off()
					check(true)
				})
			}
			s.on()
			s.noLoss()
		})
	}
}

// tunnelFromStranger sends frames to a pod in the tunnel from a host of the
// underlay that is no peer, with its own address and with a peer's.
func tunnelFromStranger(s site) func(open bool) {
	stranger := s.netns("lan")
	pod, addr := s.pod("node1")
	at := netip.AddrPortFrom(addr, service)
	hears := s.netns("node1.pod1").hears(s.t, at)
	node1, node2 := s.Nodes()[0], s.Nodes()[1]
	own := netip.MustParseAddr("10.100.200.200")
	stranger.sh(s.t, "ip addr replace %s/32 dev br0", own)
	mac, err := net.ParseMAC(pod.MAC)
	require.NoError(s.t, err)
	packet := func(payload string) []byte {
		return datagram(netip.AddrPortFrom(s.Options().Range.Addr().Next(), 1), at, payload)
	}
	return func(open bool) {
		assert.Equal(s.t, open, hears(open, func(payload string) { stranger.tunnel(s.t, own, node1.VTEP, mac, packet(payload)) }), "from a stranger's address")
		assert.True(s.t, hears(true, func(payload string) { stranger.tunnel(s.t, node2.VTEP, node1.VTEP, mac, packet(payload)) }), "from a peer's address")
	}
}

// framesToTheParent sends to the parent's own MAC, for the host's shim and for a
// pod behind it: what guards the shim would be walked around.
func framesToTheParent(s site) func(open bool) {
	stranger, node1, node2 := s.netns("lan"), s.Nodes()[0], s.Nodes()[1]
	at := netip.AddrPortFrom(s.shim("node1"), service)
	hears := s.netns("node1").hears(s.t, at)
	k, err := kernel.In(s.netns("node1").NetNS)
	require.NoError(s.t, err)
	defer k.Close()
	link, err := k.Link(parent)
	require.NoError(s.t, err)
	return func(open bool) {
		assert.Equal(s.t, open, hears(open, func(payload string) {
			stranger.tunnel(s.t, node2.VTEP, node1.VTEP, link.MAC, datagram(netip.AddrPortFrom(s.shim("node2"), 1), at, payload))
		}), "to the parent's MAC")
	}
}

// routingThroughANode lets the underlay use a node as its router to the storage
// network, and a pod as its way out.
func routingThroughANode(s site) func(open bool) {
	stranger, node := s.netns("lan"), s.Nodes()[0]
	_, addr := s.pod("node1")
	_, far := s.pod("node2")
	shim := s.shim("node1")
	stranger.sh(s.t, "ip route replace %s via %s", s.Options().Range, node.VTEP)
	out := netip.MustParseAddr("10.100.200.201")
	stranger.sh(s.t, "ip addr replace %s/32 dev br0", out)
	s.netns("node1.pod1").sh(s.t, "ip route replace %s via %s", out, shim)
	ways := map[string]struct {
		from, to host
		at       netip.Addr
	}{
		"in, to a pod of the node": {stranger, s.netns("node1.pod1"), addr},
		"in, to another's pod":     {stranger, s.netns("node2.pod1"), far},
		"in, to the shim":          {stranger, s.netns("node1"), shim},
		"out":                      {s.netns("node1.pod1"), stranger, out},
	}
	type heard = func(want bool, send func(payload string)) bool
	listeners := map[string]heard{}
	for name, w := range ways {
		listeners[name] = w.to.hears(s.t, netip.AddrPortFrom(w.at, service+1))
	}
	return func(open bool) {
		for name, w := range ways {
			assert.Equal(s.t, open, listeners[name](open, func(payload string) {
				w.from.udp(s.t, netip.AddrPortFrom(w.at, service+1), payload)
			}), name)
		}
	}
}

// servicesOfTheHost connects pods to a service of a host, over its shim; the
// host as a client, and connections that are open, go on.
func servicesOfTheHost(s site) func(open bool) {
	t := s.t
	node1 := s.netns("node1")
	at := netip.AddrPortFrom(s.shim("node1"), service)
	allowed := netip.AddrPortFrom(s.shim("node1"), service+1)
	for _, a := range []netip.AddrPort{at, allowed} {
		echo(t, node1, a)
	}
	early := dial(t, s.netns("node2.pod1"), at)
	require.NotNil(t, early)
	_, local := s.pod("node1")
	_, remote := s.pod("node2")
	echo(t, s.netns("node1.pod1"), netip.AddrPortFrom(local, service))
	fromHost := dial(t, node1, netip.AddrPortFrom(local, service))
	require.NotNil(t, fromHost)
	udp := node1.hears(t, at)
	return func(open bool) {
		for _, pod := range []string{"node1.pod1", "node2.pod1"} {
			assert.Equal(t, open, dial(t, s.netns(pod), at) != nil, "%s to a service of node1", pod)
			assert.Equal(t, open, udp(open, func(payload string) { s.netns(pod).udp(t, at, payload) }), "%s, UDP", pod)
		}
		assert.True(t, answers(early), "a pod's connection that was open before")
		assert.True(t, answers(fromHost), "the host's connection that was open before")
		for to, name := range map[netip.Addr]string{local: "node1", remote: "node2"} {
			sender, err := s.In("node1", "")
			require.NoError(t, err)
			receiver, err := s.In(name, "pod1")
			require.NoError(t, err)
			result, err := probe.Stream(t.Context(), probe.StreamOptions{Bytes: 4 << 20, Sender: sender, Receiver: receiver, To: to})
			require.NoError(t, err)
			assert.EqualValues(t, 4<<20, result.Bytes, "the host as a client of a pod on %s", name)
		}
		if open {
			return
		}
		d := s.desired(s.Nodes()[0])
		d.Allowed = []firewall.Port{{Protocol: "tcp", Port: allowed.Port()}}
		node1.ensure(t, d)
		assert.NotNil(t, dial(t, s.netns("node2.pod1"), allowed), "a port that is allowed")
		assert.Nil(t, dial(t, s.netns("node2.pod1"), at), "a port that isn't")
	}
}

// echo serves TCP in a namespace until the test ends.
func echo(t *testing.T, h host, at netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		listener, err = net.Listen("tcp", at.String())
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	t.Cleanup(func() { require.NoError(t, listener.Close()); <-ended })
}

// dial connects from a namespace; nil if nobody answers.
func dial(t *testing.T, h host, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	_ = h.Do(func(ns.NetNS) (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 700*time.Millisecond)
		return err
	})
	if conn == nil {
		return nil
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func answers(conn net.Conn) bool {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return false
	}
	if _, err := conn.Write([]byte("still?")); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 6))
	return err == nil
}

// The three legs hold with the firewall on every other kind of parent too, and
// on a mesh.
func TestLegsHold(t *testing.T) {
	for _, o := range []lab.Options{
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyMesh},
		{Parent: lab.ParentDevice, Topology: lab.TopologyLAN},
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyMesh, Range: netip.MustParsePrefix("fd00:64::/64")},
	} {
		t.Run(o.Parent+" "+o.Topology+" "+o.Range.Addr().String(), func(t *testing.T) {
			s := site{labtest.Up(t, o), t}
			labtest.AddPodPerNode(t, s.Lab)
			s.on()
			s.noLoss()
			s.off()
			s.noLoss()
		})
	}
}
