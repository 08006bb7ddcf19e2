package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Finding is something that is not as it must be.
type Finding struct {
	Kind     Kind             `json:"kind"`
	Severity Severity         `json:"severity"`
	Node     string           `json:"node"`
	Peer     string           `json:"peer,omitempty"`
	Leg      v1alpha1.LegKind `json:"leg,omitempty"`
	Address  string           `json:"address,omitempty"`
	Text     string           `json:"text"` // what was seen
	Mend     string           `json:"mend"` // what to do
}

// Severity of a finding.
type Severity string

// The severities. A warning leaves the exit code at 0.
const (
	Fault   Severity = "fault"
	Warning Severity = "warning"
)

func (s Severity) rank() int {
	if s == Fault {
		return 1
	}
	return 0
}

// Kind of a finding.
type Kind string

// The kinds.
const (
	NoAnswer         Kind = "no-answer"
	Incomplete       Kind = "incomplete"
	ParentMissing    Kind = "parent-missing"
	ShimMissing      Kind = "shim-missing"
	LinkCut          Kind = "link-cut"
	FDBMissing       Kind = "fdb-missing"
	DuplicateAddress Kind = "duplicate-address"
	MTUTooSmall      Kind = "mtu-too-small"
	OuterFragments   Kind = "outer-fragments"
	Flooding         Kind = "flooding"
	PacketLoss       Kind = "packet-loss"
	PortSilent       Kind = "port-silent"
	HTTPFailed       Kind = "http-failed"
	WrongDevice      Kind = "wrong-device"
	ManagementNIC    Kind = "management-nic"
)

// AllKinds are all of them.
var AllKinds = []Kind{
	NoAnswer, Incomplete, ParentMissing, ShimMissing, LinkCut, FDBMissing, DuplicateAddress, MTUTooSmall,
	OuterFragments, Flooding, PacketLoss, PortSilent, HTTPFailed, WrongDevice, ManagementNIC,
}

func (j *judge) fault(f Finding) { f.Severity = Fault; j.findings = append(j.findings, f) }
func (j *judge) warn(f Finding)  { f.Severity = Warning; j.findings = append(j.findings, f) }

// answers finds who didn't answer.
func (j *judge) answers() {
	for _, node := range j.expected() {
		a, answered := j.answer[node]
		j.nodes = append(j.nodes, Node{Name: node, Answered: answered, Milliseconds: a.Milliseconds, Pods: len(a.Pods), Error: a.Error})
		switch {
		case !answered:
			j.fault(Finding{Kind: NoAnswer, Node: node, Text: "its agent didn't answer: nothing is known of the legs from there",
				Mend: "kubectl -n lhstorage-system get pods -o wide --field-selector spec.nodeName=" + node + "; then that pod's log"})
		case a.Error != "":
			j.warn(Finding{Kind: Incomplete, Node: node, Text: "its agent could not measure all: " + a.Error, Mend: "see what it says, and ask again"})
		case a.Left > 0:
			j.warn(Finding{Kind: Incomplete, Node: node, Text: fmt.Sprintf("%d legs were left out, since an answer holds no more", a.Left), Mend: "none: the legs of each node that were measured stand for the others"})
		}
	}
}

// causes finds what is wrong with nodes, whatever comes of it.
func (j *judge) causes() {
	j.duplicates()
	for _, node := range j.expected() {
		for _, n := range j.answer[node].Networks {
			j.devices(node, n)
		}
	}
	j.underlay()
}

