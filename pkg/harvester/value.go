// Package harvester knows the storage network of Harvester: its setting and what Harvester makes of it.
package harvester

import (
	"crypto/sha1" //nolint:gosec // it is Harvester's, and marks a value; nothing is kept secret by it
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

// Names that a definition of Harvester's carries.
const (
	markNetwork   = "storage-network.settings.harvesterhci.io"
	LabelHash     = markNetwork + "/hash"
	LabelVLAN     = markNetwork + "/exclusivevlan"
	prefixNetwork = "storagenetwork-"
	ownNamespace  = "harvester-system"
)

const (
	management  = "mgmt" // the cluster network of the nodes themselves
	shortest    = 16     // prefix length that its webhook accepts
	defaultVLAN = 1      // untagged, or the bridge's own
	maxVLAN     = 4094
)

// Value is that of Harvester's setting storage-network. Order and omissions of the keys are Harvester's, since it hashes them.
type Value struct {
	ClusterNetwork string   `json:"clusterNetwork,omitempty"`
	VLAN           uint16   `json:"vlan,omitempty"`
	ExclusiveVLAN  bool     `json:"exclusiveVlan,omitempty"`
	Range          string   `json:"range,omitempty"`
	Exclude        []string `json:"exclude,omitempty"`
}

// ParseValue reads a value. The error is Harvester's.
func ParseValue(raw string) (Value, error) {
	var v Value
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		return v, fmt.Errorf("failed to unmarshal the setting value %v, %w", raw, err)
	}
	return v, nil
}

// Hash marks a value as Harvester does: the raw text counts, white space and all.
func Hash(raw string) string {
	sum := sha1.Sum([]byte(raw)) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

// CanonicalHash is the same for all texts that mean the same network: white space, order of keys and of excludes,
// host bits and the two ways to write no VLAN don't count.
func (v Value) CanonicalHash() string {
	v.Range = masked(v.Range)
	if v.VLAN == 0 {
		v.VLAN = defaultVLAN
	}
	var exclude []string
	for _, x := range v.Exclude {
		exclude = append(exclude, masked(x))
	}
	slices.Sort(exclude)
	v.Exclude = slices.Compact(exclude)
	data, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return Hash(string(data))
}

func masked(s string) string {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().String()
	}
	return s
}

// Known is what a value is checked against besides itself; the zero value is nothing.
type Known struct {
	Need     int            // addresses that must be had
	VMVLANs  []int          // VLANs of networks of virtual machines
	Networks []plan.Network // what the range must keep clear of
}

// Faults are all that is wrong with a value, in the words of Harvester's webhook where it finds that, too. It stops at the first; it compares only excludes that stand
// side by side, and knows nothing of the ranges that its documents reserve.
func (v Value) Faults(known Known) []string {
	faults := v.vlanFaults(known)
	ip, network, err := net.ParseCIDR(v.Range)
	if err != nil {
		return append(faults, err.Error())
	}
	length, _ := network.Mask.Size()
	if !network.IP.Equal(ip) {
		faults = append(faults, fmt.Sprintf("range should be subnet CIDR %v", network))
	}
	if network.IP.To4() == nil {
		return append(faults, "IPv6 ranges are not supported for network settings")
	}
	if length < shortest {
		faults = append(faults, fmt.Sprintf("min supported prefix length for network is %d, include Range PrefixLen received %d", shortest, length))
	}
	include := netip.MustParsePrefix(network.String())
	exclude, more := v.excludeFaults(include)
	faults = append(faults, more...)
	if n := plan.Room(include, exclude); n < known.Need {
		faults = append(faults, fmt.Sprintf("allocatable IP address range is < %d, allocate sufficient range", known.Need))
	}
	for _, n := range plan.Overlapping(include, known.Networks) {
		if !n.Advisory {
			faults = append(faults, fmt.Sprintf("range %s overlaps %s", include, n))
		}
	}
	return faults
}

func (v Value) vlanFaults(known Known) []string {
	var faults []string
	if v.ClusterNetwork == "" {
		faults = append(faults, "clusterNetwork is missing: the name of the cluster network that carries the storage network")
	}
	if v.VLAN > maxVLAN {
		faults = append(faults, "the valid value range for VLAN IDs is 0 to 4094")
	}
	if v.VLAN <= defaultVLAN && v.ClusterNetwork == management {
		faults = append(faults, fmt.Sprintf("network with vlan id %d not allowed on %s cluster", v.VLAN, v.ClusterNetwork))
	}
	switch {
	case !v.ExclusiveVLAN:
	case v.VLAN <= defaultVLAN:
		faults = append(faults, fmt.Sprintf("exclusive vlan cannot be enabled for vlan %d", v.VLAN))
	case slices.Contains(known.VMVLANs, int(v.VLAN)):
		faults = append(faults, fmt.Sprintf("storage network cannot use the same vlan %d as VM Network vlan as exclusive vlan is enabled", v.VLAN))
	}
	return faults
}

