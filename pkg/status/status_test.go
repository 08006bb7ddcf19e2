package status

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/terminal"
)

const config = `{
  "cniVersion": "1.1.0", "name": "longhorn-storage", "type": "lhstorage", "iscsiPath": "%s",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/27"}
}`

const ref = "longhorn-system/storage"

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func manager(i int, status string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "longhorn-system", Name: fmt.Sprintf("im%d", i), Labels: map[string]string{snapshot.LonghornComponent: snapshot.InstanceManagers},
			Annotations: map[string]string{nad.StatusAnnotation: status}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node%d", i)}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.42.0.%d", i)},
	}
}

func both(i int) string {
	return fmt.Sprintf(`[{"name": "cbr0", "interface": "eth0", "ips": ["10.42.0.%d"], "default": true}, {"name": %q, "interface": "lhnet1", "ips": ["10.100.1.%d"]}]`, i, ref, 15+i)
}

func seen(iscsiPath string) *snapshot.Snapshot {
	c := &snapshot.Cluster{
		Definitions: []agent.Definition{{Namespace: "longhorn-system", Name: "storage", Config: fmt.Sprintf(config, iscsiPath)}},
		Longhorn:    snapshot.Longhorn{Namespace: "longhorn-system", Installed: true, Settings: []snapshot.LonghornSetting{{ObjectMeta: metav1.ObjectMeta{Name: snapshot.StorageNetworkSetting}, Value: ref}}},
	}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("node%d", i)
		c.Nodes = append(c.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		c.Pods = append(c.Pods, manager(i, both(i)))
		m := snapshot.InstanceManager{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("im%d", i)}}
		m.Spec.Node, m.Spec.DataEngine, m.Status.State = name, "v1", "running"
		c.Longhorn.InstanceManagers = append(c.Longhorn.InstanceManagers, m)
		c.Claims = append(c.Claims, v1alpha1.AddressClaim{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-time.Duration(i) * 10 * time.Hour))},
			Spec: v1alpha1.AddressClaimSpec{Address: fmt.Sprintf("10.100.1.%d", 15+i), Pool: "10.100.1.0-27", PodRef: fmt.Sprintf("longhorn-system/im%d", i)}})
		if i < 3 {
			c.HostShims = append(c.HostShims, v1alpha1.HostShim{
				Spec: v1alpha1.HostShimSpec{Node: name, Parent: "vxlan-storage", Index: i, VTEP: fmt.Sprintf("10.100.100.%d", i),
					Networks: []v1alpha1.ShimNetwork{{Name: "longhorn-storage", Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(fmt.Sprintf("10.100.1.%d", i))}}}},
				Status: v1alpha1.HostShimStatus{Ready: metav1.ConditionTrue},
			})
		}
	}
	c.HostShims[1].Status = v1alpha1.HostShimStatus{Ready: metav1.ConditionFalse, Reason: "parent is down"}
	c.ProbeReports = []v1alpha1.ProbeReport{{Spec: v1alpha1.ProbeReportSpec{Node: "node1"}, Status: v1alpha1.ProbeReportStatus{Measured: 5, Failing: 2}}}
	return &snapshot.Snapshot{Time: now, Cluster: c}
}