func (j *judge) devices(node string, n v1alpha1.VerifiedNetwork) {
	if n.ParentKind == "" {
		j.explained[why{a: node}] = true
		j.fault(Finding{Kind: ParentMissing, Node: node, Text: fmt.Sprintf("the parent %s of network %s isn't there", n.Parent, n.Name), Mend: agentLog(node)})
		return
	}
	if n.Shim == "" && j.wantsShim(node, n.Name) {
		j.explained[why{a: node}] = true
		j.fault(Finding{Kind: ShimMissing, Node: node, Leg: v1alpha1.LegHostLocal, Address: j.shimAddress(node, n.Name),
			Text: fmt.Sprintf("the host has no shim on %s that is up and has %s: it doesn't reach its own pods, and volumes don't attach there", n.Parent, j.shimAddress(node, n.Name)), Mend: agentLog(node)})
	}
	if n.Learning == nil {
		return
	}
	for _, peer := range j.expected() {
		for _, s := range j.shims[peer] {
			if peer == node || s.Spec.Parent != n.Parent || s.Spec.VTEP == "" || slices.Contains(n.Flood, v1alpha1.VerifiedAddress(s.Spec.VTEP)) {
				continue
			}
			if j.explained[why{a: node, b: peer, address: n.Parent}] {
				continue // another network of the parent
			}
			j.explained[why{a: node, b: peer, address: n.Parent}], j.explained[pair(node, peer)] = true, true
			j.fault(Finding{Kind: FDBMissing, Node: node, Peer: peer, Leg: v1alpha1.LegHostShim, Address: s.Spec.VTEP,
				Text: fmt.Sprintf("%s has no entry for %s: what %s asks by broadcast, ARP first of all, doesn't reach %s", n.Parent, s.Spec.VTEP, node, peer),
				Mend: fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev %s dst %s   # on %s; an agent that runs does so by itself", n.Parent, s.Spec.VTEP, node)})
		}
	}
}

// agentLog is where it is said why an agent doesn't mend its node.
func agentLog(node string) string {
	return "an agent that runs mends this by itself, or its log says why it can't: kubectl -n lhstorage-system get pods -o wide --field-selector spec.nodeName=" + node
}

func (j *judge) wantsShim(node, network string) bool { return j.shimAddress(node, network) != "" }

func (j *judge) shimAddress(node, network string) string {
	for _, s := range j.shims[node] {
		for _, n := range s.Spec.Networks {
			if n.Name == network && len(n.Addresses) > 0 {
				return string(n.Addresses[0])
			}
		}
	}
	return ""
}

// duplicates tells of an address once, whoever of its holders noticed.
func (j *judge) duplicates() {
	for _, node := range j.expected() {
		for _, n := range j.answer[node].Networks {
			for _, d := range n.Duplicates {
				address := string(d.Address)
				if j.explained[why{address: address}] {
					continue
				}
				j.explained[why{address: address}] = true
				holder, leg := "the host shim of "+node, v1alpha1.LegHostShim
				if d.Holder != "" {
					holder, leg = "pod "+d.Holder+" on "+node, v1alpha1.LegPodRemote
				}
				j.fault(Finding{Kind: DuplicateAddress, Node: node, Leg: leg, Address: address,
					Text: fmt.Sprintf("%s is %s's, and %s answers for it too", address, holder, j.ownerOf(d.MAC)),
					Mend: "find the device with MAC " + d.MAC + " and take the address away from it; keep the range free of others by exclude"})
			}
		}
	}
}

func (j *judge) ownerOf(mac string) string {
	for _, node := range j.expected() {
		for _, n := range j.answer[node].Networks {
			if n.ShimMAC == mac {
				return fmt.Sprintf("the host shim of %s (%s)", node, mac)
			}
		}
		for _, p := range j.answer[node].Pods {
			if p.MAC == mac {
				return fmt.Sprintf("pod %s on %s (%s)", p.Pod, node, mac)
			}
		}
	}
	return "a device with MAC " + mac + ", which is none of the storage network's,"
}

// underlay tells of each link between two nodes once.
func (j *judge) underlay() {
	j.each(func(from string, l v1alpha1.VerifiedLeg) {
		if l.Kind != v1alpha1.LegUnderlay || l.Small.Lost == 0 {
			return
		}
		told := why{a: min(from, l.Node), b: max(from, l.Node), address: "link"}
		j.explained[pair(from, l.Node)] = true
		if j.explained[told] {
			return
		}
		j.explained[told] = true
		text := fmt.Sprintf("%d of %d packets from %s to the VTEP of %s (%s) were lost below the storage network%s%s", l.Small.Lost, l.Small.Sent, from, l.Node, l.Address, by(l.Device), said(l.Small))
		j.fault(Finding{Kind: LinkCut, Node: from, Peer: l.Node, Leg: l.Kind, Address: string(l.Address), Text: text,
			Mend: fmt.Sprintf("on %s: ip route get %s; then the link, the switch and the firewall on that way", from, l.Address)})
	})
}

func by(device string) string {
	if device == "" {
		return ""
	}
	return ", sent by " + device
}

func said(p v1alpha1.VerifiedPings) string {
	if p.Error == "" {
		return ""
	}
	return " (" + p.Error + ")"
}

// isExplained says whether a leg's loss follows from what was told already.
func (j *judge) isExplained(from string, l v1alpha1.VerifiedLeg) bool {
	fromHost, toHost := l.From == "", l.Pod == ""
	return from != l.Node && j.explained[pair(from, l.Node)] || j.explained[why{address: string(l.Address)}] ||
		fromHost && l.Kind != v1alpha1.LegUnderlay && j.explained[why{a: from}] || toHost && l.Kind != v1alpha1.LegUnderlay && j.explained[why{a: l.Node}]
}

// legs finds what the legs show.
func (j *judge) legs() {
	j.mtus()
	j.each(func(from string, l v1alpha1.VerifiedLeg) {
		f := about(from, l)
		if l.Small.Lost > 0 && !j.isExplained(from, l) {
			f.Kind = PacketLoss
			f.Text = fmt.Sprintf("%s: %d of %d packets lost%s%s", describe(from, l), l.Small.Lost, l.Small.Sent, by(l.Device), said(l.Small))
			f.Mend = "the two nodes' addresses, rp_filter and firewall: lhstoragectl doctor"
			j.fault(f)
		}
		if l.HTTP != nil && !l.HTTP.OK && !j.isExplained(from, l) {
			f.Kind, f.Text, f.Mend = HTTPFailed, fmt.Sprintf("%s: no HTTP exchange between the storage addresses: %s", describe(from, l), l.HTTP.Error), "pings pass: look for a firewall or a NetworkPolicy between the pods"
			j.fault(f)
		}
		for _, p := range l.TCP {
			if p.Result == v1alpha1.PortSilent && !j.isExplained(from, l) {
				f.Kind, f.Text, f.Mend = PortSilent, fmt.Sprintf("%s: nothing comes back from TCP port %d", describe(from, l), p.Port), "pings pass: look for a firewall between the host and the pod"
				j.fault(f)
			}
		}
		j.device(from, l, f)
	})
}

// about names a leg.
func about(from string, l v1alpha1.VerifiedLeg) Finding {
	f := Finding{Node: from, Peer: l.Node, Leg: l.Kind, Address: string(l.Address)}
	if f.Peer == from {
		f.Peer = ""
	}
	return f
}

// device finds hosts that send to the storage network by another device than the shim. To other hosts' shims they may send by the parent where that
// isn't a tunnel: it keeps its addresses there, and only pods are behind the shim's routes.
func (j *judge) device(from string, l v1alpha1.VerifiedLeg, f Finding) {
	if l.From != "" || l.Kind == v1alpha1.LegUnderlay || l.Device == "" || j.explained[why{a: from, address: "device"}] || j.isExplained(from, l) {
		return
	}
	for _, n := range j.answer[from].Networks {
		direct := l.Kind == v1alpha1.LegHostShim && n.Learning == nil && l.Device == n.Parent
		if n.Name == l.Network && n.Shim != "" && n.Shim != l.Device && !direct {
			j.explained[why{a: from, address: "device"}] = true
			f.Kind, f.Text = WrongDevice, fmt.Sprintf("the host sends to %s by %s, not by the shim %s", l.Address, l.Device, n.Shim)
			f.Mend = fmt.Sprintf("on %s: ip route get %s; a route that is more specific than the shim's must go", from, l.Address)
			j.fault(f)
		}
	}
}

func describe(from string, l v1alpha1.VerifiedLeg) string {
	source, target := from, l.Node
	if l.From != "" {
		source = l.From + " on " + from
	}
	if l.Pod != "" {
		target = l.Pod + " on " + l.Node
	}
	return fmt.Sprintf("%s, %s to %s (%s)", l.Kind, source, target, l.Address)
}

// mtus finds, for each pair of nodes, that small packets pass where full ones don't.
func (j *judge) mtus() {
	worst := map[why]bool{}
	j.each(func(from string, l v1alpha1.VerifiedLeg) {
		if l.Kind == v1alpha1.LegUnderlay { // the cause, where it shows one: it comes before the legs above it
			j.full(worst, from, l)
		}
	})
	j.each(func(from string, l v1alpha1.VerifiedLeg) {
		if l.Kind != v1alpha1.LegUnderlay {
			j.full(worst, from, l)
		}
	})
}

func (j *judge) full(told map[why]bool, from string, l v1alpha1.VerifiedLeg) {
	w := why{a: from, b: l.Node}
	if l.Full == nil || l.Small.Lost > 0 || told[w] || j.isExplained(from, l) {
		return
	}
	f := about(from, l)
	switch {
	case l.Full.Lost > 0:
		told[w] = true
		f.Kind = MTUTooSmall
		f.Text = fmt.Sprintf("%s: %d of %d packets of %d bytes that may not be fragmented were lost%s, small ones pass", describe(from, l), l.Full.Lost, l.Full.Sent, l.Full.Size, said(*l.Full))
		f.Text += j.smaller(from, l)
		f.Mend = "raise the MTU of each device and switch port on that way to what the storage network was told, or lower parent.mtu of the network"
		j.fault(f)
	case l.Full.Fragments > 0 && l.Kind != v1alpha1.LegUnderlay:
		told[w] = true
		f.Kind = OuterFragments
		f.Text = fmt.Sprintf("%s: the host made %d fragments while full packets went there: the underlay carries less than the tunnel needs", describe(from, l), l.Full.Fragments)
		f.Mend = "raise the underlay's MTU, or lower parent.mtu of the network"
		j.warn(f)
	}
}

// smaller names the other node's parent, when that is the smaller one.
func (j *judge) smaller(from string, l v1alpha1.VerifiedLeg) string {
	for _, a := range j.answer[from].Networks {
		for _, b := range j.answer[l.Node].Networks {
			if a.Name == l.Network && b.Name == l.Network && b.ParentMTU > 0 && b.ParentMTU < a.ParentMTU {
				return fmt.Sprintf("; %s has MTU %d on %s and %d on %s", a.Parent, a.ParentMTU, from, b.ParentMTU, l.Node)
			}
		}
	}
	return ""
}

const (
	enough   = 20_000 // bytes, from which a ratio means something
	tooOften = 1.5    // times that a frame is sent, on average
)

// traffic finds frames that go to more than one node, and storage traffic on the management device.
func (j *judge) traffic() {
	for _, node := range j.expected() {
		a := j.answer[node]
		for _, t := range a.Traffic {
			w := Waste{Node: node, Parent: t.Parent, ChildrenSent: t.ChildrenSent, Sent: t.Sent, Management: t.Management, ManagementSent: t.ManagementSent,
				ReceivedForNobody: max(0, t.Received-t.ChildrenReceived)}
			if t.ChildrenSent >= enough {
				w.Ratio = float64(t.Sent) / float64(t.ChildrenSent)
			}
			j.waste = append(j.waste, w)
			j.flooding(w, a.Networks)
			if t.Management != "" && t.Sent >= enough && t.ManagementSent > t.Sent/2 {
				j.warn(Finding{Kind: ManagementNIC, Node: node, Text: fmt.Sprintf("%s, which has the node's own address, sent %d bytes while %s sent %d: storage shares the management network", t.Management, t.ManagementSent, t.Parent, t.Sent),
					Mend: "give the VTEPs (parent.vtep) or the parent another network, if storage is to have its own"})
			}
		}
	}
}

func (j *judge) flooding(w Waste, networks []v1alpha1.VerifiedNetwork) {
	i := slices.IndexFunc(networks, func(n v1alpha1.VerifiedNetwork) bool { return n.Parent == w.Parent && n.Learning != nil })
	if i < 0 || len(networks[i].Flood) < 2 {
		return // to one peer there is nothing to flood
	}
	unlearned := !*networks[i].Learning
	if w.Ratio < tooOften && !unlearned {
		return
	}
	var seen []string
	if w.Ratio >= tooOften {
		seen = append(seen, fmt.Sprintf("it sent %d bytes for %d of the devices on it, %.1f times as many", w.Sent, w.ChildrenSent, w.Ratio))
	}
	if unlearned {
		seen = append(seen, "learning is off")
	}
	j.fault(Finding{Kind: Flooding, Node: w.Node, Leg: v1alpha1.LegHostShim, Text: fmt.Sprintf("%s sends each frame to every peer: %s", w.Parent, strings.Join(seen, "; ")),
		Mend: fmt.Sprintf("ip link set %s type vxlan learning   # on %s; an agent that runs does so by itself", w.Parent, w.Node)})
}
