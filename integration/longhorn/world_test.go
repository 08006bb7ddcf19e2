// Package longhorn tests the workflow that moves Longhorn between networks, on a real API server, with a double of Longhorn.
package longhorn

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

var nodes = []string{"node1", "node2"}

// networkConfig is what is wanted.
const networkConfig = `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`

// bed is an API server with all definitions and nodes that are ready for the network.
type bed struct {
	*controlplane.Cluster
	count int
}

func newBed(t *testing.T) *bed {
	c := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Bare: true, Lab: lab.Options{Nodes: 2, Plugin: lab.PluginMacvlan}})
	root, err := tools.Root()
	require.NoError(t, err)
	own, err := filepath.Glob(filepath.Join(root, "deploy/crds/*.yaml"))
	require.NoError(t, err)
	require.NoError(t, c.ApplyFiles(t.Context(), []string{"CustomResourceDefinition"}, own...))
	var all strings.Builder
	for _, d := range definitions {
		all.WriteString(d.String())
	}
	require.NoError(t, c.Apply(t.Context(), nil, []byte(all.String())))
	b := &bed{Cluster: c}
	for i, node := range nodes {
		b.multus(t, node)
		b.shim(t, node, i+1, "True")
	}
	return b
}

func (b *bed) multus(t *testing.T, node string) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "multus-" + node},
		Spec:       corev1.PodSpec{NodeName: node, AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "kube-multus", Image: "multus-cni"}}},
	}
	made, err := b.Kube.CoreV1().Pods(metav1.NamespaceSystem).Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	made.Status = running("10.0.0.1")
	_, err = b.Kube.CoreV1().Pods(metav1.NamespaceSystem).UpdateStatus(t.Context(), made, metav1.UpdateOptions{})
	require.NoError(t, err)
}

var shims = schema.GroupVersionResource{Group: "lhstorage.io", Version: "v1alpha1", Resource: "hostshims"}

func (b *bed) shim(t *testing.T, node string, index int, ready string) {
	ctx := t.Context()
	name := fmt.Sprintf("vxlan-storage-%d", index)
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": shims.GroupVersion().String(), "kind": "HostShim", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"node": node, "parent": "vxlan-storage", "index": int64(index)},
	}}
	if _, err := b.Dynamic.Resource(shims).Get(ctx, name, metav1.GetOptions{}); err != nil {
		_, err = b.Dynamic.Resource(shims).Create(ctx, object, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		now, err := b.Dynamic.Resource(shims).Get(ctx, name, metav1.GetOptions{})
		require.NoError(t, err)
		now.Object["status"] = map[string]any{"ready": ready, "reason": map[string]any{"True": "", "False": "parent vxlan-storage is down"}[ready]}
		_, err = b.Dynamic.Resource(shims).UpdateStatus(ctx, now, metav1.UpdateOptions{})
		return err == nil
	}, time.Minute, 10*time.Millisecond)
}

// world is a Longhorn of its own, in namespaces of its own, with workloads that use it.
type world struct {
	*bed
	ns, app string
	double  *double
	api     *kubeapi.Client
	writes  *counter

	looksIn string // the namespace that workflows look for Longhorn in

	mu    sync.Mutex
	holds map[string]bool // workloads whose volume stays attached
	odd   odd
}

// odd is what of the double isn't as it should be.
type odd struct {
	address  string // that pods get instead of a right one
	noStatus bool   // Multus writes no entry for the network
	csiStuck bool   // a pod of the CSI plugin does not become available on the network
	deaf     bool   // changes of the setting's value are missed until the object is touched
}

func (w *world) become(o odd) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.odd = o
}

func (w *world) is() odd {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.odd
}

// workload is one that uses a volume; it has the name of its claim.
type workload struct {
	kind, name string
	replicas   int32
}

func (w *world) workloads() []workload {
	return []workload{{"Deployment", "web", 3}, {"StatefulSet", "db", 2}, {"DaemonSet", "log", 1}, {"CronJob", "report", 1}}
}

