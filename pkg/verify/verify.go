// Package verify judges what the agents of all nodes answered to `lhstoragectl verify`: a matrix of who reaches whom, by which way and how well, what is
// wrong, named by leg and node and traced to its cause where the answers show one, and whether this cluster needs the host shim. It is pure: objects in,
// result out.
//
// A cause is told once. What follows from it is not told again: with a cut link each leg between two nodes fails, and the link is what is named.
package verify

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
)

// Input is what was found in the cluster.
type Input struct {
	ID        string // of the request; answers to others don't count
	Nodes     []string
	HostShims []v1alpha1.HostShim // of Nodes; those of others are passed over
	Answers   []v1alpha1.Verification
}

// Only is what of it is about one network: its legs, its pods, and what is below them.
func (in Input) Only(network string) Input {
	vteps, parents := map[v1alpha1.VerifiedAddress]bool{}, map[string]bool{}
	for _, s := range in.HostShims {
		vteps[v1alpha1.VerifiedAddress(s.Spec.VTEP)], parents[s.Spec.Parent] = true, true
	}
	answers := make([]v1alpha1.Verification, 0, len(in.Answers))
	for _, a := range in.Answers {
		s := &a.Status
		s.Networks = only(s.Networks, func(n v1alpha1.VerifiedNetwork) bool { return n.Name == network })
		s.Pods = only(s.Pods, func(p v1alpha1.VerifiedPod) bool { return p.Network == network })
		s.Traffic = only(s.Traffic, func(t v1alpha1.VerifiedTraffic) bool { return parents[t.Parent] })
		s.Legs = only(s.Legs, func(l v1alpha1.VerifiedLeg) bool {
			return l.Network == network || l.Kind == v1alpha1.LegUnderlay && vteps[l.Address]
		})
		answers = append(answers, a)
	}
	in.Answers = answers
	return in
}

func only[T any](list []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), func(item T) bool { return !keep(item) })
}

// Result is what that means.
type Result struct {
	OK       bool      `json:"ok"` // there is no finding that is a fault
	Nodes    []Node    `json:"nodes"`
	Matrix   []Cell    `json:"matrix"`
	Findings []Finding `json:"findings"`
	Shim     Need      `json:"shim"`
	Waste    []Waste   `json:"waste"`
}

// Node is how a node's agent answered.
type Node struct {
	Name         string `json:"name"`
	Answered     bool   `json:"answered"`
	Milliseconds int64  `json:"milliseconds"`
	Pods         int    `json:"pods"`
	Error        string `json:"error,omitempty"`
}

// Class of a round-trip time.
type Class string

// The classes, by the median: below 0.15 ms, 1 ms, 5 ms, and above.
const (
	ClassNone  Class = "-" // nothing came back
	ClassLocal Class = "local"
	ClassNear  Class = "near"
	ClassSlow  Class = "slow"
	ClassFar   Class = "far"
)

func classOf(microseconds int64) Class {
	switch {
	case microseconds == 0:
		return ClassNone
	case microseconds < 150:
		return ClassLocal
	case microseconds < 1000:
		return ClassNear
	case microseconds < 5000:
		return ClassSlow
	}
	return ClassFar
}

// Cell of the matrix: all legs of a kind from one node to another, or to itself.
type Cell struct {
	Kind         v1alpha1.LegKind `json:"kind"`
	From         string           `json:"from"`
	To           string           `json:"to"`
	Legs         int              `json:"legs"`
	Sent         int              `json:"sent"`
	Lost         int              `json:"lost"`
	Microseconds int64            `json:"rttMicroseconds"` // the longest of the legs' medians
	Class        Class            `json:"rttClass"`
	FullSize     int              `json:"fullSize,omitempty"` // bytes
	FullSent     int              `json:"fullSent"`
	FullLost     int              `json:"fullLost"`
	Fragments    int64            `json:"fragments,omitempty"`
	HTTP         int              `json:"http,omitempty"` // exchanges
	HTTPFailed   int              `json:"httpFailed,omitempty"`
	Open         int              `json:"portsOpen,omitempty"`
	Refused      int              `json:"portsRefused,omitempty"`
	Silent       int              `json:"portsSilent,omitempty"`
}

// OK says whether nothing was lost.
func (c Cell) OK() bool { return c.Lost == 0 && c.FullLost == 0 && c.HTTPFailed == 0 && c.Silent == 0 }

// Waste is what a node's parent sent for what the devices on it did.
type Waste struct {
	Node              string  `json:"node"`
	Parent            string  `json:"parent"`
	ChildrenSent      int64   `json:"childrenSent"`
	Sent              int64   `json:"sent"`
	Ratio             float64 `json:"ratio"` // 1: each frame went to one node; 0: too little was sent to say
	ReceivedForNobody int64   `json:"receivedForNobody"`
	Management        string  `json:"management,omitempty"`
	ManagementSent    int64   `json:"managementSent"`
}

// Need says whether the cluster needs the host shim.
type Need struct {
	Verdict Verdict `json:"verdict"`
	Why     string  `json:"why"`
}

// Verdict about the shim.
type Verdict string

// The verdicts.
const (
	Needed    Verdict = "needed"
	NotNeeded Verdict = "not needed"
	Unknown   Verdict = "unknown"
)

// Judge says what the answers mean.
func Judge(in Input) Result {
	j := newJudge(in)
	j.answers()
	j.causes()
	j.legs()
	j.traffic()
	r := Result{Nodes: j.nodes, Matrix: j.matrix(), Findings: j.findings, Shim: j.need(), Waste: j.waste}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(-cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Peer, b.Peer))
	})
	r.OK = !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Fault })
	return r
}

