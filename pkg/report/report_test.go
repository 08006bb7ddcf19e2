package report_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/report"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

var update = flag.Bool("update", false, "write the golden files anew")

// site is a cluster of n nodes with two pods each, as its agents answer.
func site(n int) verify.Input {
	in := verify.Input{ID: "1"}
	for i := 1; i <= n; i++ {
		in.Nodes = append(in.Nodes, nodeName(i))
		in.HostShims = append(in.HostShims, v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{
			Node: nodeName(i), Parent: "vxlan-storage", Index: i, VTEP: fmt.Sprintf("10.100.100.%d", i),
			Networks: []v1alpha1.ShimNetwork{{Name: "storage", Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(fmt.Sprintf("10.100.1.%d", i))}}},
		}})
		in.Answers = append(in.Answers, v1alpha1.Verification{Spec: v1alpha1.VerificationSpec{Node: nodeName(i), ID: "1"}, Status: answer(i, n)})
	}
	return in
}

func nodeName(i int) string { return fmt.Sprintf("worker-%d", i) }

func manager(i int) (name string, address v1alpha1.VerifiedAddress) {
	return fmt.Sprintf("longhorn-system/instance-manager-%08x", i*0x1234567), v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", 15+i))
}

func answer(i, n int) v1alpha1.VerificationStatus {
	learning := true
	pod, address := manager(i)
	share := v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", 115+i))
	a := v1alpha1.VerificationStatus{
		ID: "1", Milliseconds: int64(1100 + 37*i%200),
		Networks: []v1alpha1.VerifiedNetwork{{
			Name: "storage", Parent: "vxlan-storage", ParentKind: "vxlan", ParentMTU: 8950, Learning: &learning, Shim: "lhnet1-host", ShimMTU: 8950,
			ShimAddresses: []v1alpha1.VerifiedAddress{v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", i))}, Bypass: &v1alpha1.VerifiedBypass{Asked: 2},
		}},
		Pods: []v1alpha1.VerifiedPod{
			{Pod: pod, Network: "storage", Addresses: []v1alpha1.VerifiedAddress{address}, ISCSIDial: address},
			{Pod: fmt.Sprintf("longhorn-system/share-manager-%d", i), Network: "storage", Addresses: []v1alpha1.VerifiedAddress{share}},
		},
		Traffic: []v1alpha1.VerifiedTraffic{{Parent: "vxlan-storage", Sent: 645_000, Received: 646_000, ChildrenSent: 644_000, ChildrenReceived: 646_000, Management: "eth0", ManagementSent: 3_100}},
	}
	add := func(kind v1alpha1.LegKind, to int, from, pod string, address v1alpha1.VerifiedAddress, us int64) {
		l := v1alpha1.VerifiedLeg{
			Kind: kind, Network: "storage", From: from, Node: nodeName(to), Pod: pod, Address: address, Small: v1alpha1.VerifiedPings{Size: 84, Sent: 5, Microseconds: us},
			Full: &v1alpha1.VerifiedPings{Size: 8950, Sent: 5, Microseconds: us},
		}
		a.Legs = append(a.Legs, l)
	}
	add(v1alpha1.LegHostLocal, i, "", pod, address, 31)
	add(v1alpha1.LegPodLocal, i, pod, a.Pods[1].Pod, share, 28)
	for p := 1; p <= n; p++ {
		if p == i {
			continue
		}
		peer, there := manager(p)
		vtep := v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.100.%d", p))
		a.Networks[0].Flood = append(a.Networks[0].Flood, vtep)
		slow := int64(90 + 60*((i+p)%5))
		add(v1alpha1.LegUnderlay, p, "", "", vtep, slow)
		add(v1alpha1.LegHostShim, p, "", "", v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", p)), slow+20)
		add(v1alpha1.LegHostRemote, p, "", peer, there, slow+30)
		add(v1alpha1.LegPodRemote, p, pod, peer, there, slow+40)
	}
	return a
}

// broken is one with a link cut, a shim gone, a slow pair, fragments and a silent agent.
func broken() verify.Input {
	in := site(5)
	lose := func(node int, which func(v1alpha1.VerifiedLeg) bool) {
		legs := in.Answers[node-1].Status.Legs
		for i := range legs {
			if which(legs[i]) {
				legs[i].Small.Lost, legs[i].Small.Microseconds, legs[i].Full = 5, 0, nil
			}
		}
	}
	lose(1, func(l v1alpha1.VerifiedLeg) bool { return l.Node == nodeName(3) })
	lose(3, func(l v1alpha1.VerifiedLeg) bool { return l.Node == nodeName(1) })
	in.Answers[1].Status.Networks[0].Shim, in.Answers[1].Status.Networks[0].ShimAddresses = "", nil
	lose(2, func(l v1alpha1.VerifiedLeg) bool { return l.From == "" && l.Kind != v1alpha1.LegUnderlay })
	for _, other := range []int{1, 3, 4} {
		lose(other, func(l v1alpha1.VerifiedLeg) bool {
			return l.Kind == v1alpha1.LegHostShim && l.Node == nodeName(2)
		})
	}
	for i, l := range in.Answers[3].Status.Legs {
		if l.Node == nodeName(3) && l.Kind != v1alpha1.LegUnderlay {
			in.Answers[3].Status.Legs[i].Small.Microseconds = 7400
			in.Answers[3].Status.Legs[i].Full.Fragments = 60
		}
	}
	in.Answers = in.Answers[:4]
	return in
}

func pools(used uint64) []snapshot.Pool {
	return []snapshot.Pool{
		{Name: "10.100.1.0-24", Range: netip.MustParsePrefix("10.100.1.0/24"), Used: used, Size: 239},
		{Name: "10.100.9.0-30", Range: netip.MustParsePrefix("10.100.9.0/30"), Used: 2, Size: 2, Declined: 1},
	}
}

func pageOf(t *testing.T, in verify.Input, used uint64) string {
	t.Helper()
	d := report.From(in, verify.Judge(in), pools(used))
	d.Cluster, d.Version, d.Time = "harvester-lab", "v0.1.0", time.Date(2026, 7, 1, 9, 30, 0, 0, time.UTC)
	var out bytes.Buffer
	require.NoError(t, d.Write(&out))
	return out.String()
}

func TestPages(t *testing.T) {
	for name, page := range map[string]string{"healthy": pageOf(t, site(3), 12), "broken": pageOf(t, broken(), 180)} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".html")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err, "run with -update")
			assert.Equal(t, string(want), page)
			assert.NotContains(t, page, "<script", "none is needed")
			assert.NotRegexp(t, `(src|href|url)\s*[=(]`, page, "nothing is fetched")
		})
	}
}

