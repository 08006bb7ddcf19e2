package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// TestElected is about what one agent does for the cluster, with its rights of deploy/rbac and times that a test can wait for.
func TestElected(t *testing.T) {
	b := newBed(t)
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, b.ApplyFiles(t.Context(), nil, filepath.Join(root, "deploy", "rbac", "node-slices.yaml")))
	b.flags = []string{"--leak-interval=1s", "--leak-min-age=2s", "--leak-node-grace=3s", "--place-grace=4s", "--node-slices"}
	for _, n := range b.Nodes {
		b.start(t, n)
		require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 20*time.Millisecond, "%s", n.Name)
		require.Eventually(t, func() bool { _, err := n.ReadFile(kubeconfig); return err == nil }, settle, 20*time.Millisecond, "%s", n.Name)
	}
	leader := b.Nodes[0]
	require.Eventually(t, func() bool { return metric(t, leader, "lhstorage_leader", "") == 1 }, settle, 20*time.Millisecond)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bed, *controlplane.Node)
	}{
		{"leaked claims", leaked},
		{"how full pools are", full},
		{"a node leaves", departs},
		{"node slices", divided},
		{"another one leads", succeeded},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, b, leader) }) {
			return // they build on each other
		}
	}
}

// claims are the addresses that are claimed.
func (b *bed) claims(t *testing.T) []string {
	t.Helper()
	return b.names(t, "addressclaims")
}

func (b *bed) names(t *testing.T, kind string) []string {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "get", "-A", kind, "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`)
	require.NoError(t, err)
	return strings.Fields(out)
}

// address is what a pod's interface has.
func address(t *testing.T, s *controlplane.Sandbox) string {
	t.Helper()
	addrs, err := testnode.Addresses(s.Netns, ifName)
	require.NoError(t, err)
	require.Len(t, addrs, 1)
	return addrs[0].String()
}

// earlier is the claim of an ADD that was killed, of a pod whose next ADD made another one.
const earlier = `{"apiVersion": "lhstorage.io/v1alpha1", "kind": "AddressClaim",
 "metadata": {"name": "10.100.1.200", "labels": {"lhstorage.io/node": %[1]q, "lhstorage.io/network": "storage", "lhstorage.io/pool": "10.100.1.0-24", "lhstorage.io/container": "killed"}},
 "spec": {"address": "10.100.1.200", "pool": "10.100.1.0-24", "range": "10.100.1.0/24", "network": "storage", "node": %[1]q, "podRef": "longhorn-system/twice", "ifName": "lhnet1", "containerID": "killed"}}`

// leaked: whatever no DEL came for is back after two passes, with all that mirrors it; what lives keeps what it has.
func leaked(t *testing.T, b *bed, leader *controlplane.Node) {
	require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, earlier, b.Nodes[1].Name)))
	live := []string{address(t, b.run(t, b.Nodes[0], "live")), address(t, b.run(t, b.Nodes[1], "twice"))}
	killed := []string{address(t, b.run(t, b.Nodes[1], "killed-1")), address(t, b.run(t, b.Nodes[0], "killed-2"))}
	lost := address(t, b.run(t, b.Nodes[2], "on-lost-node"))
	slices.Sort(live)
	require.NotContains(t, live, "10.100.1.200")
	passes := func() float64 { return metric(t, leader, "lhstorage_leak_passes_total", `"ok"`) }
	// until waits for claims to come back, and holds the collector to its word: a pass that is under way, and two.
	until := func(reason string, gone ...string) {
		t.Helper()
		began := passes()
		require.Eventually(t, func() bool {
			return !slices.ContainsFunc(b.claims(t), func(c string) bool { return slices.Contains(gone, c) })
		}, settle, 20*time.Millisecond, "%s of %s", reason, gone)
		took := passes() - began
		t.Logf("%s: %s came back after %v passes", reason, gone, took)
		assert.LessOrEqual(t, took, 3.0)
		assert.InDelta(t, float64(len(gone)), metric(t, leader, "lhstorage_leaked_claims_collected_total", reason), 0)
	}
	require.Eventually(t, func() bool { return !slices.Contains(b.claims(t), "10.100.1.200") }, settle, 20*time.Millisecond)
	assert.InDelta(t, 1, metric(t, leader, "lhstorage_leaked_claims_collected_total", "superseded"), 0)

	for _, name := range []string{"killed-1", "killed-2"} {
		require.NoError(t, b.DeletePod(t.Context(), namespace, name))
	}
	until("pod-gone", killed...)

	node := b.Nodes[2]
	require.NoError(t, b.agents[node.Name].Kill())
	require.NoError(t, b.DeletePod(t.Context(), namespace, "on-lost-node"))
	require.NoError(t, b.Kube.CoreV1().Nodes().Delete(t.Context(), node.Name, metav1.DeleteOptions{}))
	time.Sleep(2 * time.Second)
	assert.Contains(t, b.claims(t), lost, "the node may register again")
	time.Sleep(2 * time.Second)
	until("node-gone", lost)

	for began := passes(); passes() < began+3; time.Sleep(50 * time.Millisecond) {
		require.Equal(t, live, b.claims(t))
	}
	assert.Zero(t, metric(t, leader, "lhstorage_leaked_claims", ""))
	assert.Zero(t, metric(t, leader, "lhstorage_leak_passes_total", `"error"`))
	assert.Equal(t, live, b.names(t, "overlappingrangeipreservations"))
	out, err := b.Kubectl(t.Context(), "get", "-n", "kube-system", "ippool", "10.100.1.0-24", "-o", "jsonpath={.spec.allocations}")
	require.NoError(t, err)
	assert.Equal(t, len(live), strings.Count(out, "podref"), "%s", out)
}

