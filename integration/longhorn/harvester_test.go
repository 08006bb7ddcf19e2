package longhorn

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/harvester"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

var (
	harvesterSettings = schema.GroupVersionResource{Group: "harvesterhci.io", Version: "v1beta1", Resource: "settings"}
	prometheuses      = schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: "prometheuses"}
	alertmanagers     = schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: "alertmanagers"}
	managedCharts     = schema.GroupVersionResource{Group: "management.cattle.io", Version: "v3", Resource: "managedcharts"}
)

// harvesterValue is in no canonical form: its hash must be that of the raw text.
const harvesterValue = `{"vlan": 100,  "clusterNetwork":"cn", "range":"10.100.2.0/24"}`

// controller is as much of Harvester's as could get in the workflow's way: while its annotation isn't what Longhorn's setting
// says it writes Longhorn's setting, once all volumes are detached; when they agree it removes the old definition and says so.
type controller struct {
	*world
	wrote []string
}

func (c *controller) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := c.beat(ctx); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			panic(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(beat):
		}
	}
}

func (c *controller) beat(ctx context.Context) error {
	own, err := c.Dynamic.Resource(harvesterSettings).Get(ctx, storageNetwork, metav1.GetOptions{})
	if err != nil {
		return err
	}
	theirs, err := c.double.lh("settings").Get(ctx, storageNetwork, metav1.GetOptions{})
	if err != nil {
		return err
	}
	annotations, value := own.GetAnnotations(), theirs.Object["value"]
	sum := sha1.Sum([]byte(harvesterValue))
	if annotations[harvester.AnnotationHash] != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("the hash of Harvester's setting is wrong: it would make a network of its own now")
	}
	if annotations[harvester.AnnotationNetwork] == value {
		old := annotations[harvester.AnnotationOldNetwork]
		namespace, name, ok := strings.Cut(old, "/")
		if !ok {
			return nil
		}
		if err := c.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		annotations[harvester.AnnotationOldNetwork] = ""
		own.SetAnnotations(annotations)
		_, err = c.Dynamic.Resource(harvesterSettings).Update(ctx, own, metav1.UpdateOptions{})
		return err
	}
	volumes, err := c.double.lh("volumes").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range volumes.Items {
		if state(&v) != "detached" {
			return nil
		}
	}
	theirs.Object["value"] = annotations[harvester.AnnotationNetwork]
	c.wrote = append(c.wrote, annotations[harvester.AnnotationNetwork])
	_, err = c.double.lh("settings").Update(ctx, theirs, metav1.UpdateOptions{})
	return err
}

func (b *bed) create(t *testing.T, gvr schema.GroupVersionResource, kind, namespace, name string, fields map[string]any) {
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": gvr.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}}}
	for key, value := range fields {
		object.Object[key] = value
	}
	client := b.Dynamic.Resource(gvr).Namespace(namespace)
	if namespace == "" {
		client = b.Dynamic.Resource(gvr)
	}
	_, err := client.Create(t.Context(), object, metav1.CreateOptions{})
	require.NoError(t, err)
}

// onHarvesterWorld is a Harvester whose storage network is one that Harvester made.
func onHarvesterWorld(t *testing.T, b *bed) *world {
	for _, ns := range []string{harvester.SystemNamespace, harvester.MonitoringNamespace, harvester.FleetNamespace} {
		require.NoError(t, b.CreateNamespace(t.Context(), ns))
	}
	b.create(t, managedCharts, "ManagedChart", harvester.FleetNamespace, harvester.MonitoringChart, map[string]any{"spec": map[string]any{"paused": false}})
	b.create(t, prometheuses, "Prometheus", harvester.MonitoringNamespace, harvester.Prometheus, map[string]any{"spec": map[string]any{"replicas": int64(2)}})
	b.create(t, alertmanagers, "Alertmanager", harvester.MonitoringNamespace, harvester.Alertmanager, map[string]any{"spec": map[string]any{"replicas": int64(1)}})
	w := b.newWorld(t, "")
	for name, ns := range map[string]string{harvester.Grafana: harvester.MonitoringNamespace, harvester.VMImportController: harvester.SystemNamespace} {
		template := w.template(name)
		template.Spec.Volumes = nil
		_, err := b.Kube.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       appsv1.DeploymentSpec{Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	b.create(t, controlplane.NetworkAttachments, "NetworkAttachmentDefinition", harvester.SystemNamespace, "storagenetwork-x1", map[string]any{
		"metadata": map[string]any{"name": "storagenetwork-x1", "annotations": map[string]any{harvester.AnnotationMade: "true"}},
		"spec":     map[string]any{"config": `{"cniVersion":"0.3.1","type":"bridge","bridge":"cn-br","vlan":100,"ipam":{"type":"whereabouts","range":"10.100.2.0/24"}}`},
	})
	const theirs = harvester.SystemNamespace + "/storagenetwork-x1"
	require.NoError(t, w.workflow(t).Run(t.Context(), longhorn.Request{Network: longhorn.Ref{Namespace: harvester.SystemNamespace, Name: "storagenetwork-x1"}}))
	w.waitHealthy(t, theirs)
	sum := sha1.Sum([]byte(harvesterValue))
	b.create(t, harvesterSettings, "Setting", "", storageNetwork, map[string]any{
		"metadata": map[string]any{"name": storageNetwork, "annotations": map[string]any{"else": "where", harvester.AnnotationNetwork: theirs, harvester.AnnotationHash: hex.EncodeToString(sum[:])}},
		"value":    harvesterValue,
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "configured", "status": "True", "reason": "Completed"}, map[string]any{"type": "other", "status": "True"}}},
	})
	return w
}

