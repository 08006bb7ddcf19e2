package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const (
	// fullScale is set to anything where TestLeader and TestFleet have the numbers that are promised, which takes minutes.
	fullScale = "LHSTORAGE_TEST_SCALE"

	fewClaims  = 1500
	manyClaims = 10_000
	pageSize   = 500 // of what the leader lists
)

// TestLeader has an agent lead that looks at all claims of a large cluster, their pods and its Nodes: in pages and at its own times. What comes and
// goes in between is no reason to.
func TestLeader(t *testing.T) {
	t.Parallel() // it waits most of the time
	peers, claims := 100, fewClaims
	if os.Getenv(fullScale) != "" {
		peers, claims = manyPeers, manyClaims
	}
	b := newBedOn(t, lab.Options{Nodes: 1, Topology: lab.TopologyLAN}, largeNAD)
	n := b.Nodes[0]
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, b.ApplyFiles(t.Context(), nil, filepath.Join(root, "deploy", "rbac", "node-slices.yaml")))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "backup", ranged("backup", `"range": "10.102.0.0/16"`)))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "sliced", ranged("sliced", `"range": "10.103.0.0/16", "node_slice_size": "/26"`)))
	b.crowd(t, peers)
	b.hold(t, claims, peers)
	b.start(t, n, "--leak-interval=15s", "--node-slices")
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 50*time.Millisecond)
	passes := func() float64 { return metric(t, n, "lhstorage_leak_passes_total", `"ok"`) }
	require.Eventually(t, func() bool {
		return metric(t, n, "lhstorage_pool_allocated", "10.102.0.0-16") == float64(claims/2)
	}, 2*time.Minute, 100*time.Millisecond, "what a pool holds is known")
	require.Eventually(t, func() bool {
		return metric(t, n, "lhstorage_pool_addresses", "-26") > float64(peers*60)
	}, 2*time.Minute, 100*time.Millisecond, "the pools of all slices are known")

	const events = 200
	before, began, resident := b.requests(t), passes(), 0
	used := b.used(t, n, func() {
		for i := 0; passes() < began+3; i++ {
			if i < events {
				b.comeAndGo(t, claims+i, peers)
			}
			resident = max(resident, residentMB(t, b.agents[n.Name].PID()))
			time.Sleep(50 * time.Millisecond)
		}
	})
	asked := b.requests(t).since(before, requests{})
	t.Logf("the leader of %d claims of %d nodes, in %.0f passes over them while %d came and went: %v; %d MB resident at most; %s", claims, peers, passes()-began, events, used, resident, asked)
	assert.LessOrEqual(t, resident, 80)
	begun := passes() - began + 1 // one may be under way
	pages := begun * float64(claims/pageSize+1)
	rounds := asked.in.Seconds()/time.Minute.Seconds() + 1 // of probes
	assert.LessOrEqual(t, asked.count["LIST addressclaims"], pages+rounds, "no list for each event")
	assert.LessOrEqual(t, asked.count["LIST pods"], pages)
	assert.LessOrEqual(t, asked.count["LIST nodes"], begun*float64(peers/pageSize+1))
	assert.Zero(t, metric(t, n, "lhstorage_leak_passes_total", `"error"`))
	assert.Zero(t, metric(t, n, "lhstorage_leaked_claims", ""), "all have a pod")
}

// ranged is a network of the same parent without host shims.
func ranged(name, ipam string) string {
	return strings.NewReplacer(`"name": "storage"`, fmt.Sprintf(`"name": %q`, name), `"hostShim": {"range": "10.101.0.0/20"},`, "", `"range": "10.101.0.0/16"`, ipam).Replace(largeNAD)
}

// hold makes pods on the crowd's nodes, with a claim each.
func (b *bed) hold(t *testing.T, count, peers int) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	for i := range count {
		group.Go(func() error {
			claim := heldBy(i, peers)
			status := fmt.Sprintf(`[{"name":"cluster","interface":"eth0","ips":["10.244.1.7"],"default":true,"dns":{}},{"name":"%s/%s","interface":"lhnet1","ips":[%q],"dns":{}}]`,
				namespace, claim.Spec.Network, claim.Spec.Address)
			_, name, _ := strings.Cut(claim.Spec.PodRef, "/")
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{controlplane.NetworkStatusAnnotation: status}},
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
func (b *bed) comeAndGo(t *testing.T, i, peers int) {
	t.Helper()
	claim := heldBy(i, peers)
	require.NoError(t, b.claim(t.Context(), claim))
	require.NoError(t, b.claimObjects().Delete(t.Context(), claim.Name, metav1.DeleteOptions{}))
	patch := fmt.Appendf(nil, `{"metadata": {"labels": {"rack": "%d"}}}`, i)
	_, err := b.Kube.CoreV1().Nodes().Patch(t.Context(), claim.Spec.Node, types.MergePatchType, patch, metav1.PatchOptions{})
	require.NoError(t, err)
}

// heldBy is the claim of pod i, in one of two pools by turns.
func heldBy(i, peers int) v1alpha1.AddressClaim {
	of, second := network, 101
	if i%2 == 1 {
		of, second = "backup", 102
	}
	address := fmt.Sprintf("10.%d.%d.%d", second, 16+i/2/250, 1+i/2%250)
	pool := fmt.Sprintf("10.%d.0.0-16", second)
	node := fmt.Sprintf("crowd-%04d", i%peers)
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
