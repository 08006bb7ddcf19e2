package agent

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// Reasons of the Events that the agent writes. They don't change: alerts and people's scripts go by them.
const (
	ReasonInvalidNetwork    = "InvalidNetwork"          // on a NetworkAttachmentDefinition that can't be gone by; by the leader
	ReasonContradiction     = "ContradictoryNetwork"    // on one that contradicts an older one; by the leader
	ReasonRepaired          = "StorageNetworkRepaired"  // on the Node: something had changed the storage network, and it was put right
	ReasonNotReady          = "StorageNetworkNotReady"  // on the Node: something is amiss that can't be put right
	ReasonContested         = "StorageNetworkContested" // on the Node: something changes back what is put right
	ReasonAttachmentMissing = "StorageNetworkMissing"   // on a pod that runs without the network it asks for
	ReasonAttachmentRepair  = "StorageNetworkRepair"    // on a pod that is deleted because of that
)

// event tells people of something about an object.
func (a *Agent) event(about runtime.Object, reason, action, format string, args ...any) {
	kind := corev1.EventTypeWarning
	if reason == ReasonRepaired {
		kind = corev1.EventTypeNormal
	}
	a.recorder.Eventf(about, nil, kind, reason, action, format, args...)
}

// nodeObject is this Node, for Events; kubelet names itself by its name in place of the UID, and `kubectl describe node` looks for both.
func (a *Agent) nodeObject() runtime.Object {
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: a.node.NodeName, UID: types.UID(a.node.NodeName)},
	}
}

func definitionObject(d Definition) runtime.Object {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: definitionKind.GroupVersion().String(), Kind: definitionKind.Kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, UID: types.UID(d.UID)},
	}
}
