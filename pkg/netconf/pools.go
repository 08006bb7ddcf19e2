package netconf

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// pools is the configuration of Whereabouts, which lhstorage-ipam shares: a range at
// the top of the section and more in ipRanges, each with its own list of excludes.
type pools struct {
	raw    json.RawMessage
	top    poolRange
	more   []poolRange
	others []request // addresses that are given out besides
}

// poolRange is one range with what narrows it.
type poolRange struct {
	key     string
	raw     json.RawMessage // the object that holds the keys
	prefix  netip.Prefix    // invalid when there is no range here
	window  span
	exclude opt[[]string]
	holes   []netip.Prefix
}

func (b *builder) pools(raw json.RawMessage) pools {
	var list json.RawMessage
	b.section("ipam", raw, []field{verbatim("ipRanges", &list)}, open)
	p := pools{raw: raw, top: b.poolRange("ipam", raw), others: b.fixedAddresses(raw)}
	for i, entry := range b.entries("ipam.ipRanges", list) {
		p.more = append(p.more, b.poolRange(at("ipam.ipRanges", i), entry))
	}
	return p
}

func (b *builder) poolRange(key string, raw json.RawMessage) poolRange {
	p := poolRange{key: key, raw: raw}
	var cidr, start, end opt[string]
	b.section(key, raw, []field{
		text("range", &cidr), text("range_start", &start), text("range_end", &end), texts("exclude", &p.exclude, false),
	}, open)
	for _, s := range p.exclude.val {
		addr, hole, err := parseAddrOrCIDR(s)
		if err != nil {
			b.fault(key+".exclude", quote(s), "could not parse exclude range: it must be an address or a network in CIDR notation")
			continue
		}
		if !hole.IsValid() {
			hole = netip.PrefixFrom(addr, addr.BitLen())
		}
		p.holes = append(p.holes, hole)
	}
	first, last := b.bound(key+".range_start", start), b.bound(key+".range_end", end)
	if !cidr.given() {
		return p
	}
	r, err := ParseRange(cidr.val)
	if err != nil {
		b.fault(key+".range", cidr.raw, "%v; it must be a network in CIDR notation or first-last/length", err)
		return p
	}
	if r.First.IsValid() {
		first, last = r.First, r.Last
	}
	p.prefix, p.window = r.Prefix, window(r.Prefix, first, last)
	return p
}

func (b *builder) bound(key string, value opt[string]) netip.Addr {
	if !value.given() {
		return netip.Addr{}
	}
	addr, err := parseAddr(value.val)
	if err != nil {
		b.fault(key, value.raw, "must be an address")
	}
	return addr
}

// window narrows a network to what pods can get, by Whereabouts' rules: a bound
// outside the usable addresses is passed over, and so is an end before the start.
func window(p netip.Prefix, first, last netip.Addr) span {
	w := usable(p)
	holds := func(a netip.Addr) bool {
		return a.IsValid() && !w.empty() && a.BitLen() == w.first.BitLen() && !a.Less(w.first) && !w.last.Less(a)
	}
	startOK, endOK := holds(first), holds(last)
	if startOK {
		w.first = first
	}
	if endOK && !last.Less(w.first) {
		w.last = last
	}
	return w
}

func (p pools) all() []poolRange {
	return slices.DeleteFunc(append([]poolRange{p.top}, p.more...), func(r poolRange) bool { return !r.prefix.IsValid() })
}

func (p pools) networks() []netip.Prefix {
	var list []netip.Prefix
	for _, r := range p.all() {
		if !slices.Contains(list, r.prefix) {
			list = append(list, r.prefix)
		}
	}
	return list
}

func (p pools) sets() []set {
	var list []set
	for _, r := range p.all() {
		if !r.window.empty() {
			list = append(list, set{r.key, subtract([]span{r.window}, r.holes)})
		}
	}
	return list
}

func (p pools) fixed() []request { return p.others }

func (p pools) excluded() []netip.Prefix {
	var list []netip.Prefix
	for _, r := range append([]poolRange{p.top}, p.more...) {
		list = append(list, r.holes...)
	}
	return list
}

// without adds the host ranges to the excludes: at the top, where a range may
// also come from Whereabouts' own file, and in each entry that they touch.
func (p pools) without(hosts []netip.Prefix) (json.RawMessage, bool) {
	raw, changed := p.top.excluding(p.raw, hosts)
	entries := make([]json.RawMessage, len(p.more))
	inside := false
	for i, r := range p.more {
		touched := slices.DeleteFunc(slices.Clone(hosts), func(h netip.Prefix) bool { return !r.prefix.Overlaps(h) })
		var ok bool
		entries[i], ok = r.excluding(r.raw, touched)
		inside = inside || ok
	}
	if inside {
		raw = setMember(raw, "ipRanges", array(entries))
	}
	return raw, changed || inside
}

// excluding is the object raw with hosts added to its exclude list, unless they are
// excluded already.
func (r poolRange) excluding(raw json.RawMessage, hosts []netip.Prefix) (json.RawMessage, bool) {
	list, _ := elements(r.exclude.raw)
	before := len(list)
	for _, h := range hosts {
		if !slices.ContainsFunc(r.holes, func(hole netip.Prefix) bool { return within(h, hole) }) {
			list = append(list, quote(h.String()))
		}
	}
	if len(list) == before {
		return raw, false
	}
	return setMember(raw, "exclude", array(list)), true
}
