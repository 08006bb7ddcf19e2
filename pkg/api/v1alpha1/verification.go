package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Verification asks a node's agent to look at the storage network now, and holds its answer. Its name is the node's. It is the one
// object here that people make, by `lhstoragectl verify`. A request says no more than that it is one: whom the agent measures follows from the cluster's
// own objects, and how long and how much it may is the agent's to bound, so whoever may make one can have nothing else reached by it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=lhstorage
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Asked",type=string,JSONPath=`.spec.id`
// +kubebuilder:printcolumn:name="Answered",type=string,JSONPath=`.status.id`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.error`
// +kubebuilder:printcolumn:name="Time",type=date,JSONPath=`.status.time`
type Verification struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec VerificationSpec `json:"spec"`
	// +optional
	Status VerificationStatus `json:"status,omitempty,omitzero"`
}

// VerificationSpec is the request.
//
// +kubebuilder:validation:XValidation:rule="self.node == oldSelf.node",message="a verification's node doesn't change: it is its name"
type VerificationSpec struct {
	// Node is the name of the Node whose agent is asked.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// ID tells this request from the one before: the agent answers each once.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	ID string `json:"id"`

	// Time when it was asked. One that is older than a few minutes isn't answered: nobody waits for it any more.
	Time metav1.Time `json:"time"`
}

// VerificationStatus is the answer. It is written whole, once.
type VerificationStatus struct {
	// ID of the request that this answers.
	//
	// +kubebuilder:validation:MaxLength=64
	// +optional
	ID string `json:"id,omitempty"`

	// Time when the agent had done.
	//
	// +optional
	Time metav1.Time `json:"time,omitempty,omitzero"`

	// Milliseconds that it took.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Milliseconds int64 `json:"milliseconds,omitempty"`

	// Error is what kept the agent from measuring, all or part.
	//
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Error string `json:"error,omitempty"`

	// Networks that the node takes part in.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Networks []VerifiedNetwork `json:"networks,omitempty"`

	// Pods of this node that are attached.
	//
	// +kubebuilder:validation:MaxItems=512
	// +listType=atomic
	// +optional
	Pods []VerifiedPod `json:"pods,omitempty"`

	// Legs that were measured.
	//
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	// +optional
	Legs []VerifiedLeg `json:"legs,omitempty"`

	// Left is how many legs were not measured, since one answer holds no more.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Left int `json:"left,omitempty"`

	// Traffic is what was counted while full-size packets were sent to other nodes.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Traffic []VerifiedTraffic `json:"traffic,omitempty"`
}

// VerifiedNetwork is what the node's kernel has for a network.
type VerifiedNetwork struct {
	// Name in the network's configuration.
	//
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// Parent is the device's name, ParentKind what it is to the kernel (vxlan, vlan, bond, device…); empty where there is none.
	//
	// +kubebuilder:validation:MaxLength=15
	Parent string `json:"parent"`
	// +kubebuilder:validation:MaxLength=32
	// +optional
	ParentKind string `json:"parentKind,omitempty"`
	// +optional
	ParentMTU int `json:"parentMTU,omitempty"`

	// Learning says whether a VXLAN parent learns where a MAC is; without it every frame goes to every peer. Absent for other parents.
	//
	// +optional
	Learning *bool `json:"learning,omitempty"`

	// VTEP is the source address of a VXLAN parent.
	//
	// +kubebuilder:validation:MaxLength=45
	// +optional
	VTEP string `json:"vtep,omitempty"`

	// Flood lists the VTEPs that a VXLAN parent sends broadcasts to.
	//
	// +kubebuilder:validation:MaxItems=4096
	// +listType=atomic
	// +optional
	Flood []VerifiedAddress `json:"flood,omitempty"`

	// Shim is the shim's name by the node's place, Shim MAC, MTU and Addresses what the kernel has; empty where it has none.
	//
	// +kubebuilder:validation:MaxLength=15
	// +optional
	Shim string `json:"shim,omitempty"`
	// +kubebuilder:validation:MaxLength=64
	// +optional
	ShimMAC string `json:"shimMAC,omitempty"`
	// +optional
	ShimMTU int `json:"shimMTU,omitempty"`
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +optional
	ShimAddresses []VerifiedAddress `json:"shimAddresses,omitempty"`

	// Bypass is what came of asking the node's own pods by the parent itself, without the shim.
	//
	// +optional
	Bypass *VerifiedBypass `json:"bypass,omitempty"`

	// Duplicates are other holders of the addresses of this node's shim and pods.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Duplicates []VerifiedDuplicate `json:"duplicates,omitempty"`
}

// VerifiedAddress is an IP address.
//
// +kubebuilder:validation:MaxLength=45
type VerifiedAddress string

// VerifiedBypass says whether the host reaches its own pods without a shim: ARP requests for their addresses leave by the parent, and either a pod answers
// or none does.
type VerifiedBypass struct {
	// +kubebuilder:validation:Minimum=0
	Asked int `json:"asked"`
	// +kubebuilder:validation:Minimum=0
	Answered int `json:"answered"`
}

// VerifiedDuplicate is another holder of an address.
type VerifiedDuplicate struct {
	// Address that two hold.
	Address VerifiedAddress `json:"address"`
	// Holder is the pod (namespace/name) here that has it; empty for the host shim.
	//
	// +kubebuilder:validation:MaxLength=512
	// +optional
	Holder string `json:"holder,omitempty"`
	// MAC of the other.
	//
	// +kubebuilder:validation:MaxLength=64
	MAC string `json:"mac"`
}

