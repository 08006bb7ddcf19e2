package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const manyPeers = 1000

// largeNAD has room for a thousand nodes.
const largeNAD = `{
  "cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.192.0/20"}},
  "hostShim": {"range": "10.101.0.0/21"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.101.0.0/16"}
}`

// TestScale runs one agent whose cluster has a thousand other nodes. What it takes is logged; the bounds are on what doesn't depend on the
// machine, and on times and memory loose ones.
func TestScale(t *testing.T) {
	b := newBedOn(t, lab.Options{Nodes: 1, Topology: lab.TopologyLAN}, largeNAD)
	n := b.Nodes[0]
	b.crowd(t, manyPeers)
	_, err := b.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "ghost"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	began := time.Now()
	b.start(t, n)
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok && metric(t, n, "lhstorage_peers", "") == manyPeers }, settle, 10*time.Millisecond)
	t.Logf("all peers were there %s after its start; the passes took %.0f ms", time.Since(began).Round(time.Millisecond), 1e3*metric(t, n, "lhstorage_pass_duration_seconds_sum", ""))
	closed(t, n)
	t.Logf("the firewall was there after %s", time.Since(began).Round(time.Millisecond))
	time.Sleep(12 * time.Second) // the first round of probes is quick
	rest := b.used(t, n, func() { time.Sleep(20 * time.Second) })
	t.Logf("at rest, in 20 s: %v", rest)
	assert.LessOrEqual(t, rest.passes, 1.0, "nothing happens, and a pass is due every 30 s")
	const changes = 10
	busy := b.used(t, n, func() {
		for i := range changes {
			vtep := fmt.Sprintf("10.100.207.%d", i+1)
			require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, ghost, vtep)))
			require.Eventually(t, func() bool { return strings.Contains(state(t, n), vtep) && strings.Contains(rules(t, n), vtep+"/32") }, promise, 100*time.Millisecond)
		}
	})
	t.Logf("%d changes of a peer: %v", changes, busy)
	assert.LessOrEqual(t, busy.passes, 2.0*changes+1, "one for the object, one for the kernel's own messages")
	assert.LessOrEqual(t, busy.reads, changes/2.0, "what informers know isn't asked for")
	resident := residentMB(t, b.agents[n.Name].PID())
	t.Logf("resident memory: %d MB", resident)
	assert.LessOrEqual(t, resident, 80)
	leads(t, b, n)
}

const (
	manyClaims = 10_000 // in two pools; a third range is divided among the nodes
	pageSize   = 500    // of what the leader lists
)

// leads: who leads looks at all claims, their pods and the Nodes, in pages and at its own times. What comes and goes in between is no reason to.
func leads(t *testing.T, b *bed, n *controlplane.Node) {
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, b.ApplyFiles(t.Context(), nil, filepath.Join(root, "deploy", "rbac", "node-slices.yaml")))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "backup", ranged("backup", `"range": "10.102.0.0/16"`)))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "sliced", ranged("sliced", `"range": "10.103.0.0/16", "node_slice_size": "/26"`)))
	b.hold(t, manyClaims)
	require.NoError(t, b.agents[n.Name].Stop())
	b.start(t, n, "--leak-interval=15s", "--node-slices")
	passes := func() float64 { return metric(t, n, "lhstorage_leak_passes_total", `"ok"`) }
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_pool_allocated", "10.102.0.0-16") == manyClaims/2 }, 2*time.Minute, 100*time.Millisecond)
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_pool_addresses", "-26") > manyPeers*60 }, 2*time.Minute, 100*time.Millisecond, "the pools of all slices")
	const events = 200
	before, began, resident := b.requests(t), passes(), 0
	used := b.used(t, n, func() {
		for i := 0; passes() < began+3; i++ {
			if i < events {
				b.comeAndGo(t, i)
			}
			resident = max(resident, residentMB(t, b.agents[n.Name].PID()))
			time.Sleep(50 * time.Millisecond)
		}
	})
	asked := b.requests(t).since(before, requests{in: time.Second}, time.Second)
	t.Logf("the leader of %d claims, in %.0f passes over them while %d came and %d went: %v; %d MB resident; %s", manyClaims, passes()-began, events, events, used, resident, asked)
	assert.LessOrEqual(t, resident, 80)
	lists := (passes() - began + 1) * (manyClaims/pageSize + 1) // of a pass that had begun, too
	assert.LessOrEqual(t, asked.count["LIST addressclaims"], lists, "no list for each event")
	assert.LessOrEqual(t, asked.count["LIST pods"], lists)
	assert.LessOrEqual(t, asked.count["LIST nodes"], (passes()-began+1)*(manyPeers/pageSize+1))
	assert.Zero(t, metric(t, n, "lhstorage_leak_passes_total", `"error"`))
}

