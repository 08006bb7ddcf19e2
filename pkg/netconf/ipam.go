package netconf

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// The IPAM plugins whose configuration is understood here.
const (
	ipamOurs        = "lhstorage-ipam"
	ipamWhereabouts = "whereabouts"
	ipamHostLocal   = "host-local"
	ipamStatic      = "static"
)

// ipamConf is what every ipam section may hold for us.
type ipamConf struct {
	raw       json.RawMessage
	typ       opt[string]
	hostRange opt[[]string]
}

func (c *ipamConf) fields() []field {
	return []field{text("type", &c.typ), texts(keyHostRangeAlias, &c.hostRange, true)}
}

// ipamType is ipam.type without any report.
func (c *conf) ipamType() string {
	section := ipamConf{}
	if c.ipam != nil {
		new(report).section("ipam", c.ipam, section.fields(), open)
	}
	return section.typ.val
}

// readIPAM reads the part of the ipam section that doesn't depend on its type.
func (b *builder) readIPAM() ipamConf {
	section := ipamConf{raw: b.conf.ipam}
	if section.raw == nil {
		return section
	}
	b.section("ipam", section.raw, section.fields(), open)
	switch {
	case b.plan.Chained && section.typ.given():
		b.fault("ipam.type", section.typ.raw, "the pod already has its addresses from the plugin before this one; take the ipam section out")
	case section.typ.absent():
		b.untypedIPAM(section.raw)
	}
	return section
}

// untypedIPAM finds addresses that no plugin would ever read.
func (b *builder) untypedIPAM(raw json.RawMessage) {
	list, _ := members(raw)
	for _, m := range list {
		if slices.Contains([]string{"range", "ipRanges", "ranges", "subnet", "addresses"}, m.key) && !isNull(m.value) {
			b.fault("ipam.type", nil, "is missing, so nobody would read ipam.%s", m.key)
			return
		}
	}
}

// allocator is what can be said about the addresses of an IPAM plugin before it is called.
type allocator interface {
	networks() []netip.Prefix // the whole ranges, masked
	sets() []set              // each pod gets one address out of each
	fixed() []request         // addresses that pods get whatever is free
	excluded() []netip.Prefix // what it is told to give to nobody
	// without is the ipam section with the host ranges kept out of it; false when
	// nothing needs to change.
	without(hosts []netip.Prefix) (json.RawMessage, bool)
}

// set is the addresses of which a pod gets one.
type set struct {
	key  string
	free []span
}

func (b *builder) allocator(section ipamConf) allocator {
	switch section.typ.val {
	case ipamOurs, ipamWhereabouts:
		return b.pools(section.raw)
	case ipamHostLocal:
		return b.hostLocal(section.raw)
	case ipamStatic:
		return b.static(section.raw)
	}
	return opaque{}
}

// opaque is an IPAM plugin whose configuration isn't understood: what it gives out is
// looked at when it has answered.
type opaque struct{}

func (opaque) networks() []netip.Prefix                       { return nil }
func (opaque) sets() []set                                    { return nil }
func (opaque) fixed() []request                               { return nil }
func (opaque) excluded() []netip.Prefix                       { return nil }
func (opaque) without([]netip.Prefix) (json.RawMessage, bool) { return nil, false }

// static is the static plugin: a list of addresses, and those that the runtime asks for.
type static struct{ list, asked []request }

func (b *builder) static(raw json.RawMessage) static {
	return static{b.fixedAddresses(raw), b.asked}
}

func (s static) networks() []netip.Prefix {
	var list []netip.Prefix
	for _, q := range append(slices.Clone(s.list), s.asked...) {
		if q.network.IsValid() && !slices.Contains(list, q.network) {
			list = append(list, q.network)
		}
	}
	return list
}

func (s static) sets() []set                                    { return nil }
func (s static) fixed() []request                               { return s.list }
func (static) excluded() []netip.Prefix                         { return nil }
func (s static) without([]netip.Prefix) (json.RawMessage, bool) { return nil, false }

// fixedAddresses reads ipam.addresses, which static and Whereabouts have.
func (b *builder) fixedAddresses(raw json.RawMessage) []request {
	var addresses json.RawMessage
	b.section("ipam", raw, []field{verbatim("addresses", &addresses)}, open)
	var fixed []request
	for i, entry := range b.entries("ipam.addresses", addresses) {
		key := at("ipam.addresses", i)
		var address opt[string]
		b.section(key, entry, []field{text("address", &address)}, open)
		if !address.given() {
			continue
		}
		q := request{key: key + ".address", value: address.val}
		var err error
		if q.addr, q.network, err = parseAddrOrCIDR(q.value); err != nil {
			q.fault(b.report, "must be an address with a prefix length")
			continue
		}
		fixed = append(fixed, q)
	}
	return fixed
}

// entries splits a list that may be absent.
func (b *builder) entries(key string, raw json.RawMessage) []json.RawMessage {
	if raw == nil {
		return nil
	}
	list, ok := elements(raw)
	if !ok {
		b.fault(key, raw, "must be a list")
	}
	return list
}
