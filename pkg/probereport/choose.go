package probereport

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Rotation is how many rounds it takes to ask every one of n, k in a round.
func Rotation(n, k int) int { return max(1, (n+k-1)/k) }

// Sample takes the k of all that are due in a round; all where there are no
// more. Any Rotation rounds in a row take every one. seed lets nodes begin in
// different places, so that none is asked by all others at once.
func Sample[T any](all []T, k, round int, seed string) []T {
	n := len(all)
	if n <= k {
		return all
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(seed)) // never fails
	start := int((uint64(h.Sum32()) + uint64(round)*uint64(k)) % uint64(n))
	due := make([]T, 0, k)
	for i := range k {
		due = append(due, all[(start+i)%n])
	}
	return due
}

// Nodes are the other nodes that are due in a round, and how many there are.
func Nodes(peers []Peer, self string, round int) (due []string, of int) {
	all := map[string]bool{}
	for _, p := range peers {
		if p.Node != self {
			all[p.Node] = true
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return Sample(names, MaxNodes, round, self), len(names)
}

// Choose says what is measured in a round.
func Choose(k Known, round int, fromPods bool) []Target {
	due, _ := Nodes(k.Peers, k.Node, round)
	var targets []Target
	for _, p := range k.Peers {
		if p.Node != k.Node && slices.Contains(due, p.Node) {
			for _, a := range p.Addresses {
				targets = append(targets, Target{Kind: v1alpha1.LegHostShim, Network: p.Network, Node: p.Node, Address: a})
			}
		}
	}
	local := slices.Clone(k.Local)
	sortPods(local)
	for _, pod := range Sample(local, maxLocal, round, k.Node) {
		targets = append(targets, toPod(v1alpha1.LegHostLocal, Pod{}, pod, k.Node)...)
	}
	for _, node := range due {
		for _, pod := range onePerNetwork(k.Remote[node], round) {
			targets = append(targets, toPod(v1alpha1.LegHostRemote, Pod{}, pod, node)...)
			if from, ok := podOn(local, pod.Network, round); ok && fromPods {
				targets = append(targets, toPod(v1alpha1.LegPodRemote, from, pod, node)...)
			}
		}
	}
	return slices.DeleteFunc(targets, func(t Target) bool { return !t.Address.IsValid() })
}

func toPod(kind v1alpha1.LegKind, from, to Pod, node string) []Target {
	var targets []Target
	for _, a := range to.Addresses {
		if from.Ref != "" && !slices.ContainsFunc(from.Addresses, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			continue // it has no address to ask with
		}
		targets = append(targets, Target{Kind: kind, Network: to.Network, From: from, Node: node, Pod: to.Ref, Address: a})
	}
	return targets
}

// onePerNetwork takes a node's next pod on each network.
func onePerNetwork(pods []Pod, round int) []Pod {
	pods = slices.Clone(pods)
	sortPods(pods)
	var networks []string
	for _, p := range pods {
		if !slices.Contains(networks, p.Network) {
			networks = append(networks, p.Network)
		}
	}
	var list []Pod
	for _, network := range networks {
		if p, ok := podOn(pods, network, round); ok {
			list = append(list, p)
		}
	}
	return list
}

// podOn is the round's pod of those on a network.
func podOn(pods []Pod, network string, round int) (Pod, bool) {
	on := slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return p.Network != network })
	if len(on) == 0 {
		return Pod{}, false
	}
	return on[round%len(on)], true
}

func sortPods(pods []Pod) {
	slices.SortFunc(pods, func(a, b Pod) int { return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Ref, b.Ref)) })
}
