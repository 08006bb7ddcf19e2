// Package status says how a cluster's storage networks are: networks, nodes, pools, attachments, and what Longhorn makes of
// them. It is made of a [snapshot.Snapshot], without I/O; what is wrong with it is package doctor's subject.
package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/doctor"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// Report is how it is.
type Report struct {
	Networks    []Network    `json:"networks"`
	Nodes       []Node       `json:"nodes"`
	Pools       []Pool       `json:"pools"`
	Attachments []Attachment `json:"attachments"`
	Longhorn    *Longhorn    `json:"longhorn,omitempty"` // nil: it isn't installed
}

// Network is a network definition of ours.
type Network struct {
	Definition  string         `json:"definition"` // namespace/name
	Name        string         `json:"name,omitempty"`
	Parent      string         `json:"parent,omitempty"`
	Type        string         `json:"type,omitempty"` // of the parent, with its VNI or VLAN id
	Ranges      []netip.Prefix `json:"ranges,omitempty"`
	Hosts       []netip.Prefix `json:"hostRanges,omitempty"`
	ISCSIPath   string         `json:"iscsiPath,omitempty"`
	Attachments int            `json:"attachments"`
	State       string         `json:"state"` // ok, or why it isn't gone by
}

// Node is a node's place on a parent.
type Node struct {
	Name   string   `json:"name"`
	Parent string   `json:"parent"`
	Index  int      `json:"index,omitempty"`
	Shim   []string `json:"shim,omitempty"`
	VTEP   string   `json:"vtep,omitempty"`
	Peers  int      `json:"peers"`         // other nodes with a place there; of this machine: its forwarding entries
	MTU    int      `json:"mtu,omitempty"` // bytes; as configured, of this machine as it is; 0: worked out on the node
	Ready  string   `json:"ready"`         // True, False, Unknown, or Missing where it has no place
	Reason string   `json:"reason,omitempty"`
	Legs   int      `json:"legs"` // that were measured last
	Failed int      `json:"failingLegs"`
}

// Pool is how full a range is, and for how long it lasts.
type Pool struct {
	snapshot.Pool

	Free uint64 `json:"free"`
	// Upgrade is how many addresses are lacking for an upgrade of Longhorn, which starts as many instance managers as there
	// are beside them; 0: none.
	Upgrade uint64 `json:"lackingForUpgrade"`
	// Days until the pool is full, were each day like the last one; 0: it doesn't grow. What was made yesterday and is gone isn't
	// counted, and what replaced something is: it is a rough upper bound of the pace.
	Days float64 `json:"daysLeft,omitempty"`
}

// Attachment is an interface of a running pod.
type Attachment struct {
	Pod       string   `json:"pod"`
	Node      string   `json:"node"`
	Network   string   `json:"network"`
	Interface string   `json:"interface"`
	Addresses []string `json:"addresses"`
	Claimed   bool     `json:"claimed"` // an AddressClaim of this pod holds each of them
}

// Longhorn is what Longhorn makes of the network.
type Longhorn struct {
	Network          string            `json:"network"` // its setting storage-network
	Applied          *bool             `json:"applied,omitempty"`
	InstanceManagers []InstanceManager `json:"instanceManagers"`
	Instances        []Instance        `json:"instances"`
}

// InstanceManager is one of Longhorn's instance managers.
type InstanceManager struct {
	Name    string `json:"name"`
	Node    string `json:"node"`
	State   string `json:"state"`
	Engine  string `json:"dataEngine,omitempty"`
	Storage string `json:"storageAddress,omitempty"` // what Longhorn takes from its network-status
	PodIP   string `json:"podIP,omitempty"`
	Dial    Dial   `json:"iscsi"`
}

// Instance is an engine or a replica.
type Instance struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Volume    string `json:"volume"`
	Node      string `json:"node"`
	State     string `json:"state"`
	StorageIP string `json:"storageIP,omitempty"`
	Fault     string `json:"fault,omitempty"` // what is wrong with the address; empty: it is in range and its pod's
}