// excludeFaults reads the excludes and compares each with the range and with all others.
func (v Value) excludeFaults(include netip.Prefix) ([]netip.Prefix, []string) {
	var exclude []netip.Prefix
	var faults []string
	for _, text := range v.Exclude {
		_, network, err := net.ParseCIDR(text)
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		x := netip.MustParsePrefix(network.String())
		if x.Bits() < shortest {
			faults = append(faults, fmt.Sprintf("min supported prefix length for network is %d, exclude Range PrefixLen received %d", shortest, x.Bits()))
		}
		switch {
		case !x.Overlaps(include):
			faults = append(faults, fmt.Sprintf("exclude range %s do not overlap include range %s", text, v.Range))
		case x.Bits() <= include.Bits():
			faults = append(faults, fmt.Sprintf("exclude Range %s includes include Range %s, no allocatable ip addresses", text, v.Range))
		}
		for i, other := range exclude {
			if other.Overlaps(x) {
				faults = append(faults, fmt.Sprintf("exclude ranges have overlapping subnets %s %s", text, v.Exclude[i]))
			}
		}
		exclude = append(exclude, x)
	}
	return exclude, faults
}

// bridge is the configuration that Harvester writes, key by key in its order.
type bridge struct {
	CNIVersion  string     `json:"cniVersion"`
	Type        string     `json:"type"`
	Bridge      string     `json:"bridge"`
	PromiscMode bool       `json:"promiscMode"`
	VLAN        int        `json:"vlan"`
	IPAM        bridgeIPAM `json:"ipam"`
	MTU         int        `json:"mtu,omitempty"`
}

type bridgeIPAM struct {
	Type    string   `json:"type"`
	Range   string   `json:"range"`
	Exclude []string `json:"exclude,omitempty"`
}

// Definition is the one that Harvester makes of a value, whose raw text it marks it with. Its network controller adds the cluster
// network's MTU where that isn't 1500; 0 is not known.
func (v Value) Definition(raw string, mtu int) (nad.Definition, error) {
	if mtu == 1500 {
		mtu = 0
	}
	data, err := json.Marshal(bridge{
		CNIVersion: "0.3.1", Type: "bridge", Bridge: v.ClusterNetwork + "-br", PromiscMode: true, VLAN: int(max(v.VLAN, defaultVLAN)),
		IPAM: bridgeIPAM{"whereabouts", v.Range, v.Exclude}, MTU: mtu,
	})
	if err != nil {
		return nad.Definition{}, err
	}
	d := nad.Of(ownNamespace, "", string(data))
	d.Metadata.GenerateName = prefixNetwork
	d.Metadata.Annotations = map[string]string{markNetwork: "true"}
	d.Metadata.Labels = map[string]string{LabelHash: Hash(raw)}
	if v.ExclusiveVLAN {
		d.Metadata.Labels[LabelVLAN] = "true"
	}
	return d, nil
}

// Network is the same network as one of lhstorage's, and what must be known about it. On a VLAN it takes the cluster network's bond past
// the bridge on it; untagged the bridge itself, since a bond in a bridge can have no other upper device that takes its frames.
func (v Value) Network(name string, hosts netip.Prefix, mtu int) (nad.Network, []string, error) {
	include, err := netip.ParsePrefix(v.Range)
	if err != nil {
		return nad.Network{}, nil, err
	}
	n := nad.Network{Namespace: ownNamespace, Name: name, Range: include, Exclude: v.Exclude, Hosts: hosts}
	if v.VLAN > defaultVLAN {
		n.Parent = nad.Parent{Type: netconf.ParentVLAN, Device: v.ClusterNetwork + "-bo", VLAN: int(v.VLAN), MTU: mtu}
		note := fmt.Sprintf("frames of VLAN %d go to the storage network alone, past the bridge %s-br: pods that still hang on it and virtual machines on this VLAN fall silent, so detach the volumes first", v.VLAN, v.ClusterNetwork)
		if len(n.Parent.Device)+len(fmt.Sprint(v.VLAN))+1 > 15 {
			n.Parent.Name = fmt.Sprintf("storage.%d", v.VLAN)
		}
		return n, []string{note}, nil
	}
	n.Parent = nad.Parent{Type: netconf.ParentDevice, Name: v.ClusterNetwork + "-br", MTU: mtu}
	return n, []string{fmt.Sprintf("untagged, so the parent is the bridge %s-br: kernels have written traces with macvlan on a bridge (bugzilla.kernel.org 217777); a VLAN avoids it", v.ClusterNetwork)}, nil
}

// Setting reads Harvester's Setting object: its name and its value, the default where there is none.
func Setting(object []byte) (name, value string, err error) {
	var s struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Value   string `json:"value"`
		Default string `json:"default"`
	}
	if err := json.Unmarshal(object, &s); err != nil {
		return "", "", fmt.Errorf("the Setting can't be read: %w", err)
	}
	if strings.TrimSpace(s.Value) == "" {
		s.Value = s.Default
	}
	return s.Metadata.Name, s.Value, nil
}