// full: the leader alone says how full the pool is, counting what a real Whereabouts would have put there.
func full(t *testing.T, b *bed, leader *controlplane.Node) {
	const pool = `pool="10.100.1.0-24"`
	measured := func(allocated float64) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			assert.InDelta(c, allocated, metric(t, leader, "lhstorage_pool_allocated", pool), 0)
		}, settle, 50*time.Millisecond)
	}
	measured(0)
	b.run(t, b.Nodes[1], "fills")
	measured(1)
	assert.InDelta(t, 239, metric(t, leader, "lhstorage_pool_addresses", pool), 0, "254 without 15 of the hosts'")
	_, err := b.Kubectl(t.Context(), "patch", "-n", "kube-system", "ippool", "10.100.1.0-24", "--type=merge", "-p", `{"spec": {"allocations": {"77": {"id": "theirs", "podref": "ns/theirs", "ifname": "net1"}}}}`)
	require.NoError(t, err)
	measured(2)
	_, err = b.Kubectl(t.Context(), "patch", "-n", "kube-system", "ippool", "10.100.1.0-24", "--type=merge", "-p", `{"spec": {"allocations": {"77": null}}}`)
	require.NoError(t, err)
	measured(1)
	assert.Zero(t, metric(t, b.Nodes[1], "lhstorage_pool_addresses", ""))
}

// departs: the place of a node that has left is marked at once and its flood entry gone; it is kept for the grace time, and as long as something has
// its addresses. A Node that isn't Ready hasn't left.
func departs(t *testing.T, b *bed, leader *controlplane.Node) {
	const vtep = "192.0.2.9" // of no node, so that nobody takes it for its own
	nodes := b.Kube.CoreV1().Nodes()
	ghostNode := func(ready corev1.ConditionStatus) {
		t.Helper()
		_, err := nodes.Create(t.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "ghost"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	leave := func() { t.Helper(); require.NoError(t, nodes.Delete(t.Context(), "ghost", metav1.DeleteOptions{})) }
	mark := func() (string, bool) {
		out, err := b.Kubectl(t.Context(), "get", "hostshim", "vxlan-storage-9", "-o", `jsonpath={.metadata.annotations.lhstorage\.io/node-gone}`)
		if err != nil {
			require.ErrorContains(t, err, "not found")
		}
		return out, err == nil
	}
	marked := func() bool { since, _ := mark(); return since != "" }
	flooded := func() bool { return strings.Contains(state(t, b.Nodes[1]), vtep) }
	// The node that an earlier test lost is away by now: its peers have no route to it any more.
	require.Eventually(t, func() bool { return !slices.Contains(b.names(t, "hostshims"), "vxlan-storage-3") }, settle, 50*time.Millisecond)
	departed, removed := metric(t, leader, "lhstorage_departed_places", ""), metric(t, leader, "lhstorage_departed_places_removed_total", "")
	ghostNode(corev1.ConditionFalse)
	require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, ghost, vtep)))
	require.Eventually(t, flooded, promise, 10*time.Millisecond)
	time.Sleep(time.Second)
	require.False(t, marked(), "not Ready isn't gone")

	sh(t, leader, "ip addr add "+vtep+"/32 dev lo") // the machine still runs
	began := time.Now()
	leave()
	require.Eventually(t, marked, promise, 10*time.Millisecond)
	t.Logf("marked after %s", time.Since(began).Round(time.Millisecond))
	require.Eventually(t, func() bool { return !flooded() }, promise, 10*time.Millisecond)
	require.Eventually(t, func() bool { return metric(t, leader, "lhstorage_departed_places", "") == departed+1 }, promise, 10*time.Millisecond)
	ghostNode(corev1.ConditionTrue)
	require.Eventually(t, func() bool { return !marked() && flooded() }, promise, 10*time.Millisecond, "it is back")
	leave()
	require.Eventually(t, marked, promise, 10*time.Millisecond)
	time.Sleep(9 * time.Second)
	_, there := mark()
	require.True(t, there, "something has its addresses")
	sh(t, leader, "ip addr del "+vtep+"/32 dev lo")
	require.Eventually(t, func() bool { _, there := mark(); return !there }, settle, 50*time.Millisecond)
	require.Eventually(t, func() bool { return metric(t, leader, "lhstorage_departed_places", "") == departed }, promise, 10*time.Millisecond)
	assert.InDelta(t, removed+1, metric(t, leader, "lhstorage_departed_places_removed_total", ""), 0)
}