// What a cluster's objects say can't become part of the page.
func TestNothingIsInjected(t *testing.T) {
	in := site(2)
	evil := `<script>alert(1)</script>"onload='x`
	in.Answers[0].Status.Pods[0].Pod = evil
	in.Answers[0].Status.Error = evil
	in.HostShims[1].Spec.VTEP = evil
	page := pageOf(t, in, 1)
	assert.NotContains(t, page, "<script>")
	assert.NotContains(t, page, `"onload`)
	assert.Contains(t, page, "&lt;script&gt;")
}

// A page of nothing, of one node and of many is a page.
func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, 2, 40} {
		page := pageOf(t, site(n), 0)
		assert.True(t, strings.HasSuffix(page, "</html>\n"), "%d nodes", n)
		assert.NotContains(t, page, "NaN")
		assert.NotContains(t, page, "<no value>")
	}
	assert.Contains(t, pageOf(t, site(40), 0), "780 links on which nothing is lost are not drawn")
}

func TestNodesAreInOrder(t *testing.T) {
	in := site(11)
	var names []string
	for _, n := range report.From(in, verify.Judge(in), nil).Nodes {
		names = append(names, n.Name)
	}
	assert.Equal(t, in.Nodes, names, "worker-2 before worker-10")
}

func TestPools(t *testing.T) {
	page := pageOf(t, site(2), 120)
	assert.Contains(t, page, `aria-label="120 of 239 addresses of 10.100.1.0/24 that pods can get are taken"><span style="width: 50.2%"`)
	assert.Contains(t, page, `aria-label="2 of 2 addresses of 10.100.9.0/30 that pods can get are taken"><span class="full" style="width: 100.0%"`)
	assert.Contains(t, page, "2 of 2 taken by pods, 1 of them in quarantine;")
}
