package netconf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Range is a part of a network from which addresses are given out.
type Range struct {
	Prefix      netip.Prefix // the network, host bits masked
	First, Last netip.Addr   // the first and last address, inclusive; the zero value when the range is a plain CIDR
}

// ParseRange reads Whereabouts' notation of a range: a CIDR, or first-last/length
// such as 10.0.0.5-10.0.0.9/24. Host bits are masked, leading zeros are decimal, and
// first must lie in the network of last/length. Last may come before first: it is up
// to the allocator what that means (Whereabouts ignores it). The texts of the errors
// begin as Whereabouts' do, because runbooks search for them.
func ParseRange(s string) (Range, error) {
	start, cidr, windowed := strings.Cut(s, "-")
	if !windowed {
		_, prefix, err := parseCIDR(s)
		return Range{Prefix: prefix}, err
	}
	first, err := parseAddr(start)
	if err != nil {
		return Range{}, fmt.Errorf("invalid range start IP: %s", start)
	}
	last, prefix, err := parseCIDR(cidr)
	if err != nil {
		return Range{}, err
	}
	if !prefix.Contains(first) {
		return Range{}, fmt.Errorf("invalid range start for CIDR %s: %s", prefix, first)
	}
	return Range{Prefix: prefix, First: first, Last: last}, nil
}

// parseCIDR reads an address with a prefix length: the address itself and the
// masked network.
func parseCIDR(s string) (netip.Addr, netip.Prefix, error) {
	bad := fmt.Errorf("invalid CIDR %s: invalid CIDR address: %s", s, s)
	ip, length, ok := strings.Cut(s, "/")
	if !ok {
		return netip.Addr{}, netip.Prefix{}, bad
	}
	addr, err := parseAddr(ip)
	if err != nil {
		return netip.Addr{}, netip.Prefix{}, bad
	}
	// Let netip judge the length alone: its rules for addresses are stricter.
	p, err := netip.ParsePrefix(addr.String() + "/" + length)
	if err != nil {
		return netip.Addr{}, netip.Prefix{}, bad
	}
	return addr, p.Masked(), nil
}

// parseAddr reads an address; leading zeros of an IPv4 address are decimal, as for
// Whereabouts and Kubernetes. IPv6 zones are refused, and IPv4 written as IPv6 is IPv4.
func parseAddr(s string) (netip.Addr, error) {
	if !strings.Contains(s, ":") {
		parts := strings.Split(s, ".")
		for i, p := range parts {
			if t := strings.TrimLeft(p, "0"); t != "" {
				parts[i] = t
			} else if p != "" {
				parts[i] = "0"
			}
		}
		s = strings.Join(parts, ".")
	}
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, err
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s: an address with a zone can't be used here", s)
	}
	return addr.Unmap(), nil
}

// parseAddrOrCIDR reads an address with or without a prefix length. Without one
// the network is invalid.
func parseAddrOrCIDR(s string) (netip.Addr, netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return parseCIDR(s)
	}
	addr, err := parseAddr(s)
	return addr, netip.Prefix{}, err
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	ones := 128 - p.Addr().BitLen() + p.Bits() // a shift by 64 or more leaves 0
	hi |= ^uint64(0) >> min(ones, 64)
	if ones > 64 {
		lo |= ^uint64(0) >> (ones - 64)
	} else {
		lo = ^uint64(0)
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	addr := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return addr.Unmap()
	}
	return addr
}

// within says whether all of inner lies in outer.
func within(inner, outer netip.Prefix) bool {
	return outer.IsValid() && inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// span is the addresses from first to last, inclusive, of one family.
type span struct{ first, last netip.Addr }

// without is what is left of s when p's addresses are taken out of it: none, one
// or two spans.
func (s span) without(p netip.Prefix) []span {
	lo, hi := p.Masked().Addr(), lastAddr(p)
	if !s.overlaps(p) {
		return []span{s}
	}
	var rest []span
	if s.first.Less(lo) {
		rest = append(rest, span{s.first, lo.Prev()})
	}
	if hi.Less(s.last) {
		rest = append(rest, span{hi.Next(), s.last})
	}
	return rest
}

// usable is what devices can have of network p: all but its first and its last address, as
// for Whereabouts, of either family. It is empty for networks of one or two.
func usable(p netip.Prefix) span {
	return span{p.Masked().Addr().Next(), lastAddr(p).Prev()}
}

func (s span) empty() bool {
	return !s.first.IsValid() || !s.last.IsValid() || s.first.BitLen() != s.last.BitLen() || s.last.Less(s.first)
}

// overlaps says whether an address of s lies in p.
func (s span) overlaps(p netip.Prefix) bool {
	return !s.empty() && s.first.BitLen() == p.Addr().BitLen() && !lastAddr(p).Less(s.first) && !s.last.Less(p.Masked().Addr())
}

// subtract takes all of prefixes out of spans.
func subtract(spans []span, prefixes []netip.Prefix) []span {
	for _, p := range prefixes {
		var rest []span
		for _, s := range spans {
			rest = append(rest, s.without(p)...)
		}
		spans = rest
	}
	return spans
}
