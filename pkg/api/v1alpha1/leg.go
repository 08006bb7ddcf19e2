package v1alpha1

// LegKind is one of the kinds of way that storage traffic takes.
type LegKind string

// The kinds: between the hosts' VTEPs, below the storage network; from the host to another node's shim, to a pod of the node, and to one elsewhere; from a pod
// of the node to another of it, and to one elsewhere.
const (
	LegUnderlay   LegKind = "underlay"
	LegHostShim   LegKind = "host-shim"
	LegHostLocal  LegKind = "host-local"
	LegHostRemote LegKind = "host-remote"
	LegPodLocal   LegKind = "pod-local"
	LegPodRemote  LegKind = "pod-remote"
)
