package longhorn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
)

const (
	storageNetwork = "storage-network"
	beat           = 20 * time.Millisecond
)

var longhornGroup = schema.GroupVersion{Group: "longhorn.io", Version: "v1beta2"}

// double stands in for longhorn-manager, Kubernetes' controllers, kubelet and Multus, as far as the workflow can see them. Of
// longhorn-manager it has what was measured on v1.10.0: the annotation to the letter, the storage address by name and sorted as
// strings with the pod's as the fallback, `applied` true whatever happens, pods made anew once all volumes are detached (the idle
// ones even before), and volumes that are faulted when the setting changes under them.
type double struct {
	*world

	mu      sync.Mutex
	faulted []string // ever
	seen    string   // value of the setting that it goes by
	touched string
	next    byte
}

// run lives until ctx ends.
func (d *double) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := d.beat(ctx); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
			panic(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(beat):
		}
	}
}

func (d *double) lh(plural string) dynamic.ResourceInterface {
	return d.Dynamic.Resource(longhornGroup.WithResource(plural)).Namespace(d.ns)
}

func (d *double) beat(ctx context.Context) error {
	setting, err := d.lh("settings").Get(ctx, storageNetwork, metav1.GetOptions{})
	if err != nil {
		return err
	}
	value, _, _ := unstructured.NestedString(setting.Object, "value")
	touched := setting.GetAnnotations()["lhstorage.io/touched"]
	volumes, err := d.lh("volumes").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if value != d.seen && (!d.is().deaf || touched != d.touched) {
		if err := d.change(ctx, setting, volumes.Items); err != nil {
			return err
		}
		d.seen = value
	}
	d.touched = touched
	if err := d.pods(ctx, volumes.Items); err != nil {
		return err
	}
	if err := d.csiPlugin(ctx); err != nil {
		return err
	}
	return d.users(ctx, volumes.Items)
}

// csiPlugin is what longhorn-manager writes into its CSI plugin's DaemonSet, and the controller that makes the pods anew.
func (d *double) csiPlugin(ctx context.Context) error {
	shared, err := d.lh("settings").Get(ctx, "storage-network-for-rwx-volume-enabled", metav1.GetOptions{})
	if err != nil {
		return err
	}
	want := ""
	if shared.Object["value"] == "true" {
		want = annotationFor(d.seen)
	}
	api := d.Kube.AppsV1().DaemonSets(d.ns)
	set, err := api.Get(ctx, "longhorn-csi-plugin", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if set.Spec.Template.Annotations[controlplane.NetworksAnnotation] != want {
		set.Spec.Template.Annotations = map[string]string{controlplane.NetworksAnnotation: want}
		if set, err = api.Update(ctx, set, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	status := appsv1.DaemonSetStatus{ObservedGeneration: set.Generation, DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2}
	if d.is().csiStuck && want != "" {
		status.NumberAvailable = 1
	}
	if set.Status.ObservedGeneration == status.ObservedGeneration && set.Status.NumberAvailable == status.NumberAvailable {
		return nil
	}
	set.Status = status
	_, err = api.UpdateStatus(ctx, set, metav1.UpdateOptions{})
	return err
}

// change is what longhorn-manager does at once when the setting changes: it says that it is applied, and breaks what is attached.
func (d *double) change(ctx context.Context, setting *unstructured.Unstructured, volumes []unstructured.Unstructured) error {
	setting = setting.DeepCopy()
	setting.Object["status"] = map[string]any{"applied": true}
	if _, err := d.lh("settings").UpdateStatus(ctx, setting, metav1.UpdateOptions{}); err != nil {
		return err
	}
	for _, v := range volumes {
		if state(&v) == "detached" {
			continue
		}
		d.mu.Lock()
		d.faulted = append(d.faulted, v.GetName())
		d.mu.Unlock()
	}
	return nil
}

func state(v *unstructured.Unstructured) string {
	text, _, _ := unstructured.NestedString(v.Object, "status", "state")
	return text
}

func annotationFor(value string) string {
	namespace, name, ok := strings.Cut(value, "/")
	if !ok {
		return ""
	}
	return fmt.Sprintf(`[{"namespace": "%s", "name": "%s", "interface": "lhnet1"}]`, namespace, name)
}

// pods makes instance managers anew whose annotation isn't the setting's.
func (d *double) pods(ctx context.Context, volumes []unstructured.Unstructured) error {
	busy := map[string]bool{}
	for _, v := range volumes {
		if state(&v) != "detached" {
			node, _, _ := unstructured.NestedString(v.Object, "status", "currentNodeID")
			busy[node] = true
		}
	}
	for _, node := range nodes {
		name := "instance-manager-" + node
		pod, err := d.Kube.CoreV1().Pods(d.ns).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			err = d.makePod(ctx, node, name)
		case err == nil && pod.Annotations[controlplane.NetworksAnnotation] != annotationFor(d.seen) && !busy[node]:
			err = d.DeletePod(ctx, d.ns, name)
		case err == nil && pod.Status.Phase != corev1.PodRunning:
			err = d.startPod(ctx, pod)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *double) makePod(ctx context.Context, node, name string) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{"longhorn.io/component": "instance-manager", "longhorn.io/node": node}, Annotations: map[string]string{},
		},
		Spec: corev1.PodSpec{NodeName: node, AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "instance-manager", Image: "none"}}},
	}
	if text := annotationFor(d.seen); text != "" {
		pod.Annotations[controlplane.NetworksAnnotation] = text
	}
	made, err := d.Kube.CoreV1().Pods(d.ns).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return d.startPod(ctx, made)
}

