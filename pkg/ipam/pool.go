package ipam

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// Order says which free address is chosen.
type Order string

// The orders.
const (
	Lowest Order = "lowest" // the lowest free one, as Whereabouts does
	Sticky Order = "sticky" // the first free one from a place that the pod's name and interface decide, so that a pod comes back to its address
)

// Pool is one range that addresses are given from.
type Pool struct {
	Name        string       // as Whereabouts names its IPPool
	NetworkName string       // network_name; keeps apart networks that use the same addresses
	Isolated    bool         // enable_overlapping_ranges is false: other pools may hold the same address
	Range       netip.Prefix // the whole range; its length is the addresses' prefix length
	Slice       netip.Prefix // the part of it that this node allocates from (Whereabouts' node slices); invalid: all
	First, Last netip.Addr   // the window that is allocated from, inclusive
	Exclude     []netip.Prefix
	Written     []string // Exclude as it was written, for messages
}

// NewPool makes the pool of a range, with the window that Whereabouts would use:
// first and last (invalid: not said) count only where they lie between the
// range's network and its last address, and last only from first on. notes says
// which of them don't count. A range without an address between its first and its
// last is an error.
func NewPool(networkName string, isolated bool, whole netip.Prefix, first, last netip.Addr) (pool Pool, notes []string, err error) {
	whole = whole.Masked()
	if whole.Addr().BitLen()-whole.Bits() < 2 {
		return Pool{}, nil, fmt.Errorf("net mask is too short, subnet %s has no usable IP addresses, it is too small", whole)
	}
	pool = Pool{
		Name: poolName(networkName, whole), NetworkName: networkName, Isolated: isolated,
		Range: whole, First: whole.Addr().Next(), Last: netipx.PrefixLastIP(whole).Prev(),
	}
	usable := netipx.IPRangeFrom(pool.First, pool.Last)
	switch {
	case !first.IsValid() || first == whole.Addr():
	case usable.Contains(first):
		pool.First = first
	default:
		notes = append(notes, fmt.Sprintf("start %s is outside of the usable addresses %s of %s and has no effect", first, usable, whole))
	}
	switch {
	case !last.IsValid() || last == netipx.PrefixLastIP(whole):
	case !usable.Contains(last):
		notes = append(notes, fmt.Sprintf("end %s is outside of the usable addresses %s of %s and has no effect", last, usable, whole))
	case last.Less(pool.First):
		notes = append(notes, fmt.Sprintf("end %s is below the start %s and has no effect", last, pool.First))
	default:
		pool.Last = last
	}
	return pool, notes, nil
}

// Kept is the range of the object that keeps the pool, from whose first address its keys count.
func (p Pool) Kept() netip.Prefix {
	if p.Slice.IsValid() {
		return p.Slice
	}
	return p.Range
}

// Sliced is the part of the pool that a node allocates from, named and bounded as Whereabouts does:
// range_start and range_end have no effect on it. Excludes have, other than there.
func (p Pool) Sliced(node string, slice netip.Prefix) (Pool, error) {
	part, _, err := NewPool("", p.Isolated, slice, netip.Addr{}, netip.Addr{})
	if err != nil {
		return Pool{}, err
	}
	p.Slice, p.First, p.Last = part.Range, part.First, part.Last
	p.Name = node + "-" + part.Name
	if p.NetworkName != "" {
		p.Name = p.NetworkName + "-" + p.Name
	}
	return p, nil
}

// poolName is the name of Whereabouts' IPPool.
func poolName(networkName string, whole netip.Prefix) string {
	name := strings.NewReplacer(":", "-", "/", "-").Replace(whole.String())
	if networkName != "" {
		name = networkName + "-" + name
	}
	return name
}

// ClaimName is the name under which an address of the pool is claimed. It is the lock:
// one name has one holder. All pools with the same network_name share names, so that
// overlapping ranges never give an address twice; an isolated pool has its own.
func (p Pool) ClaimName(addr netip.Addr) string {
	return p.claimPrefix() + addressName(addr)
}

func (p Pool) claimPrefix() string {
	switch {
	case p.Isolated:
		return p.Name + "-"
	case p.NetworkName != "":
		return p.NetworkName + "-"
	default:
		return ""
	}
}

// addressName writes an address as Whereabouts does in names of Kubernetes objects,
// where a colon isn't allowed, nor a dash at the end.
func addressName(addr netip.Addr) string {
	name := strings.ReplaceAll(addr.String(), ":", "-")
	if strings.HasSuffix(name, "-") {
		name += "0"
	}
	return name
}

// AddressOf reads the address in a claim's name; false when the name is none of an
// address of this pool's range.
func (p Pool) AddressOf(claimName string) (netip.Addr, bool) {
	text, ok := strings.CutPrefix(claimName, p.claimPrefix())
	if !ok {
		return netip.Addr{}, false
	}
	if p.Range.Addr().Is6() {
		text = strings.ReplaceAll(text, "-", ":")
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || !p.Range.Contains(addr) || p.ClaimName(addr) != claimName {
		return netip.Addr{}, false
	}
	return addr, true
}

// Excluded says whether addr is kept out of the pool.
func (p Pool) Excluded(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Exclude, func(e netip.Prefix) bool { return e.Contains(addr) })
}

