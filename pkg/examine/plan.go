package examine

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Target is one leg to measure.
type Target struct {
	Kind    v1alpha1.LegKind
	Network string
	From    string // the pod that it is measured from; empty: the host
	Netns   string // its network namespace
	Source  netip.Addr
	Node    string
	Pod     string
	Address netip.Addr
}

// byImportance puts instance managers first. Every node orders pods so, and chooses the same ones.
func byImportance(a, b string) int {
	x, y := iscsipath.IsTarget(a), iscsipath.IsTarget(b)
	switch {
	case x == y:
		return strings.Compare(a, b)
	case x:
		return -1
	}
	return 1
}

// Plan says what is measured from a node, and how many legs are left out since an answer holds no more.
func Plan(k Known, node string) (targets []Target, left int) {
	local := podsOf(k.Attachments)
	targets = append(targets, toHosts(k.HostShims, node)...)
	first := map[string]record.Attachment{}
	for _, pod := range local {
		targets = append(targets, toPod(v1alpha1.LegHostLocal, nil, pod.Network, node, refOf(pod), addrsOf(pod))...)
		if from, ok := first[pod.Network]; ok {
			targets = append(targets, toPod(v1alpha1.LegPodLocal, &from, pod.Network, node, refOf(pod), addrsOf(pod))...)
			continue
		}
		first[pod.Network] = pod
	}
	for _, pod := range holders(k.Claims, node) {
		targets = append(targets, toPod(v1alpha1.LegHostRemote, nil, pod.network, pod.node, pod.ref, pod.addresses)...)
		if from, ok := first[pod.network]; ok {
			targets = append(targets, toPod(v1alpha1.LegPodRemote, &from, pod.network, pod.node, pod.ref, pod.addresses)...)
		}
	}
	slices.SortStableFunc(targets, func(a, b Target) int { return cmp.Compare(a.Node, b.Node) })
	if len(targets) > maxLegs {
		return fairly(targets), len(targets) - maxLegs
	}
	return targets, 0
}

// fairly takes as many targets as fit: of every node one, then of every node another.
func fairly(targets []Target) []Target {
	var kept []Target
	for turn := 0; len(kept) < maxLegs; turn++ {
		seen := map[string]int{}
		for _, t := range targets {
			if seen[t.Node] == turn && len(kept) < maxLegs {
				kept = append(kept, t)
			}
			seen[t.Node]++
		}
	}
	return kept
}

// toHosts are the other nodes' VTEPs, once each, and shims.
func toHosts(shims []v1alpha1.HostShim, self string) []Target {
	own := map[string]bool{}
	for _, s := range shims {
		own[s.Spec.Parent] = own[s.Spec.Parent] || s.Spec.Node == self
	}
	var targets []Target
	for _, s := range shims {
		if s.Spec.Node == self || !own[s.Spec.Parent] {
			continue
		}
		if vtep, err := netip.ParseAddr(s.Spec.VTEP); err == nil {
			t := Target{Kind: v1alpha1.LegUnderlay, Node: s.Spec.Node, Address: vtep}
			if len(s.Spec.Networks) > 0 {
				t.Network = s.Spec.Networks[0].Name
			}
			targets = append(targets, t)
		}
		for _, n := range s.Spec.Networks {
			for _, text := range n.Addresses {
				if a, err := netip.ParseAddr(string(text)); err == nil {
					targets = append(targets, Target{Kind: v1alpha1.LegHostShim, Network: n.Name, Node: s.Spec.Node, Address: a})
				}
			}
		}
	}
	return targets
}

func toPod(kind v1alpha1.LegKind, from *record.Attachment, network, node, pod string, addresses []netip.Addr) []Target {
	var targets []Target
	for _, a := range addresses {
		t := Target{Kind: kind, Network: network, Node: node, Pod: pod, Address: a}
		if from != nil {
			i := slices.IndexFunc(addrsOf(*from), func(own netip.Addr) bool { return own.Is4() == a.Is4() })
			if i < 0 {
				continue // it has no address to ask with
			}
			t.From, t.Netns, t.Source = refOf(*from), from.Netns, addrsOf(*from)[i]
		}
		targets = append(targets, t)
	}
	return targets
}

func addrsOf(a record.Attachment) []netip.Addr {
	var list []netip.Addr
	for _, p := range a.Addresses {
		list = append(list, p.Addr())
	}
	return list
}

// holder is a pod of another node.
type holder struct {
	ref, node, network string
	addresses          []netip.Addr
}

// holders are the pods of other nodes that hold addresses, a few for each node and network.
func holders(claims []v1alpha1.AddressClaim, self string) []holder {
	var list []holder
	for _, c := range claims {
		a, err := netip.ParseAddr(c.Spec.Address)
		if err != nil || c.Spec.Node == self || c.Spec.Released || c.Spec.Declined != nil || c.Spec.PodRef == "" {
			continue
		}
		i := slices.IndexFunc(list, func(h holder) bool {
			return h.ref == c.Spec.PodRef && h.node == c.Spec.Node && h.network == c.Spec.Network
		})
		if i < 0 {
			list = append(list, holder{ref: c.Spec.PodRef, node: c.Spec.Node, network: c.Spec.Network})
			i = len(list) - 1
		}
		list[i].addresses = append(list[i].addresses, a)
	}
	slices.SortFunc(list, func(a, b holder) int {
		return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.network, b.network), byImportance(a.ref, b.ref))
	})
	taken := map[[2]string]int{}
	return slices.DeleteFunc(list, func(h holder) bool {
		taken[[2]string{h.node, h.network}]++
		return taken[[2]string{h.node, h.network}] > perNode
	})
}
