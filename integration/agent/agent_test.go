package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/agent"
)

type netipAddr = netip.Addr

var vteps = netip.MustParsePrefix("10.100.100.0/24")

func TestAgent(t *testing.T) {
	b := newBed(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"nodes join", join},
		{"chaos", chaos},
		{"definitions that can't be gone by", definitions}, // while there is a leader: one that is killed is missed for a minute
		{"the agent is killed", killed},
		{"two agents at once", two},
		{"peers come, change and go", peers},
		{"a pod without its network", lacking},
		{"the token", token},
		{"the API server is away", away},
		{"a fight", fight},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, b) }) {
			return // they build on each other
		}
	}
}

// flooded is a node's state once its peers are these.
func flooded(text string, peers ...string) string {
	before, after, _ := strings.Cut(text, "  flood [")
	_, after, _ = strings.Cut(after, "]")
	return before + "  flood [" + strings.Join(peers, " ") + "]" + after
}

// Fresh nodes get their places in the order in which they come, and hear of each other at once.
func join(t *testing.T, b *bed) {
	for i, n := range b.Nodes {
		b.start(t, n)
		require.Eventually(t, func() bool { ok, _ := ready(n); return ok && strings.Contains(state(t, n), "flood") }, settle, 20*time.Millisecond, "%s", n.Name)
		for j, other := range b.Nodes[:i] {
			began := time.Now()
			require.Eventually(t, func() bool { return strings.Contains(state(t, other), withPeers(j+1, i+1)) }, promise, 5*time.Millisecond)
			t.Logf("%s knew %s %s after that was ready", other.Name, n.Name, time.Since(began).Round(time.Millisecond))
		}
	}
	for i, n := range b.Nodes {
		text := state(t, n)
		assert.Contains(t, text, fmt.Sprintf("  10.100.1.%d/24\n", i+1))
		assert.Contains(t, text, fmt.Sprintf("VTEP 10.100.100.%d/32\n", i+1))
		require.Eventually(t, func() bool { _, err := n.ReadFile(kubeconfig); return err == nil }, settle, 20*time.Millisecond, "the agent asks for the plugins' token")
	}
	require.Eventually(t, func() bool {
		out, err := b.Kubectl(t.Context(), "get", "hostshims", "-o", `jsonpath={range .items[*]}{.spec.node} {.status.ready}{"\n"}{end}`)
		return err == nil && out == "node1 True\nnode2 True\nnode3 True\n"
	}, settle, 50*time.Millisecond)
}

// withPeers is what the state of a node has whose peers are all nodes up to last.
func withPeers(own, last int) string {
	var list []string
	for i := 1; i <= last; i++ {
		if i != own {
			list = append(list, fmt.Sprintf("10.100.100.%d", i))
		}
	}
	return "  flood [" + strings.Join(list, " ") + "]\n"
}

