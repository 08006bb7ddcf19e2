// Package parent keeps the device that the storage network's macvlan children
// hang on, and what a VXLAN parent needs below it: the VTEP address, the routes to
// the other VTEPs and the flood entries.
//
// Everything is found by difference: Diff functions read the kernel, compare only
// what lhstorage owns and return steps. A caller repeats Diff and Apply until
// nothing is left, so a step may rely on an earlier one having been done, and a
// second run changes nothing.
//
// A parent that has children is never deleted: its children in the pods'
// namespaces would go with it, and with them every volume on this node. The
// overlay managers looked at (flannel, felix, submariner, hybridnet) delete and
// make again on any difference; here what the kernel can change is changed in
// place, and the rest is refused in words.
package parent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// Desired is the parent as this node must have it.
type Desired struct {
	netconf.Parent
	Local netip.Addr       // vxlan: this node's VTEP
	MAC   net.HardwareAddr // vxlan: given at creation; a parent that has another was adopted
	// AutoMTU is the worked-out MTU in bytes, for a vxlan parent of ours whose
	// Parent.MTU is 0.
	AutoMTU int
	// Peers are the other nodes' VTEPs; nil: not known, flood entries stay as they are.
	Peers []netip.Addr
	// Incomplete says that Peers may lack some: nodes that have not claimed their
	// place yet, but are reached by the entries of a script. None is removed then,
	// but those of Former.
	Incomplete bool
	// Former were peers a moment ago and are none any more.
	Former []netip.Addr
	// Beside says that a host shim with an address of its own hangs on a parent
	// that has addresses too.
	Beside bool
	// Moving are the addresses that are about to move to the shim.
	Moving []netip.Addr
}

// Diff returns the steps that bring the parent nearer to d, none when it is
// there. A difference that can't be mended is an error with code 101.
func Diff(k kernel.Kernel, d Desired) ([]kernel.Step, error) {
	link, err := k.Link(d.Name)
	if kernel.IsNotFound(err) {
		return create(k, d)
	}
	if err != nil {
		return nil, err
	}
	if steps, err := mismatch(k, d, link); err != nil || steps != nil {
		return steps, err
	}
	steps, err := unguard(k, link)
	if err != nil {
		return nil, err
	}
	steps = append(steps, inPlace(d, link)...)
	sysctls, err := sysctls(k, d, link)
	if err != nil {
		return nil, err
	}
	steps = append(steps, sysctls...)
	if d.Type == netconf.ParentVXLAN {
		floods, err := floods(k, d, link)
		if err != nil {
			return nil, err
		}
		steps = append(steps, floods...)
	}
	if d.Type != netconf.ParentDevice && !link.Up {
		steps = append(steps, setLink("parent.up", "bring up "+link.Name, link.Index, kernel.Change{Up: new(true)}))
	}
	return steps, nil
}

func create(k kernel.Kernel, d Desired) ([]kernel.Step, error) {
	link := kernel.Link{Name: d.Name, MTU: d.MTU}
	switch d.Type {
	case netconf.ParentVXLAN:
		if link.MTU == 0 {
			link.MTU = d.AutoMTU
		}
		link.Kind, link.MAC = "vxlan", d.MAC
		link.VXLAN = kernel.VXLAN{VNI: d.VNI, Port: d.Port, Local: d.Local, Learning: true}
	case netconf.ParentVLAN:
		lower, err := k.Link(d.Device)
		if kernel.IsNotFound(err) {
			return nil, missing("parent.device", d.Device)
		}
		if err != nil {
			return nil, err
		}
		link.Kind, link.VLAN, link.Lower = "vlan", d.VLAN, lower.Index
	default:
		return nil, missing("the parent", d.Name)
	}
	return []kernel.Step{{
		Name: "parent.create", Text: fmt.Sprintf("create %s parent %s", d.Type, d.Name),
		Do: func(k kernel.Kernel) error { return explainCreate(k, link, k.AddLink(link)) },
	}}, nil
}

func missing(what, name string) error {
	return cnierr.New(cnierr.InvalidConfig, "%s %s isn't on this node: "+
		"`ip link` lists the devices; name one of them (parent.name or master), or bring it up first", what, name)
}

// explainCreate names the other device where the kernel refuses a second VXLAN
// of the same VNI and port.
func explainCreate(k kernel.Kernel, link kernel.Link, err error) error {
	if err == nil || !kernel.IsExists(err) || link.Kind != "vxlan" {
		return err
	}
	links, _ := k.Links()
	for _, other := range links {
		if other.Kind == "vxlan" && other.VXLAN.VNI == link.VXLAN.VNI && other.VXLAN.Port == link.VXLAN.Port {
			return cnierr.New(cnierr.IncompatibleParent, "device %s has VNI %d on UDP port %d already: "+
				"set parent.name to %s to use it, or choose another parent.vni: %w",
				other.Name, link.VXLAN.VNI, link.VXLAN.Port, other.Name, err)
		}
	}
	return err
}