// Window is the part of the range that is allocated from.
func (p Pool) Window() netipx.IPRange { return netipx.IPRangeFrom(p.First, p.Last) }

// Candidates yields the addresses of the window that are neither excluded nor taken,
// from start upwards and then those below it, in order. Its cost grows with the number of excludes and
// taken addresses and not with the size of the range.
func (p Pool) Candidates(taken []netip.Addr, start netip.Addr) iter.Seq[netip.Addr] {
	free := p.free(taken)
	return func(yield func(netip.Addr) bool) {
		for _, r := range free {
			if !walk(higher(r.From(), start), r.To(), yield) {
				return
			}
		}
		for _, r := range free {
			if !r.From().Less(start) {
				return
			}
			if !walk(r.From(), lower(r.To(), start.Prev()), yield) {
				return
			}
		}
	}
}

func higher(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func lower(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

// walk yields the addresses between from and to, both included; false when it was told to stop.
func walk(from, to netip.Addr, yield func(netip.Addr) bool) bool {
	for addr := from; addr.IsValid() && addr.Compare(to) <= 0; addr = addr.Next() {
		if !yield(addr) {
			return false
		}
	}
	return true
}

// free is the window without excludes and taken addresses, in order.
func (p Pool) free(taken []netip.Addr) []netipx.IPRange {
	window := p.Window()
	blocks := make([]netipx.IPRange, 0, len(p.Exclude)+len(taken))
	for _, e := range p.Exclude {
		if r := netipx.RangeOfPrefix(e); r.Overlaps(window) {
			blocks = append(blocks, r)
		}
	}
	for _, a := range taken {
		if window.Contains(a) {
			blocks = append(blocks, netipx.IPRangeFrom(a, a))
		}
	}
	slices.SortFunc(blocks, func(a, b netipx.IPRange) int { return a.From().Compare(b.From()) })

	var free []netipx.IPRange
	next := window.From() // the lowest address of which nothing is known yet
	for _, b := range blocks {
		if next.Less(b.From()) {
			free = append(free, netipx.IPRangeFrom(next, b.From().Prev()))
		}
		if b.To().Compare(window.To()) >= 0 {
			return free
		}
		next = higher(next, b.To().Next())
	}
	return append(free, netipx.IPRangeFrom(next, window.To()))
}

// start is where the search for owner's address begins.
func (p Pool) start(order Order, owner Owner) netip.Addr {
	if order != Sticky {
		return p.First
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(owner.key()))
	size, whole := rangeSize(p.Window())
	if !whole { // more than a uint64 counts: every hash lies inside
		return advance(p.First, h.Sum64())
	}
	return advance(p.First, h.Sum64()%size)
}

// rangeSize is the number of addresses of r; exact is false when it is 2^64 or more.
func rangeSize(r netipx.IPRange) (size uint64, exact bool) {
	fromHi, fromLo := halves(r.From())
	toHi, toLo := halves(r.To())
	lo, borrow := bits.Sub64(toLo, fromLo, 0)
	hi, _ := bits.Sub64(toHi, fromHi, borrow)
	if hi != 0 || lo == 1<<64-1 {
		return 1<<64 - 1, false
	}
	return lo + 1, true
}

// advance is the address n above addr; the caller knows that it exists.
func advance(addr netip.Addr, n uint64) netip.Addr {
	hi, lo := halves(addr)
	lo, carry := bits.Add64(lo, n, 0)
	hi += carry
	var b [16]byte
	for i := range 8 {
		b[i] = byte(hi >> (56 - 8*i))
		b[8+i] = byte(lo >> (56 - 8*i))
	}
	sum := netip.AddrFrom16(b)
	if addr.Is4() {
		return sum.Unmap()
	}
	return sum
}

func halves(addr netip.Addr) (hi, lo uint64) {
	b := addr.As16()
	for i := range 8 {
		hi = hi<<8 | uint64(b[i])
		lo = lo<<8 | uint64(b[8+i])
	}
	return hi, lo
}

// countFree is the number of addresses of ranges, for people.
func countFree(ranges []netipx.IPRange) string {
	var total uint64
	for _, r := range ranges {
		size, exact := rangeSize(r)
		sum, carry := bits.Add64(total, size, 0)
		if !exact || carry != 0 {
			return "more than 10^19"
		}
		total = sum
	}
	return fmt.Sprint(total)
}

// sortOldestFirst puts claims into the order in which they were made.
func sortOldestFirst(claims []Claim) {
	slices.SortFunc(claims, func(a, b Claim) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Address.Compare(b.Address))
	})
}
