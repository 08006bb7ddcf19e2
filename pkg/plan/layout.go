package plan

import (
	"cmp"
	"fmt"
	"iter"
	"math/bits"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Lengths of IPv4 ranges that are tried: shorter ones than /8 aren't private.
const (
	longest  = 30
	shortest = 8
)

// Layout is a range, divided between pods and nodes. Neither can have its first and its last address.
type Layout struct {
	Bits     int          `json:"prefixLength"`
	Range    netip.Prefix `json:"range,omitzero"`     // invalid: only the size is known, or nothing fits
	Hosts    netip.Prefix `json:"hostRange,omitzero"` // the part kept for nodes; invalid: none
	PodRoom  int          `json:"podRoom"`
	HostRoom int          `json:"hostRoom"`
}

// Smallest is the longest IPv4 prefix in which n finds room.
func Smallest(n Need) (Layout, error) {
	for length := longest; length >= shortest; length-- {
		// The place of a range doesn't change its room.
		if l, ok := Fit(netip.PrefixFrom(netip.IPv4Unspecified(), length), nil, n); ok {
			return l, nil
		}
	}
	return Layout{}, fmt.Errorf("%d addresses for pods and %d for nodes don't fit in a /%d, the largest private network there is", n.Pods, n.Hosts, shortest)
}

// Fit divides a range: the smallest part of it that has room for the nodes is theirs, at
// its lower end if possible, the rest is the pods'. A part is one CIDR, so it is a power of two in size and aligned.
func Fit(whole netip.Prefix, exclude []netip.Prefix, n Need) (Layout, bool) {
	whole = whole.Masked()
	l := Layout{Bits: whole.Bits(), Range: whole, PodRoom: room(whole, whole, exclude)}
	if n.Hosts == 0 && l.PodRoom >= n.Pods {
		return l, true
	}
	// From the smallest CIDR that has as many addresses.
	for length := whole.Addr().BitLen() - bits.Len(uint(n.Hosts-1)); n.Hosts > 0 && length > whole.Bits(); length-- {
		tried := 0
		for hosts := range vacant(whole, length, exclude) {
			if free := room(hosts, whole, exclude); free >= n.Hosts && l.PodRoom-free >= n.Pods {
				l.Hosts, l.HostRoom, l.PodRoom = hosts, free, l.PodRoom-free
				return l, true
			}
			// Places differ in no more than this: the first and the last hold an address that nobody can have.
			if tried++; tried == 2 {
				break
			}
		}
	}
	return Layout{}, false
}

// vacant are the networks of a length in whole, from its lower end, that share no address with taken.
func vacant(whole netip.Prefix, length int, taken []netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for p := netip.PrefixFrom(whole.Addr(), length); p.Addr().IsValid() && whole.Contains(p.Addr()); {
			last := netipx.PrefixLastIP(p)
			i := slices.IndexFunc(taken, p.Overlaps)
			if i < 0 && !yield(p) {
				return
			}
			if i >= 0 {
				// What is in the way may be larger: go on behind it.
				if end := netipx.PrefixLastIP(taken[i]); last.Less(end) {
					last = netipx.PrefixLastIP(netip.PrefixFrom(end, length))
				}
			}
			p = netip.PrefixFrom(last.Next(), length)
		}
	}
}

// room is how many addresses of part can be had: all but the first and the last of
// whole, and what is excluded. Past 2^31 it is 2^31.
func room(part, whole netip.Prefix, exclude []netip.Prefix) int {
	holes := []netip.Prefix{single(whole.Masked().Addr()), single(netipx.PrefixLastIP(whole))}
	for _, x := range exclude {
		if !slices.ContainsFunc(exclude, func(y netip.Prefix) bool { return x != y && within(x, y) }) {
			holes = append(holes, x.Masked())
		}
	}
	slices.SortFunc(holes, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	free, last := size(part), netip.Prefix{}
	for _, h := range slices.Compact(holes) {
		switch {
		case last.IsValid() && within(h, last):
			continue
		case within(part, h):
			return 0
		case within(h, part):
			free -= size(h)
		}
		last = h
	}
	return free
}

func size(p netip.Prefix) int { return 1 << min(31, p.Addr().BitLen()-p.Bits()) }

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func within(inner, outer netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// room is the layout's in words.
func (l Layout) room() string {
	if !l.Hosts.IsValid() {
		return fmt.Sprintf("%d addresses for pods", l.PodRoom)
	}
	return fmt.Sprintf("%d addresses for pods beside a /%d with %d for nodes", l.PodRoom, l.Hosts.Bits(), l.HostRoom)
}

// Room is how many addresses of a range can be had.
func Room(whole netip.Prefix, exclude []netip.Prefix) int {
	whole = whole.Masked()
	return room(whole, whole, exclude)
}

// HostRoom is how many nodes find room in a host range of a network.
func HostRoom(hosts, whole netip.Prefix) int { return room(hosts, whole, nil) }

// Top is the highest CIDR between first and last with more than n addresses, smaller where it would have more than atMost: for a host range in
// a network whose pods have the lower addresses already.
func Top(first, last netip.Addr, n, atMost int) (netip.Prefix, bool) {
	if !first.IsValid() || first.BitLen() != last.BitLen() || n < 1 {
		return netip.Prefix{}, false
	}
	for length := first.BitLen() - bits.Len(uint(n)); length <= last.BitLen(); length++ {
		p := netip.PrefixFrom(last, length).Masked()
		if before := p.Addr().Prev(); netipx.PrefixLastIP(p) != last && before.IsValid() {
			p = netip.PrefixFrom(before, length).Masked() // the one that last lies in isn't whole
		}
		if size(p) <= atMost && !p.Addr().Less(first) && !last.Less(netipx.PrefixLastIP(p)) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
