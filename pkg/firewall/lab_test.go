package firewall_test

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/firewall/firewalltest"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	parent  = "vxlan-storage"
	shimDev = "lhnet1-host"
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
	return host{firewalltest.Host{NetNS: netns}}
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

// attacked is the lab as its attackers see it.
func (s site) attacked() firewalltest.Site {
	a := firewalltest.Site{Stranger: s.netns("lan").Host, Device: "br0", VNI: 100, Range: s.Options().Range}
	for i, node := range s.Nodes() {
		h := s.netns(node.Name)
		pod, addr := s.pod(node.Name)
		mac, err := net.ParseMAC(pod.MAC)
		require.NoError(s.t, err)
		k, err := kernel.In(h.NetNS)
		require.NoError(s.t, err)
		link, err := k.Link(parent)
		require.NoError(s.t, err)
		k.Close()
		a.Nodes[i] = firewalltest.Node{
			Host: h.Host, VTEP: node.VTEP, ParentMAC: link.MAC, Shim: s.shim(node.Name),
			Pod: s.netns(node.Name + ".pod1").Host, PodAddress: addr, PodMAC: mac,
		}
	}
	return a
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
				{"tunnel", func(s site) func(bool) { return s.attacked().Tunnel(s.t) }},
				{"parent", func(s site) func(bool) { return s.attacked().Parent(s.t) }},
				{"routing", func(s site) func(bool) { return s.attacked().Routing(s.t) }},
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

// servicesOfTheHost besides lets the host be a client, and a port be allowed.
func servicesOfTheHost(s site) func(open bool) {
	t := s.t
	node1 := s.netns("node1")
	services := s.attacked().Services(t)
	at := netip.AddrPortFrom(s.shim("node1"), firewalltest.Port)
	allowed := netip.AddrPortFrom(s.shim("node1"), firewalltest.Port+2)
	node1.Echo(t, allowed)
	_, local := s.pod("node1")
	_, remote := s.pod("node2")
	return func(open bool) {
		services(open)
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
		assert.NotNil(t, s.netns("node2.pod1").Dial(t, allowed), "a port that is allowed")
		assert.Nil(t, s.netns("node2.pod1").Dial(t, at), "a port that isn't")
	}
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
