package netconf

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// addresses works out which addresses belong to the hosts and which to the pods,
// and what the IPAM plugin must be told about it.
func (b *builder) addresses() {
	section := b.readIPAM()
	alloc := b.allocator(section)
	b.plan.IPAM.Type = section.typ.val
	b.plan.IPAM.Ranges = alloc.networks()
	b.plan.IPAM.Excluded = alloc.excluded()
	ranges, key, raw := b.hostRanges(section)
	for _, s := range alloc.sets() {
		for _, part := range subtract(s.free, ranges) {
			b.plan.IPAM.Pods = append(b.plan.IPAM.Pods, Range{First: part.first, Last: part.last})
		}
	}
	if len(ranges) == 0 {
		b.noShim(raw != nil)
		b.tunnelApart(b.plan.IPAM.Ranges)
		return
	}
	before := len(b.faults)
	b.hostShim(ranges, key, raw)
	if section.typ.absent() && b.verb == Add && !b.plan.Chained {
		b.fault(key, raw, "there is no ipam.type, so the pods have no addresses that a host could reach")
	}
	if section.typ.val == ipamWhereabouts && len(b.plan.IPAM.Ranges) == 0 {
		b.warn("the ipam section has no range, so it comes from whereabouts' own file: an exclude list of that file gives way to the one that keeps %s for nodes", joined(ranges))
	}
	b.keepOut(alloc, key, raw)
	b.pinned()
	b.tunnelApart(append(slices.Clone(ranges), b.plan.IPAM.Ranges...))
	if len(b.faults) == before && !section.typ.absent() {
		if changed, ok := alloc.without(ranges); ok {
			b.plan.IPAM.Delegate = setMember(b.stdin, "ipam", changed)
		}
	}
}

// tunnelApart checks that the tunnel doesn't run inside itself.
func (b *builder) tunnelApart(ranges []netip.Prefix) {
	cidr := b.plan.Parent.VTEP.CIDR
	i := slices.IndexFunc(ranges, func(p netip.Prefix) bool { return cidr.IsValid() && p.Overlaps(cidr) })
	if i >= 0 {
		b.fault("parent.vtep.cidr", b.conf.parent.vtep.cidr.raw, "overlaps %s, the storage network that the tunnel carries", ranges[i])
	}
}

// hostRanges reads hostShim.range and its alias in the IPAM section: the ranges,
// masked, one per family at most, with the key they were found at.
func (b *builder) hostRanges(section ipamConf) ([]netip.Prefix, string, json.RawMessage) {
	const own = "hostShim.range"
	key, value := own, b.conf.hostShim.ranges
	alias := "ipam." + keyHostRangeAlias
	ranges := b.prefixes(key, value)
	if section.hostRange.absent() {
		return ranges, key, value.raw
	}
	other := b.prefixes(alias, section.hostRange)
	if value.absent() {
		return other, alias, section.hostRange.raw
	}
	if value.given() && section.hostRange.given() && !sameSet(ranges, other) {
		b.fault(alias, section.hostRange.raw, "differs from %s %s, of which it is the other name; leave one of them out", own, written(value.raw))
	}
	return ranges, key, value.raw
}

func sameSet(a, b []netip.Prefix) bool {
	contains := func(in []netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return !slices.Contains(in, p) }
	}
	return !slices.ContainsFunc(a, contains(b)) && !slices.ContainsFunc(b, contains(a))
}

func (b *builder) prefixes(key string, value opt[[]string]) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range value.val {
		addr, p, err := parseCIDR(s)
		switch {
		case err != nil:
			b.fault(key, quote(s), "must be a network in CIDR notation")
		case slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Addr().BitLen() == p.Addr().BitLen() }):
			b.fault(key, value.raw, "has two ranges of one family; one each of IPv4 and IPv6 is possible")
		default:
			b.warnMasked(key, s, addr, p)
			list = append(list, p)
		}
	}
	return list
}

