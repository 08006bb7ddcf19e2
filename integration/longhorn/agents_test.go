package longhorn

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

var verifications = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: v1alpha1.VerificationResource}

// agents stand in for those of all nodes: they answer Verifications with what they are told to have measured.
type agents struct {
	*bed
	mu     sync.Mutex
	asked  map[string]int // by node
	lossy  string         // the node that nothing comes back from
	silent string         // the node whose agent doesn't answer
}

// kubeNodes makes the Nodes, of which agents are asked that are there.
func (b *bed) kubeNodes(t *testing.T) {
	for _, node := range nodes {
		_, err := b.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
}

// agents answer until the test ends. What another test asked, and nobody answered, is none of their business.
func (b *bed) agents(t *testing.T) *agents {
	require.NoError(t, b.Dynamic.Resource(verifications).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	a := &agents{bed: b, asked: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			if list, err := b.Dynamic.Resource(verifications).List(ctx, metav1.ListOptions{}); err == nil {
				for i := range list.Items {
					a.answer(ctx, &list.Items[i])
				}
			}
			time.Sleep(beat)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return a
}

// is changes what they measure.
func (a *agents) is(lossy, silent string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lossy, a.silent = lossy, silent
}

func (a *agents) times(node string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[node]
}

func (a *agents) answer(ctx context.Context, v *unstructured.Unstructured) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, _, _ := unstructured.NestedString(v.Object, "spec", "id")
	answered, _, _ := unstructured.NestedString(v.Object, "status", "id")
	if id == answered || v.GetName() == a.silent {
		return
	}
	data, err := json.Marshal(a.measured(v.GetName(), id))
	if err != nil {
		panic(err)
	}
	var status map[string]any
	if err := json.Unmarshal(data, &status); err != nil {
		panic(err)
	}
	v.Object["status"] = status
	if _, err := a.Dynamic.Resource(verifications).Update(ctx, v, metav1.UpdateOptions{}); err == nil {
		a.asked[v.GetName()]++
	}
}

func (a *agents) measured(node, id string) v1alpha1.VerificationStatus {
	s := v1alpha1.VerificationStatus{
		ID: id, Milliseconds: 1000, Time: metav1.Now(),
		Networks: []v1alpha1.VerifiedNetwork{{Name: "storage", Parent: "vxlan-storage", ParentKind: "vxlan", Shim: "lhnet1-host"}},
	}
	for i, other := range nodes {
		pod := "longhorn/instance-manager-" + other
		leg := v1alpha1.VerifiedLeg{
			Kind: v1alpha1.LegHostRemote, Network: "storage", Node: other, Pod: pod, Address: v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", 16+i)),
			Device: "lhnet1-host", Small: v1alpha1.VerifiedPings{Size: 84, Sent: 5, Microseconds: 200},
		}
		if other == node {
			leg.Kind = v1alpha1.LegHostLocal
		}
		elsewhere := leg // of another network, which is nobody's concern here
		elsewhere.Network, elsewhere.Small.Lost = "another", 5
		if a.lossy == other && other != node {
			leg.Small.Lost, leg.Small.Microseconds = 5, 0
		}
		s.Legs = append(s.Legs, leg, elsewhere)
	}
	return s
}

// TestMeasured has agents measure before what was stopped is started.
func TestMeasured(t *testing.T) {
	b := newBed(t)
	b.kubeNodes(t)
	for name, test := range map[string]func(*testing.T, *bed){
		"all is well":                measuredWell,
		"a leg fails, and is mended": legMended,
		"a leg fails, go back":       legGoBack,
		"a leg fails, go on":         legSkipped,
		"an agent doesn't answer":    oneSilent,
		"no agent runs":              noneRuns,
		"nobody measures it":         foreignNetwork,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

// measuring is a workflow that asks agents, and the lines that it told.
func (w *world) measuring(t *testing.T, answers time.Duration) (*longhorn.Switch, func() string) {
	s := w.workflow(t)
	var mu sync.Mutex
	var told []string
	tell := func(line string) {
		t.Log(line)
		mu.Lock()
		defer mu.Unlock()
		told = append(told, line)
	}
	s.Progress = tell
	s.Verifier = longhorn.Measured{Cluster: s.Cluster, Timeout: answers, Tell: tell}
	return s, func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(told, "\n")
	}
}

const patient = time.Minute

func measuredWell(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	s, told := w.measuring(t, patient)
	require.NoError(t, s.Run(t.Context(), w.request()))
	w.enabled(t)
	for _, node := range nodes {
		assert.Equal(t, 1, a.times(node), node)
	}
	assert.Contains(t, told(), "ok: 2 of 2 nodes answered; 4 legs")
	assert.NotContains(t, told(), "not verified")
}

// fails runs into a leg that fails, and checks what is said and how things stand.
func (w *world) fails(t *testing.T, a *agents) {
	t.Helper()
	a.is("node2", "")
	s, _ := w.measuring(t, patient)
	s.Timeouts.Verify = time.Second
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepVerify)
	assert.Contains(t, text, "packet-loss: node1 → node2, leg host-remote, 10.100.1.17: host-remote, node1 to longhorn/instance-manager-node2 on node2")
	assert.Contains(t, text, "lhstoragectl resume --skip-verify")
	assert.NotContains(t, text, "another")
	state := w.state(t)
	assert.Contains(t, state, "web=0 db=0", "nothing is started on a network that doesn't carry")
	assert.Contains(t, state, "faulted: []")
	j, err := s.Journal(t.Context())
	require.NoError(t, err)
	assert.Equal(t, longhorn.StepVerify, j.Step)
	assert.True(t, j.Switched)
	assert.False(t, j.Finished)
}

func legMended(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	w.fails(t, a)
	s, _ := w.measuring(t, patient)
	s.Timeouts.Verify = time.Second
	stopped(t, s.Resume(t.Context()), longhorn.StepVerify)
	a.is("", "")
	s, _ = w.measuring(t, patient)
	require.NoError(t, s.Resume(t.Context()))
	w.enabled(t)
}

func legGoBack(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	before := w.state(t)
	w.fails(t, a)
	s, _ := w.measuring(t, patient)
	require.NoError(t, s.Rollback(t.Context()), "the way back asks nobody")
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t))
}

