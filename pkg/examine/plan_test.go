package examine_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/examine"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// cluster is what a node knows of one with so many nodes and pods on each.
func cluster(nodes, pods int) examine.Known {
	var k examine.Known
	for i := 1; i <= nodes; i++ {
		node := fmt.Sprintf("node%d", i)
		shim := v1alpha1.ShimAddress(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
		k.HostShims = append(k.HostShims, v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{
			Node: node, Parent: "p", VTEP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), Networks: []v1alpha1.ShimNetwork{{Name: "n", Addresses: []v1alpha1.ShimAddress{shim}}},
		}})
		for p := range pods {
			ref := fmt.Sprintf("longhorn-system/csi-%d-%d", i, p)
			if p == pods-1 {
				ref = fmt.Sprintf("longhorn-system/instance-manager-%d", i)
			}
			address := netip.AddrFrom4([4]byte{10, byte(2 + p), byte(i >> 8), byte(i)})
			k.Claims = append(k.Claims, v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: address.String(), Node: node, Network: "n", PodRef: ref}})
			if i == 1 {
				k.Attachments = append(k.Attachments, record.Attachment{
					State: record.StateAttached, Network: "n", PodRef: ref, Netns: "/run/netns/" + ref, Addresses: []netip.Prefix{netip.PrefixFrom(address, 16)},
				})
			}
		}
	}
	return k
}

func kinds(targets []examine.Target) map[v1alpha1.LegKind]int {
	n := map[v1alpha1.LegKind]int{}
	for _, t := range targets {
		n[t.Kind]++
	}
	return n
}

func TestPlan(t *testing.T) {
	targets, left := examine.Plan(cluster(3, 6), "node1")
	assert.Zero(t, left)
	assert.Equal(t, map[v1alpha1.LegKind]int{
		v1alpha1.LegUnderlay: 2, v1alpha1.LegHostShim: 2, v1alpha1.LegHostLocal: 6, v1alpha1.LegPodLocal: 5, v1alpha1.LegHostRemote: 8, v1alpha1.LegPodRemote: 8,
	}, kinds(targets))
	managers := 0
	for _, target := range targets {
		if target.Kind == v1alpha1.LegPodRemote {
			assert.Equal(t, "longhorn-system/instance-manager-1", target.From, "instance managers come first")
			assert.NotEmpty(t, target.Netns)
		} else if target.From == "" {
			assert.Empty(t, target.Netns)
		}
		if target.Kind == v1alpha1.LegHostRemote && iscsipath.IsTarget(target.Pod) {
			managers++
		}
	}
	assert.Equal(t, 2, managers, "and are never left out")
}

// What nobody holds any more, and parents that this node has no part in, are not measured.
func TestPlanLeavesOut(t *testing.T) {
	k := cluster(2, 1)
	k.Claims[1].Spec.Released = true
	k.HostShims[1].Spec.Parent = "other"
	targets, _ := examine.Plan(k, "node1")
	assert.Equal(t, map[v1alpha1.LegKind]int{v1alpha1.LegHostLocal: 1}, kinds(targets))
}

// In a cluster that is too big for one answer every node still has its legs.
func TestPlanOfABigCluster(t *testing.T) {
	targets, left := examine.Plan(cluster(500, 4), "node1")
	assert.Len(t, targets, 1024)
	assert.Equal(t, 499*(2+8)+4+3, left+1024)
	nodes := map[string]bool{}
	for _, target := range targets {
		nodes[target.Node] = true
	}
	assert.Len(t, nodes, 500)
}

func TestFragmentsIn(t *testing.T) {
	for text, want := range map[string]int64{
		"Ip: Forwarding FragOKs FragFails FragCreates\nIp: 1 2 3 44\nIcmp: InMsgs\nIcmp: 7\n": 44,
		"Ip6InReceives 12\nIp6FragCreates                   \t5\n":                            5,
		"": 0, "Ip: FragCreates\nIp:\n": 0, "Ip: FragCreates\nIp: many\n": 0,
	} {
		assert.Equal(t, want, examine.FragmentsIn(text), "%q", text)
	}
}

func FuzzFragmentsIn(f *testing.F) {
	f.Add("Ip: FragCreates\nIp: 44\n")
	f.Fuzz(func(_ *testing.T, text string) { examine.FragmentsIn(text) }) // it must not panic
}