// VerifiedPod is a pod of the node.
type VerifiedPod struct {
	// +kubebuilder:validation:MaxLength=512
	Pod string `json:"pod"`
	// +kubebuilder:validation:MaxLength=253
	Network string `json:"network"`
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +optional
	Addresses []VerifiedAddress `json:"addresses,omitempty"`
	// MAC and MTU of the interface as the kernel has it; empty where it could not be looked at.
	//
	// +kubebuilder:validation:MaxLength=64
	// +optional
	MAC string `json:"mac,omitempty"`
	// +optional
	MTU int `json:"mtu,omitempty"`
	// ISCSIDial is the address that Longhorn's v1 initiator dials.
	//
	// +optional
	ISCSIDial VerifiedAddress `json:"iscsiDial,omitempty"`
}

// VerifiedLeg is one way in one direction.
type VerifiedLeg struct {
	// +kubebuilder:validation:Enum=underlay;host-shim;host-local;host-remote;pod-local;pod-remote
	Kind LegKind `json:"kind"`

	// Network in the network's configuration; of an underlay one that runs over it.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Network string `json:"network,omitempty"`

	// From is the pod (namespace/name) that was measured from; empty for the host.
	//
	// +kubebuilder:validation:MaxLength=512
	// +optional
	From string `json:"from,omitempty"`

	// Node that the other end is on.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// Pod (namespace/name) at the other end; empty for a host.
	//
	// +kubebuilder:validation:MaxLength=512
	// +optional
	Pod string `json:"pod,omitempty"`

	// Address at the other end.
	Address VerifiedAddress `json:"address"`

	// Device by which the host sends there; empty for legs from pods.
	//
	// +kubebuilder:validation:MaxLength=15
	// +optional
	Device string `json:"device,omitempty"`

	// Small packets.
	Small VerifiedPings `json:"small"`

	// Full are packets that fill the sender's MTU and may not be fragmented; absent where none was sent.
	//
	// +optional
	Full *VerifiedPings `json:"full,omitempty"`

	// TCP ports of an instance manager, as dialled from the host.
	//
	// +kubebuilder:validation:MaxItems=8
	// +listType=atomic
	// +optional
	TCP []VerifiedPort `json:"tcp,omitempty"`

	// HTTP is an exchange between two pods, each bound to its storage address.
	//
	// +optional
	HTTP *VerifiedHTTP `json:"http,omitempty"`
}

// VerifiedPings is what came of a row of pings.
type VerifiedPings struct {
	// Size of the IP packets in bytes.
	//
	// +kubebuilder:validation:Minimum=0
	Size int `json:"size"`
	// Sent packets, those included that the kernel refused to send. The first one, which waits for ARP, isn't among them.
	//
	// +kubebuilder:validation:Minimum=0
	Sent int `json:"sent"`
	// +kubebuilder:validation:Minimum=0
	Lost int `json:"lost"`
	// Median round-trip time in microseconds; 0 when nothing came back.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Microseconds int64 `json:"microseconds,omitempty"`
	// Fragments that the host made meanwhile, of whatever: the outer packets of a tunnel, when the underlay carries less than the tunnel was told.
	//
	// +kubebuilder:validation:Minimum=0
	// +optional
	Fragments int64 `json:"fragments,omitempty"`
	// Error is what the kernel said when it refused to send.
	//
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Error string `json:"error,omitempty"`
}

// VerifiedPort is what came of dialling a port.
type VerifiedPort struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int `json:"port"`
	// Result: open; refused, by the pod itself: it can be reached and nothing listens; silent: nothing came back.
	//
	// +kubebuilder:validation:Enum=open;refused;silent
	Result VerifiedPortResult `json:"result"`
}

// VerifiedPortResult is one of the results of dialling a port.
type VerifiedPortResult string

// The results.
const (
	PortOpen    VerifiedPortResult = "open"
	PortRefused VerifiedPortResult = "refused"
	PortSilent  VerifiedPortResult = "silent"
)

// VerifiedHTTP is what came of an HTTP exchange.
type VerifiedHTTP struct {
	OK bool `json:"ok"`
	// +kubebuilder:validation:Minimum=0
	// +optional
	Microseconds int64 `json:"microseconds,omitempty"`
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Error string `json:"error,omitempty"`
}

// VerifiedTraffic are bytes that devices counted.
type VerifiedTraffic struct {
	// +kubebuilder:validation:MaxLength=15
	Parent string `json:"parent"`
	// Sent and Received are the parent's, ChildrenSent and ChildrenReceived those of the shim and the pods on it.
	//
	// +optional
	Sent int64 `json:"sent"`
	// +optional
	Received int64 `json:"received"`
	// +optional
	ChildrenSent int64 `json:"childrenSent"`
	// +optional
	ChildrenReceived int64 `json:"childrenReceived"`
	// Management is the device that holds the node's own Kubernetes address; empty where it isn't known.
	//
	// +kubebuilder:validation:MaxLength=15
	// +optional
	Management string `json:"management,omitempty"`
	// +optional
	ManagementSent int64 `json:"managementSent,omitempty"`
}

// VerificationList is a list of verifications.
//
// +kubebuilder:object:root=true
type VerificationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Verification `json:"items"`
}