// run starts a pod with the storage network on a node.
func (b *bed) run(t *testing.T, n *controlplane.Node, name string) *controlplane.Sandbox {
	t.Helper()
	_, err := b.CreatePod(t.Context(), n.Name, namespace, name, controlplane.Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	s, err := n.RunPod(t.Context(), namespace, name)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	return s
}

// broken are the ways to break a node, and the devices that change by that and by its being put right.
var broken = []struct {
	name, script string
	step         string // one of those that are counted, or its beginning
	devices      []string
}{
	{"shim deleted", "ip link del " + shim, "shim.create", []string{shim, parent}}, // the kernel tells of the parent, too, which gets and loses a child
	{"shim down", "ip link set " + shim + " down", "shim.up", []string{shim}},
	{"address removed", "ip addr flush dev " + shim, "shim.address", []string{shim}},
	{"flood entry removed", "bridge fdb del 00:00:00:00:00:00 dev " + parent + " dst 10.100.100.2", "parent.flood.add", nil},
	{"flood entry added", "bridge fdb append 00:00:00:00:00:00 dev " + parent + " dst 10.100.100.77", "parent.flood.del", nil},
	{"parent down", "ip link set " + parent + " down", "parent.up", []string{parent, shim}},
	{"MTU lowered", "ip link set " + parent + " mtu 1300", "parent.mtu", []string{parent, shim}},
	{"address back on the parent", "ip addr add 10.100.1.1/24 dev " + parent, "shim.move", []string{parent, shim}},
	{"arp_ignore of the parent", "echo 0 >/proc/sys/net/ipv4/conf/" + parent + "/arp_ignore", "parent.sysctl", nil},
	{"rp_filter of the shim", "echo 1 >/proc/sys/net/ipv4/conf/" + shim + "/rp_filter", "shim.sysctl", nil},
	{"a route removed", "ip route del 10.100.100.2/32", "route.add", []string{"to-node2"}},
	{"VTEP removed", "dev=$(ip -o addr show to 10.100.100.1/32 | awk '{print $2}'); ip addr del 10.100.100.1/32 dev $dev", "vtep.", []string{"lo", "dummy0"}},
}

// Whatever is broken is put right and counted, nothing else is touched, and the pod's interface lives on; what passes between other
// nodes loses no packet.
func chaos(t *testing.T, b *bed) {
	n := b.Nodes[0]
	pod := b.run(t, n, "steady")
	far := b.elsewhere(t, "chaos")
	index, err := testnode.Links(pod.Netns)
	require.NoError(t, err)
	want := state(t, n)
	for _, c := range broken {
		t.Run(c.name, func(t *testing.T) {
			before := metric(t, n, "lhstorage_repairs_total", `step="`+c.step)
			m := watchDevices(t, n)
			sh(t, n, c.script)
			took := eventually(t, n, promise, want)
			t.Logf("put right after %s", took.Round(time.Millisecond))
			require.Eventually(t, func() bool { return metric(t, n, "lhstorage_repairs_total", `step="`+c.step) > before }, promise, 10*time.Millisecond, "counted")
			m.requireOnly(t, c.devices...)
			links, err := testnode.Links(pod.Netns)
			require.NoError(t, err)
			assert.Equal(t, index, links, "the pod's interfaces")
			addrs, err := testnode.Addresses(pod.Netns, ifName)
			require.NoError(t, err)
			assert.Len(t, addrs, 1)
			require.Eventually(t, func() bool { return answers(pod, far) }, settle, 20*time.Millisecond, "the pod reaches one on another node")
		})
	}
	ok, why := ready(n)
	assert.True(t, ok, why)
}

// An agent that is killed puts right what happened meanwhile when it is there again.
func killed(t *testing.T, b *bed) {
	n := b.Nodes[0]
	want := state(t, n)
	require.NoError(t, b.agents[n.Name].Kill())
	sh(t, n, "ip link del "+shim)
	b.start(t, n)
	t.Logf("put right %s after the agent was started", eventually(t, n, settle, want).Round(time.Millisecond))
}

// Two agents do no more than one.
func two(t *testing.T, b *bed) {
	n := b.Nodes[0]
	want := state(t, n)
	second := b.startAt(t, n, 9820)
	require.Eventually(t, func() bool { code, _ := get(n, "http://127.0.0.1:9821/readyz"); return code == 200 }, settle, 20*time.Millisecond)
	for _, c := range broken {
		sh(t, n, c.script)
		eventually(t, n, promise, want)
	}
	require.NoError(t, second.Stop())
	ok, why := ready(n)
	assert.True(t, ok, why)
}

// A peer is there when its HostShim is, changes with it, and is gone when its Node is. An entry that nobody knows stays as long as a node has no place.
func peers(t *testing.T, b *bed) {
	n := b.Nodes[1]
	b.elsewhere(t, "peers")
	base := state(t, n)
	nodes := b.Kube.CoreV1().Nodes()
	_, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "ghost"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_peers_complete", "") == 0 }, promise, 10*time.Millisecond)
	sh(t, n, "bridge fdb append 00:00:00:00:00:00 dev "+parent+" dst 10.100.100.77")
	scripted := flooded(base, "10.100.100.1", "10.100.100.3", "10.100.100.77")
	time.Sleep(time.Second)
	require.Equal(t, scripted, state(t, n), "it may be the ghost's")

	require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, ghost, "10.100.100.9")))
	t.Logf("joined after %s", eventually(t, n, promise, flooded(base, "10.100.100.1", "10.100.100.3", "10.100.100.9")).Round(time.Millisecond))
	require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, ghost, "10.100.100.10")))
	t.Logf("changed after %s", eventually(t, n, promise, flooded(base, "10.100.100.1", "10.100.100.3", "10.100.100.10")).Round(time.Millisecond))
	require.NoError(t, nodes.Delete(t.Context(), "ghost", metav1.DeleteOptions{}))
	t.Logf("left after %s", eventually(t, n, promise, base).Round(time.Millisecond))
	_, err = b.Kubectl(t.Context(), "delete", "hostshim", "vxlan-storage-9")
	require.NoError(t, err)
	assert.Zero(t, metric(t, n, "lhstorage_repairs_total", `step="parent.flood.add"`), "none of these is a repair")
}

const ghost = `{"apiVersion": "lhstorage.io/v1alpha1", "kind": "HostShim",
 "metadata": {"name": "vxlan-storage-9", "labels": {"lhstorage.io/parent": "vxlan-storage", "lhstorage.io/node": "ghost"}},
 "spec": {"node": "ghost", "parent": "vxlan-storage", "index": 9, "vtep": %q}}`

