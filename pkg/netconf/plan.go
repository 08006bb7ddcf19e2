// Package netconf turns the JSON that a runtime gives a CNI plugin into a
// validated plan. It is pure: no file, no kernel, no environment is read.
package netconf

import (
	"encoding/json"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ParentType says what carries the storage network.
type ParentType string

// The kinds of parent.
const (
	ParentVXLAN  ParentType = "vxlan"  // made and kept by us
	ParentVLAN   ParentType = "vlan"   // made by us on Parent.Device
	ParentDevice ParentType = "device" // an existing NIC, bond or bridge port, never changed beyond what Parent says
)

// ISCSIPath is the policy for the address that Longhorn's v1 initiator dials.
type ISCSIPath string

// The policies, see package iscsipath.
const (
	ISCSIAuto      ISCSIPath = "auto"
	ISCSIStorageIP ISCSIPath = "storage-ip"
	ISCSIPodIP     ISCSIPath = "pod-ip"
)

// Plan is a validated NetConf together with what CNI_ARGS say.
type Plan struct {
	CNIVersion string
	Name       string // the network's name
	Type       string // the plugin type it was written with: lhstorage

	Parent          Parent
	LinkInContainer bool      // the parent is in the pod's netns (macvlan's linkInContainer)
	HostShim        *HostShim // nil: no host range, so no shim is made; Warnings says so

	Mode       string // bridge, private, vepa or passthru
	MTU        int    // the child's, in bytes; 0: the parent's
	MAC        net.HardwareAddr
	BcQueueLen uint32 // macvlan broadcast queue length; 0: the kernel's default
	ISCSIPath  ISCSIPath
	Conflict   ConflictDetection

	IPAM IPAM

	PrevResult *types100.Result // not nil: chained behind another main plugin (or CHECK, DEL)
	Chained    bool             // this ADD runs behind another main plugin; for CHECK and DEL the attachment record says it

	DNS types.DNS // for the result, as written

	Pod Pod

	ValidAttachments *[]Attachment // GC: nil when the key is absent (then nothing may be released)

	Warnings []string // what is allowed but should be known, one sentence each
}

// Parent is the device that the pods' interfaces are children of.
type Parent struct {
	Type ParentType
	Name string // the device's name
	MTU  int    // in bytes; 0: worked out for vxlan, left alone otherwise

	VNI   int          // vxlan
	Port  uint16       // vxlan: UDP port
	VTEP  VTEP         // vxlan
	Peers []netip.Addr // vxlan: VTEPs of all nodes, one's own allowed; without a cluster only

	Device string // vlan: the device below
	VLAN   int    // vlan: 1 to 4094
}

// VTEP says where this node's tunnel endpoint address comes from.
type VTEP struct {
	CIDR      netip.Prefix      // an address of this node inside it is the VTEP, else one is derived from the node's index
	Interface string            // where a derived address is put (made as a dummy, lo where the kernel has none)
	Routes    bool              // make /32 (/128) routes to the peers' VTEPs ("routes": "static")
	Via       map[string]string // peer VTEP or node name → next hop address or device name
}

// HostShim is the host's own macvlan child of the parent.
type HostShim struct {
	Name      string         // the device's name
	Ranges    []netip.Prefix // the parts of the ranges kept for hosts, one per family at most
	Networks  []netip.Prefix // the whole range that Ranges[i] lies in, same order; its length is the address's prefix length. Invalid when unknown (chained, or an IPAM whose ranges can't be read)
	Addresses []netip.Addr   // pinned addresses (hostShim.address), usually none
}

// Unplaced is a host range of which it isn't known what network it is part of: its addresses
// would have a length that reaches nobody.
func (h *HostShim) Unplaced() (hosts netip.Prefix, found bool) {
	for i, hosts := range h.Ranges {
		if i >= len(h.Networks) || !h.Networks[i].IsValid() {
			return hosts, true
		}
	}
	return netip.Prefix{}, false
}

// ConflictDetection says how duplicate addresses are looked for.
type ConflictDetection struct {
	Enabled bool
	Window  time.Duration // how long an answer is waited for
}

// IPAM is the delegated address management.
type IPAM struct {
	Type     string          // empty: a layer-2 interface without addresses
	Ranges   []netip.Prefix  // the whole ranges it allocates from, as far as they can be read
	Pods     []Range         // the parts of them that this node's pods get addresses from
	Excluded []netip.Prefix  // what no pod gets on any node (exclude): other nodes' addresses, gateways
	Delegate json.RawMessage // the NetConf to give the delegate: the input with the host range kept out of the ipam section
}

// Pod is what the runtime says about the pod in CNI_ARGS; empty outside Kubernetes.
type Pod struct {
	Namespace string
	Name      string
	UID       string
}

// Attachment is an entry of cni.dev/valid-attachments.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}