func (w *world) volume(name string) string { return "pvc-" + name }

func (w *world) hold(name string, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds[name] = on
}

func (w *world) held(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holds[name]
}

// newWorld is a Longhorn on the pod network (value empty) or on a network, whose volumes are attached.
func (b *bed) newWorld(t *testing.T, value string) *world {
	b.count++
	w := &world{bed: b, ns: fmt.Sprintf("longhorn-%d", b.count), app: fmt.Sprintf("app-%d", b.count), holds: map[string]bool{}}
	w.double, w.looksIn = &double{world: w, seen: value}, w.ns
	for _, ns := range []string{w.ns, w.app} {
		require.NoError(t, b.CreateNamespace(t.Context(), ns))
	}
	cfg := rest.CopyConfig(b.Config)
	w.writes = &counter{}
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { w.writes.RoundTripper = rt; return w.writes }
	var err error
	w.api, err = kubeapi.New(cfg)
	require.NoError(t, err)
	w.furnish(t, value)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.double.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	w.waitHealthy(t, value)
	return w
}

func (w *world) furnish(t *testing.T, value string) {
	w.object(t, "Setting", "settings", storageNetwork, map[string]any{"value": value}, nil)
	w.object(t, "Setting", "settings", "storage-network-for-rwx-volume-enabled", map[string]any{"value": "false"}, nil)
	for _, node := range nodes {
		w.object(t, "Node", "nodes", node, map[string]any{"spec": map[string]any{"disks": map[string]any{"disk-1": map[string]any{}}}},
			map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True", "lastTransitionTime": ""}}})
		w.object(t, "InstanceManager", "instancemanagers", "im-"+node, nil, map[string]any{"currentState": "running"})
	}
	w.daemonSet(t, w.ns, "longhorn-csi-plugin", "")
	for _, wl := range w.workloads() {
		w.makeWorkload(t, wl)
		if wl.kind == "CronJob" { // it runs at midnight only
			w.makeVolume(t, wl.name, "detached")
			continue
		}
		w.makeVolume(t, wl.name, "detached")
	}
}

func (w *world) makeVolume(t *testing.T, claim, state string) {
	name := w.volume(claim)
	w.object(t, "Volume", "volumes", name, nil, map[string]any{
		"state": state, "robustness": "healthy", "kubernetesStatus": map[string]any{"namespace": w.app, "pvcName": claim, "lastPVCRefAt": ""},
	})
	w.object(t, "VolumeAttachment", "volumeattachments", name, map[string]any{"spec": map[string]any{"volume": name}}, nil)
	for kind, plural := range map[string]string{"Engine": "engines", "Replica": "replicas"} {
		w.object(t, kind, plural, name, map[string]any{"spec": map[string]any{"volumeName": name}}, map[string]any{"currentState": "stopped"})
	}
}

// object makes one of Longhorn's objects.
func (w *world) object(t *testing.T, kind, plural, name string, fields, status map[string]any) {
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": longhornGroup.String(), "kind": kind, "metadata": map[string]any{"name": name}}}
	for key, value := range fields {
		object.Object[key] = value
	}
	made, err := w.double.lh(plural).Create(t.Context(), object, metav1.CreateOptions{})
	require.NoError(t, err)
	if status != nil {
		made.Object["status"] = status
		_, err = w.double.lh(plural).UpdateStatus(t.Context(), made, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
}

// edit changes one of Longhorn's objects and its status.
func (w *world) edit(t *testing.T, plural, name string, change func(map[string]any)) {
	require.Eventually(t, func() bool {
		object, err := w.double.lh(plural).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		change(object.Object)
		status := object.Object["status"]
		if object, err = w.double.lh(plural).Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
			return false
		}
		object.Object["status"] = status
		_, err = w.double.lh(plural).UpdateStatus(t.Context(), object, metav1.UpdateOptions{})
		return err == nil
	}, time.Minute, 5*time.Millisecond)
}

func (w *world) template(claim string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"workload": claim}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "main", Image: "none"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}},
		},
	}
}

