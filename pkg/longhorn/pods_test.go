package longhorn

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"

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