func TestReport(t *testing.T) {
	r := Of(seen("auto"))
	require.Len(t, r.Networks, 1)
	assert.Equal(t, Network{Definition: ref, Name: "longhorn-storage", Parent: "vxlan-storage", Type: "vxlan 100", ISCSIPath: "auto", Attachments: 3, State: "ok",
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.100.1.0/27")}, Hosts: []netip.Prefix{netip.MustParsePrefix("10.100.1.0/28")}}, r.Networks[0])

	require.Len(t, r.Nodes, 3)
	assert.Equal(t, Node{Name: "node1", Parent: "vxlan-storage", Index: 1, Shim: []string{"10.100.1.1"}, VTEP: "10.100.100.1", Peers: 1, Ready: "True", Legs: 5, Failed: 2}, r.Nodes[0])
	assert.Equal(t, "False", r.Nodes[1].Ready)
	assert.Equal(t, "parent is down", r.Nodes[1].Reason)
	assert.Equal(t, Node{Name: "node3", Parent: "vxlan-storage", Peers: 2, Ready: "Missing"}, r.Nodes[2])

	require.Len(t, r.Pools, 1)
	p := r.Pools[0]
	assert.EqualValues(t, 15, p.Size, "a /27 without the nodes' /28 and the broadcast address")
	assert.EqualValues(t, 3, p.Used)
	assert.EqualValues(t, 12, p.Free)
	assert.Equal(t, 2, p.Recent, "made within a day")
	assert.InDelta(t, 6, p.Days, 0.01)
	assert.Zero(t, p.Upgrade)

	require.Len(t, r.Attachments, 3)
	assert.Equal(t, Attachment{Pod: "longhorn-system/im1", Node: "node1", Network: ref, Interface: "lhnet1", Addresses: []string{"10.100.1.16"}, Claimed: true}, r.Attachments[0])
}

func TestPoolForecast(t *testing.T) {
	s := seen("auto")
	for i := 4; i <= 14; i++ { // two addresses are left, and three instance managers would come beside those that are there
		s.Cluster.Claims = append(s.Cluster.Claims, v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: fmt.Sprintf("10.100.1.%d", 15+i), Pool: "10.100.1.0-27"}})
	}
	s.Cluster.Claims = s.Cluster.Claims[:13]
	p := Of(s).Pools[0]
	assert.EqualValues(t, 2, p.Free)
	assert.EqualValues(t, 1, p.Upgrade)
}

func TestUnclaimed(t *testing.T) {
	s := seen("auto")
	s.Cluster.Claims[1].Spec.Released = true
	assert.False(t, Of(s).Attachments[1].Claimed)
	assert.True(t, Of(s).Attachments[0].Claimed)
}

// What the initiator dials, and how that is known.
func TestDial(t *testing.T) {
	dials := func(s *snapshot.Snapshot) []Dial {
		var list []Dial
		for _, m := range Of(s).Longhorn.InstanceManagers {
			list = append(list, m.Dial)
		}
		return list
	}
	storage := func(i int, how string) Dial { return Dial{fmt.Sprintf("10.100.1.%d", 15+i), "lhnet1", how} }
	pod := func(i int, how string) Dial { return Dial{fmt.Sprintf("10.42.0.%d", i), "eth0", how} }

	assert.Equal(t, []Dial{storage(1, Expected), pod(2, Expected), pod(3, Expected)}, dials(seen("auto")), "node2's shim isn't ready, node3 has none")
	assert.Equal(t, []Dial{storage(1, Enforced), storage(2, Enforced), storage(3, Enforced)}, dials(seen("storage-ip")))
	assert.Equal(t, []Dial{pod(1, Enforced), pod(2, Enforced), pod(3, Enforced)}, dials(seen("pod-ip")))

	s := seen("storage-ip")
	s.Cluster.Pods[0].Annotations[nad.StatusAnnotation] = `[{"name": "cbr0", "interface": "eth0", "ips": ["10.42.0.1"], "default": true}, {"name": "x/y", "interface": "eth1", "ips": ["172.16.0.1"]}]`
	s.Cluster.Pods[1].Annotations = nil
	assert.Equal(t, Dial{"172.16.0.1", "eth1", ByName}, dials(s)[0])
	assert.Equal(t, pod(2, OnlyOne), dials(s)[1])

	s = seen("auto")
	report := v1alpha1.ProbeReport{Spec: v1alpha1.ProbeReportSpec{Node: "node1"}, Status: v1alpha1.ProbeReportStatus{Time: metav1.NewTime(now.Add(-time.Minute)),
		ISCSI: []v1alpha1.ProbeDial{{Pod: "longhorn-system/im1", Address: "10.42.0.1", Interface: "eth0"}}}}
	s.Cluster.ProbeReports = []v1alpha1.ProbeReport{report}
	assert.Equal(t, []Dial{pod(1, SeenOnNode), pod(2, Expected), pod(3, Expected)}, dials(s), "what its agent saw counts")
	s.Cluster.ProbeReports[0].Status.ISCSI[0].Address = "10.100.1.99"
	assert.Equal(t, storage(1, Expected), dials(s)[0], "that is of a pod of the same name, before")
	s.Cluster.ProbeReports[0].Status.ISCSI[0].Address = "10.42.0.1"
	s.Cluster.ProbeReports[0].Spec.Node = "node2"
	assert.Equal(t, storage(1, Expected), dials(s)[0], "another node can't know")
	s.Cluster.ProbeReports[0].Spec.Node, s.Cluster.ProbeReports[0].Status.Time = "node1", metav1.NewTime(now.Add(-time.Hour))
	assert.Equal(t, storage(1, Expected), dials(s)[0], "that was an hour ago")

	s = seen("auto")
	s.Cluster.Longhorn.Settings[0].Value = "elsewhere/macvlan"
	assert.Equal(t, Dial{How: Unknown}, dials(s)[0])

	s = seen("auto")
	s.Local = &snapshot.Local{Node: nodefile.File{NodeName: "node1"}, Attachments: []snapshot.Attachment{{
		Attachment: record.Attachment{PodRef: "longhorn-system/im1"}, Dial: netip.MustParseAddr("10.42.0.1"), By: "eth0"}}}
	assert.Equal(t, pod(1, SeenOnNode), dials(s)[0], "what is seen counts")
}

