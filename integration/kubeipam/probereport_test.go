package kubeipam

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// A report is written and read back whole, its limits hold, and the pods of a
// node are those that hold its addresses.
func probeReports(t *testing.T, b *bed) {
	cluster := probereport.Cluster{Node: "self", Client: b.client(t, "")}
	reports := kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: v1alpha1.ProbeReportResource}
	t.Cleanup(func() { require.NoError(t, b.api.Delete(context.Background(), reports, "self", "", "")) })
	got, err := cluster.Read(t.Context(), "self")
	require.NoError(t, err)
	assert.Zero(t, got)

	leg := v1alpha1.ProbeLeg{Kind: v1alpha1.LegHostRemote, Network: "storage", Node: "other", Pod: "default/pod", Address: "10.0.0.16", Sent: 5, Lost: 5, Error: "network is unreachable"}
	for i := range 3 {
		leg.RTT = &v1alpha1.ProbeRTT{Min: 1, Median: int64(i), Max: 3}
		want := v1alpha1.ProbeReportStatus{Time: metav1.NewTime(time.Now().Truncate(time.Second)), Measured: i, Failing: 1, Worst: "host-remote", Legs: []v1alpha1.ProbeLeg{leg}}
		require.NoError(t, cluster.Write(t.Context(), "self", want))
		got, err := cluster.Read(t.Context(), "self")
		require.NoError(t, err)
		assert.True(t, want.Time.Equal(&got.Time))
		got.Time = want.Time
		assert.Equal(t, want, got)
	}
	require.NoError(t, cluster.Write(t.Context(), "self", v1alpha1.ProbeReportStatus{}), "a round that measured nothing")

	for name, change := range map[string]func(*v1alpha1.ProbeReportStatus){
		"kind":    func(s *v1alpha1.ProbeReportStatus) { s.Legs[0].Kind = "pod-pod" },
		"isIP":    func(s *v1alpha1.ProbeReportStatus) { s.Legs[0].Address = "nowhere" },
		"Too":     func(s *v1alpha1.ProbeReportStatus) { s.Worst = strings.Repeat("x", 2000) },
		"at most": func(s *v1alpha1.ProbeReportStatus) { s.Legs = make([]v1alpha1.ProbeLeg, 300) },
	} {
		s := v1alpha1.ProbeReportStatus{Legs: []v1alpha1.ProbeLeg{leg}}
		change(&s)
		assert.Error(t, cluster.Write(t.Context(), "self", s), name)
	}
	err = b.api.Patch(t.Context(), reports, "self", []kubeapi.Op{kubeapi.Add("/spec/node", "another")}, nil)
	assert.ErrorContains(t, err, "it is its name")

	b.makeClaim(t, "10.0.0.16", "other", "default/pod")
	b.makeClaim(t, "10.0.0.17", "third", "default/pod2")
	b.makeClaim(t, "10.0.0.18", "fourth", "default/pod3")
	pods, err := cluster.Remote(t.Context(), "other", "fourth", "none")
	require.NoError(t, err)
	assert.Equal(t, map[string][]probereport.Pod{
		"other":  {{Ref: "default/pod", Node: "other", Network: "storage", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.16")}}},
		"fourth": {{Ref: "default/pod3", Node: "fourth", Network: "storage", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.18")}}},
		"none":   nil,
	}, pods)
}

func (b *bed) makeClaim(t *testing.T, address, node, podRef string) {
	require.NoError(t, b.api.Create(t.Context(), kube.Claims, v1alpha1.AddressClaim{
		TypeMeta:   metav1.TypeMeta{Kind: v1alpha1.AddressClaimKind, APIVersion: v1alpha1.GroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{Name: address, Labels: map[string]string{v1alpha1.LabelNode: node}},
		Spec:       v1alpha1.AddressClaimSpec{Address: address, Pool: "10.0.0.0-24", Network: "storage", Node: node, PodRef: podRef, IfName: "lhnet1", ContainerID: "c"},
	}, nil))
	t.Cleanup(func() { _ = b.api.Delete(context.Background(), kube.Claims, address, "", "") })
}