// judge is one judgement.
type judge struct {
	in       Input
	shims    map[string][]v1alpha1.HostShim
	answer   map[string]v1alpha1.VerificationStatus // by node
	nodes    []Node
	waste    []Waste
	findings []Finding

	explained map[why]bool
}

// why is a reason for lost packets: of a pair of nodes, one node's host, or an address.
type why struct{ a, b, address string }

func pair(a, b string) why { return why{a: min(a, b), b: max(a, b)} }

func newJudge(in Input) *judge {
	j := &judge{in: in, shims: map[string][]v1alpha1.HostShim{}, answer: map[string]v1alpha1.VerificationStatus{}, explained: map[why]bool{}}
	for _, s := range in.HostShims {
		if slices.Contains(in.Nodes, s.Spec.Node) {
			j.shims[s.Spec.Node] = append(j.shims[s.Spec.Node], s)
		}
	}
	for _, a := range in.Answers {
		if in.ID == "" || a.Status.ID == in.ID {
			j.answer[a.Spec.Node] = a.Status
		}
	}
	return j
}

// expected are the nodes that take part in the storage network, in order.
func (j *judge) expected() []string { return slices.Sorted(maps.Keys(j.shims)) }

// each calls do for each leg to a node that is still there.
func (j *judge) each(do func(from string, l v1alpha1.VerifiedLeg)) {
	for _, from := range j.expected() {
		for _, l := range j.answer[from].Legs {
			if _, there := j.shims[l.Node]; there {
				do(from, l)
			}
		}
	}
}

func (j *judge) matrix() []Cell {
	type key struct {
		kind     v1alpha1.LegKind
		from, to string
	}
	cells := map[key]*Cell{}
	j.each(func(from string, l v1alpha1.VerifiedLeg) {
		k := key{l.Kind, from, l.Node}
		if cells[k] == nil {
			cells[k] = &Cell{Kind: l.Kind, From: from, To: l.Node}
		}
		cells[k].add(l)
	})
	list := make([]Cell, 0, len(cells))
	for _, c := range cells {
		c.Class = classOf(c.Microseconds)
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b Cell) int {
		return cmp.Or(cmp.Compare(orderOf(a.Kind), orderOf(b.Kind)), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return list
}

func (c *Cell) add(l v1alpha1.VerifiedLeg) {
	c.Legs++
	c.Sent += l.Small.Sent
	c.Lost += l.Small.Lost
	c.Microseconds = max(c.Microseconds, l.Small.Microseconds)
	if l.Full != nil {
		c.FullSize = max(c.FullSize, l.Full.Size)
		c.FullSent += l.Full.Sent
		c.FullLost += l.Full.Lost
		c.Fragments = max(c.Fragments, l.Full.Fragments)
	}
	if l.HTTP != nil {
		c.HTTP++
		if !l.HTTP.OK {
			c.HTTPFailed++
		}
	}
	for _, p := range l.TCP {
		switch p.Result {
		case v1alpha1.PortOpen:
			c.Open++
		case v1alpha1.PortRefused:
			c.Refused++
		case v1alpha1.PortSilent:
			c.Silent++
		}
	}
}

// Kinds of leg, in the order in which they are shown.
var Kinds = []v1alpha1.LegKind{
	v1alpha1.LegUnderlay, v1alpha1.LegHostShim, v1alpha1.LegHostLocal, v1alpha1.LegHostRemote, v1alpha1.LegPodLocal, v1alpha1.LegPodRemote,
}

func orderOf(k v1alpha1.LegKind) int { return slices.Index(Kinds, k) }

// need judges from what was seen: ARP requests by the parent for the node's own pods, and pings by the shim.
func (j *judge) need() Need {
	var asked, answered, nodes, sent, lost, managers, dialled int
	for _, node := range j.expected() {
		a := j.answer[node]
		for _, n := range a.Networks {
			if n.Bypass != nil && n.Bypass.Asked > 0 {
				asked, answered = asked+n.Bypass.Asked, answered+n.Bypass.Answered
				nodes++
			}
		}
		for _, l := range a.Legs {
			if l.Kind == v1alpha1.LegHostLocal {
				sent, lost = sent+l.Small.Sent, lost+l.Small.Lost
			}
		}
		for _, p := range a.Pods {
			if iscsipath.IsTarget(p.Pod) && p.ISCSIDial != "" {
				managers++
				if slices.Contains(p.Addresses, p.ISCSIDial) {
					dialled++
				}
			}
		}
	}
	why := fmt.Sprintf("%d of %d pods answered their own host's ARP requests by the parent, on %s; of %d packets by the host shim %d were lost", answered, asked, count(nodes, "node"), sent, lost)
	if managers > 0 {
		why += fmt.Sprintf("; Longhorn's v1 initiator dials %d of %s at the storage address", dialled, count(managers, "instance manager"))
	}
	switch {
	case asked == 0:
		return Need{Unknown, "no pod is attached where an agent could ask it by the parent: attach one and ask again"}
	case answered == asked:
		return Need{NotNeeded, why + ": here a host reaches its pods without one"}
	case answered > 0:
		return Need{Needed, why + ": some hosts reach their pods without one, others don't"}
	}
	return Need{Needed, why + ": without it a host doesn't reach its own pods, and volumes don't attach over the storage network"}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
