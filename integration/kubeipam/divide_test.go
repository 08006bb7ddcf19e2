package kubeipam

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nodeslice"
)

// slicePool is a NodeSlicePool as both controllers write it.
type slicePool struct {
	Metadata struct {
		Name            string                  `json:"name"`
		OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Range     string `json:"range"`
		SliceSize string `json:"sliceSize"`
	} `json:"spec"`
	Status struct {
		Allocations []nodeslice.Allocation `json:"allocations"`
	} `json:"status"`
}

// divider runs Whereabouts' own controller and ours side by side, each in a namespace of its own, over the same networks and nodes.
type divider struct {
	*bed
	ours *nodeslice.Controller
}

const theirNamespace, ourNamespace = metav1.NamespaceSystem, metav1.NamespaceDefault

func (d *divider) networks(t *testing.T) (list []nodeslice.Definition) {
	nads, err := d.Dynamic.Resource(controlplane.NetworkAttachments).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, n := range nads.Items {
		spec, _ := n.Object["spec"].(map[string]any)
		config, _ := spec["config"].(string)
		list = append(list, nodeslice.Definition{Namespace: n.GetNamespace(), Name: n.GetName(), UID: string(n.GetUID()), Created: n.GetCreationTimestamp().Time, Config: config})
	}
	return list
}

// sync is one look of our controller.
func (d *divider) sync(t *testing.T) nodeslice.Report {
	t.Helper()
	nodes, err := d.Kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	var members []string
	live := map[string]bool{}
	for _, n := range nodes.Items {
		members, live[n.Name] = append(members, n.Name), true
	}
	slices.Sort(members)
	report, err := d.ours.Sync(t.Context(), d.networks(t), members, live)
	require.NoError(t, err)
	return report
}

func (d *divider) pools(t *testing.T, namespace string) map[string]slicePool {
	t.Helper()
	all := map[string]slicePool{}
	require.NoError(t, kubeapi.Each(t.Context(), d.api, kube.Slices(namespace), func(p slicePool) { all[p.Metadata.Name] = p }))
	return all
}

// settled waits until theirs has given slices to as many nodes of a pool, or it is gone (-1).
func (d *divider) settled(t *testing.T, pool string, nodes int, ranges string) {
	t.Helper()
	require.Eventually(t, func() bool {
		p, there := d.pools(t, theirNamespace)[pool]
		if !there || nodes < 0 {
			return !there && nodes < 0
		}
		given := 0
		for _, a := range p.Status.Allocations {
			if a.NodeName != "" {
				given++
			}
		}
		return given == nodes && p.Spec.Range == ranges
	}, callTime, 20*time.Millisecond, "%v", d.pools(t, theirNamespace))
}

// same compares what both have written, in all that Whereabouts knows.
func (d *divider) same(t *testing.T, after string) {
	t.Helper()
	d.sync(t)
	assert.Equal(t, d.pools(t, theirNamespace), d.pools(t, ourNamespace), after)
}

// like compares a division that was made anew: theirs gives nodes their slices in no order. Then ours takes over their order.
func (d *divider) like(t *testing.T, pool, after string) {
	t.Helper()
	d.sync(t)
	theirs, ours := d.pools(t, theirNamespace)[pool], d.pools(t, ourNamespace)[pool]
	sorted := func(p slicePool) (list []string) {
		var nodes []string
		for _, a := range p.Status.Allocations {
			list = append(list, fmt.Sprint(a.SliceRange, " ", a.NodeName != ""))
			nodes = append(nodes, a.NodeName)
		}
		slices.Sort(nodes)
		return append(list, nodes...)
	}
	assert.Equal(t, sorted(theirs), sorted(ours), after)
	require.NoError(t, d.api.Patch(t.Context(), kube.Slices(ourNamespace), pool, []kubeapi.Op{kubeapi.Add("/status", theirs.Status)}, nil))
	d.same(t, after+", with their order")
}

