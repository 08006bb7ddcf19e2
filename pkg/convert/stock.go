package convert

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

// definition converts a NetworkAttachmentDefinition.
func (c *converter) definition(d Document) {
	var object nad.Definition
	if err := json.Unmarshal(d.JSON, &object); err != nil {
		c.fault(d.String(), "can't be read: %v", err)
		return
	}
	namespace, name := object.Metadata.Namespace, object.Metadata.Name
	if c.o.Namespace != "" {
		namespace = c.o.Namespace
	}
	if c.o.Name != "" {
		name = c.o.Name
	}
	c.config(d.String(), object.Spec.Config, namespace, name)
}

// config converts a CNI configuration, or the main plugin of a list of them.
func (c *converter) config(what, text, namespace, name string) {
	config, err := nad.Parse(text)
	if err != nil {
		c.fault(what, "%v", err)
		return
	}
	if s, _ := config["name"].(string); s == "" {
		config["name"] = name // as Multus does
	} else if name == "" {
		name = s
	}
	r := Result{Source: "a CNI configuration"}
	if old, _ := config["cniVersion"].(string); slices.Contains([]string{"", "0.1.0", "0.2.0"}, old) {
		config["cniVersion"] = "0.3.1"
		r.Notes = append(r.Notes, "cniVersion is 0.3.1 now: older ones know no results with interfaces")
	}
	main := config
	if _, list := config["plugins"]; list {
		if main = mainPlugin(config); main == nil {
			c.fault(what, "none of its plugins is macvlan, ipvlan or bridge")
			return
		}
	}
	kind, _ := main["type"].(string)
	r.Source = "a network of the stock plugin " + kind
	before := len(c.faults)
	switch kind {
	case "macvlan":
	case "ipvlan":
		r.Notes = append(r.Notes, c.ipvlan(what, main)...)
	case "bridge":
		r.Notes = append(r.Notes, c.bridge(what, main)...)
	case netconf.DefaultType:
		c.fault(what, "is a network of lhstorage's already")
	default:
		c.fault(what, "type %q can't be converted: macvlan, ipvlan and bridge can", kind)
	}
	main["type"] = netconf.DefaultType
	if _, named := main["master"].(string); !named && main["parent"] == nil {
		c.master(what, main)
	}
	r.Notes = append(r.Notes, c.ipam(main)...)
	if len(c.faults) == before {
		c.finish(what, r, config, namespace, name)
	}
}

// mainPlugin is the first of a list that can be converted, in place.
func mainPlugin(config nad.Config) nad.Config {
	plugins, _ := config["plugins"].([]any)
	for _, entry := range plugins {
		plugin, ok := entry.(map[string]any)
		if kind, _ := plugin["type"].(string); ok && slices.Contains([]string{"macvlan", "ipvlan", "bridge", netconf.DefaultType}, kind) {
			return plugin
		}
	}
	return nil
}

// master names the parent where the input leaves it to the default route.
func (c *converter) master(what string, main nad.Config) {
	if c.o.Parent == "" {
		c.fault(what, "names no master: the stock plugin takes the device of the default route, which would put storage traffic on the management network; name the device by --parent-device")
		return
	}
	main["master"] = c.o.Parent
}

func (c *converter) ipvlan(what string, main nad.Config) []string {
	mode, _ := main["mode"].(string)
	if mode != "" && mode != "l2" {
		c.fault(what, "mode %q is routed, and lhstorage's networks are of layer 2: use mode l2's addresses, or a network of your own for it", mode)
	}
	delete(main, "mode")
	return []string{"each pod's interface has a MAC of its own now: a switch or hypervisor that allows one MAC per port must allow more"}
}

// leftOut are keys of the bridge plugin that mean something for a bridge only.
var leftOut = []string{
	"isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "hairpinMode", "promiscMode", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad",
	"disableContainerInterface", "portIsolation",
}

