package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ProbeReport says what a node's agent measured on the storage network: for each leg, what was lost and how long an answer took. Its
// name is the node's. It is written when something has changed in substance, and every ten minutes; no program waits for it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=probe,categories=lhstorage
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Legs",type=integer,JSONPath=`.status.measured`
// +kubebuilder:printcolumn:name="Failing",type=integer,JSONPath=`.status.failing`
// +kubebuilder:printcolumn:name="Worst",type=string,JSONPath=`.status.worst`
// +kubebuilder:printcolumn:name="Measured",type=date,JSONPath=`.status.time`
type ProbeReport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec ProbeReportSpec `json:"spec"`
	// +optional
	Status ProbeReportStatus `json:"status,omitempty,omitzero"`
}

// ProbeReportSpec says whose report it is.
//
// +kubebuilder:validation:XValidation:rule="self.node == oldSelf.node",message="a report's node doesn't change: it is its name"
type ProbeReportSpec struct {
	// Node is the name of the Node that measured.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
}

// ProbeReportStatus is what was measured. It is written with the rest: nobody but the agent has a part in it.
type ProbeReportStatus struct {
	// Time when the last round ended that is in this report.
	//
	// +optional
	Time metav1.Time `json:"time,omitempty,omitzero"`

	// Measured is how many legs were measured, those that are not listed included.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Measured int `json:"measured"`

	// Failing is how many of them lost packets.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Failing int `json:"failing"`

	// Worst is a leg that lost most, in words; empty when none lost any.
	//
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Worst string `json:"worst,omitempty"`

	// Sampled says that the cluster has more nodes than are probed in a round: each round probes others, and only legs that lost
	// packets are listed.
	//
	// +optional
	Sampled bool `json:"sampled,omitempty"`

	// Legs are the ways that were measured.
	//
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	// +optional
	Legs []ProbeLeg `json:"legs,omitempty"`

	// ISCSI says, for each instance manager of this node, what Longhorn's v1 initiator dials to reach it, as the pod's kernel has it.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	ISCSI []ProbeDial `json:"iscsi,omitempty"`
}

// ProbeDial is the address that Longhorn's v1 initiator dials.
type ProbeDial struct {
	// Pod (namespace/name) that is dialled.
	//
	// +kubebuilder:validation:MaxLength=512
	Pod string `json:"pod"`

	// Address that is dialled.
	//
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IPv4 or IPv6 address"
	Address string `json:"address"`

	// Interface of the pod that has it.
	//
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface"`
}

// ProbeLeg is one way, in one direction.
type ProbeLeg struct {
	// +kubebuilder:validation:Enum=host-shim;host-local;host-remote;pod-remote
	Kind LegKind `json:"kind"`

	// Network in the network's configuration.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Network string `json:"network,omitempty"`

	// From is the pod (namespace/name) that was measured from; empty for the host.
	//
	// +kubebuilder:validation:MaxLength=512
	// +optional
	From string `json:"from,omitempty"`

	// Node is the node that the other end is on.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// Pod (namespace/name) at the other end; empty for a host shim.
	//
	// +kubebuilder:validation:MaxLength=512
	// +optional
	Pod string `json:"pod,omitempty"`

	// Address that was pinged.
	//
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IPv4 or IPv6 address"
	Address string `json:"address"`

	// Sent packets.
	//
	// +kubebuilder:validation:Minimum=0
	Sent int `json:"sent"`

	// Lost packets, those included that the kernel refused to send.
	//
	// +kubebuilder:validation:Minimum=0
	Lost int `json:"lost"`

	// RTT is how long answers took; absent when none came.
	//
	// +optional
	RTT *ProbeRTT `json:"rttMicroseconds,omitempty"`

	// Error is what the kernel said when it refused to send.
	//
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Error string `json:"error,omitempty"`
}

// ProbeRTT are round-trip times in microseconds.
type ProbeRTT struct {
	// +kubebuilder:validation:Minimum=0
	Min int64 `json:"min"`
	// +kubebuilder:validation:Minimum=0
	Median int64 `json:"median"`
	// +kubebuilder:validation:Minimum=0
	Max int64 `json:"max"`
}

// ProbeReportList is a list of reports.
//
// +kubebuilder:object:root=true
type ProbeReportList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []ProbeReport `json:"items"`
}