func (w *world) daemonSet(t *testing.T, ns, name, claim string) {
	template := w.template(claim)
	template.Labels["workload"] = name
	if claim == "" {
		template.Spec.Volumes = nil
	}
	_, err := w.Kube.AppsV1().DaemonSets(ns).Create(t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func (w *world) makeWorkload(t *testing.T, wl workload) {
	meta, template := metav1.ObjectMeta{Name: wl.name}, w.template(wl.name)
	selector := &metav1.LabelSelector{MatchLabels: template.Labels}
	var err error
	switch wl.kind {
	case "Deployment":
		_, err = w.Kube.AppsV1().Deployments(w.app).Create(t.Context(), &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &wl.replicas, Selector: selector, Template: template}}, metav1.CreateOptions{})
		require.NoError(t, err)
		deployment, getErr := w.Kube.AppsV1().Deployments(w.app).Get(t.Context(), wl.name, metav1.GetOptions{})
		require.NoError(t, getErr)
		meta.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(deployment, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
		_, err = w.Kube.AppsV1().ReplicaSets(w.app).Create(t.Context(), &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Replicas: &wl.replicas, Selector: selector, Template: template}}, metav1.CreateOptions{})
	case "StatefulSet":
		_, err = w.Kube.AppsV1().StatefulSets(w.app).Create(t.Context(), &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &wl.replicas, Selector: selector, Template: template}}, metav1.CreateOptions{})
	case "DaemonSet":
		w.daemonSet(t, w.app, wl.name, wl.name)
	case "CronJob":
		template.Spec.RestartPolicy = corev1.RestartPolicyNever
		_, err = w.Kube.BatchV1().CronJobs(w.app).Create(t.Context(), &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Schedule: "0 0 * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}}, metav1.CreateOptions{})
	}
	require.NoError(t, err)
}

// wanted says whether a workload's pod shall run, and who owns it.
func (wl workload) wanted(ctx context.Context, w *world) (bool, metav1.OwnerReference, error) {
	var owner metav1.OwnerReference
	switch wl.kind {
	case "Deployment":
		d, err := w.Kube.AppsV1().Deployments(w.app).Get(ctx, wl.name, metav1.GetOptions{})
		if err != nil {
			return false, owner, err
		}
		rs, err := w.Kube.AppsV1().ReplicaSets(w.app).Get(ctx, wl.name, metav1.GetOptions{})
		if err != nil {
			return false, owner, err
		}
		return *d.Spec.Replicas > 0, *metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet")), nil
	case "StatefulSet":
		s, err := w.Kube.AppsV1().StatefulSets(w.app).Get(ctx, wl.name, metav1.GetOptions{})
		if err != nil {
			return false, owner, err
		}
		return *s.Spec.Replicas > 0, *metav1.NewControllerRef(s, appsv1.SchemeGroupVersion.WithKind("StatefulSet")), nil
	case "DaemonSet":
		d, err := w.Kube.AppsV1().DaemonSets(w.app).Get(ctx, wl.name, metav1.GetOptions{})
		if err != nil {
			return false, owner, err
		}
		return len(d.Spec.Template.Spec.NodeSelector) == 0, *metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("DaemonSet")), nil
	}
	return false, owner, nil
}

