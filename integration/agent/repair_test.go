package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/pkg/agent"
)

// Without a schema: what isn't in Longhorn's has to be survived, too.
const managerCRD = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "instancemanagers.longhorn.io"},
 "spec": {"group": "longhorn.io", "scope": "Namespaced", "names": {"kind": "InstanceManager", "plural": "instancemanagers", "singular": "instancemanager"},
  "versions": [{"name": "v1beta2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}`

const (
	looks    = 2500 * time.Millisecond // in which the agent, which looks each second here, looks a few times
	attached = `[{"name": "` + namespace + "/" + network + `", "interface": "` + ifName + `", "ips": ["10.100.1.99"]}]`
)

// spared are pods on the agent's node that are none of its business: each with the status of its InstanceManager (empty: there is no such object).
var spared = map[string]string{
	"runs-an-engine": `{"instanceEngines": {"e-1": {}}, "instanceReplicas": {}}`, "runs-a-replica": `{"instanceReplicas": {"r-1": {}}}`, "runs-an-old-instance": `{"instances": {"i-1": {}}}`,
	"says-nothing": `null`, "is-unknown": ``, "is-a-share-manager": `{}`, "is-attached": `{}`, "is-no-pod-of-longhorn": `{}`, "is-on-its-way": `{}`,
}

// With --repair=longhorn the agent deletes instance managers that lack their network and run nothing: one at a time, three an hour
// in the whole cluster, and nothing else.
func TestRepair(t *testing.T) {
	t.Parallel() // it waits most of the time
	b := newBed(t)
	chart, err := deploy.NewChart(t.Context())
	require.NoError(t, err)
	rights, err := chart.Template(t.Context(), "--set", "agent.repair=longhorn,agent.repairNamespace="+namespace, "--show-only", "templates/agent-rbac.yaml")
	require.NoError(t, err)
	require.NoError(t, b.Apply(t.Context(), []string{"Role", "RoleBinding"}, rights))
	require.NoError(t, b.Apply(t.Context(), nil, []byte(managerCRD)))
	n, other := b.Nodes[0], b.Nodes[1]
	for name, status := range spared {
		b.manager(t, n, name, status)
	}
	b.startAt(t, n, 9810, "--repair=longhorn")
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 50*time.Millisecond) // the cables want it to be the first
	b.startAt(t, other, 9810, "--repair=longhorn")
	require.Eventually(t, func() bool { ok, _ := ready(other); return ok }, settle, 50*time.Millisecond)
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_attachments_missing", "") >= 7 }, settle, 100*time.Millisecond)
	time.Sleep(looks)
	require.Empty(t, b.deleted(t), "nothing that may be deleted is there yet")
	b.phase(t, "is-on-its-way", corev1.PodRunning, attached)

	idle := map[string]*controlplane.Node{"idle-1": n, "idle-2": other, "idle-3": n, "idle-4": other}
	for name, on := range idle {
		b.manager(t, on, name, `{"instanceEngines": {}, "instanceReplicas": {}}`)
	}
	var gone []string
	for range 3 {
		var now []string
		require.Eventually(t, func() bool { now = b.deleted(t); return len(now) > 0 }, settle, 50*time.Millisecond)
		time.Sleep(looks)
		require.Len(t, b.deleted(t), 1, "one at a time: it hasn't ended")
		b.event(t, agent.ReasonAttachmentRepair, now[0])
		gone = append(gone, now[0])
		require.NoError(t, b.DeletePod(t.Context(), namespace, now[0]))
		b.pod(t, idle[now[0]], now[0], corev1.PodPending, "") // Longhorn makes it anew
		time.Sleep(looks)
		require.Empty(t, b.deleted(t), "one at a time: the new one hasn't started")
		b.phase(t, now[0], corev1.PodRunning, attached)
	}
	time.Sleep(2 * looks)
	assert.Empty(t, b.deleted(t), "no more than three an hour")
	assert.Subset(t, slices.Collect(maps.Keys(idle)), gone)
	assert.Len(t, slices.Compact(slices.Sorted(slices.Values(gone))), 3)
	counted := func() float64 {
		return metric(t, n, "lhstorage_attachment_repairs_total", "") + metric(t, other, "lhstorage_attachment_repairs_total", "")
	}
	assert.InDelta(t, 3, counted(), 0)
	t.Logf("deleted %v, and none of %v", gone, slices.Sorted(maps.Keys(spared)))
}

// deleted are the pods that were told to end: without a kubelet they stay.
func (b *bed) deleted(t *testing.T) (names []string) {
	t.Helper()
	list, err := b.Kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, pod := range list.Items {
		if pod.DeletionTimestamp != nil {
			names = append(names, pod.Name)
		}
	}
	return names
}

// manager makes an instance manager's pod, which asks for the network, and its InstanceManager object.
func (b *bed) manager(t *testing.T, n *controlplane.Node, name, status string) {
	t.Helper()
	if status != "" {
		object := fmt.Sprintf(`{"apiVersion": "longhorn.io/v1beta2", "kind": "InstanceManager", "metadata": {"name": %q, "namespace": %q}, "status": %s}`, name, namespace, status)
		require.NoError(t, b.Apply(t.Context(), nil, []byte(strings.ReplaceAll(object, `, "status": null`, ""))))
	}
	switch name {
	case "is-attached":
		b.pod(t, n, name, corev1.PodRunning, attached)
	case "is-on-its-way":
		b.pod(t, n, name, corev1.PodPending, "")
	default:
		b.pod(t, n, name, corev1.PodRunning, "")
	}
}

// pod makes a pod that asks for the network and has a status, as far as Multus tells of it.
func (b *bed) pod(t *testing.T, n *controlplane.Node, name string, phase corev1.PodPhase, status string) {
	t.Helper()
	component := map[string]string{"longhorn.io/component": "instance-manager"}
	switch name {
	case "is-a-share-manager":
		component["longhorn.io/component"] = "share-manager"
	case "is-no-pod-of-longhorn":
		component = nil
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: component, Annotations: map[string]string{
			controlplane.NetworksAnnotation: fmt.Sprintf(`[{"namespace": %q, "name": %q, "interface": %q}]`, namespace, network, ifName),
		}},
		Spec: corev1.PodSpec{NodeName: n.Name, AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
	_, err := b.Kube.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	b.phase(t, name, phase, status)
}

func (b *bed) phase(t *testing.T, name string, phase corev1.PodPhase, status string) {
	t.Helper()
	api := b.Kube.CoreV1().Pods(namespace)
	pod, err := api.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	if status != "" {
		pod.Annotations[controlplane.NetworkStatusAnnotation] = status
		pod, err = api.Update(t.Context(), pod, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
	pod.Status.Phase = phase
	_, err = api.UpdateStatus(context.WithoutCancel(t.Context()), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
}
