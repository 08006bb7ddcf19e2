package convert

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// design is the source design: a ConfigMap with a file of variables for each node (NODE_VTEP, NODE_OVERLAY_IP, PEER1_VTEP …) and a DaemonSet whose script makes
// a VXLAN and a macvlan shim of them by `ip link` and `bridge fdb`. A stock definition on that VXLAN belongs to it.
type design struct {
	nodes                map[string]envFile
	configMap, daemonSet *Document
	definition           *Document
	parent               nad.Parent
	shim                 string
	length               int  // of the shim's address
	noLearning           bool // unicast is flooded
}

type envFile struct {
	vtep, overlay string
	peers         []string
}

// collect finds the design's parts.
func (d *design) collect(documents []Document) {
	for i, doc := range documents {
		switch doc.Kind {
		case "ConfigMap":
			if nodes := envFiles(doc.JSON); len(nodes) > 0 && d.configMap == nil {
				d.configMap, d.nodes = &documents[i], nodes
			}
		case "DaemonSet":
			if d.daemonSet == nil && d.script(script(doc.JSON)) {
				d.daemonSet = &documents[i]
			}
		}
	}
	if d.daemonSet == nil {
		return
	}
	for i, doc := range documents {
		if doc.Kind == "NetworkAttachmentDefinition" && d.definition == nil && masterOf(doc.JSON) == d.parent.Name {
			d.definition = &documents[i]
		}
	}
}

// owns says that a document is a part of the design.
func (d *design) owns(doc Document) bool {
	return slices.ContainsFunc([]*Document{d.configMap, d.daemonSet, d.definition}, func(part *Document) bool {
		return part != nil && part.Kind == doc.Kind && part.Namespace == doc.Namespace && part.Name == doc.Name
	})
}

func envFiles(object []byte) map[string]envFile {
	var m struct {
		Data map[string]string `json:"data"`
	}
	if json.Unmarshal(object, &m) != nil {
		return nil
	}
	nodes := map[string]envFile{}
	for key, text := range m.Data {
		node, ok := strings.CutSuffix(key, ".env")
		if !ok {
			continue
		}
		var f envFile
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
			value = strings.Trim(value, `"'`)
			switch {
			case name == "NODE_VTEP":
				f.vtep = value
			case name == "NODE_OVERLAY_IP":
				f.overlay = value
			case strings.HasPrefix(name, "PEER") && strings.HasSuffix(name, "_VTEP"):
				f.peers = append(f.peers, value)
			}
		}
		if f.vtep != "" || f.overlay != "" {
			nodes[node] = f
		}
	}
	return nodes
}

// script is all that the DaemonSet's containers run.
func script(object []byte) string {
	var o struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Command []string `json:"command"`
						Args    []string `json:"args"`
					} `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if json.Unmarshal(object, &o) != nil {
		return ""
	}
	var parts []string
	for _, c := range o.Spec.Template.Spec.Containers {
		parts = append(parts, append(slices.Clone(c.Command), c.Args...)...)
	}
	return strings.Join(parts, "\n")
}

// script reads the commands of a script; false if it makes no VXLAN.
func (d *design) script(text string) bool {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\\\n", " "), `"`, "")
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for command := range strings.SplitSeq(strings.NewReplacer("||", "\n", "&&", "\n", ";", "\n").Replace(line), "\n") {
			d.command(strings.Fields(command))
		}
	}
	return d.parent.Type == netconf.ParentVXLAN
}

func (d *design) command(words []string) {
	after := func(key string) string {
		if i := slices.Index(words, key); i >= 0 && i+1 < len(words) {
			return words[i+1]
		}
		return ""
	}
	starts := func(prefix ...string) bool {
		return len(words) > len(prefix) && slices.Equal(words[:len(prefix)], prefix)
	}
	number := func(key string) int { n, _ := strconv.Atoi(after(key)); return n }
	switch {
	case starts("ip", "link", "add") && after("type") == "vxlan":
		d.parent = nad.Parent{Type: netconf.ParentVXLAN, Name: words[3], VNI: number("id"), Port: number("dstport")}
		d.noLearning = slices.Contains(words, "nolearning")
	case starts("ip", "link", "add") && after("type") == "macvlan":
		d.shim = words[3]
	case starts("ip", "link", "set") && words[3] == d.parent.Name && number("mtu") > 0:
		d.parent.MTU = number("mtu")
	case (starts("ip", "addr", "replace") || starts("ip", "addr", "add")) && d.shim != "" && after("dev") == d.shim:
		_, length, _ := strings.Cut(words[3], "/")
		d.length, _ = strconv.Atoi(length)
	}
}

