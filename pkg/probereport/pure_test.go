package probereport_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/probereport"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Every one is asked in a rotation, each at most once in a round, wherever it
// begins.
func TestSampleTakesAllInARotation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, k := rapid.IntRange(0, 1000).Draw(rt, "n"), rapid.IntRange(1, 100).Draw(rt, "k")
		seed, first := rapid.String().Draw(rt, "seed"), rapid.IntRange(0, 1<<40).Draw(rt, "first")
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		asked := map[int]bool{}
		for round := first; round < first+probereport.Rotation(n, k); round++ {
			due := probereport.Sample(all, k, round, seed)
			require.Len(rt, due, min(n, k))
			require.Len(rt, slices.Compact(slices.Sorted(slices.Values(due))), len(due), "none twice")
			for _, i := range due {
				asked[i] = true
			}
		}
		assert.Len(rt, asked, n)
	})
}

// cluster is n other nodes, each with a shim and two pods.
func cluster(n int) probereport.Known {
	k := probereport.Known{Node: "self", Remote: map[string][]probereport.Pod{}}
	addr := netip.MustParseAddr("10.100.0.1")
	next := func() []netip.Addr { addr = addr.Next(); return []netip.Addr{addr} }
	k.Peers = append(k.Peers, probereport.Peer{Node: "self", Network: "storage", Addresses: next()})
	k.Local = []probereport.Pod{
		{Ref: "ns/mine", Network: "storage", Node: "self", Addresses: next(), Netns: "/run/netns/mine"},
		{Ref: "ns/other-net", Network: "other", Node: "self", Addresses: next(), Netns: "/run/netns/other"},
	}
	for i := range n {
		node := fmt.Sprintf("node%04d", i)
		k.Peers = append(k.Peers, probereport.Peer{Node: node, Network: "storage", Addresses: next()})
		for _, pod := range []string{"a", "b"} {
			k.Remote[node] = append(k.Remote[node], probereport.Pod{Ref: "ns/" + pod, Node: node, Network: "storage", Addresses: next()})
		}
	}
	return k
}

func count(targets []probereport.Target, kind v1alpha1.LegKind) (n int) {
	for _, t := range targets {
		if t.Kind == kind {
			n++
		}
	}
	return n
}

func TestChoose(t *testing.T) {
	k := cluster(2)
	targets := probereport.Choose(k, 0, true)
	for kind, want := range map[v1alpha1.LegKind]int{v1alpha1.LegHostShim: 2, v1alpha1.LegHostLocal: 2, v1alpha1.LegHostRemote: 2, v1alpha1.LegPodRemote: 2} {
		assert.Equal(t, want, count(targets, kind), kind)
	}
	assert.Zero(t, count(probereport.Choose(k, 0, false), v1alpha1.LegPodRemote))
	for _, target := range targets {
		if target.Kind == v1alpha1.LegPodRemote {
			assert.Equal(t, "ns/mine", target.From.Ref, "a pod of the same network")
		}
		assert.False(t, target.Kind == v1alpha1.LegHostShim && target.Node == "self", "one's own shim is no leg")
	}
	pods := map[string]bool{}
	for round := range 2 {
		for _, target := range probereport.Choose(k, round, false) {
			if target.Kind == v1alpha1.LegHostRemote && target.Node == "node0000" {
				pods[target.Pod] = true
			}
		}
	}
	assert.Len(t, pods, 2, "a node's pods take turns")

	big := cluster(1000)
	targets = probereport.Choose(big, 3, true)
	assert.Equal(t, probereport.MaxNodes, count(targets, v1alpha1.LegHostShim))
	assert.LessOrEqual(t, len(targets), 4*probereport.MaxNodes)
}