func legSkipped(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	w.fails(t, a)
	s, told := w.measuring(t, patient)
	s.SkipVerify = true
	require.NoError(t, s.Resume(t.Context()))
	w.enabled(t)
	assert.Contains(t, told(), "not verified, as asked; do it later: `lhstoragectl verify --wait 5m`")
}

func oneSilent(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	a.is("", "node1")
	s, _ := w.measuring(t, 2*time.Second)
	s.Timeouts.Verify = time.Second
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepVerify)
	assert.Contains(t, text, "no-answer: node1: its agent didn't answer")
	assert.NotContains(t, text, "no-answer: node2")
	a.is("", "")
	s, _ = w.measuring(t, patient)
	require.NoError(t, s.Resume(t.Context()))
	w.enabled(t)
}

func noneRuns(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	s, told := w.measuring(t, time.Second)
	require.NoError(t, s.Run(t.Context(), w.request()), "that nobody measures is no fault of the network")
	w.enabled(t)
	assert.Contains(t, told(), "not verified: no agent answered within 1s")
	assert.Contains(t, told(), "Do it later: `lhstoragectl verify --wait 5m`")
}

// foreignNetwork is of another plugin.
func foreignNetwork(t *testing.T, b *bed) {
	w, a := b.newWorld(t, ""), b.agents(t)
	const config = `{"cniVersion": "1.0.0", "name": "old", "type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "10.100.2.0/24"}}`
	require.NoError(t, w.CreateNetwork(t.Context(), w.ns, "old", config))
	s, told := w.measuring(t, patient)
	require.NoError(t, s.Run(t.Context(), longhorn.Request{Network: longhorn.Ref{Namespace: w.ns, Name: "old"}}))
	w.waitHealthy(t, w.ns+"/old")
	assert.Contains(t, told(), "not verified: network "+w.ns+"/old is of plugin macvlan")
	assert.Zero(t, a.times("node1"))
}