// ranged is a network of the same parent without host shims.
func ranged(name, ipam string) string {
	return strings.NewReplacer(`"name": "storage"`, fmt.Sprintf(`"name": %q`, name), `"hostShim": {"range": "10.101.0.0/21"},`, "", `"range": "10.101.0.0/16"`, ipam).Replace(largeNAD)
}

// hold makes pods on the crowd's nodes, with a claim each.
func (b *bed) hold(t *testing.T, count int) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	for i := range count {
		group.Go(func() error {
			claim := claimOf(i)
			status := fmt.Sprintf(`[{"name":"cluster","interface":"eth0","ips":["10.244.1.7"],"default":true,"dns":{}},{"name":"%s/%s","interface":"lhnet1","ips":[%q],"dns":{}}]`, namespace, claim.Spec.Network, claim.Spec.Address)
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("holder-%05d", i), Annotations: map[string]string{"k8s.v1.cni.cncf.io/network-status": status}},
				Spec:       corev1.PodSpec{NodeName: claim.Spec.Node, AutomountServiceAccountToken: new(false), Containers: []corev1.Container{{Name: "holder", Image: "none"}}},
			}
			made, err := b.Kube.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			claim.Spec.PodUID = string(made.UID)
			return b.claim(ctx, claim)
		})
	}
	require.NoError(t, group.Wait())
}

// comeAndGo makes a claim and gives it back, and relabels a Node.
func (b *bed) comeAndGo(t *testing.T, i int) {
	t.Helper()
	claim := claimOf(manyClaims + i)
	require.NoError(t, b.claim(t.Context(), claim))
	require.NoError(t, b.claimObjects().Delete(t.Context(), claim.Name, metav1.DeleteOptions{}))
	patch := fmt.Appendf(nil, `{"metadata": {"labels": {"rack": "%d"}}}`, i)
	_, err := b.Kube.CoreV1().Nodes().Patch(t.Context(), claim.Spec.Node, types.MergePatchType, patch, metav1.PatchOptions{})
	require.NoError(t, err)
}

// claimOf is a pod's claim, in one of two pools by turns.
func claimOf(i int) v1alpha1.AddressClaim {
	of, second := network, 101
	if i%2 == 1 {
		of, second = "backup", 102
	}
	address := fmt.Sprintf("10.%d.%d.%d", second, 8+i/2/250, 1+i/2%250)
	pool := fmt.Sprintf("10.%d.0.0-16", second)
	node := fmt.Sprintf("crowd-%04d", i%manyPeers)
	container := fmt.Sprintf("%064x", i)
	return v1alpha1.AddressClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.AddressClaimKind},
		ObjectMeta: metav1.ObjectMeta{Name: address, Labels: map[string]string{
			v1alpha1.LabelNode: node, v1alpha1.LabelNetwork: of, v1alpha1.LabelPool: pool, v1alpha1.LabelContainer: container[:63],
		}},
		Spec: v1alpha1.AddressClaimSpec{
			Address: address, Pool: pool, Range: fmt.Sprintf("10.%d.0.0/16", second), Network: of, Node: node,
			PodRef: fmt.Sprintf("%s/holder-%05d", namespace, i), IfName: ifName, ContainerID: container, MAC: "02:00:00:00:00:01",
		},
	}
}

