package netconf

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// hostLocal is the configuration of the host-local plugin: sets of ranges, of each of
// which a pod gets one address. It knows no excludes, so a range that holds host
// addresses is split around them.
type hostLocal struct {
	raw      json.RawMessage
	rangeSet [][]localRange
	oldForm  bool // the first set was written as keys of the ipam section itself
}

type localRange struct {
	key     string
	raw     json.RawMessage
	subnet  netip.Prefix // invalid when it can't be read
	window  span
	gateway netip.Addr // never given to a pod
}

var localKeys = []string{"subnet", "rangeStart", "rangeEnd", "gateway"}

func (b *builder) hostLocal(raw json.RawMessage) hostLocal {
	h := hostLocal{raw: raw}
	var sets json.RawMessage
	b.section("ipam", raw, []field{verbatim("ranges", &sets)}, open)
	if top := b.localRange("ipam", raw); top.subnet.IsValid() {
		h.oldForm = true
		h.rangeSet = append(h.rangeSet, []localRange{top})
	}
	for i, entry := range b.entries("ipam.ranges", sets) {
		var list []localRange
		key := at("ipam.ranges", i)
		for j, one := range b.entries(key, entry) {
			list = append(list, b.localRange(at(key, j), one))
		}
		h.rangeSet = append(h.rangeSet, list)
	}
	return h
}

func (b *builder) localRange(key string, raw json.RawMessage) localRange {
	l := localRange{key: key, raw: raw}
	var subnet, start, end, gateway opt[string]
	b.section(key, raw, []field{
		text("subnet", &subnet), text("rangeStart", &start), text("rangeEnd", &end), text("gateway", &gateway),
	}, open)
	first, last, gw := b.bound(key+".rangeStart", start), b.bound(key+".rangeEnd", end), b.bound(key+".gateway", gateway)
	if !subnet.given() {
		return l
	}
	_, p, err := parseCIDR(subnet.val)
	if err != nil {
		b.fault(key+".subnet", subnet.raw, "must be a network in CIDR notation")
		return l
	}
	l.subnet, l.window, l.gateway = p, span{p.Addr().Next(), lastAddr(p)}, p.Addr().Next()
	if p.Addr().Is4() {
		l.window.last = l.window.last.Prev()
	}
	if first.IsValid() {
		l.window.first = first
	}
	if last.IsValid() {
		l.window.last = last
	}
	if gw.IsValid() {
		l.gateway = gw
	}
	return l
}

func (h hostLocal) networks() []netip.Prefix {
	var list []netip.Prefix
	for _, set := range h.rangeSet {
		for _, l := range set {
			if l.subnet.IsValid() && !slices.Contains(list, l.subnet) {
				list = append(list, l.subnet)
			}
		}
	}
	return list
}

func (h hostLocal) sets() []set {
	var list []set
	for i, ranges := range h.rangeSet {
		s := set{key: at("ipam.ranges", i)}
		switch {
		case h.oldForm && i == 0:
			s.key = "ipam.subnet"
		case h.oldForm:
			s.key = at("ipam.ranges", i-1)
		}
		for _, l := range ranges {
			if !l.window.empty() {
				s.free = append(s.free, subtract([]span{l.window}, []netip.Prefix{netip.PrefixFrom(l.gateway, l.gateway.BitLen())})...)
			}
		}
		list = append(list, s)
	}
	return list
}

func (hostLocal) fixed() []request { return nil }

func (hostLocal) excluded() []netip.Prefix { return nil }

// without splits every range around the host ranges. The old form has room for one
// range only, so it is written as a set.
func (h hostLocal) without(hosts []netip.Prefix) (json.RawMessage, bool) {
	sets := make([]json.RawMessage, len(h.rangeSet))
	changed := false
	for i, ranges := range h.rangeSet {
		var pieces []json.RawMessage
		for _, l := range ranges {
			if h.oldForm && i == 0 {
				l.raw = l.alone()
			}
			split, ok := l.split(hosts)
			pieces = append(pieces, split...)
			changed = changed || ok
		}
		sets[i] = array(pieces)
	}
	if !changed {
		return h.raw, false
	}
	raw := h.raw
	if h.oldForm {
		raw = dropMembers(raw, localKeys...)
	}
	return setMember(raw, "ranges", array(sets)), true
}

// alone is the range of the old form as an object of its own.
func (l localRange) alone() json.RawMessage {
	list, _ := members(l.raw)
	var others []string
	for _, m := range list {
		if lookup([]field{{key: localKeys[0]}, {key: localKeys[1]}, {key: localKeys[2]}, {key: localKeys[3]}}, m.key) == nil {
			others = append(others, m.key)
		}
	}
	return dropMembers(l.raw, others...)
}

// split is the range as the objects that are left of it; false when it doesn't
// touch the host ranges.
func (l localRange) split(hosts []netip.Prefix) ([]json.RawMessage, bool) {
	if !slices.ContainsFunc(hosts, l.window.overlaps) {
		return []json.RawMessage{l.raw}, false
	}
	var pieces []json.RawMessage
	for _, s := range subtract([]span{l.window}, hosts) {
		raw := setMember(l.raw, "rangeStart", quote(s.first.String()))
		pieces = append(pieces, setMember(raw, "rangeEnd", quote(s.last.String())))
	}
	return pieces, true
}