func TestStorageIPs(t *testing.T) {
	s := seen("auto")
	for address, kind := range map[string]string{"10.100.1.16": "right", "10.42.0.1": "outside", "10.100.1.29": "stale"} {
		i := snapshot.Instance{ObjectMeta: metav1.ObjectMeta{Name: kind}}
		i.Spec.Volume, i.Status.StorageIP, i.Status.InstanceManager = "vol", address, "im1"
		s.Cluster.Longhorn.Engines = append(s.Cluster.Longhorn.Engines, i)
	}
	got := map[string]string{}
	for _, i := range Of(s).Longhorn.Instances {
		got[i.Name] = i.Fault
	}
	assert.Empty(t, got["right"])
	assert.Contains(t, got["outside"], "is outside of network")
	assert.Contains(t, got["stale"], "has 10.100.1.16")
}

// On a node its own devices count.
func TestLocal(t *testing.T) {
	s := seen("auto")
	s.Local = &snapshot.Local{Node: nodefile.File{NodeName: "node1"}, Links: []kernel.Link{{Name: "vxlan-storage", Kind: "vxlan", MTU: 8950}},
		Flood: map[string][]netip.Addr{"vxlan-storage": {netip.MustParseAddr("10.100.100.2"), netip.MustParseAddr("10.100.100.3")}}}
	n := Of(s).Nodes[0]
	assert.Equal(t, 8950, n.MTU)
	assert.Equal(t, 2, n.Peers)
}

func TestWrite(t *testing.T) {
	var plain, coloured bytes.Buffer
	r := Of(seen("auto"))
	Write(terminal.Screen{W: &plain}, r)
	Write(terminal.Screen{W: &coloured, Color: true}, r)
	text := plain.String()
	assert.NotContains(t, text, "\x1b")
	assert.Contains(t, coloured.String(), "\x1b")
	for _, want := range []string{"2 of 5 FAIL", "parent is down", "Missing", "fits", "6 days", "10.100.1.16", "expected"} {
		assert.Contains(t, text, want)
	}
	// Columns are aligned: what belongs to the header "VTEP" begins below it.
	var at int
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "node ") {
			at = strings.Index(line, "VTEP")
		}
		if strings.HasPrefix(line, "node1 ") && strings.Contains(line, "10.100.100.1") {
			require.Positive(t, at)
			assert.Equal(t, at, strings.Index(line, "10.100.100.1"))
		}
	}
}

func TestNothing(t *testing.T) {
	var out bytes.Buffer
	Write(terminal.Screen{W: &out}, Of(&snapshot.Snapshot{}))
	assert.Contains(t, out.String(), "none: no NetworkAttachmentDefinition is of type lhstorage")
}