// A pod with an IPv4 address alone asks nobody by IPv6.
func TestChooseAsksWithAnAddressOfTheFamily(t *testing.T) {
	k := cluster(1)
	k.Remote["node0000"] = []probereport.Pod{{Ref: "ns/six", Node: "node0000", Network: "storage", Addresses: []netip.Addr{netip.MustParseAddr("fd00::7")}}}
	targets := probereport.Choose(k, 0, true)
	assert.Equal(t, 1, count(targets, v1alpha1.LegHostRemote))
	assert.Zero(t, count(targets, v1alpha1.LegPodRemote))
}

func leg(node string, lost int, median int64) v1alpha1.ProbeLeg {
	l := v1alpha1.ProbeLeg{Kind: v1alpha1.LegHostShim, Network: "storage", Node: node, Address: "10.100.1.1", Sent: 5, Lost: lost}
	if lost < 5 {
		l.RTT = &v1alpha1.ProbeRTT{Min: median / 2, Median: median, Max: median * 2}
	}
	return l
}

func status(legs ...v1alpha1.ProbeLeg) v1alpha1.ProbeReportStatus {
	return v1alpha1.ProbeReportStatus{Legs: legs}
}

// dials is a report of an instance manager that is dialled at an address.
func dials(address string) v1alpha1.ProbeReportStatus {
	return v1alpha1.ProbeReportStatus{ISCSI: []v1alpha1.ProbeDial{{Pod: "longhorn-system/instance-manager-a", Address: address, Interface: "lhnet1"}}}
}

// at is a leg to another address, as one of another kind.
func at(address string, l v1alpha1.ProbeLeg) v1alpha1.ProbeLeg {
	l.Address = address
	return l
}

func as(kind v1alpha1.LegKind, l v1alpha1.ProbeLeg) v1alpha1.ProbeLeg {
	l.Kind = kind
	return l
}

func TestChanged(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before, now v1alpha1.ProbeReportStatus
		want        bool
	}{
		{"nothing", status(), status(), false},
		{"the same", status(leg("a", 0, 300)), status(leg("a", 0, 300)), false},
		{"a leg goes down", status(leg("a", 0, 300)), status(leg("a", 5, 0)), true},
		{"a leg comes up", status(leg("a", 5, 0)), status(leg("a", 0, 300)), true},
		{"the first leg to a node", status(leg("b", 0, 300)), status(leg("a", 0, 300), leg("b", 0, 300)), true},
		{"another address of a node", status(leg("a", 0, 300)), status(leg("a", 0, 300), at("10.9.9.9", leg("a", 0, 300))), false},
		{"a node's first leg of another kind", status(leg("a", 0, 300)), status(leg("a", 0, 300), as(v1alpha1.LegHostRemote, leg("a", 0, 300))), true},
		{"a new leg that is down", status(), status(leg("a", 5, 0)), true},
		{"a leg that was up is gone", status(leg("a", 0, 300)), status(), false},
		{"a leg that was down is gone", status(leg("a", 5, 0)), status(), true},
		{"one packet lost", status(leg("a", 0, 300)), status(leg("a", 1, 300)), true},
		{"another one lost", status(leg("a", 1, 300)), status(leg("a", 2, 300)), false},
		{"more than half lost", status(leg("a", 2, 300)), status(leg("a", 3, 300)), true},
		{"slower", status(leg("a", 0, 1000)), status(leg("a", 0, 2001)), true},
		{"a little slower", status(leg("a", 0, 1000)), status(leg("a", 0, 1999)), false},
		{"slower, but below what is told apart", status(leg("a", 0, 20)), status(leg("a", 0, 240)), false},
		{"another order", status(leg("a", 1, 300), leg("b", 0, 300)), status(leg("b", 0, 300), leg("a", 1, 300)), false},
		{"another address is dialled", dials("10.100.1.16"), dials("10.42.0.9"), true},
		{"the same address is dialled", dials("10.100.1.16"), dials("10.100.1.16"), false},
		{"nobody is dialled any more", dials("10.100.1.16"), status(), true},
		{"grown", status(), v1alpha1.ProbeReportStatus{Sampled: true}, true},
	} {
		assert.Equal(t, tt.want, probereport.Changed(tt.before, tt.now), tt.name)
	}
}