// noShim looks after a network without a usable host range; bad says that one was written.
func (b *builder) noShim(bad bool) {
	c := &b.conf.hostShim
	if bad {
		return
	}
	if !c.addresses.absent() {
		b.fault("hostShim.address", c.addresses.raw, "needs hostShim.range: the range that is kept for hosts")
	}
	b.device("hostShim.name", c.name)
	b.warn("network %q has no host range, so no host shim is made and a node can't reach the pods of this network that run on it (volumes don't attach); set hostShim.range to the part of the range that is kept for nodes", b.plan.Name)
}

// hostShim fills in the plan's host shim and checks what needs no IPAM.
func (b *builder) hostShim(ranges []netip.Prefix, key string, raw json.RawMessage) {
	c := &b.conf.hostShim
	shim := &HostShim{Name: DefaultShimName, Ranges: ranges, Networks: make([]netip.Prefix, len(ranges))}
	if name := b.device("hostShim.name", c.name); name != "" {
		shim.Name = name
	}
	b.plan.HostShim = shim
	p := &b.plan.Parent
	for _, other := range []struct{ key, name string }{
		{"parent.name", p.Name}, {"parent.device", p.Device}, {"parent.vtep.interface", p.VTEP.Interface},
	} {
		if shim.Name == other.name {
			b.fault("hostShim.name", c.name.raw, "is %q, which is also %s: the host shim is a device of its own", shim.Name, other.key)
		}
	}
	switch {
	case b.plan.LinkInContainer:
		b.fault(key, raw, "linkInContainer is set: the parent is in the pod, out of the host's reach; leave one of them out")
	case b.plan.Mode != DefaultMode:
		b.fault(key, raw, "mode is %q: macvlan lets the host shim and pods talk to each other in bridge mode only", b.plan.Mode)
	}
	if !b.modern {
		b.fault(key, raw, "needs cniVersion 0.3.0 or later; this is %s", b.plan.CNIVersion)
	}
	for i, s := range c.addresses.val {
		addr, err := parseAddr(s)
		if err != nil {
			b.fault(at("hostShim.address", i), quote(s), "must be an address")
			continue
		}
		shim.Addresses = append(shim.Addresses, addr)
	}
}

// keepOut finds the whole range of each host range, and whatever would put a pod's
// address inside it.
func (b *builder) keepOut(alloc allocator, key string, raw json.RawMessage) {
	shim, known := b.plan.HostShim, b.plan.IPAM.Ranges
	for i, p := range shim.Ranges {
		j := slices.IndexFunc(known, func(whole netip.Prefix) bool { return within(p, whole) })
		switch {
		case j >= 0:
			shim.Networks[i] = known[j]
			if !usable(known[j]).overlaps(p) {
				b.fault(key, raw, "%s holds no address that a node could have: the first and the last of %s are none", p, known[j])
			}
		case len(known) > 0:
			b.fault(key, raw, "%s lies outside the ranges that the ipam section gives addresses from: %s", p, joined(known))
		}
	}
	for _, s := range alloc.sets() {
		if len(s.free) > 0 && len(subtract(s.free, shim.Ranges)) == 0 {
			b.fault(key, raw, "leaves no address for pods in %s", s.key)
		}
	}
	for _, q := range append(alloc.fixed(), b.asked...) {
		if i := slices.IndexFunc(shim.Ranges, func(p netip.Prefix) bool { return p.Contains(q.addr) }); i >= 0 {
			q.fault(b.report, "lies inside the host range %s, which is kept for nodes", shim.Ranges[i])
		}
	}
}

// pinned checks hostShim.address.
func (b *builder) pinned() {
	shim, value := b.plan.HostShim, b.conf.hostShim.addresses
	for i, addr := range shim.Addresses {
		j := slices.IndexFunc(shim.Ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
		if j < 0 {
			b.fault("hostShim.address", quote(addr.String()), "lies outside the host range %s", joined(shim.Ranges))
			continue
		}
		if whole := shim.Networks[j]; whole.IsValid() && (addr == whole.Addr() || addr == lastAddr(whole)) {
			b.fault("hostShim.address", quote(addr.String()), "is the first or last address of %s, which no node can have", whole)
		}
		if slices.ContainsFunc(shim.Addresses[:i], func(a netip.Addr) bool { return a.BitLen() == addr.BitLen() }) {
			b.fault("hostShim.address", value.raw, "has two addresses of one family")
		}
	}
}

func joined(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, p := range prefixes {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}
