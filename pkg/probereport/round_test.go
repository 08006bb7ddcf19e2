package probereport_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
	"github.com/lhstorage/lhstorage/pkg/probereport"
	"github.com/lhstorage/lhstorage/pkg/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a lab as a node of it sees it, and what it reports.
type site struct {
	*lab.Lab
	t    *testing.T
	node lab.Node
	gone map[string]bool // pods that are deleted, though the lab has them

	named string // what this node's pods are called; empty: as the lab does

	writes []v1alpha1.ProbeReportStatus
}

func (s *site) Peers(context.Context) ([]probereport.Peer, error) {
	var peers []probereport.Peer
	for _, n := range s.Nodes() {
		if n.Name != s.node.Name {
			peers = append(peers, probereport.Peer{Node: n.Name, Network: "storage", Addresses: []netip.Addr{n.Host.Addr()}})
		}
	}
	return peers, nil
}

func (s *site) Local(context.Context) ([]probereport.Pod, error) {
	attachments, err := record.Dir(filepath.Join(s.node.RunDir(), "attachments")).List()
	pods := probereport.PodsOf(attachments, s.node.Name)
	for i := range pods {
		pods[i].Network = "storage"
		if s.named != "" {
			pods[i].Ref = s.named
		}
	}
	return pods, err
}

func (s *site) Remote(_ context.Context, nodes ...string) (map[string][]probereport.Pod, error) {
	pods, err := s.Pods()
	byNode := map[string][]probereport.Pod{}
	for _, p := range pods {
		if slices.Contains(nodes, p.Node) && !s.gone[p.Node] {
			pod := probereport.Pod{Ref: "ns/" + p.Name, Node: p.Node, Network: "storage", Addresses: []netip.Addr{p.Addresses[0].Addr()}}
			byNode[p.Node] = append(byNode[p.Node], pod)
		}
	}
	return byNode, err
}

func (s *site) Read(context.Context, string) (v1alpha1.ProbeReportStatus, error) {
	if len(s.writes) == 0 {
		return v1alpha1.ProbeReportStatus{}, nil
	}
	return s.writes[len(s.writes)-1], nil
}

func (s *site) Write(_ context.Context, _ string, status v1alpha1.ProbeReportStatus) error {
	s.writes = append(s.writes, status)
	return nil
}

// sh runs a script on the node.
func (s *site) sh(format string, args ...any) {
	s.t.Helper()
	require.NoError(s.t, s.Exec(s.t.Context(), s.node.Name, "", []string{"sh", "-ec", fmt.Sprintf(format, args...)}))
}

// failing are the legs of the last report that lost packets.
func (s *site) failing() []string {
	list := []string{}
	for _, l := range s.writes[len(s.writes)-1].Legs {
		if l.Lost > 0 {
			list = append(list, string(l.Kind)+" "+l.Node)
		}
	}
	slices.Sort(list)
	return list
}

// With one link cut, or one flood entry removed, exactly the legs to that node
// fail; a report is written when that begins, and when it is over, and not else.
func TestRoundFindsWhatIsBroken(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 3})
	labtest.AddPodPerNode(t, l)
	node := l.Nodes()[0]
	s := &site{Lab: l, t: t, node: node, gone: map[string]bool{}}
	in, err := l.In(node.Name, "")
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	p := &probereport.Prober{
		Node: node.Name, Sources: s, Reports: s, Host: in, FromPods: true,
		Log: slog.New(slog.DiscardHandler), Metrics: probereport.NewMetrics(registry),
	}
	round := func() {
		t.Helper()
		require.NoError(t, p.Round(t.Context(), 0))
	}
	// until repeats a round until exactly the legs to a node fail ("": none), for what
	// the kernel does in its own time.
	until := func(broken string, before func()) {
		t.Helper()
		want := []string{}
		if broken != "" {
			want = []string{"host-remote " + broken, "host-shim " + broken, "pod-remote " + broken}
		}
		for range 20 {
			before()
			round()
			if slices.Equal(want, s.failing()) {
				return
			}
		}
		t.Fatalf("want %v, got %v", want, s.failing())
	}
	until("", func() {})
	assert.Equal(t, 7, s.writes[len(s.writes)-1].Measured, "two shims, a pod here, two elsewhere, from the host and from the pod")
	nothingNew := func(why string) {
		t.Helper()
		before := len(s.writes)
		round()
		for _, w := range s.writes[before:] {
			assert.False(t, probereport.Changed(untimed(s.writes[before-1]), untimed(w)), "%s, but %+v was written", why, w)
		}
	}
	nothingNew("nothing has changed")

	s.sh("ip link set to-node2 down")
	until("node2", func() {})
	last := s.writes[len(s.writes)-1]
	assert.Equal(t, 3, last.Failing)
	assert.Contains(t, last.Worst, "node2")
	assert.InDelta(t, 1, gauge(t, registry, "lhstorage_probe_loss_ratio", "host-shim", "node2"), 0)
	assert.Zero(t, gauge(t, registry, "lhstorage_probe_loss_ratio", "host-shim", "node3"))
	assert.Positive(t, gauge(t, registry, "lhstorage_probe_rtt_seconds", "host-local", "node1"))
	nothingNew("still down is nothing new")
	s.gone["node2"] = true // its pods are: only the shim is still there to be missed
	round()
	assert.Equal(t, []string{"host-shim node2"}, s.failing())
	delete(s.gone, "node2")
	s.sh("ip link set to-node2 up")
	_, err = l.AddPod(t.Context(), node.Name, "pod2", lab.PodOptions{}) // its ADD puts routes and entries right
	require.NoError(t, err)
	until("", func() {})

	// Learned entries go with it: learning makes up for a missing entry while they are young.
	until("node3", func() {
		s.sh(`bridge fdb show dev vxlan-storage | grep 'dst %s ' | while read mac rest; do bridge fdb del $mac dev vxlan-storage dst %s; done`,
			l.Nodes()[2].VTEP, l.Nodes()[2].VTEP)
	})
}

