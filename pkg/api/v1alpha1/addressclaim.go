package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressClaim says that an address of a storage network is held. Its name is the address (with
// ':' written as '-'), behind the network_name where there is one, and behind
// the pool's name where overlapping ranges are off: whoever creates it has the address.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=claim,categories=lhstorage
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.spec.podRef`
// +kubebuilder:printcolumn:name="Iface",type=string,JSONPath=`.spec.ifName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="State",type=string,priority=1,JSONPath=`.metadata.labels['lhstorage\.io/state']`
// +kubebuilder:printcolumn:name="Container",type=string,priority=1,JSONPath=`.spec.containerID`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec AddressClaimSpec `json:"spec"`
}

// AddressClaimSpec says what is held by whom.
//
// +kubebuilder:validation:XValidation:rule="self.address == oldSelf.address && self.pool == oldSelf.pool",message="a claim's address and pool don't change: make another claim"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.released) || !oldSelf.released || (has(self.released) && self.released)",message="a claim that was given up doesn't come back: make another claim"
type AddressClaimSpec struct {
	// Address is the address that is held, without a prefix length.
	//
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IPv4 or IPv6 address"
	Address string `json:"address"`

	// Pool is the name of Whereabouts' IPPool that the address is recorded in.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Pool string `json:"pool"`

	// Range is the range of that IPPool, for whoever has to make it.
	//
	// +kubebuilder:validation:MaxLength=49
	// +optional
	Range string `json:"range,omitempty"`

	// Network is the name in the network's configuration.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Network string `json:"network,omitempty"`

	// NetworkName is network_name of the network's configuration.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	NetworkName string `json:"networkName,omitempty"`

	// Isolated says that overlapping ranges are off, so that no reservation belongs to the claim.
	//
	// +optional
	Isolated bool `json:"isolated,omitempty"`

	// Node is the node that the sandbox lives on.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Node string `json:"node,omitempty"`

	// PodRef is the pod's namespace/name; empty for a container without a pod.
	//
	// +kubebuilder:validation:MaxLength=317
	// +optional
	PodRef string `json:"podRef,omitempty"`

	// PodUID is the pod's UID, where the runtime tells it.
	//
	// +kubebuilder:validation:MaxLength=128
	// +optional
	PodUID string `json:"podUID,omitempty"`

	// ContainerID is the sandbox that has the address now.
	//
	// +kubebuilder:validation:MaxLength=253
	ContainerID string `json:"containerID"`

	// IfName is the interface's name in the sandbox.
	//
	// +kubebuilder:validation:MaxLength=15
	IfName string `json:"ifName"`

	// MAC is the interface's address, where it was known before the interface existed.
	//
	// +kubebuilder:validation:MaxLength=59
	// +optional
	MAC string `json:"mac,omitempty"`

	// Released says that the holder has given the address up: it is free when Whereabouts' objects
	// don't hold it any more and this claim has been deleted.
	//
	// +optional
	Released bool `json:"released,omitempty"`

	// Declined is there when another device answered for the address, which is then given to nobody for a while.
	//
	// +optional
	Declined *Declined `json:"declined,omitempty"`
}

// Declined says why an address is given to nobody.
type Declined struct {
	// MAC of the device that holds the address.
	//
	// +kubebuilder:validation:MaxLength=59
	MAC string `json:"mac"`

	// Until when the address is given to nobody.
	Until metav1.Time `json:"until"`
}

// AddressClaimList is a list of claims.
//
// +kubebuilder:object:root=true
type AddressClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []AddressClaim `json:"items"`
}
