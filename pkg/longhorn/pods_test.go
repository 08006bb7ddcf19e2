package longhorn

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/nad"
)

// The CSI plugin's pods are on the network when their template says so, that was seen, and all are made anew and available.
func TestUnrolled(t *testing.T) {
	ref := Ref{"longhorn-system", "storage"}
	for _, c := range []struct {
		name   string
		ref    Ref
		asked  string
		status appsv1.DaemonSetStatus
		want   string // part of it; empty: all is well
	}{
		{"done", ref, ref.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3}, ""},
		{"with an interface of its own", ref, `[{"namespace":"longhorn-system","name":"storage","interface":"lhnet2"}]`, appsv1.DaemonSetStatus{ObservedGeneration: 2}, ""},
		{"not told", ref, "", appsv1.DaemonSetStatus{ObservedGeneration: 2}, "isn't told yet that shared volumes are on longhorn-system/storage"},
		{"told of another", ref, Ref{"a", "b"}.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 2}, "isn't told yet"},
		{"not seen", ref, ref.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3}, "aren't made anew yet"},
		{"half-way", ref, ref.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 2, NumberAvailable: 3}, "of 3 pods 2 are made anew and 3 available"},
		{"one doesn't start", ref, ref.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 2}, "of 3 pods 3 are made anew and 2 available"},
		{"off", Ref{}, "", appsv1.DaemonSetStatus{ObservedGeneration: 2}, ""},
		{"not off yet", Ref{}, ref.Annotation(), appsv1.DaemonSetStatus{ObservedGeneration: 2}, "on the pod network"},
	} {
		set := &appsv1.DaemonSet{Status: c.status}
		set.Name, set.Generation = csiPlugin, 2
		set.Spec.Template.Annotations = map[string]string{nad.NetworksAnnotation: c.asked}
		got := unrolled(set, c.ref)
		if c.want == "" {
			assert.Empty(t, got, c.name)
		} else if assert.Len(t, got, 1, c.name) {
			assert.Contains(t, got[0], c.want, c.name)
		}
	}
}

// What was said of a pod that isn't Ready counts, and of those before it that had its name, since it is waited for; of no other.
func TestWarnings(t *testing.T) {
	began := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	event := func(pod, uid, reason, message string, after time.Duration) corev1.Event {
		return corev1.Event{
			Type: corev1.EventTypeWarning, Reason: reason, Message: message, LastTimestamp: metav1.NewTime(began.Add(after)),
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: pod, UID: types.UID(uid)},
		}
	}
	ready := corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	ready.Name, ready.UID = "im-ready", "r"
	waits := corev1.Pod{}
	waits.Name, waits.UID = "im-waits", "w2"
	var gone, runs manager
	gone.Name, gone.Status.State = "im-gone", "error"
	runs.Name, runs.Status.State = "im-ready", "running"
	normal := event("im-waits", "w2", "Pulled", "an image", time.Second)
	normal.Type = corev1.EventTypeNormal
	got := warnings([]corev1.Event{
		event("im-waits", "w2", "FailedCreatePodSandBox", "later", 2*time.Second),
		event("im-waits", "w2", "FailedCreatePodSandBox", "earlier", time.Second),
		event("im-waits", "w2", "MissingClusterDNS", "and this", -time.Hour), // long before, but of this very pod
		event("im-waits", "w1", "BackOff", "of the pod before it", 0),
		event("im-waits", "w0", "Unhealthy", "of another day", -time.Second),
		event("im-gone", "g1", "FailedCreatePodSandBox", "no pod at the moment", time.Second),
		event("im-gone", "g0", "Evicted", "of another day", -time.Second),
		event("im-ready", "r", "Unhealthy", "it is well by now", time.Second),
		normal,
	}, []corev1.Pod{ready, waits}, []manager{gone, runs}, began)
	assert.Equal(t, []string{
		"pod im-gone: FailedCreatePodSandBox: no pod at the moment",
		"pod im-waits: BackOff: of the pod before it",
		"pod im-waits: FailedCreatePodSandBox: later",
		"pod im-waits: MissingClusterDNS: and this",
	}, got)
}