func masterOf(object []byte) string {
	var d nad.Definition
	if json.Unmarshal(object, &d) != nil {
		return ""
	}
	config, err := nad.Parse(d.Spec.Config)
	if err != nil {
		return ""
	}
	master, _ := config["master"].(string)
	return master
}

// convert makes the design's network, if there is one.
func (d *design) convert(c *converter) {
	const what = "the source design"
	switch {
	case d.configMap == nil && d.daemonSet == nil:
		return
	case d.daemonSet == nil:
		c.fault(what, "its DaemonSet is missing: name, VNI and port of the VXLAN are in its script")
		return
	case d.configMap == nil:
		c.fault(what, "its ConfigMap is missing: the nodes' addresses are in it, in a file <node>.env each with NODE_VTEP and NODE_OVERLAY_IP")
		return
	}
	before := len(c.faults)
	vteps, overlays := d.addresses(c, what)
	if len(c.faults) > before {
		return
	}
	r := Result{Source: what, Notes: d.peerNotes(vteps)}
	if d.noLearning {
		r.Notes = append(r.Notes, "learning is switched on: with nolearning each unicast frame goes to every node")
	}
	d.parent.VTEP = cover(slices.Collect(maps.Values(vteps)), 24)
	config, namespace, name := d.network(c, overlays)
	if config == nil {
		return
	}
	r.Indexes, r.Notes = indexes(config, overlays, r.Notes)
	c.finish(what, r, config, namespace, name)
}

// addresses reads the nodes' addresses; each must be there once.
func (d *design) addresses(c *converter, what string) (vteps, overlays map[string]netip.Addr) {
	vteps, overlays = map[string]netip.Addr{}, map[string]netip.Addr{}
	holder := map[netip.Addr]string{}
	for _, node := range slices.Sorted(maps.Keys(d.nodes)) {
		for _, v := range []struct {
			key, text string
			to        map[string]netip.Addr
		}{{"NODE_VTEP", d.nodes[node].vtep, vteps}, {"NODE_OVERLAY_IP", d.nodes[node].overlay, overlays}} {
			addr, err := netip.ParseAddr(v.text)
			key := node + ".env " + v.key
			switch {
			case err != nil || addr.Zone() != "":
				c.fault(what, "%s %q: want an address", key, v.text)
				continue
			case holder[addr] != "":
				c.fault(what, "%s %s: is that of %s, too", key, addr, holder[addr])
			}
			holder[addr], v.to[node] = key, addr
		}
	}
	return vteps, overlays
}

// peerNotes are the mistakes of a list that was kept by hand: they end with the conversion.
func (d *design) peerNotes(vteps map[string]netip.Addr) []string {
	var notes []string
	for _, node := range slices.Sorted(maps.Keys(d.nodes)) {
		for _, peer := range slices.Sorted(maps.Keys(vteps)) {
			if peer != node && !slices.Contains(d.nodes[node].peers, vteps[peer].String()) {
				notes = append(notes, fmt.Sprintf("%s.env doesn't list %s (%s) as a peer; lhstorage knows all nodes", node, vteps[peer], peer))
			}
		}
		for _, peer := range d.nodes[node].peers {
			if !slices.ContainsFunc(slices.Collect(maps.Values(vteps)), func(a netip.Addr) bool { return a.String() == peer }) {
				notes = append(notes, fmt.Sprintf("%s.env lists %s as a peer, which is no node's; it is left out", node, peer))
			}
		}
	}
	return notes
}

