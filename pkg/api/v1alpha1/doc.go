// Package v1alpha1 holds the objects that lhstorage keeps in a cluster.
//
// All are cluster-scoped, and none but Verification is made by people. HostShim and AddressClaim are locks: the
// API server gives a name to one object only, so whoever creates it has what it stands for.
//
// The deepcopy functions and the manifests in deploy/crds are generated: `make generate`.
//
// +kubebuilder:object:generate=true
// +groupName=lhstorage.io
package v1alpha1

import "k8s.io/apimachinery/pkg/runtime/schema"

// Group and Version of the objects.
const (
	Group   = "lhstorage.io"
	Version = "v1alpha1"
)

// GroupVersion is the objects' apiVersion.
var GroupVersion = schema.GroupVersion{Group: Group, Version: Version}

// Kinds and resources.
const (
	HostShimKind         = "HostShim"
	HostShimResource     = "hostshims"
	AddressClaimKind     = "AddressClaim"
	AddressClaimResource = "addressclaims"
	ProbeReportKind      = "ProbeReport"
	ProbeReportResource  = "probereports"
	VerificationKind     = "Verification"
	VerificationResource = "verifications"
)

// Labels by which objects are selected. Values that are no legal label values are
// shortened by [LabelValue].
const (
	LabelNode      = Group + "/node"
	LabelNetwork   = Group + "/network"
	LabelPool      = Group + "/pool"
	LabelContainer = Group + "/container"
	LabelParent    = Group + "/parent"
	LabelState     = Group + "/state" // of an AddressClaim: absent, StateReleased or StateDeclined
)

// Values of LabelState.
const (
	StateReleased = "released"
	StateDeclined = "declined"
)

// IndexAnnotation pins a Node's index on every parent.
const IndexAnnotation = Group + "/index"