// state is what of the world the workflow may change, for comparison: it must be as before, or as wanted.
func (w *world) state(t require.TestingT) string {
	ctx := context.Background()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, name := range []string{storageNetwork, "storage-network-for-rwx-volume-enabled"} {
		setting, err := w.double.lh("settings").Get(ctx, name, metav1.GetOptions{})
		require.NoError(t, err)
		add("%s=%v", name, setting.Object["value"])
	}
	d, err := w.Kube.AppsV1().Deployments(w.app).Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	s, err := w.Kube.AppsV1().StatefulSets(w.app).Get(ctx, "db", metav1.GetOptions{})
	require.NoError(t, err)
	ds, err := w.Kube.AppsV1().DaemonSets(w.app).Get(ctx, "log", metav1.GetOptions{})
	require.NoError(t, err)
	c, err := w.Kube.BatchV1().CronJobs(w.app).Get(ctx, "report", metav1.GetOptions{})
	require.NoError(t, err)
	add("web=%d db=%d log=%v report=%v", *d.Spec.Replicas, *s.Spec.Replicas, ds.Spec.Template.Spec.NodeSelector, *c.Spec.Suspend)
	list, err := w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(w.ns).List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	for _, n := range list.Items {
		config, _, _ := unstructured.NestedString(n.Object, "spec", "config")
		add("network %s %d", n.GetName(), len(config))
	}
	for _, node := range nodes {
		pod, err := w.Kube.CoreV1().Pods(w.ns).Get(ctx, "instance-manager-"+node, metav1.GetOptions{})
		if err != nil {
			add("%s has no instance manager", node)
			continue
		}
		add("%s asks %s, %s", node, pod.Annotations[controlplane.NetworksAnnotation], pod.Status.Phase)
	}
	volumes, err := w.double.lh("volumes").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	for _, v := range volumes.Items {
		add("%s is %s", v.GetName(), state(&v))
	}
	w.double.mu.Lock()
	defer w.double.mu.Unlock()
	add("faulted: %v", w.double.faulted)
	return strings.Join(lines, "\n")
}

// waitHealthy waits until all is attached and runs, with the setting at value.
func (w *world) waitHealthy(t *testing.T, value string) {
	t.Helper()
	var last string
	require.Eventually(t, func() bool {
		last = w.state(t)
		return strings.Count(last, "is attached") == 3 && strings.Count(last, "Running") == len(nodes) && strings.Contains(last, storageNetwork+"="+value+"\n")
	}, time.Minute, beat, "%s", last)
}

// workflow is a process that does something with this world.
func (w *world) workflow(t *testing.T) *longhorn.Switch {
	return &longhorn.Switch{
		Cluster:  &longhorn.Cluster{API: w.api, Namespace: w.looksIn},
		Timeouts: longhorn.Timeouts{Poll: beat, Nodes: time.Minute, Detach: time.Minute, Pods: time.Minute, Verify: time.Minute, Settle: time.Minute},
		Progress: func(line string) { t.Log(line) },
	}
}

func (w *world) request() longhorn.Request {
	return longhorn.Request{Network: longhorn.Ref{Namespace: w.ns, Name: "storage"}, Config: networkConfig}
}

// counter counts writes, and ends the process after one of them.
type counter struct {
	http.RoundTripper
	mu    sync.Mutex
	n, at int
	die   context.CancelFunc
	log   []string
	hook  func(path string) // called after each write
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if r.Method == http.MethodGet || err != nil || touches(r) {
		return resp, err
	}
	if c.hook != nil {
		c.hook(r.URL.Path)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.log = append(c.log, r.Method+" "+r.URL.Path)
	if c.die != nil && c.n == c.at {
		c.die()
		_ = resp.Body.Close()
		return nil, context.Canceled
	}
	return resp, nil
}

// touches says whether a request makes longhorn-manager look again: how many there are depends on the time, so they aren't counted.
func touches(r *http.Request) bool {
	if r.GetBody == nil {
		return false
	}
	body, err := r.GetBody()
	if err != nil {
		return false
	}
	data, err := io.ReadAll(body)
	return err == nil && strings.Contains(string(data), "lhstorage.io~1touched") || err == nil && strings.Contains(string(data), `"lhstorage.io/touched"`)
}

// dieAfter makes a context that ends with the n-th write from now on; the write is done, its answer lost.
func (w *world) dieAfter(t *testing.T, n int) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	w.writes.mu.Lock()
	defer w.writes.mu.Unlock()
	w.writes.n, w.writes.at, w.writes.die, w.writes.log = 0, n, cancel, nil
	return ctx
}
