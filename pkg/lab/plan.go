package lab

import (
	"fmt"
	"math/big"
	"net/netip"
	"path/filepath"

	"go4.org/netipx"
)

// The lab's own networks. The storage network is Options.Range.
var (
	underlay   = netip.MustParsePrefix("10.100.200.0/24") // /31 links, or the LAN
	vteps      = netip.MustParsePrefix("10.100.100.0/24") // node n has .n
	podNetwork = netip.MustParsePrefix("10.244.0.0/16")   // optional eth0 of pods: 10.244.<node>.0/24
)

// Names inside the namespaces.
const (
	lanDevice    = "eth1"          // a node's link to the LAN
	vxlanDevice  = "vxlan-storage" // the VXLAN parent
	shimDevice   = "lhnet1-host"   // the plugin's host shim
	podDevice    = "lhnet1"        // a pod's storage interface
	networkName  = "longhorn-storage"
	vni          = 100
	vxlanPort    = 4789
	vxlanHeaders = 50 // bytes around a frame's payload, over IPv4
)

const (
	hostBits    = 4 // the hosts' part of the range: 16 addresses
	hostCount   = 1 << hostBits
	lanReserved = 32   // at the end of the range: the LAN's gateway and the nodes' own addresses
	maxWindow   = 4096 // addresses per node
	minHostBits = 7
)

// Node is one simulated node.
type Node struct {
	Name   string       `json:"name"`  // node1, node2, …
	Index  int          `json:"index"` // from 1
	Netns  string       `json:"netns"` // its name below /run/netns
	Dir    string       `json:"dir"`
	VTEP   netip.Addr   `json:"vtep,omitzero"`    // with parent vxlan
	LAN    netip.Prefix `json:"lan,omitzero"`     // eth1's address, with topology lan
	Host   netip.Prefix `json:"host"`             // its address on the storage network, as far as the lab gives it: on eth1 or on stock macvlan's VXLAN parent
	Window Window       `json:"window"`           // the pods' addresses on this node
	Parent string       `json:"parent,omitempty"` // the device below the pods' interfaces
}

// Window is the part of the storage range that a node's pods get addresses
// from: each node has an address store of its own, as without a cluster.
type Window struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// NodeFile is the path of the node's file for lhstorage's plugins.
func (n Node) NodeFile() string { return filepath.Join(n.Dir, "node.json") }

// ConfDir is the node's CNI configuration directory (cnitool's NETCONFPATH).
func (n Node) ConfDir() string { return filepath.Join(n.Dir, "conf.d") }

// CacheDir is libcni's cache.
func (n Node) CacheDir() string { return filepath.Join(n.Dir, "cache") }

// StateDir and RunDir are what the node file says.
func (n Node) StateDir() string { return filepath.Join(n.Dir, "state") }

// RunDir see StateDir.
func (n Node) RunDir() string { return filepath.Join(n.Dir, "run") }

// LogFile holds what the plugins wrote to stderr, unless Options.Stderr is set.
func (n Node) LogFile() string { return filepath.Join(n.Dir, "plugins.log") }

// confFile is the node's network configuration.
func (n Node) confFile() string { return filepath.Join(n.ConfDir(), "10-"+networkName+".conflist") }

// linkTo is the name of the device towards another node, in a mesh.
func linkTo(node string) string { return "to-" + node }

func (o Options) nodes() []Node {
	nodes := make([]Node, o.Nodes)
	for i := range nodes {
		nodes[i] = o.node(i + 1)
	}
	return nodes
}

func (o Options) node(index int) Node {
	name := fmt.Sprintf("node%d", index)
	n := Node{
		Name: name, Index: index, Netns: o.Name + "." + name, Dir: filepath.Join(o.Root, o.Name, name),
		Window: o.window(index), Host: netip.PrefixFrom(nth(o.Range, index), o.Range.Bits()), Parent: vxlanDevice,
	}
	if o.Topology == TopologyLAN {
		n.LAN = netip.PrefixFrom(nth(underlay, index), underlay.Bits())
	}
	switch {
	case o.Parent == ParentDevice:
		n.LAN = netip.PrefixFrom(nth(o.Range, index-lanReserved), o.Range.Bits())
		n.Host, n.Parent = n.LAN, lanDevice
	case o.Topology == TopologyLAN:
		n.VTEP = n.LAN.Addr() // found by the plugin: it is inside vtep.cidr
	default:
		n.VTEP = nth(vteps, index) // derived by the plugin from the index
	}
	return n
}

// vtepCIDR is the network that the nodes' VTEPs are in.
func (o Options) vtepCIDR() netip.Prefix {
	if o.Topology == TopologyLAN {
		return underlay
	}
	return vteps
}

// gateway is the LAN's default gateway, an address of the switch itself.
func (o Options) gateway() netip.Prefix {
	if o.Parent == ParentDevice {
		return netip.PrefixFrom(nth(o.Range, -2), o.Range.Bits())
	}
	return netip.PrefixFrom(nth(underlay, -2), underlay.Bits())
}

// hostRange is the part of the storage range that is kept for hosts.
func (o Options) hostRange() netip.Prefix {
	return netip.PrefixFrom(o.Range.Addr(), o.Range.Addr().BitLen()-hostBits)
}

func (o Options) window(index int) Window {
	size := maxWindow
	if bits := o.Range.Addr().BitLen() - o.Range.Bits(); bits < 24 {
		size = min(size, (1<<bits-hostCount-lanReserved)/o.Nodes)
	}
	first := hostCount + (index-1)*size
	return Window{First: nth(o.Range, first), Last: nth(o.Range, first+size-1)}
}

// contains says whether a is one of the window's addresses.
func (w Window) contains(a netip.Addr) bool {
	return w.First.Compare(a) <= 0 && a.Compare(w.Last) <= 0
}

// lanNetns is the name of the namespace that holds the LAN's switch.
func (o Options) lanNetns() string { return o.Name + ".lan" }

// namespaces are the names of all namespaces that aren't pods'.
func (o Options) namespaces() []string {
	var names []string
	if o.Topology == TopologyLAN {
		names = append(names, o.lanNetns())
	}
	for _, n := range o.nodes() {
		names = append(names, n.Netns)
	}
	return names
}

// meshLink is the /31 between the nodes with indexes i < j: the address of i's
// end and of j's end.
func (o Options) meshLink(i, j int) (a, b netip.Prefix) {
	pair := (i-1)*(2*o.Nodes-i)/2 + (j - i - 1) // pairs in the order 1-2, 1-3, …, 2-3, …
	return netip.PrefixFrom(nth(underlay, 2*pair), 31), netip.PrefixFrom(nth(underlay, 2*pair+1), 31)
}

// nth is the address n after the prefix's first one, or before the address
// after its last one if n is negative.
func nth(p netip.Prefix, n int) netip.Addr {
	base := p.Masked().Addr()
	if n < 0 {
		base, n = netipx.PrefixLastIP(p), n+1
	}
	sum := new(big.Int).Add(new(big.Int).SetBytes(base.AsSlice()), big.NewInt(int64(n)))
	addr, ok := netip.AddrFromSlice(sum.FillBytes(make([]byte, base.BitLen()/8)))
	if !ok || !p.Contains(addr) {
		panic(fmt.Sprintf("lab: %s has no address number %d", p, n)) // the options were checked
	}
	return addr
}