// Another pod of a node that answers as the first did is no news, a pod of this
// node is.
func TestChangedByPod(t *testing.T) {
	remote := func(address string, lost int) v1alpha1.ProbeLeg {
		return v1alpha1.ProbeLeg{Kind: v1alpha1.LegHostRemote, Network: "storage", Node: "a", Pod: "ns/" + address, Address: address, Sent: 5, Lost: lost}
	}
	assert.False(t, probereport.Changed(status(remote("10.0.0.1", 5)), status(remote("10.0.0.2", 5))))
	local := func(address string, lost int) v1alpha1.ProbeLeg {
		l := remote(address, lost)
		l.Kind = v1alpha1.LegHostLocal
		return l
	}
	assert.True(t, probereport.Changed(status(local("10.0.0.1", 5)), status(local("10.0.0.2", 5))))
}

// A report never differs from itself, whatever the order of its legs, and
// differing is mutual where the nodes are the same.
func TestChangedIsMutual(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 4, rapid.ID).Draw(rt, "nodes")
		report := rapid.Custom(func(rt *rapid.T) v1alpha1.ProbeReportStatus {
			var legs []v1alpha1.ProbeLeg
			for _, node := range nodes {
				legs = append(legs, leg(node, rapid.IntRange(0, 5).Draw(rt, "lost"), rapid.Int64Range(10, 5000).Draw(rt, "rtt")))
			}
			return status(legs...)
		})
		a, b := report.Draw(rt, "a"), report.Draw(rt, "b")
		mixed := status(rapid.Permutation(a.Legs).Draw(rt, "mixed")...)
		assert.False(rt, probereport.Changed(a, mixed))
		assert.Equal(rt, probereport.Changed(a, b), probereport.Changed(b, a))
	})
}

func TestTargetsFromObjects(t *testing.T) {
	shims := []v1alpha1.HostShim{
		{Spec: v1alpha1.HostShimSpec{Node: "self", Networks: []v1alpha1.ShimNetwork{{Name: "s", Addresses: []v1alpha1.ShimAddress{"10.0.0.1"}}}}},
		{Spec: v1alpha1.HostShimSpec{Node: "a", Networks: []v1alpha1.ShimNetwork{{Name: "s", Addresses: []v1alpha1.ShimAddress{"10.0.0.2", "fd00::2"}}, {Name: "none"}}}},
	}
	assert.Equal(t, []probereport.Peer{{Node: "a", Network: "s", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}}},
		probereport.PeersOf(shims, "self"))

	claim := func(change func(*v1alpha1.AddressClaimSpec)) v1alpha1.AddressClaim {
		c := v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: "10.0.0.16", Node: "a", Network: "s", PodRef: "ns/pod"}}
		change(&c.Spec)
		return c
	}
	claims := []v1alpha1.AddressClaim{
		claim(func(*v1alpha1.AddressClaimSpec) {}),
		claim(func(s *v1alpha1.AddressClaimSpec) { s.Released = true }),
		claim(func(s *v1alpha1.AddressClaimSpec) { s.Declined = &v1alpha1.Declined{} }),
		claim(func(s *v1alpha1.AddressClaimSpec) { s.Node = "a-" }), // the label value is the same for long names only
		claim(func(s *v1alpha1.AddressClaimSpec) { s.PodRef = "" }),
	}
	assert.Equal(t, []probereport.Pod{{Ref: "ns/pod", Node: "a", Network: "s", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.16")}}},
		probereport.HoldersOf(claims, "a"))

	attached := record.Attachment{State: record.StateAttached, PodRef: "ns/pod", Network: "s", Netns: "/run/netns/x", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.16/24")}}
	pending := attached
	pending.State = record.StatePending
	assert.Equal(t, []probereport.Pod{{Ref: "ns/pod", Node: "a", Network: "s", Netns: "/run/netns/x", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.16")}}},
		probereport.PodsOf([]record.Attachment{pending, attached}, "a"))
}