// mismatch finds what the kernel can't change in place. Such a parent is made
// again only when nothing hangs on it.
func mismatch(k kernel.Kernel, d Desired, link kernel.Link) ([]kernel.Step, error) {
	differences, err := fixed(k, d, link)
	if err != nil || len(differences) == 0 {
		return nil, err
	}
	if string(d.Type) != link.Kind || link.Master != 0 {
		return nil, incompatible(d, differences) // not ours to delete
	}
	return []kernel.Step{{
		Name: "parent.recreate", Text: "delete the childless parent " + d.Name + " to make it again",
		Do: func(k kernel.Kernel) error {
			if vlans := vlansOn(k, link); len(vlans) > 0 {
				return incompatible(d, append(differences, "it carries "+strings.Join(vlans, ", ")))
			}
			err := k.DelChildless(link.Index)
			if errors.Is(err, kernel.ErrHasChildren) {
				return incompatible(d, differences)
			}
			return err
		},
	}}, nil
}

func fixed(k kernel.Kernel, d Desired, link kernel.Link) ([]string, error) {
	if d.Type == netconf.ParentDevice {
		return nil, nil
	}
	if string(d.Type) != link.Kind {
		return []string{fmt.Sprintf("it is a %s, not a %s", link.Kind, d.Type)}, nil
	}
	var diffs []string
	differ := func(what string, have, want any) {
		if have != want {
			diffs = append(diffs, fmt.Sprintf("its %s is %v, not %v", what, have, want))
		}
	}
	if d.Type == netconf.ParentVLAN {
		lower, err := k.Link(d.Device)
		if err != nil {
			return nil, missing("parent.device", d.Device)
		}
		differ("VLAN id", link.VLAN, d.VLAN)
		if link.Lower != lower.Index {
			diffs = append(diffs, "it isn't on "+d.Device)
		}
		return diffs, nil
	}
	differ("VNI", link.VXLAN.VNI, d.VNI)
	differ("UDP port", link.VXLAN.Port, d.Port)
	differ("tunnel's family", family(link.VXLAN.Local), family(d.Local))
	return diffs, nil
}