// harvesterState is what of Harvester the workflow may change.
func (w *world) harvesterState(t *testing.T) string {
	ctx := t.Context()
	var lines []string
	number := func(gvr schema.GroupVersionResource, ns, name string, path ...string) {
		object, err := w.Dynamic.Resource(gvr).Namespace(ns).Get(ctx, name, metav1.GetOptions{})
		require.NoError(t, err)
		value, _, _ := unstructured.NestedFieldNoCopy(object.Object, path...)
		lines = append(lines, fmt.Sprintf("%s %v", name, value))
	}
	number(managedCharts, harvester.FleetNamespace, harvester.MonitoringChart, "spec", "paused")
	number(prometheuses, harvester.MonitoringNamespace, harvester.Prometheus, "spec", "replicas")
	number(alertmanagers, harvester.MonitoringNamespace, harvester.Alertmanager, "spec", "replicas")
	for name, ns := range map[string]string{harvester.Grafana: harvester.MonitoringNamespace, harvester.VMImportController: harvester.SystemNamespace} {
		number(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, ns, name, "spec", "replicas")
	}
	return strings.Join(lines, "\n")
}

func (w *world) harvesterSetting(t *testing.T) (annotations map[string]string, conditions string) {
	object, err := w.Dynamic.Resource(harvesterSettings).Get(t.Context(), storageNetwork, metav1.GetOptions{})
	require.NoError(t, err)
	list, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range list {
		conditions += fmt.Sprintf("%v=%v %v;", c.(map[string]any)["type"], c.(map[string]any)["status"], c.(map[string]any)["reason"])
	}
	return object.GetAnnotations(), conditions
}

// TestHarvester moves Longhorn from Harvester's own network to ours and back, beside its controller.
func TestHarvester(t *testing.T) {
	b := newBed(t)
	w := onHarvesterWorld(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	c := &controller{world: w}
	var running sync.WaitGroup
	running.Go(func() { c.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	const theirs = harvester.SystemNamespace + "/storagenetwork-x1"
	running1 := "rancher-monitoring false\nrancher-monitoring-prometheus 2\nrancher-monitoring-alertmanager 1\n"

	req := w.request()
	req.Harvester = true
	w.hold("web", true)
	s := w.workflow(t)
	s.Timeouts.Detach = 300 * time.Millisecond
	stopped(t, s.Run(t.Context(), req), longhorn.StepDetach)
	state := w.harvesterState(t)
	assert.Contains(t, state, "rancher-monitoring true\nrancher-monitoring-prometheus 0\nrancher-monitoring-alertmanager 0\n")
	assert.Contains(t, state, harvester.Grafana+" 0")
	assert.Contains(t, state, harvester.VMImportController+" 0")
	assert.Equal(t, theirs, w.value(t))
	w.hold("web", false)

	require.NoError(t, w.workflow(t).Resume(t.Context()))
	w.waitHealthy(t, w.ns+"/storage")
	assert.Contains(t, w.harvesterState(t), running1)
	annotations, conditions := w.harvesterSetting(t)
	assert.Equal(t, w.ns+"/storage", annotations[harvester.AnnotationNetwork])
	assert.Empty(t, annotations[harvester.AnnotationOldNetwork])
	assert.Equal(t, "where", annotations["else"])
	assert.Equal(t, "configured=True Completed;other=True <nil>;", conditions)
	_, err := w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(harvester.SystemNamespace).Get(t.Context(), "storagenetwork-x1", metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err), "Harvester removes it, and so do we")

	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	w.waitHealthy(t, theirs)
	annotations, conditions = w.harvesterSetting(t)
	assert.Equal(t, theirs, annotations[harvester.AnnotationNetwork])
	assert.Equal(t, "configured=True Completed;other=True <nil>;", conditions)
	made, err := w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(harvester.SystemNamespace).Get(t.Context(), "storagenetwork-x1", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, "true", made.GetAnnotations()[harvester.AnnotationMade])
	assert.Contains(t, w.harvesterState(t), running1)
	assert.Contains(t, w.state(t), "faulted: []")
	t.Log("Harvester's controller wrote Longhorn's setting itself:", c.wrote)
}
