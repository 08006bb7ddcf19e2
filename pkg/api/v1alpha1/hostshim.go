package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostShim is a node's place on a parent: its index, and the addresses that follow from it or that it
// had before. Its name is `<parent>-<index>`: whoever creates it has the index.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=lhstorage
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Parent",type=string,JSONPath=`.spec.parent`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="VTEP",type=string,JSONPath=`.spec.vtep`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type HostShim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec HostShimSpec `json:"spec"`
	// +optional
	Status HostShimStatus `json:"status,omitempty,omitzero"`
}

// HostShimSpec says who is where.
//
// +kubebuilder:validation:XValidation:rule="!has(self.address) || !has(self.networks) || self.networks.all(n, !has(n.addresses) || n.addresses.all(a, self.address.contains(a)))",message="address lacks an address of networks, which it lists for people: change both, or leave address out"
// +kubebuilder:validation:XValidation:rule="self.parent == oldSelf.parent && self.index == oldSelf.index",message="a place's parent and index don't change: they are its name"
type HostShimSpec struct {
	// Node is the name of the Node.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// MachineID is the content of the node's /etc/machine-id: by it a node that was renamed finds its place again.
	//
	// +kubebuilder:validation:MaxLength=64
	// +optional
	MachineID string `json:"machineID,omitempty"`

	// Parent is the name of the parent device.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	Parent string `json:"parent"`

	// Index is the node's number on the parent, from 1.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65536
	Index int `json:"index"`

	// VTEP is the node's tunnel endpoint; empty for parents that need none.
	//
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="self == '' || isIP(self)",message="must be an IPv4 or IPv6 address"
	// +optional
	VTEP string `json:"vtep,omitempty"`

	// Address lists the addresses of all networks, with commas between them, for people.
	//
	// +kubebuilder:validation:MaxLength=5888
	// +optional
	Address string `json:"address,omitempty"`

	// Networks are the node's own addresses on each storage network of the parent.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=name
	// +optional
	Networks []ShimNetwork `json:"networks,omitempty"`
}

// ShimNetwork is the node's place on one network.
type ShimNetwork struct {
	// Name in the network's configuration.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// Addresses of the host shim, one for each host range.
	//
	// +kubebuilder:validation:MaxItems=2
	// +listType=atomic
	// +optional
	Addresses []ShimAddress `json:"addresses,omitempty"`
}

// ShimAddress is an address without a prefix length.
//
// +kubebuilder:validation:MinLength=2
// +kubebuilder:validation:MaxLength=45
// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IPv4 or IPv6 address"
type ShimAddress string

// HostShimStatus is what the node's agent reports.
type HostShimStatus struct {
	// Ready says whether the node's parent and shims are as they must be.
	//
	// +kubebuilder:validation:Enum="True";"False";"Unknown"
	// +optional
	Ready metav1.ConditionStatus `json:"ready,omitempty"`

	// Reason says in a few words why it isn't ready.
	//
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Reason string `json:"reason,omitempty"`
}

// HostShimList is a list of places.
//
// +kubebuilder:object:root=true
type HostShimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []HostShim `json:"items"`
}