// untimed is a report without its times, which a busy machine doubles, and so
// reports, whenever it likes.
func untimed(s v1alpha1.ProbeReportStatus) v1alpha1.ProbeReportStatus {
	s.Legs = slices.Clone(s.Legs)
	for i := range s.Legs {
		s.Legs[i].RTT = nil
	}
	return s
}

// gauge is a metric's value for a leg and a peer.
func gauge(t *testing.T, from prometheus.Gatherer, name, leg, peer string) float64 {
	t.Helper()
	return value(t, from, name, leg+","+peer)
}

// value is a metric's value for its labels' values.
func value(t *testing.T, from prometheus.Gatherer, name, of string) float64 {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && labels(m) == of {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it is one of them
			}
		}
	}
	t.Fatalf("no %s for %s", name, of)
	return 0
}

func labels(m *dto.Metric) string {
	var list []string
	for _, l := range m.GetLabel() {
		list = append(list, l.GetValue())
	}
	return strings.Join(list, ",")
}

// What a parent sends for what its children do: twice as much where each frame
// goes to both other nodes.
func TestAmplification(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 3})
	labtest.AddPodPerNode(t, l)
	node := l.Nodes()[0]
	s := &site{Lab: l, t: t, node: node, gone: map[string]bool{}}
	in, err := l.In(node.Name, "")
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	p := &probereport.Prober{
		Node: node.Name, Sources: s, Host: in, FromPods: true,
		Log: slog.New(slog.DiscardHandler), Metrics: probereport.NewMetrics(registry),
	}
	const bytes = 16 << 20
	var parent, children float64
	ratio := func() float64 {
		t.Helper()
		_, err := l.Stream(t.Context(), lab.Flow{FromNode: "node1", FromPod: "pod1", ToNode: "node2", ToPod: "pod1", Bytes: bytes})
		require.NoError(t, err)
		require.NoError(t, p.Round(t.Context(), 0))
		p0, c0 := parent, children
		parent = value(t, registry, "lhstorage_parent_transmit_bytes_total", "vxlan-storage")
		children = value(t, registry, "lhstorage_children_transmit_bytes_total", "vxlan-storage")
		require.Greater(t, children-c0, float64(bytes))
		return (parent - p0) / (children - c0)
	}
	require.NoError(t, p.Round(t.Context(), 0))
	assert.InDelta(t, 1, ratio(), 0.1, "learning")
	require.NoError(t, l.SetLearning(false))
	assert.InDelta(t, 2, ratio(), 0.2, "flooding")
	require.NoError(t, l.SetLearning(true))
	assert.InDelta(t, 1, ratio(), 0.1, "learning again")
}

// What Longhorn's initiator dials is looked at in the pods, each round, and reported once for each change; of other pods nobody asks.
func TestRoundSeesWhatIsDialled(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	node := l.Nodes()[0]
	pod, err := l.AddPod(t.Context(), node.Name, "pod", lab.PodOptions{})
	require.NoError(t, err)
	s := &site{Lab: l, t: t, node: node, named: "longhorn-system/instance-manager-1"}
	in, err := l.In(node.Name, "")
	require.NoError(t, err)
	p := &probereport.Prober{
		Node: node.Name, Sources: s, Reports: s, Host: in, FromPods: true,
		Log: slog.New(slog.DiscardHandler), Metrics: probereport.NewMetrics(prometheus.NewRegistry()),
	}
	dialled := func() []v1alpha1.ProbeDial {
		t.Helper()
		require.NoError(t, p.Round(t.Context(), 0))
		return s.writes[len(s.writes)-1].ISCSI
	}
	dial := func(address, by string) []v1alpha1.ProbeDial {
		return []v1alpha1.ProbeDial{{Pod: s.named, Address: address, Interface: by}}
	}
	storage := pod.Addresses[0].Addr().String()
	assert.Equal(t, dial(storage, "lhnet1"), dialled())

	require.NoError(t, l.Exec(t.Context(), node.Name, "pod", []string{"sh", "-ec", "ip link add eth1 type veth peer name other; ip addr add 172.16.0.1/24 dev eth1"}))
	assert.Equal(t, dial("172.16.0.1", "eth1"), dialled(), "Longhorn asks for that name first")
	require.NoError(t, l.Exec(t.Context(), node.Name, "pod", []string{"ip", "link", "del", "eth1"}))
	assert.Equal(t, dial(storage, "lhnet1"), dialled())

	s.named = "default/web"
	assert.Empty(t, dialled())
}