// divided: a network with node slices works from its definition on, and a Node that comes has its slice.
func divided(t *testing.T, b *bed, leader *controlplane.Node) {
	config := strings.NewReplacer(`"name": "storage"`, `"name": "sliced"`, `"hostShim": {"range": "10.100.1.0/28"},`, "", `"range": "10.100.1.0/24"`, `"range": "10.100.2.0/26", "node_slice_size": "/28"`).Replace(nad)
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "sliced", config))
	given := func() string {
		out, err := b.Kubectl(t.Context(), "get", "-n", "kube-system", "nodeslicepool", "sliced", "-o", `jsonpath={range .status.allocations[*]}{.nodeName}={.sliceRange} {end}`)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(out)
	}
	require.Eventually(t, func() bool {
		return given() == "node1=10.100.2.0/28 node2=10.100.2.16/28 =10.100.2.32/28 =10.100.2.48/28"
	}, promise, 20*time.Millisecond)
	n := b.Nodes[1]
	_, err := b.CreatePod(t.Context(), n.Name, namespace, "sliced", controlplane.Network{Namespace: namespace, Name: "sliced", Interface: ifName})
	require.NoError(t, err)
	s, err := n.RunPod(t.Context(), namespace, "sliced")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	assert.Equal(t, "10.100.2.17", address(t, s))
	require.Eventually(t, func() bool { return metric(t, leader, "lhstorage_pool_allocated", `"node2-10.100.2.16-28"`) == 1 }, settle, 50*time.Millisecond)
	assert.InDelta(t, 28, metric(t, leader, "lhstorage_pool_addresses", "-28"), 0, "of two slices that are given")

	began := time.Now()
	_, err = b.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return strings.Contains(given(), "late=10.100.2.32/28") }, promise, 20*time.Millisecond)
	t.Logf("a node had its slice after %s", time.Since(began).Round(time.Millisecond))
	require.NoError(t, b.Kube.CoreV1().Nodes().Delete(t.Context(), "late", metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return !strings.Contains(given(), "late") }, promise, 20*time.Millisecond)
	require.NoError(t, b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(namespace).Delete(t.Context(), "sliced", metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return strings.Contains(given(), "not found") }, promise, 20*time.Millisecond)
	assert.Zero(t, metric(t, leader, "lhstorage_nodes_without_slice", ""))
}

// succeeded: what leaks while nobody leads is found by who leads next, who also says what the last one said.
func succeeded(t *testing.T, b *bed, leader *controlplane.Node) {
	next := b.Nodes[1]
	orphan := address(t, b.run(t, next, "orphan"))
	require.NoError(t, b.agents[leader.Name].Stop())
	require.NoError(t, b.DeletePod(t.Context(), namespace, "orphan"))
	require.Zero(t, metric(t, next, "lhstorage_leader", ""))
	require.Contains(t, b.claims(t), orphan)
	require.Eventually(t, func() bool { return metric(t, next, "lhstorage_leader", "") == 1 }, settle, 50*time.Millisecond)
	require.Eventually(t, func() bool { return !slices.Contains(b.claims(t), orphan) }, settle, 50*time.Millisecond)
	assert.InDelta(t, 1, metric(t, next, "lhstorage_leaked_claims_collected_total", "pod-gone"), 0)
	assert.InDelta(t, 239, metric(t, next, "lhstorage_pool_addresses", ""), 0)
}
