package netconf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// parent works out the device that carries the storage network.
func (b *builder) parent() {
	c, p := &b.conf.parent, &b.plan.Parent
	written, ok := members(c.raw)
	switch {
	case c.raw != nil && !ok:
		return // not an object, which has been said
	case len(written) == 0 && b.conf.master.absent():
		b.parentAbsent()
		return
	}
	p.Type = b.parentType()
	p.MTU = c.mtu.val
	p.Name = b.device("parent.name", c.name)
	switch p.Type {
	case ParentVXLAN:
		b.vxlan()
	case ParentVLAN:
		b.vlan()
	}
	b.master()
	if c.name.absent() && (p.Type == ParentVXLAN || p.Type == ParentDevice && b.conf.master.absent() && c.device.absent()) {
		b.fault("parent.name", nil, "is missing: the name of the parent device")
	}
	b.foreignKeys()
}

// parentAbsent is a fault where a parent can be known to be needed, see [Parse].
func (b *builder) parentAbsent() {
	maybeChained := b.conf.ipamType() == "" && (b.verb == Status || b.verb == GC)
	if b.plan.Chained || maybeChained || b.verb == Check && b.plan.PrevResult != nil {
		return
	}
	b.fault("parent", nil, "is missing: set parent, or master as for stock macvlan, to the device that carries the storage network. It isn't guessed: "+
		"the device of the default route, which stock macvlan takes, would put storage traffic on the management network")
}

// parentType is what parent.type says, or what follows from the keys without a
// doubt: a VNI makes a VXLAN, master alone is an existing device.
func (b *builder) parentType() ParentType {
	c := &b.conf.parent
	switch {
	case c.typ.bad:
		return ""
	case c.typ.given():
		return ParentType(c.typ.val)
	case !c.vni.absent():
		return ParentVXLAN
	case len(c.fieldsGiven()) == 0 && !b.conf.master.absent():
		return ParentDevice
	}
	b.fault("parent.type", nil, "is missing: say vxlan (made by lhstorage), vlan (made by lhstorage on parent.device) or device (an existing one)")
	return ""
}

// master is stock macvlan's name for the parent.
func (b *builder) master() {
	master, p := b.device("master", b.conf.master), &b.plan.Parent
	switch {
	case master == "":
	case p.Name == "" && b.conf.parent.name.absent() && p.Type == ParentDevice:
		p.Name = master
	case p.Name != "" && p.Name != master:
		b.fault("master", b.conf.master.raw, "names another device than parent.name %q; leave one of them out", p.Name)
	}
}

func (b *builder) vxlan() {
	c, p := &b.conf.parent, &b.plan.Parent
	if c.vni.absent() {
		b.fault("parent.vni", nil, "is missing: a number from 1 to 16777215, the same on all nodes")
	}
	p.VNI = c.vni.val
	p.Port = uint16(c.port.or(DefaultPort)) // the field's bounds are those of uint16
	b.vtep()
	b.peers()
}

func (b *builder) vtep() {
	c, v := &b.conf.parent.vtep, &b.plan.Parent.VTEP
	v.Interface = DefaultVTEPInterface
	if name := b.device("parent.vtep.interface", c.iface); name != "" {
		v.Interface = name
	}
	if v.Interface == b.plan.Parent.Name {
		b.fault("parent.vtep.interface", c.iface.raw, "is the parent itself: a tunnel can't carry its own end point")
	}
	v.Routes = c.routes.or(DefaultVTEPRoutes) == "static"
	b.via()
	if c.cidr.absent() {
		b.fault("parent.vtep.cidr", nil, "is missing: the network of the nodes' tunnel end points, such as \"10.100.100.0/24\"")
		return
	}
	cidr, ok := b.network("parent.vtep.cidr", c.cidr)
	if ok && cidr.IsSingleIP() {
		b.fault("parent.vtep.cidr", c.cidr.raw, "is a single address: each node needs one of its own")
		return
	}
	v.CIDR = cidr
}

// network reads a CIDR of ours; host bits are masked, and that is said.
func (b *builder) network(key string, value opt[string]) (netip.Prefix, bool) {
	if !value.given() {
		return netip.Prefix{}, false
	}
	addr, p, err := parseCIDR(value.val)
	if err != nil {
		b.fault(key, value.raw, "must be a network in CIDR notation")
		return netip.Prefix{}, false
	}
	b.warnMasked(key, value.val, addr, p)
	return p, true
}

func (b *builder) warnMasked(key, value string, addr netip.Addr, p netip.Prefix) {
	if addr != p.Addr() {
		b.warn("%s %q has host bits set: it is taken as %s", key, value, p)
	}
}

// via reads the next hops. Its keys are peers' VTEPs or names of nodes, its values
// next hops or devices.
func (b *builder) via() {
	const path = "parent.vtep.via"
	c, v := &b.conf.parent.vtep, &b.plan.Parent.VTEP
	list, _ := members(c.via)
	if len(list) > 0 && !v.Routes && !c.routes.bad {
		b.fault(path, c.via, "has no effect unless parent.vtep.routes is \"static\"")
	}
	for _, m := range list {
		key := join(path, m.key)
		var hop string
		_ = json.Unmarshal(m.value, &hop) // what isn't a string stays empty, which is no next hop
		_, again := v.Via[m.key]
		switch {
		case again:
			b.fault(key, m.value, "the key is given twice")
		case !isAddr(hop) && badDeviceName(hop) != "":
			b.fault(key, m.value, "must be the address of a next hop or the name of a device")
		case !isAddr(m.key) && !nodeName(m.key):
			b.fault(key, m.value, "the key must be a peer's VTEP address or the name of a node")
		default:
			if v.Via == nil {
				v.Via = map[string]string{}
			}
			v.Via[m.key] = hop
		}
	}
}