// cover is a network that holds all addresses, at most of the given length; of IPv6 a /64.
func cover(addrs []netip.Addr, length int) netip.Prefix {
	slices.SortFunc(addrs, netip.Addr.Compare)
	first, last := addrs[0], addrs[len(addrs)-1]
	if first.Is6() {
		length = 64
	}
	for ; length > 0; length-- {
		if p := netip.PrefixFrom(first, length).Masked(); p.Contains(last) {
			return p
		}
	}
	return netip.PrefixFrom(first, 0).Masked()
}

// network is the configuration: of the definition where there is one, else of what the script says.
func (d *design) network(c *converter, overlays map[string]netip.Addr) (config nad.Config, namespace, name string) {
	const what = "the source design"
	n := nad.Network{Namespace: c.o.Namespace, Name: c.o.Name, Parent: d.parent, ShimName: d.shim}
	hosts := slices.Collect(maps.Values(overlays))
	if d.definition == nil {
		if n.Name == "" {
			n.Name = "longhorn-storage"
		}
		n.Range = netip.PrefixFrom(hosts[0], d.length).Masked()
		if !n.Range.IsValid() {
			c.fault(what, "its script gives the shim no address with a length (ip addr replace ADDRESS/LENGTH dev SHIM), and no definition was given that has the range")
			return nil, "", ""
		}
		config = n.Config()
	} else {
		var object nad.Definition
		_ = json.Unmarshal(d.definition.JSON, &object) // it was read before
		stock, err := nad.Parse(object.Spec.Config)
		if err != nil {
			c.fault(d.definition.String(), "%v", err)
			return nil, "", ""
		}
		namespace, name = object.Metadata.Namespace, object.Metadata.Name
		if n.Name != "" {
			name = n.Name
		}
		if n.Namespace != "" {
			namespace = n.Namespace
		}
		n.Name = name
		config = n.Config()
		config["ipam"] = stock["ipam"]
		for _, key := range []string{"cniVersion", "mtu", "mode"} {
			if value, found := stock[key]; found {
				config[key] = value
			}
		}
		c.ipam(config)
		n.Namespace = namespace
	}
	block, ok := d.hostRange(c, config, hosts)
	if !ok {
		return nil, "", ""
	}
	shim := nad.Config{"range": block.String()}
	if d.shim != "" {
		shim["name"] = d.shim
	}
	config["hostShim"] = shim
	return config, n.Namespace, n.Name
}

// hostRange is the part of the range that the nodes' addresses are in: the exclude that holds them all, else the smallest network that does, of 16 addresses at least.
func (d *design) hostRange(c *converter, config nad.Config, hosts []netip.Addr) (netip.Prefix, bool) {
	if c.o.Hosts.IsValid() {
		return c.o.Hosts, true
	}
	p, err := nad.Check(config)
	if err != nil {
		c.fault("the source design", "%v", err)
		return netip.Prefix{}, false
	}
	for _, x := range p.IPAM.Excluded {
		if x.Bits() < x.Addr().BitLen() && !slices.ContainsFunc(hosts, func(a netip.Addr) bool { return !x.Contains(a) }) {
			return x, true
		}
	}
	return cover(hosts, 28), true
}

// indexes are the nodes' places in the host range, counted as lhstorage counts.
func indexes(config nad.Config, overlays map[string]netip.Addr, notes []string) (map[string]int, []string) {
	p, err := nad.Check(config)
	if err != nil || p.HostShim == nil {
		return nil, notes // the check is repeated, and said, later
	}
	out := map[string]int{}
	for _, node := range slices.Sorted(maps.Keys(overlays)) {
		whole, hosts := p.HostShim.Networks[0], p.HostShim.Ranges[0]
		addr, first := overlays[node], hosts.Addr()
		if whole.IsValid() && first == whole.Addr() {
			first = first.Next()
		}
		if !hosts.Contains(addr) || addr.Less(first) {
			notes = append(notes, fmt.Sprintf("node %s has %s, outside the host range %s: it keeps no place there", node, addr, hosts))
			continue
		}
		index := 1
		for a := first; a != addr && index < 1<<16 && a.Less(netipx.PrefixLastIP(hosts)); a = a.Next() {
			index++
		}
		out[node] = index
	}
	return out, notes
}