// Of makes a report.
func Of(s *snapshot.Snapshot) Report {
	c := s.Cluster
	if c == nil {
		c = &snapshot.Cluster{}
	}
	b := builder{s: s, c: c, compiled: c.Compiled()}
	r := Report{Attachments: b.attachments()}
	r.Networks, r.Nodes, r.Pools = b.networks(r.Attachments), b.nodes(), b.pools(r.Attachments)
	if c.Longhorn.Installed {
		r.Longhorn = b.longhorn()
	}
	return r
}

type builder struct {
	s        *snapshot.Snapshot
	c        *snapshot.Cluster
	compiled agent.Compiled
}

func (b builder) networks(attachments []Attachment) []Network {
	faults := map[string]string{}
	for _, f := range b.compiled.Faults {
		faults[f.Ref()] = f.Reason
	}
	var list []Network
	for _, d := range b.c.Definitions {
		if !b.compiled.Ours[d.Ref()] {
			continue
		}
		n := Network{Definition: d.Ref(), State: cmp.Or(faults[d.Ref()], "ok")}
		for _, a := range attachments {
			if a.Network == d.Ref() {
				n.Attachments++
			}
		}
		if compiled, ok := b.c.Named(d.Ref()); ok {
			p := compiled.Plan
			n.Name, n.Parent, n.Type, n.Ranges, n.ISCSIPath = p.Name, p.Parent.Name, kind(p.Parent), p.IPAM.Ranges, string(p.ISCSIPath)
			if p.HostShim != nil {
				n.Hosts = p.HostShim.Ranges
			}
		}
		list = append(list, n)
	}
	return list
}

func kind(p netconf.Parent) string {
	switch p.Type {
	case netconf.ParentVXLAN:
		return fmt.Sprintf("vxlan %d", p.VNI)
	case netconf.ParentVLAN:
		return fmt.Sprintf("vlan %d on %s", p.VLAN, p.Device)
	default:
		return string(p.Type)
	}
}

func (b builder) nodes() []Node {
	var list []Node
	for _, parent := range b.parents() {
		shims := b.c.Shims(parent.Name)
		for i := range b.c.Nodes {
			name := b.c.Nodes[i].Name
			n := Node{Name: name, Parent: parent.Name, MTU: parent.MTU, Ready: "Missing"}
			for _, h := range shims {
				switch {
				case h.Spec.Node == name:
					n.Index, n.VTEP, n.Shim = h.Spec.Index, h.Spec.VTEP, split(h)
					n.Ready, n.Reason = cmp.Or(string(h.Status.Ready), "Unknown"), h.Status.Reason
				case b.c.HasNode(h.Spec.Node):
					n.Peers++
				}
			}
			b.measured(&n)
			b.seen(&n)
			list = append(list, n)
		}
	}
	return list
}

// parents are those of all networks, each once.
func (b builder) parents() []netconf.Parent {
	var list []netconf.Parent
	for _, n := range b.compiled.Networks {
		known := slices.ContainsFunc(list, func(p netconf.Parent) bool { return p.Name == n.Plan.Parent.Name })
		if n.Plan.Parent.Name != "" && !known {
			list = append(list, n.Plan.Parent)
		}
	}
	return list
}

func split(h v1alpha1.HostShim) []string {
	var list []string
	for _, n := range h.Spec.Networks {
		for _, a := range n.Addresses {
			list = append(list, string(a))
		}
	}
	return list
}

func (b builder) measured(n *Node) {
	for _, r := range b.c.ProbeReports {
		if r.Spec.Node == n.Name {
			n.Legs, n.Failed = r.Status.Measured, r.Status.Failing
		}
	}
}

// seen adds what this machine really has.
func (b builder) seen(n *Node) {
	if b.s.Local == nil || b.s.Local.Node.NodeName != n.Name {
		return
	}
	link, ok := b.s.Local.Link(n.Parent)
	if !ok {
		return
	}
	n.MTU = link.MTU
	if link.Kind == "vxlan" {
		n.Peers = len(b.s.Local.Flood[n.Parent])
	}
}

