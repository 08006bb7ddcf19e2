package longhorn

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Workload is something that can be stopped and started again, and what it was before.
type Workload struct {
	Kind      Kind   `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Replicas that ran; for a kind without a number it is 1.
	Replicas int32 `json:"replicas"`
}

// String names it as kubectl would.
func (w Workload) String() string {
	return fmt.Sprintf("%s %s/%s", w.Kind, w.Namespace, w.Name)
}

func (w Workload) key() Workload { w.Replicas = 0; return w }

// Kind is a kind of workload that can be stopped.
type Kind string

// The kinds.
const (
	Deployment            Kind = "Deployment"
	StatefulSet           Kind = "StatefulSet"
	ReplicaSet            Kind = "ReplicaSet"
	ReplicationController Kind = "ReplicationController"
	DaemonSet             Kind = "DaemonSet"
	CronJob               Kind = "CronJob"
	Prometheus            Kind = "Prometheus"
	Alertmanager          Kind = "Alertmanager"
	// ManagedChart is Rancher's: it would undo what is done to what it installed.
	ManagedChart Kind = "ManagedChart"
)

// how a kind is stopped.
type how struct {
	group, version, plural string
	path                   string // of the field
	on                     any    // its value while it runs, where that isn't the number of replicas
	off                    any
}

// selectorOff keeps a DaemonSet's pods from all nodes: none has the label.
const selectorOff = "lhstorage.io/stopped"

var kinds = map[Kind]how{
	Deployment:            {"apps", "v1", "deployments", "/spec/replicas", nil, 0},
	StatefulSet:           {"apps", "v1", "statefulsets", "/spec/replicas", nil, 0},
	ReplicaSet:            {"apps", "v1", "replicasets", "/spec/replicas", nil, 0},
	ReplicationController: {"", "v1", "replicationcontrollers", "/spec/replicas", nil, 0},
	DaemonSet:             {"apps", "v1", "daemonsets", "/spec/template/spec/nodeSelector/" + kubeapi.Escape(selectorOff), nil, "true"},
	CronJob:               {"batch", "v1", "cronjobs", "/spec/suspend", false, true},
	Prometheus:            {"monitoring.coreos.com", "v1", "prometheuses", "/spec/replicas", nil, 0},
	Alertmanager:          {"monitoring.coreos.com", "v1", "alertmanagers", "/spec/replicas", nil, 0},
	ManagedChart:          {"management.cattle.io", "v3", "managedcharts", "/spec/paused", false, true},
}

func (h how) resource(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: h.group, Version: h.version, Plural: h.plural, Namespace: namespace}
}

// scalable is what is read of a workload.
type scalable struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas  *int32                         `json:"replicas"`
		Suspend   bool                           `json:"suspend"`
		Paused    bool                           `json:"paused"`
		Retention map[string]string              `json:"persistentVolumeClaimRetentionPolicy"`
		Claims    []metav1.PartialObjectMetadata `json:"volumeClaimTemplates"`
		Template  corev1.PodTemplateSpec         `json:"template"`
		Job       struct {
			Spec struct {
				Template corev1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// replicas that are wanted; where the kind knows no number, 1 or 0.
func (s *scalable) replicas(kind Kind) int32 {
	on := true
	switch kind {
	case CronJob:
		on = !s.Spec.Suspend
	case ManagedChart:
		on = !s.Spec.Paused
	case DaemonSet:
		_, off := s.Spec.Template.Spec.NodeSelector[selectorOff]
		on = !off
	default:
		if s.Spec.Replicas != nil {
			return *s.Spec.Replicas
		}
	}
	if on {
		return 1
	}
	return 0
}

func (c *Cluster) workload(ctx context.Context, w Workload) (*scalable, error) {
	return get[scalable](ctx, c, kinds[w.Kind].resource(w.Namespace), w.Name)
}

// stop stops a workload.
func (c *Cluster) stop(ctx context.Context, w Workload) error { return c.turn(ctx, w, false) }

// start starts it again, unless somebody did so already or it is gone.
func (c *Cluster) start(ctx context.Context, w Workload) error { return c.turn(ctx, w, true) }

// turn does so by a patch that fails if somebody changes the same field at that moment; then it looks again.
func (c *Cluster) turn(ctx context.Context, w Workload, on bool) error {
	verb := map[bool]string{true: "start", false: "stop"}[on]
	for try := 1; ; try++ {
		now, err := c.workload(ctx, w)
		if err == nil && (now == nil || (now.replicas(w.Kind) > 0) == on) {
			return nil
		}
		if err == nil {
			err = c.API.Patch(ctx, kinds[w.Kind].resource(w.Namespace), w.Name, patchOf(w, now, on), nil)
		}
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if try == tries || !apierrors.IsInvalid(err) {
			return fmt.Errorf("%s %s: %w", verb, w, err)
		}
	}
}

// tries of a change that somebody else's got in the way of.
const tries = 5

func patchOf(w Workload, now *scalable, on bool) []kubeapi.Op {
	h := kinds[w.Kind]
	switch {
	case w.Kind == DaemonSet && on:
		return []kubeapi.Op{kubeapi.Remove(h.path)}
	case w.Kind == DaemonSet && now.Spec.Template.Spec.NodeSelector == nil:
		return []kubeapi.Op{kubeapi.Add("/spec/template/spec/nodeSelector", map[string]any{selectorOff: h.off})}
	case h.on != nil && on:
		return []kubeapi.Op{kubeapi.Add(h.path, h.on)}
	case h.on != nil || w.Kind == DaemonSet:
		return []kubeapi.Op{kubeapi.Add(h.path, h.off)}
	case on:
		return []kubeapi.Op{kubeapi.Test(h.path, now.Spec.Replicas), kubeapi.Add(h.path, w.Replicas)}
	}
	return []kubeapi.Op{kubeapi.Test(h.path, now.Spec.Replicas), kubeapi.Add(h.path, h.off)}
}

// users are the pods that use Longhorn's volumes, and what has to be stopped for them to go.
type users struct {
	Workloads []Workload
	// Refused are those that can't be stopped, each with what to do.
	Refused []string
	// Deleting are StatefulSets that would delete their claims, and so the data, when they are scaled down.
	Deleting []string
	Volumes  []string // that are used
}

// usersOf finds who uses volumes: from the pods that mount their claims up to the outermost owner. CronJobs whose template
// mounts one are stopped too, for they could start at the wrong moment.
func (c *Cluster) usersOf(ctx context.Context, volumes []volume) (users, error) {
	claims := map[string]string{} // namespace/name → volume
	for _, v := range volumes {
		if k := v.Status.KubernetesStatus; k.PVC != "" && k.LastPVC == "" {
			claims[k.Namespace+"/"+k.PVC] = v.Name
		}
	}
	f := &finder{Cluster: c, claims: claims, seen: map[string]bool{}}
	if len(claims) == 0 {
		return f.users, nil
	}
	pods, _, err := list[corev1.Pod](ctx, c, allPods)
	if err != nil {
		return f.users, err
	}
	for i := range pods {
		if err := f.pod(ctx, &pods[i]); err != nil {
			return f.users, err
		}
	}
	return f.users, f.cronJobs(ctx)
}

type finder struct {
	*Cluster
	claims map[string]string
	seen   map[string]bool
	users
}

// claimed are the volumes that a pod's specification mounts. Those made from an ephemeral template are named after the pod.
func (f *finder) claimed(namespace, pod string, spec *corev1.PodSpec) (volumes []string) {
	for _, v := range spec.Volumes {
		name := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = pod + "-" + v.Name
		}
		if volume, ok := f.claims[namespace+"/"+name]; ok && name != "" {
			volumes = append(volumes, volume)
		}
	}
	return volumes
}

func (f *finder) pod(ctx context.Context, pod *corev1.Pod) error {
	done := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	volumes := f.claimed(pod.Namespace, pod.Name, &pod.Spec)
	if done || len(volumes) == 0 {
		return nil
	}
	for _, v := range volumes {
		if !slices.Contains(f.Volumes, v) {
			f.Volumes = append(f.Volumes, v)
		}
	}
	slices.Sort(f.Volumes)
	if pod.DeletionTimestamp != nil {
		return nil // it goes already
	}
	return f.owner(ctx, pod)
}

// owner follows the controllers of a pod to the outermost.
func (f *finder) owner(ctx context.Context, pod *corev1.Pod) error {
	ref := metav1.GetControllerOf(pod)
	if ref == nil {
		f.refuse("pod %s/%s has no owner that would start it again: delete it, and make it anew afterwards", pod.Namespace, pod.Name)
		return nil
	}
	for {
		w := Workload{Kind: Kind(ref.Kind), Namespace: pod.Namespace, Name: ref.Name}
		h, known := kinds[w.Kind]
		if group, _ := schema.ParseGroupVersion(ref.APIVersion); !known || group.Group != h.group {
			f.unknown(pod, ref)
			return nil
		}
		if f.seen[w.String()] {
			return nil
		}
		f.seen[w.String()] = true
		object, err := f.workload(ctx, w)
		if err != nil {
			return err
		}
		if object == nil {
			f.refuse("%s, which pod %s/%s names as its owner, isn't there: delete the pod", w, pod.Namespace, pod.Name)
			return nil
		}
		if w.Kind == StatefulSet && object.Spec.Retention["whenScaled"] == "Delete" {
			f.Deleting = append(f.Deleting, w.String())
		}
		next := metav1.GetControllerOf(object)
		if next == nil {
			w.Replicas = object.replicas(w.Kind)
			f.add(w)
			return nil
		}
		ref = next
	}
}

func (f *finder) unknown(pod *corev1.Pod, ref *metav1.OwnerReference) {
	what := fmt.Sprintf("pod %s/%s belongs to %s %s", pod.Namespace, pod.Name, ref.Kind, ref.Name)
	switch ref.Kind {
	case "VirtualMachineInstance":
		f.refuse("%s: shut the virtual machine down from within (it isn't started again afterwards either)", what)
	case "Job":
		f.refuse("%s: wait until it is done, or delete it", what)
	default:
		f.refuse("%s, whose operator would start it again: stop it there, the way it is meant to be stopped", what)
	}
}

func (f *finder) refuse(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(f.Refused, text) {
		f.Refused = append(f.Refused, text)
	}
}

func (f *finder) add(w Workload) {
	if w.Replicas > 0 && !slices.ContainsFunc(f.Workloads, func(o Workload) bool { return o.key() == w.key() }) {
		f.Workloads = append(f.Workloads, w)
	}
	slices.SortFunc(f.Workloads, func(a, b Workload) int { return cmp.Compare(a.String(), b.String()) })
}

func (f *finder) cronJobs(ctx context.Context) error {
	jobs, _, err := list[scalable](ctx, f.Cluster, kinds[CronJob].resource(""))
	for _, j := range jobs {
		w := Workload{Kind: CronJob, Namespace: j.Namespace, Name: j.Name, Replicas: j.replicas(CronJob)}
		if len(f.claimed(j.Namespace, "", &j.Spec.Job.Spec.Template.Spec)) > 0 {
			f.add(w)
		}
	}
	return err
}

// remember adds what runs now to what is remembered: a number that is remembered stays, unless the workload was started anew.
func remember(known, running []Workload) []Workload {
	out := slices.Clone(known)
	for _, w := range running {
		if i := slices.IndexFunc(out, func(o Workload) bool { return o.key() == w.key() }); i >= 0 {
			out[i].Replicas = w.Replicas
		} else {
			out = append(out, w)
		}
	}
	return out
}