func (c *converter) bridge(what string, main nad.Config) []string {
	name, _ := main["bridge"].(string)
	if name == "" {
		name = "cni0" // the plugin's default
	}
	vlan, _ := main["vlan"].(float64)
	delete(main, "bridge")
	delete(main, "vlan")
	var notes, gone []string
	for _, key := range leftOut {
		if value, found := main[key]; found && value != false && value != nil {
			gone = append(gone, key)
		}
		delete(main, key)
	}
	if len(gone) > 0 {
		notes = append(notes, fmt.Sprintf("left out, since there is no bridge any more: %s", strings.Join(gone, ", ")))
	}
	switch {
	case vlan > 1 && c.o.Parent == "" && strings.HasSuffix(name, "-br"):
		// Harvester's: the bridge of a cluster network stands on its bond.
		main["parent"] = nad.Config{"type": "vlan", "device": strings.TrimSuffix(name, "-br") + "-bo", "vlan": vlan}
		notes = append(notes, fmt.Sprintf("frames of VLAN %v go to the storage network alone, past the bridge %s: what still hangs on it in this VLAN falls silent, so detach the volumes first", vlan, name))
	case vlan > 1 && c.o.Parent == "":
		c.fault(what, "bridge %s carries VLAN %v: name the NIC or bond below it by --parent-device", name, vlan)
	case vlan > 1:
		main["parent"] = nad.Config{"type": "vlan", "device": c.o.Parent, "vlan": vlan}
	case c.o.Parent != "":
		main["parent"] = nad.Config{"type": "device", "name": c.o.Parent}
	default:
		main["parent"] = nad.Config{"type": "device", "name": name}
		notes = append(notes, fmt.Sprintf("the parent is the bridge %s itself, which must exist on each node before a pod starts; kernels have written traces with macvlan on a bridge (bugzilla.kernel.org 217777)", name))
	}
	return notes
}

// ipam changes whereabouts for its compatible successor, and says what a network's addresses lack.
func (c *converter) ipam(main nad.Config) []string {
	section, _ := main["ipam"].(map[string]any)
	if own, ok := main["ipam"].(nad.Config); ok {
		section = own
	}
	switch section["type"] {
	case "whereabouts":
		if !c.o.KeepIPAM {
			section["type"] = "lhstorage-ipam"
		}
	case "host-local":
		return []string{"host-local knows nothing of other nodes: unless each node has a range of its own, two pods get one address; lhstorage-ipam gives each address once"}
	case "dhcp":
		return []string{"what dhcp gives isn't known beforehand, so no host range is kept: set hostShim.range to addresses that the DHCP server gives to nobody"}
	}
	return nil
}

// hosts gives a configuration a host range, unless it can have none.
func (c *converter) hosts(what string, config nad.Config) ([]string, bool) {
	main := config
	if _, list := config["plugins"]; list {
		main = mainPlugin(config)
	}
	if main["hostShim"] != nil {
		return nil, true
	}
	mode, _ := main["mode"].(string)
	if main["linkInContainer"] == true || mode != "" && mode != netconf.DefaultMode {
		return []string{"no host range: a host shim needs a parent on the host and mode bridge, so nodes don't reach their own pods"}, true
	}
	if c.o.Hosts.IsValid() {
		main["hostShim"] = nad.Config{"range": c.o.Hosts.String()}
		return nil, true
	}
	p, err := nad.Check(config)
	if err != nil {
		c.fault(what, "%v", err)
		return nil, false
	}
	var ranges []any
	least := 1 << 16
	for _, whole := range p.IPAM.Ranges {
		if hosts, ok := c.top(whole, p.IPAM.Pods); ok && !slices.ContainsFunc(ranges, func(r any) bool { return sameFamily(r, hosts) }) {
			ranges = append(ranges, hosts.String())
			least = min(least, plan.HostRoom(hosts, whole))
		}
	}
	switch len(ranges) {
	case 0:
		return nil, true // the check says that there is none
	case 1:
		main["hostShim"] = nad.Config{"range": ranges[0]}
	default:
		main["hostShim"] = nad.Config{"range": ranges}
	}
	return []string{fmt.Sprintf("host range %v, for %d nodes at most: the upper end, which pods get last. Where a pod or a device has an address in it already, choose another by --host-range", ranges, least)}, true
}

func sameFamily(r any, p netip.Prefix) bool {
	text, _ := r.(string)
	return strings.Contains(text, ":") == p.Addr().Is6()
}

// top is a host range at the upper end of what pods get of a network; at most a quarter of it.
func (c *converter) top(whole netip.Prefix, pods []netconf.Range) (netip.Prefix, bool) {
	pods = slices.DeleteFunc(slices.Clone(pods), func(r netconf.Range) bool { return !whole.Contains(r.Last) })
	total := 0
	for _, r := range pods {
		total += count(r)
	}
	for _, r := range slices.Backward(pods) {
		first, last := r.First, r.Last
		// The network's own first and last address may be in it; they count as none.
		if end := netipx.PrefixLastIP(whole); last.Next() == end {
			last = end
		}
		if first.Prev() == whole.Addr() {
			first = whole.Addr()
		}
		if p, ok := plan.Top(first, last, c.o.Nodes, total/4); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// count is how many addresses a range has, as far as it matters.
func count(r netconf.Range) int {
	const plenty = 1 << 20
	n := 0
	for _, p := range netipx.IPRangeFrom(r.First, r.Last).Prefixes() {
		n += 1 << min(20, p.Addr().BitLen()-p.Bits())
	}
	return min(n, plenty)
}
