// Package record keeps one small file per attachment of this node in
// <runDir>/attachments: what is attached here, and what DEL needs when the
// runtime gives it nothing but a container id and an interface name.
package record

import (
	"encoding/json"
	"net/netip"
	"time"
)

// Version of the format that this package writes.
const Version = 1

// State of an attachment.
const (
	StatePending  = "pending"  // ADD has begun; whatever it made so far must go before another try
	StateAttached = "attached" // ADD has succeeded
)

// Attachment is one record. It is versioned: readers refuse a newer version.
type Attachment struct {
	Version     int             `json:"version"`
	State       string          `json:"state"`
	Created     time.Time       `json:"created"`
	Node        string          `json:"node"`
	Network     string          `json:"network"`
	NAD         string          `json:"nad,omitempty"`    // namespace/name, where known
	PodRef      string          `json:"podref,omitempty"` // namespace/name
	PodUID      string          `json:"podUID,omitempty"`
	ContainerID string          `json:"containerID"`
	IfName      string          `json:"ifname"`
	Netns       string          `json:"netns"`
	Addresses   []netip.Prefix  `json:"addresses"`
	MAC         string          `json:"mac,omitempty"`
	IfIndex     int             `json:"ifindex,omitempty"`
	MTU         int             `json:"mtu,omitempty"`        // as the NetConf asked; 0: the parent's
	Parent      string          `json:"parent"`               // the device in the host's namespace; empty with linkInContainer
	ParentDown  bool            `json:"parentDown,omitempty"` // it was already down at ADD, so that is no change
	Shim        string          `json:"shim,omitempty"`       // the host shim's name; empty: the network has none
	ISCSIDial   string          `json:"iscsiDial,omitempty"`  // the address that Longhorn's v1 initiator dials
	ISCSINote   string          `json:"iscsiNote,omitempty"`  // why it isn't the one that the policy wanted
	Chained     bool            `json:"chained,omitempty"`
	IPAM        string          `json:"ipam,omitempty"`     // the allocating IPAM plugin's type
	Delegate    json.RawMessage `json:"delegate,omitempty"` // the NetConf that it was called with
	Warnings    []string        `json:"warnings,omitempty"`
}
