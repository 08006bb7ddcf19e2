package nad

// Annotations of pods, by the Network Plumbing Working Group's specification: which networks a pod asks for, and what Multus says it got.
const (
	NetworksAnnotation = "k8s.v1.cni.cncf.io/networks"
	StatusAnnotation   = "k8s.v1.cni.cncf.io/network-status"
	// LegacyStatusAnnotation is an older name of it, which Longhorn still reads.
	LegacyStatusAnnotation = "k8s.v1.cni.cncf.io/networks-status"
)