// Step by step, both controllers come to the same. On a cluster of its own: theirs gives up on all networks beside one that isn't whereabouts'.
func TestDividingRanges(t *testing.T) {
	b := newBed(t)
	d := &divider{b, &nodeslice.Controller{API: b.client(t, ""), Namespace: ourNamespace, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}}
	network := func(name, whole, size, more string) string {
		return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "type": "macvlan", "ipam": {"type": "whereabouts", "range": %q, "node_slice_size": %q%s}}`, name, whole, size, more)
	}
	require.NoError(t, b.CreateNetwork(t.Context(), metav1.NamespaceDefault, "first", network("first", "10.9.0.5/26", "/28", "")))
	controller, err := b.Nodes[0].StartDaemon(t.Context(), controlplane.Daemon{
		Name: "node-slice-oracle", ServiceAccount: metav1.NamespaceSystem + "/whereabouts",
		Args: []string{"/opt/cni/bin/node-slice-controller"}, Env: []string{"WHEREABOUTS_NAMESPACE=" + theirNamespace},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, controller.Stop())
		nads := b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(metav1.NamespaceDefault)
		for _, name := range []string{"first", "second"} {
			_ = nads.Delete(context.Background(), name, metav1.DeleteOptions{})
		}
		_, _ = b.Kubectl(context.Background(), "delete", "nodeslicepools", "--all", "-A")
	})
	const whole = "10.9.0.0/26"
	d.settled(t, "first", 2, whole)
	d.like(t, "first", "a network of two nodes")
	d.addNode(t, "n3", nil)
	d.settled(t, "first", 3, whole)
	d.same(t, "a third node")
	d.removeNode(t, "node1")
	d.settled(t, "first", 2, whole)
	d.same(t, "a node that left")
	d.addNode(t, "n4", nil)
	d.settled(t, "first", 3, whole)
	d.same(t, "a node that takes what came free")
	d.addNode(t, "n5", nil)
	d.settled(t, "first", 4, whole)
	d.same(t, "the last slice")
	d.addNode(t, "n6", nil)
	require.Equal(t, []string{"n6"}, d.sync(t).Without["first"])
	d.same(t, "a node too many")

	d.removeNode(t, "n3")
	d.settled(t, "first", 3, whole)
	d.sync(t)
	assert.Contains(t, fmt.Sprint(d.pools(t, ourNamespace)["first"].Status.Allocations), "n6", "ours gives at once what came free")
	b.touchNetwork(t, "first") // theirs gives it when something happens next
	d.settled(t, "first", 4, whole)
	d.same(t, "the node too many has its slice")

	b.setNetwork(t, "first", network("first", "10.10.0.0/25", "/28", ""))
	d.settled(t, "first", 4, "10.10.0.0/25")
	d.like(t, "first", "another range")
	b.setNetwork(t, "first", network("first", "10.10.0.0/25", "27", ""))
	require.Eventually(t, func() bool { return d.pools(t, theirNamespace)["first"].Spec.SliceSize == "27" }, callTime, 20*time.Millisecond)
	d.like(t, "first", "another size, written otherwise")

	require.NoError(t, b.CreateNetwork(t.Context(), metav1.NamespaceDefault, "second", network("second", "10.11.0.0/27", "/30", `, "network_name": "second"`)))
	d.settled(t, "second", 4, "10.11.0.0/27")
	d.like(t, "second", "a network with a name of its own")
	nads := b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(metav1.NamespaceDefault)
	require.NoError(t, nads.Delete(t.Context(), "second", metav1.DeleteOptions{}))
	d.settled(t, "second", -1, "")
	d.same(t, "a network that was removed")

	// What theirs can't: a network of our type, beside which it gives up on all.
	require.NoError(t, b.CreateNetwork(t.Context(), metav1.NamespaceDefault, "second", strings.Replace(network("second", "10.11.0.0/27", "/30", ""), "whereabouts", "lhstorage-ipam", 1)))
	d.sync(t)
	assert.Len(t, d.pools(t, ourNamespace)["second"].Status.Allocations, 8)
	assert.NotContains(t, d.pools(t, theirNamespace), "second")
	d.inUse(t)
}

// inUse: the slice of a node that has left stays its own as long as something is claimed of it.
func (d *divider) inUse(t *testing.T) {
	slice := func(node string) string {
		for _, a := range d.pools(t, ourNamespace)["second"].Status.Allocations {
			if a.NodeName == node {
				return a.SliceRange
			}
		}
		return ""
	}
	had := slice("n4")
	require.NotEmpty(t, had)
	claim := fmt.Sprintf(`{"apiVersion": "lhstorage.io/v1alpha1", "kind": "AddressClaim",
 "metadata": {"name": "10.11.0.30", "labels": {"lhstorage.io/pool": "n4-%[1]s"}}, "spec": {"address": "10.11.0.30", "pool": "n4-%[1]s", "node": "n4", "range": %[2]q, "containerID": "c", "ifName": "net1", "network": "second"}}`,
		strings.ReplaceAll(had, "/", "-"), had)
	require.NoError(t, d.Apply(t.Context(), nil, []byte(claim)))
	d.removeNode(t, "n4")
	d.sync(t)
	assert.Equal(t, had, slice("n4"))
	_, err := d.Kubectl(t.Context(), "delete", "addressclaim", "10.11.0.30")
	require.NoError(t, err)
	d.sync(t)
	assert.Empty(t, slice("n4"))
}

// touchNetwork changes nothing about a network but its version.
func (b *bed) touchNetwork(t *testing.T, name string) {
	_, err := b.Kubectl(t.Context(), "annotate", "network-attachment-definition", name, "touched="+time.Now().Format(time.RFC3339Nano), "--overwrite")
	require.NoError(t, err)
}