func (b *bed) claimObjects() dynamic.ResourceInterface {
	return b.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(v1alpha1.AddressClaimResource))
}

func (b *bed) claim(ctx context.Context, claim v1alpha1.AddressClaim) error {
	_, err := b.claimObjects().Create(ctx, toUnstructured(&claim), metav1.CreateOptions{})
	return err
}

// usage is what an agent used in a time.
type usage struct {
	own, children time.Duration // CPU, of itself and of programs that it started
	passes        float64
	took          float64 // seconds, of the passes
	reads         float64 // GET requests to the API server, LISTs and WATCHes among them
}

func (u usage) String() string {
	return fmt.Sprintf("%s of CPU, and %s of programs that it started; %.0f passes of %.0f ms; %.0f reads", u.own.Round(time.Millisecond), u.children, u.passes, 1e3*u.took, u.reads)
}

func (b *bed) used(t *testing.T, n *controlplane.Node, during func()) usage {
	t.Helper()
	look := func() usage {
		u := usage{
			passes: metric(t, n, "lhstorage_pass_duration_seconds_count", ""), took: metric(t, n, "lhstorage_pass_duration_seconds_sum", ""),
			reads: metric(t, n, "rest_client_requests_total", `method="GET"`),
		}
		u.own, u.children = cpu(t, b.agents[n.Name].PID())
		return u
	}
	before := look()
	during()
	after := look()
	return usage{after.own - before.own, after.children - before.children, after.passes - before.passes, after.took - before.took, after.reads - before.reads}
}

// crowd makes Nodes with their HostShims.
func (b *bed) crowd(t *testing.T, count int) {
	t.Helper()
	shims := b.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(v1alpha1.HostShimResource))
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	for i := range count {
		group.Go(func() error {
			name := fmt.Sprintf("crowd-%04d", i)
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if _, err := b.Kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
				return err
			}
			index := i + 100
			_, err := shims.Create(ctx, hostShim(name, index), metav1.CreateOptions{})
			return err
		})
	}
	require.NoError(t, group.Wait())
}

// vtepOf is the VTEP that follows from an index.
func vtepOf(index int) netip.Addr {
	vtep := netip.MustParseAddr("10.100.192.0")
	for range index {
		vtep = vtep.Next()
	}
	return vtep
}

func hostShim(node string, index int) *unstructured.Unstructured {
	address := netip.MustParseAddr("10.101.0.0")
	for range index {
		address = address.Next()
	}
	h := v1alpha1.HostShim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", parent, index), Labels: map[string]string{v1alpha1.LabelParent: parent, v1alpha1.LabelNode: node}},
		Spec: v1alpha1.HostShimSpec{Node: node, Parent: parent, Index: index, VTEP: vtepOf(index).String(),
			Networks: []v1alpha1.ShimNetwork{{Name: network, Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(address.String())}}}},
	}
	return toUnstructured(&h)
}

func toUnstructured(object any) *unstructured.Unstructured {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		panic(err) // of a type that is in this checkout
	}
	delete(content, "status") // none, and an empty one isn't
	return &unstructured.Unstructured{Object: content}
}

// cpu is what a process and those of its children that have ended have used: the first to the nanosecond.
func cpu(t *testing.T, pid int) (own, children time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		require.NoError(t, err)
		own += time.Duration(ns)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	for _, field := range fields[13:15] { // cutime and cstime, in ticks of 10 ms
		ticks, err := strconv.Atoi(field)
		require.NoError(t, err)
		children += time.Duration(ticks) * 10 * time.Millisecond
	}
	return own, children
}

// residentMB is a process's resident memory.
func residentMB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	require.NoError(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	require.NoError(t, err)
	return pages * os.Getpagesize() >> 20
}
