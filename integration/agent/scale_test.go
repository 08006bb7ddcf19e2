package agent

import (
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

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const manyPeers = 1000

// largeNAD has room for a thousand nodes, and as many places as VTEPs: the node takes that of its own address, the 2049th.
const largeNAD = `{
  "cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.192.0/20"}},
  "hostShim": {"range": "10.101.0.0/20"},
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
			require.Eventually(t, func() bool { return strings.Contains(state(t, n), vtep) && strings.Contains(rules(t, n), vtep+"/32") }, settle, 100*time.Millisecond)
		}
	})
	t.Logf("%d changes of a peer: %v", changes, busy)
	assert.LessOrEqual(t, busy.passes, 1.0*changes+2, "one for the object, and none for the kernel's message of what it did")
	assert.LessOrEqual(t, busy.reads, changes/2.0, "what informers know isn't asked for")
	resident := residentMB(t, b.agents[n.Name].PID())
	t.Logf("resident memory: %d MB", resident)
	assert.LessOrEqual(t, resident, 80)
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
func vtepOf(index int) netip.Addr { return after("10.100.192.0", index) }

// after is the address that comes so many after one.
func after(first string, index int) netip.Addr {
	address := netip.MustParseAddr(first)
	for range index {
		address = address.Next()
	}
	return address
}

func hostShim(node string, index int) *unstructured.Unstructured {
	h := v1alpha1.HostShim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", parent, index), Labels: map[string]string{v1alpha1.LabelParent: parent, v1alpha1.LabelNode: node}},
		Spec: v1alpha1.HostShimSpec{Node: node, Parent: parent, Index: index, VTEP: vtepOf(index).String(),
			Networks: []v1alpha1.ShimNetwork{{Name: network, Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(after("10.101.0.0", index).String())}}}},
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
