package nodeslice

import (
	"testing"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// A definition owns a pool only in its own namespace; the oldest one controls it.
func TestOwners(t *testing.T) {
	n := network("10.0.0.0/27", "/28")
	n.Owners = []Definition{{Namespace: "elsewhere", Name: "a", UID: "1"}, {Namespace: "here", Name: "c", UID: "3"}, {Namespace: "here", Name: "b", UID: "2"}}
	assert.Equal(t, []metav1.OwnerReference{
		{APIVersion: "k8s.cni.cncf.io/v1", Kind: "NetworkAttachmentDefinition", Name: "c", UID: "3", Controller: new(true), BlockOwnerDeletion: new(true)},
		{APIVersion: "k8s.cni.cncf.io/v1", Kind: "NetworkAttachmentDefinition", Name: "b", UID: "2"},
	}, owners(n, "here"))
	assert.Empty(t, owners(n, "kube-system"))
	assert.Equal(t, "elsewhere/a,here/b,here/c", marks(n))
}

// Only what differs is written.
func TestChanges(t *testing.T) {
	n := network("10.0.0.0/27", "/28")
	n.Owners = []Definition{{Namespace: "here", Name: "a", UID: "1"}}
	want := State{"10.0.0.0/27", "/28", allocated("10.0.0.0/28=a 10.0.0.16/28=")}
	as := func(change func(*object)) object {
		o := object{
			ObjectMeta: metav1.ObjectMeta{Namespace: "here", Annotations: map[string]string{networksMark: "here/a"}, OwnerReferences: owners(n, "here")},
			Spec:       spec{want.Range, want.SliceSize}, Status: status{allocated("10.0.0.0/28=a 10.0.0.16/28=")},
		}
		change(&o)
		return o
	}
	for _, c := range []struct {
		name string
		old  object
		want []kubeapi.Op
	}{
		{"nothing", as(func(*object) {}), nil},
		{"the size is written otherwise", as(func(o *object) { o.Spec.SliceSize = "28" }), []kubeapi.Op{kubeapi.Add("/spec", spec{"10.0.0.0/27", "/28"})}},
		{"a node", as(func(o *object) { o.Status.Allocations[0].NodeName = "" }), []kubeapi.Op{kubeapi.Add("/status", status{want.Allocations})}},
		{"an owner of another namespace", as(func(o *object) { o.OwnerReferences[0].UID = "9" }), []kubeapi.Op{kubeapi.Add("/metadata/ownerReferences", owners(n, "here"))}},
		{"Whereabouts made it", as(func(o *object) { o.Annotations = nil }), []kubeapi.Op{kubeapi.Add("/metadata/annotations", map[string]string{networksMark: "here/a"})}},
		{"another network", as(func(o *object) { o.Annotations[networksMark] = "here/b" }), []kubeapi.Op{kubeapi.Add("/metadata/annotations/lhstorage.io~1networks", "here/a")}},
	} {
		assert.Equal(t, c.want, changes(n, c.old, want), c.name)
	}
	old := as(func(*object) {})
	n.Owners = []Definition{{Namespace: "elsewhere", Name: "a", UID: "1"}}
	assert.Contains(t, changes(n, old, want), kubeapi.Add("/metadata/ownerReferences", []metav1.OwnerReference{}), "no owner that isn't there")
}

// A pool whose definition is faulty stays as it is.
func TestFaulty(t *testing.T) {
	o := object{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{networksMark: "ns/a,ns/b"}}}
	assert.True(t, faulty(o, []Fault{{Definition: Definition{Namespace: "ns", Name: "b"}}}))
	assert.False(t, faulty(o, []Fault{{Definition: Definition{Namespace: "ns", Name: "c"}}}))
}