// family of a tunnel; without a source address it is IPv4 (vxlan_nl2conf).
func family(local netip.Addr) string {
	if local.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// unguard removes what a killed deletion of the parent left on it, now that the
// parent is to stay.
func unguard(k kernel.Kernel, link kernel.Link) ([]kernel.Step, error) {
	guard, err := k.Link(kernel.Guard(link.Index))
	if kernel.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []kernel.Step{{
		Name: "parent.unguard", Text: fmt.Sprintf("delete %s, which an interrupted deletion of %s left", guard.Name, link.Name),
		Do: func(k kernel.Kernel) error { return ignore(k.DelLink(guard.Index), kernel.IsNotFound) },
	}}, nil
}

func vlansOn(k kernel.Kernel, link kernel.Link) []string {
	links, _ := k.Links()
	var names []string
	for _, l := range links {
		if l.Kind == "vlan" && l.Lower == link.Index {
			names = append(names, l.Name)
		}
	}
	return names
}

func incompatible(d Desired, differences []string) error {
	return cnierr.New(cnierr.IncompatibleParent, "parent %s can't be changed while devices hang on it: %s. "+
		"Deleting it would cut the storage network of every pod on this node. "+
		"Either set the network's configuration to what the parent has, or drain the node: remove the pods that have "+
		"an interface on it, then `ip link del %s`; the next attachment makes it anew",
		d.Name, strings.Join(differences, "; "), d.Name)
}

// inPlace is what can be changed under the children's feet. An adopted parent
// (its MAC isn't the one that we give) keeps the MTU it came with unless the
// configuration names one.
func inPlace(d Desired, link kernel.Link) []kernel.Step {
	var steps []kernel.Step
	mtu := d.MTU
	if mtu == 0 && d.Type == netconf.ParentVXLAN && slices.Equal(link.MAC, d.MAC) {
		mtu = d.AutoMTU
	}
	if mtu != 0 && mtu != link.MTU {
		steps = append(steps, setLink("parent.mtu", fmt.Sprintf("set the MTU of %s from %d to %d", link.Name, link.MTU, mtu),
			link.Index, kernel.Change{MTU: &mtu}))
	}
	if d.Type != netconf.ParentVXLAN {
		return steps
	}
	if link.VXLAN.Local != d.Local {
		steps = append(steps, setLink("parent.local", fmt.Sprintf("set the VTEP of %s from %s to %s", link.Name, link.VXLAN.Local, d.Local),
			link.Index, kernel.Change{Local: &d.Local}))
	}
	if !link.VXLAN.Learning {
		steps = append(steps, setLink("parent.learning", "switch learning on for "+link.Name+
			" (without it each unicast frame goes to every peer)", link.Index, kernel.Change{Learning: new(true)}))
	}
	return steps
}

func setLink(name, text string, index int, c kernel.Change) kernel.Step {
	return kernel.Step{Name: name, Text: text, Do: func(k kernel.Kernel) error { return k.SetLink(index, c) }}
}

// sysctls silence an address-less parent: it must not answer ARP for the shim's
// address (peers would learn its MAC, and frames to it walk around whatever
// guards the shim), and needs no IPv6. A parent that has addresses would go
// deaf by that; beside a shim it is only told to answer for its own addresses.
func sysctls(k kernel.Kernel, d Desired, link kernel.Link) ([]kernel.Step, error) {
	all, err := k.Addrs()
	if err != nil {
		return nil, err
	}
	own := slices.DeleteFunc(kernel.AddrsOf(all, link.Index), func(a kernel.Addr) bool {
		return a.Prefix.Addr().IsLinkLocalUnicast() || slices.Contains(d.Moving, a.Prefix.Addr())
	})
	if d.Type == netconf.ParentDevice || len(own) > 0 {
		return besideSteps(k, d, link)
	}
	settings := []kernel.Setting{{Path: kernel.ConfPath("ipv4", link.Name, "arp_ignore"), Value: silent}}
	if !slices.ContainsFunc(d.Moving, netip.Addr.Is6) { // it would take the address away before the shim has it
		settings = append(settings, kernel.Setting{Path: kernel.ConfPath("ipv6", link.Name, "disable_ipv6"), Value: "1"})
	}
	return kernel.SysctlSteps(k, "parent.sysctl", settings...)
}

const silent = "8" // arp_ignore: answer for no address

func besideSteps(k kernel.Kernel, d Desired, link kernel.Link) ([]kernel.Step, error) {
	path := kernel.ConfPath("ipv4", link.Name, "arp_ignore")
	if d.Type != netconf.ParentDevice {
		value, err := k.Sysctl(path)
		if err != nil {
			return nil, fmt.Errorf("read sysctl %s: %w", path, err)
		}
		if value == silent { // it had no address when that was set
			return kernel.SysctlSteps(k, "parent.sysctl", kernel.Setting{Path: path, Value: "1"})
		}
	}
	if !d.Beside {
		return nil, nil
	}
	var settings []kernel.Setting
	if value, err := inForce(k, link.Name, "arp_ignore"); err != nil {
		return nil, err
	} else if value == 0 {
		settings = append(settings, kernel.Setting{Path: path, Value: "1"})
	}
	// The pods' part of the network is routed over the shim, but pods and hosts of
	// other nodes ask for the parent's own address: a strict filter would drop that.
	if value, err := inForce(k, link.Name, "rp_filter"); err != nil {
		return nil, err
	} else if value == strict {
		settings = append(settings, kernel.Setting{Path: kernel.ConfPath("ipv4", link.Name, "rp_filter"), Value: "2"})
	}
	return kernel.SysctlSteps(k, "parent.sysctl", settings...)
}

const strict = 1 // rp_filter: drop what the answer to would leave by another device

// inForce is the value of a setting of which the kernel takes the greater of the
// device's and that for all devices (ip-sysctl, arp_ignore and rp_filter).
func inForce(k kernel.Kernel, device, key string) (int, error) {
	most := 0
	for _, name := range []string{device, "all"} {
		path := kernel.ConfPath("ipv4", name, key)
		value, err := k.Sysctl(path)
		if err != nil {
			return 0, fmt.Errorf("read sysctl %s: %w", path, err)
		}
		n, _ := strconv.Atoi(value)
		most = max(most, n)
	}
	return most, nil
}

// floods keeps one flood entry for each peer: with learning on they carry only
// broadcasts and the first frame to a MAC not yet learned. Entries are added
// before stale ones go. The kernel refuses to replace such an entry.
func floods(k kernel.Kernel, d Desired, link kernel.Link) ([]kernel.Step, error) {
	if d.Peers == nil {
		return nil, nil
	}
	have, err := k.Flood(link.Index)
	if err != nil {
		return nil, err
	}
	if slices.Equal(have, d.Peers) { // both are sorted, as a rule
		return nil, nil
	}
	there, wanted, former := set(have), set(d.Peers), set(d.Former) // of a thousand peers each would be held against each
	var steps []kernel.Step
	for _, peer := range d.Peers {
		if !there[peer] {
			steps = append(steps, kernel.Step{Name: "parent.flood.add", Text: fmt.Sprintf("add peer %s to %s", peer, link.Name),
				Do: func(k kernel.Kernel) error { return ignore(k.AddFlood(link.Index, peer), kernel.IsExists) }})
		}
	}
	for _, stale := range have {
		if !wanted[stale] && (!d.Incomplete || former[stale]) {
			steps = append(steps, kernel.Step{Name: "parent.flood.del", Text: fmt.Sprintf("remove peer %s from %s", stale, link.Name),
				Do: func(k kernel.Kernel) error { return ignore(k.DelFlood(link.Index, stale), kernel.IsNotFound) }})
		}
	}
	return steps, nil
}

func set(list []netip.Addr) map[netip.Addr]bool {
	members := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		members[a] = true
	}
	return members
}

// ignore drops an error that says somebody else was quicker.
func ignore(err error, harmless func(error) bool) error {
	if err != nil && harmless(err) {
		return nil
	}
	return err
}