func isAddr(s string) bool { _, err := parseAddr(s); return err == nil }

// nodeName says whether s can be the name of a Kubernetes Node (RFC 1123).
func nodeName(s string) bool {
	odd := func(c rune) bool { return c != '.' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') }
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, odd) && strings.Trim(s, ".-") == s
}

func (b *builder) peers() {
	c, p := &b.conf.parent, &b.plan.Parent
	for i, s := range c.peers.val {
		key, raw := at("parent.peers", i), quote(s)
		peer, err := parseAddr(s)
		switch {
		case err != nil:
			b.fault(key, raw, "must be the address of a node's tunnel end point")
		case peer.IsUnspecified() || peer.IsMulticast():
			b.fault(key, raw, "no node can hold this address")
		case p.VTEP.CIDR.IsValid() && peer.BitLen() != p.VTEP.CIDR.Addr().BitLen():
			b.fault(key, raw, "is of another family than parent.vtep.cidr %s: a tunnel runs over one", p.VTEP.CIDR)
		case slices.Contains(p.Peers, peer):
			b.warn("%s %s is given twice", key, peer)
		default:
			if p.VTEP.CIDR.IsValid() && !p.VTEP.CIDR.Contains(peer) {
				b.warn("%s %s lies outside parent.vtep.cidr %s: an address that lhstorage derives there can't be its own", key, peer, p.VTEP.CIDR)
			}
			p.Peers = append(p.Peers, peer)
		}
	}
}

func (b *builder) vlan() {
	c, p := &b.conf.parent, &b.plan.Parent
	p.Device, p.VLAN = b.device("parent.device", c.device), c.vlan.val
	if c.device.absent() {
		b.fault("parent.device", nil, "is missing: the NIC or bond that carries the VLAN")
	}
	if c.vlan.absent() {
		b.fault("parent.vlan", nil, "is missing: a number from 1 to 4094")
	}
	if c.name.absent() && p.Device != "" && p.VLAN != 0 {
		name := fmt.Sprintf("%s.%d", p.Device, p.VLAN)
		if problem := badDeviceName(name); problem != "" {
			b.fault("parent.name", nil, "is missing, and its default %q %s: set it", name, problem)
			return
		}
		p.Name = name
	}
	if p.Name != "" && p.Name == p.Device {
		b.fault("parent.name", c.name.raw, "is also parent.device: the VLAN is a device of its own on top of it")
	}
}

// given is a key of the parent section that was written, with its value.
type given struct {
	key   string
	raw   json.RawMessage
	owner ParentType // the only type that has it; empty: all have it
}

func (p *parentConf) fieldsGiven() []given {
	all := []given{
		{"type", p.typ.raw, ""},
		{"name", p.name.raw, ""},
		{"mtu", p.mtu.raw, ""},
		{"vni", p.vni.raw, ParentVXLAN},
		{"port", p.port.raw, ParentVXLAN},
		{"vtep", p.vtep.raw, ParentVXLAN},
		{"peers", p.peers.raw, ParentVXLAN},
		{"device", p.device.raw, ParentVLAN},
		{"vlan", p.vlan.raw, ParentVLAN},
	}
	return slices.DeleteFunc(all, func(g given) bool { return g.raw == nil })
}

// foreignKeys finds keys that belong to another type of parent.
func (b *builder) foreignKeys() {
	typ := b.plan.Parent.Type
	for _, g := range b.conf.parent.fieldsGiven() {
		if typ != "" && g.owner != "" && g.owner != typ {
			hint := ""
			if g.key == "device" && typ == ParentDevice {
				hint = "; the device itself is parent.name"
			}
			b.fault("parent."+g.key, g.raw, "a %s parent has no %s, only a %s parent has%s", typ, g.key, g.owner, hint)
		}
	}
}

// device reads the name of a network device; empty when it is absent or can't be one.
func (b *builder) device(key string, value opt[string]) string {
	if !value.given() {
		return ""
	}
	if problem := badDeviceName(value.val); problem != "" {
		b.fault(key, value.raw, "isn't the name of a device: it %s", problem)
		return ""
	}
	return value.val
}

// badDeviceName says why s can't be the name of a network device, by the rules of
// the kernel's dev_valid_name; '%' is for its name templates.
func badDeviceName(s string) string {
	odd := func(c rune) bool {
		return c == '/' || c == ':' || c == '%' || unicode.IsSpace(c) || unicode.IsControl(c) || c == unicode.ReplacementChar
	}
	switch {
	case s == "":
		return "is empty"
	case len(s) > 15:
		return "has more than 15 bytes"
	case s == "." || s == "..":
		return "is a directory"
	case strings.ContainsFunc(s, odd):
		return "holds '/', ':', '%', white space or a control character"
	}
	return ""
}