// startPod is kubelet and Multus: a pod whose network can't be had stays Pending, and an Event says why.
func (d *double) startPod(ctx context.Context, pod *corev1.Pod) error {
	if pod.Annotations[controlplane.NetworksAnnotation] != "" {
		address, err := d.attach(ctx)
		if err != nil {
			return d.complain(ctx, pod, err)
		}
		odd := d.is()
		if odd.address != "" {
			address = odd.address
		}
		status, _ := json.Marshal([]controlplane.NetworkStatus{
			{Name: "cbr0", Interface: "eth0", IPs: []string{"10.42.0.9"}, Default: true},
			{Name: d.seen, Interface: "lhnet1", IPs: []string{address}},
		})
		if odd.noStatus {
			status = []byte(`[{"name": "cbr0", "interface": "eth0", "ips": ["10.42.0.9"], "default": true}]`)
		}
		pod.Annotations[controlplane.NetworkStatusAnnotation] = string(status)
		if pod, err = d.Kube.CoreV1().Pods(d.ns).Update(ctx, pod, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	pod.Status = running("10.42.0.9")
	_, err := d.Kube.CoreV1().Pods(d.ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

func running(ip string) corev1.PodStatus {
	return corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
}

// attach is the address that a pod gets on the network, by its definition.
func (d *double) attach(ctx context.Context) (string, error) {
	namespace, name, _ := strings.Cut(d.seen, "/")
	object, err := d.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("error getting k8s client and network-attachment-definition %s: %w", d.seen, err)
	}
	config, _, _ := unstructured.NestedString(object.Object, "spec", "config")
	var parsed struct {
		IPAM struct {
			Range string `json:"range"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal([]byte(config), &parsed); err != nil {
		return "", err
	}
	prefix, err := netip.ParsePrefix(parsed.IPAM.Range)
	if err != nil {
		return "", err
	}
	bytes := prefix.Addr().As4()
	d.next++
	bytes[3] += 16 + d.next%200
	return netip.AddrFrom4(bytes).String(), nil
}

// complain says why a pod can't start, and, as a kubelet does, something else after it.
func (d *double) complain(ctx context.Context, pod *corev1.Pod, fault error) error {
	now := time.Now()
	for i, event := range []corev1.Event{
		{Reason: "FailedCreatePodSandBox", Message: fault.Error(), LastTimestamp: metav1.NewTime(now)},
		{Reason: "MissingClusterDNS", Message: `falling back to "Default" policy`, LastTimestamp: metav1.NewTime(now.Add(time.Second))},
	} {
		event.Name = fmt.Sprintf("%s.%s.%d", pod.Name, string(pod.UID)[:8], i)
		event.InvolvedObject = corev1.ObjectReference{Kind: "Pod", Namespace: d.ns, Name: pod.Name, UID: pod.UID}
		event.Type = corev1.EventTypeWarning
		if _, err := d.Kube.CoreV1().Events(d.ns).Create(ctx, &event, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// users makes the pods of workloads as controllers would, and attaches and detaches what they use.
func (d *double) users(ctx context.Context, volumes []unstructured.Unstructured) error {
	for _, w := range d.workloads() {
		on, owner, err := w.wanted(ctx, d.world)
		if err != nil {
			return err
		}
		pods, err := d.Kube.CoreV1().Pods(d.app).List(ctx, metav1.ListOptions{LabelSelector: "workload=" + w.name})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(volumes, func(v unstructured.Unstructured) bool { return v.GetName() == d.volume(w.name) })
		switch {
		case on && len(pods.Items) == 0:
			err = d.makeUser(ctx, w, owner)
		case on && i >= 0 && state(&volumes[i]) == "detached":
			err = d.setVolume(ctx, &volumes[i], "attached")
		case !on && len(pods.Items) > 0:
			err = d.DeletePod(ctx, d.app, pods.Items[0].Name)
		case !on && i >= 0 && state(&volumes[i]) == "attached" && !d.held(w.name):
			err = d.setVolume(ctx, &volumes[i], "detached")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *double) makeUser(ctx context.Context, w workload, owner metav1.OwnerReference) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: w.name, Labels: map[string]string{"workload": w.name}, OwnerReferences: []metav1.OwnerReference{owner}},
		Spec: corev1.PodSpec{
			NodeName: nodes[0], AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "main", Image: "none"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: w.name}}}},
		},
	}
	made, err := d.Kube.CoreV1().Pods(d.app).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made.Status = running("10.42.0.10")
	_, err = d.Kube.CoreV1().Pods(d.app).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}

// setVolume attaches or detaches a volume, with its engine, replica and ticket.
func (d *double) setVolume(ctx context.Context, v *unstructured.Unstructured, to string) error {
	tickets, instance := map[string]any{}, "stopped"
	if to == "attached" {
		instance = "running"
		tickets["csi-1"] = map[string]any{"id": "csi-1", "type": "csi-attacher", "nodeID": nodes[0]}
	}
	status, _ := v.Object["status"].(map[string]any)
	if status == nil {
		status = map[string]any{}
		v.Object["status"] = status
	}
	status["state"], status["currentNodeID"] = to, map[string]any{"attached": nodes[0], "detached": ""}[to]
	ticketsErr := d.patchSpec(ctx, "volumeattachments", v.GetName(), map[string]any{"volume": v.GetName(), "attachmentTickets": tickets})
	if ticketsErr != nil {
		return ticketsErr
	}
	address, err := d.storageIP(ctx)
	if err != nil {
		return err
	}
	for _, plural := range []string{"engines", "replicas"} {
		if err := d.setInstance(ctx, plural, v.GetName(), instance, address); err != nil {
			return err
		}
	}
	_, err = d.lh("volumes").UpdateStatus(ctx, v, metav1.UpdateOptions{})
	return err
}

func (d *double) patchSpec(ctx context.Context, plural, name string, spec map[string]any) error {
	object, err := d.lh(plural).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	object.Object["spec"] = spec
	_, err = d.lh(plural).Update(ctx, object, metav1.UpdateOptions{})
	return err
}

func (d *double) setInstance(ctx context.Context, plural, name, to, address string) error {
	object, err := d.lh(plural).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	object.Object["status"] = map[string]any{"currentState": to, "storageIP": address}
	_, err = d.lh(plural).UpdateStatus(ctx, object, metav1.UpdateOptions{})
	return err
}

// storageIP is Longhorn's rule: the entry with the setting's value as its name, strings sorted, the first; else the pod's address.
func (d *double) storageIP(ctx context.Context) (string, error) {
	pod, err := d.Kube.CoreV1().Pods(d.ns).Get(ctx, "instance-manager-"+nodes[0], metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	var entries []controlplane.NetworkStatus
	if json.Unmarshal([]byte(pod.Annotations[controlplane.NetworkStatusAnnotation]), &entries) == nil {
		for _, e := range entries {
			if e.Name == d.seen && len(e.IPs) > 0 {
				return slices.Min(e.IPs), nil
			}
		}
	}
	return pod.Status.PodIP, nil
}