func (b builder) pools(attachments []Attachment) []Pool {
	var list []Pool
	for _, p := range b.s.Fill() {
		pool := Pool{Pool: p, Free: p.Free()}
		if p.Recent > 0 {
			pool.Days = float64(pool.Free) / float64(p.Recent)
		}
		var managers uint64
		for _, a := range attachments {
			if slices.Contains(p.Networks, a.Network) && b.isManager(a.Pod) {
				managers++
			}
		}
		if managers > pool.Free {
			pool.Upgrade = managers - pool.Free
		}
		list = append(list, pool)
	}
	return list
}

func (b builder) isManager(ref string) bool {
	return slices.ContainsFunc(b.c.Pods, func(p corev1.Pod) bool { return snapshot.Ref(&p) == ref && snapshot.IsInstanceManager(p.Labels) })
}

func (b builder) attachments() []Attachment {
	claimed := map[string]bool{}
	for _, c := range b.c.Claims {
		if c.Spec.Declined == nil && !c.Spec.Released {
			claimed[c.Spec.PodRef+" "+c.Spec.Address] = true
		}
	}
	var list []Attachment
	for i := range b.c.Pods {
		pod := &b.c.Pods[i]
		entries, err := snapshot.Interfaces(pod)
		if err != nil || !snapshot.Running(pod) {
			continue
		}
		for _, e := range entries {
			if !b.compiled.Ours[e.Name] {
				continue
			}
			a := Attachment{Pod: snapshot.Ref(pod), Node: pod.Spec.NodeName, Network: e.Name, Interface: e.Interface, Addresses: e.IPs, Claimed: len(e.IPs) > 0}
			for _, addr := range e.Addrs() {
				a.Claimed = a.Claimed && claimed[a.Pod+" "+addr.String()]
			}
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b Attachment) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Node, b.Node), strings.Compare(a.Pod, b.Pod))
	})
	return list
}

func (b builder) longhorn() *Longhorn {
	l := &Longhorn{}
	l.Network, l.Applied = b.c.Longhorn.Setting(snapshot.StorageNetworkSetting)
	network, known := b.c.Named(l.Network)
	for _, m := range b.c.Longhorn.InstanceManagers {
		out := InstanceManager{Name: m.Name, Node: m.Spec.Node, State: m.Status.State, Engine: m.Spec.DataEngine, PodIP: m.Status.IP, Storage: b.c.StorageAddress(m.Name, l.Network)}
		if i := slices.IndexFunc(b.c.Pods, func(p corev1.Pod) bool { return p.Namespace == b.c.Longhorn.Namespace && p.Name == m.Name }); i >= 0 {
			out.Dial = b.dial(&b.c.Pods[i], network)
			out.PodIP = cmp.Or(out.PodIP, b.c.Pods[i].Status.PodIP)
		}
		l.InstanceManagers = append(l.InstanceManagers, out)
	}
	for kind, list := range map[string][]snapshot.Instance{"engine": b.c.Longhorn.Engines, "replica": b.c.Longhorn.Replicas} {
		for _, i := range list {
			out := Instance{Kind: kind, Name: i.Name, Volume: i.Spec.Volume, Node: i.Spec.Node, State: i.Status.State, StorageIP: i.Status.StorageIP}
			if known && i.Status.StorageIP != "" {
				out.Fault = doctor.StorageIPFault(network, b.c.StorageAddress(i.Status.InstanceManager, l.Network), i.Status.StorageIP)
			}
			l.Instances = append(l.Instances, out)
		}
	}
	slices.SortFunc(l.Instances, func(a, b Instance) int {
		return cmp.Or(strings.Compare(a.Volume, b.Volume), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	slices.SortFunc(l.InstanceManagers, func(a, b InstanceManager) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Name, b.Name))
	})
	return l
}