// event waits for one with a reason about an object.
func (b *bed) event(t *testing.T, reason, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		list, err := b.Kube.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return false
		}
		for _, e := range list.Items {
			if e.Reason == reason && e.InvolvedObject.Name == name {
				t.Logf("%s %s: %s", e.Reason, name, e.Message)
				return true
			}
		}
		return false
	}, settle, 50*time.Millisecond, "Event %s about %s", reason, name)
}

// They are told of, and keep nobody from anything.
func definitions(t *testing.T, b *bed) {
	n := b.Nodes[0]
	want := state(t, n)
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "broken", `{"cniVersion": "1.1.0", "type": "lhstorage", "nonsense": 1}`))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "other", strings.NewReplacer(`"vni": 100`, `"vni": 7`, `"name": "storage"`, `"name": "other"`).Replace(nad)))
	b.event(t, agent.ReasonInvalidNetwork, "broken")
	b.event(t, agent.ReasonContradiction, "other")
	require.Eventually(t, func() bool {
		return metric(t, n, "lhstorage_network_definitions", agent.ReasonInvalidNetwork) == 1 && metric(t, n, "lhstorage_network_definitions", agent.ReasonContradiction) == 1
	}, promise, 20*time.Millisecond)
	sh(t, n, "ip link del "+shim)
	eventually(t, n, promise, want)
	ok, why := ready(n)
	assert.True(t, ok, why)
	for _, name := range []string{"broken", "other"} {
		require.NoError(t, b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
}

// A pod that was started while the network was not there says so.
func lacking(t *testing.T, b *bed) {
	n := b.Nodes[2]
	pod, err := b.CreatePod(t.Context(), n.Name, namespace, "lacking", controlplane.Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	pod.Status.Phase = corev1.PodRunning
	_, err = b.Kube.CoreV1().Pods(namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
	b.event(t, agent.ReasonAttachmentMissing, "lacking")
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_attachments_missing", namespace+"/"+network) == 1 }, settle, 50*time.Millisecond)
	require.NoError(t, b.DeletePod(t.Context(), namespace, "lacking"))
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_attachments_missing", namespace+"/"+network) == 0 }, settle, 50*time.Millisecond)
}

// A pod starts with the token that the agent asked for.
func token(t *testing.T, b *bed) {
	n := b.Nodes[1]
	assert.Greater(t, metric(t, n, "lhstorage_token_expiry_timestamp_seconds", ""), float64(time.Now().Add(time.Hour).Unix()))
	require.NoError(t, b.run(t, n, "with-token").Del(t.Context()))
}

// What was last known counts; an agent that starts now goes by what is on disk; queued releases follow when the server is back.
func away(t *testing.T, b *bed) {
	n := b.Nodes[0]
	want := state(t, n)
	pod := b.run(t, n, "leaving")
	addrs, err := testnode.Addresses(pod.Netns, ifName)
	require.NoError(t, err)
	require.NoError(t, b.StopAPIServer())
	for _, c := range broken {
		if c.step == "parent.flood.del" {
			continue // below
		}
		sh(t, n, c.script)
		eventually(t, n, promise, want)
	}
	require.NoError(t, b.agents[n.Name].Kill())
	b.start(t, n)
	sh(t, n, "ip link del "+shim)
	t.Logf("started with the server away, put right after %s", eventually(t, n, settle, want).Round(time.Millisecond))
	sh(t, n, "bridge fdb append 00:00:00:00:00:00 dev "+parent+" dst 10.100.100.77")
	require.NoError(t, n.Do(func() error { return delOnNode(pod) }))
	require.NoError(t, b.StartAPIServer(t.Context()))
	began := time.Now()
	require.Eventually(t, func() bool {
		_, err := b.Kubectl(t.Context(), "get", "addressclaim", addrs[0].String())
		return err != nil && strings.Contains(err.Error(), "not found")
	}, settle, 50*time.Millisecond)
	t.Logf("the release was carried out %s after the server was back", time.Since(began).Round(time.Millisecond))
	eventually(t, n, settle, want)
	ok, why := ready(n)
	assert.True(t, ok, why)
}

// Something that changes the node back is left alone after a few times, and people are told.
func fight(t *testing.T, b *bed) {
	n := b.Nodes[2]
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_ = n.Do(func() error { return lower() })
			time.Sleep(20 * time.Millisecond)
		}
	}()
	want := state(t, b.Nodes[1]) // of about the same MTU
	require.Contains(t, want, parent)
	require.Eventually(t, func() bool { ok, why := ready(n); return !ok && strings.Contains(why, "changes back") }, settle, 50*time.Millisecond)
	b.event(t, agent.ReasonContested, n.Name)
	assert.GreaterOrEqual(t, metric(t, n, "lhstorage_contests_total", ""), 1.0)
	cancel()
	<-ended
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, 2*settle, 100*time.Millisecond, "and afterwards it is put right")
}
