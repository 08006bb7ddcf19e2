package agent

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Places are looked at whose Node is gone, and those that are marked although it is there; what can be judged from here are parents that this node is on.
func TestGone(t *testing.T) {
	shim := func(name, node, parent, since string) *v1alpha1.HostShim {
		h := &v1alpha1.HostShim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.HostShimSpec{Node: node, Parent: parent}}
		if since != "" {
			h.Annotations = map[string]string{"lhstorage.io/node-gone": since}
		}
		return h
	}
	nodes := []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "here"}}, {ObjectMeta: metav1.ObjectMeta{Name: "back"}}}
	places, here := gone([]*v1alpha1.HostShim{
		shim("p-1", "here", "p", ""), shim("p-2", "left", "p", ""), shim("p-3", "back", "p", "then"), shim("q-1", "back", "q", ""), shim("q-2", "left", "q", "then"),
	}, nodes, "here")
	var names []string
	for _, p := range places {
		names = append(names, p.Name)
	}
	assert.Equal(t, []string{"p-2", "p-3", "q-2"}, names)
	assert.Equal(t, map[string]bool{"p": true}, here)
}
