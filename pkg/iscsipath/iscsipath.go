// Package iscsipath knows which address of a pod Longhorn's v1 initiator dials,
// and which ifindex a new interface needs to be that one, or not to be it. It
// is pure.
//
// Longhorn (go-iscsi-helper, util.GetIPToHost) never looks at the storage
// network. It takes a global unicast address of the interface named eth1, if
// there is one, else the first that Go's net.InterfaceAddrs returns, which is
// the order in which the kernel dumps addresses: all IPv4 before all IPv6, and
// within a family by the interface's index (see [Order]). So the index that a
// CNI plugin happens to get decides whether volumes attach over the storage
// network or over the pod network. Here it is chosen.
package iscsipath

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// preferred is the interface that Longhorn takes whatever the order.
const preferred = "eth1"

// buckets of the kernel's hash of devices by index (NETDEV_HASHENTRIES).
const buckets = 256

// Iface is an interface of a pod. All of a namespace's interfaces count, those
// without addresses too: their indexes are taken.
type Iface struct {
	Name  string
	Index int
	Addrs []netip.Addr
}

// has says whether the interface has an address that Longhorn would dial.
func (i Iface) has(family func(netip.Addr) bool) bool {
	_, ok := i.first(family)
	return ok
}

func (i Iface) first(family func(netip.Addr) bool) (netip.Addr, bool) {
	for _, a := range i.Addrs {
		// As net.IP's method of that name, which knows no mapped addresses.
		if a = a.Unmap(); a.IsGlobalUnicast() && family(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func anyFamily(netip.Addr) bool { return true }

// Dialed returns the address that the initiator dials, and the interface that
// has it, of interfaces in the order of an address dump; not ok: there is none.
// Whether the dump lists an interface once or once for each family is the same.
func Dialed(dump []Iface) (addr netip.Addr, iface string, ok bool) {
	named := func(i Iface) bool { return i.Name == preferred }
	whichever := func(Iface) bool { return true }
	for _, among := range []func(Iface) bool{named, whichever} {
		for _, family := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
			for _, i := range dump {
				if addr, ok = i.first(family); ok && among(i) {
					return addr, i.Name, true
				}
			}
		}
	}
	return netip.Addr{}, "", false
}

// Order is the order in which a kernel dumps the interfaces of one family.
type Order int

// The orders.
const (
	Modern Order = iota // Linux 6.9 and newer: by index
	Legacy              // by index & 255, of equal ones the newest interface first
)

// OrderOf tells the order from a kernel release as `uname -r` prints it. What
// can't be read as one counts as Modern. Distributions do backport (Choose
// prefers what holds in both orders), so the outcome is to be checked with
// [Dialed].
func OrderOf(release string) Order {
	release = strings.TrimPrefix(strings.TrimSpace(release), "v")
	head, rest, _ := strings.Cut(release, ".")
	major, err := strconv.Atoi(head)
	if err != nil || major < 3 { // 2.6.x is the disguise of `setarch --uname-2.6`: Go runs on no such kernel
		return Modern
	}
	minor, err := strconv.Atoi(leadingDigits(rest))
	if major < 6 || major == 6 && err == nil && minor < 9 {
		return Legacy
	}
	return Modern
}

func leadingDigits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

// before says whether a new interface with this index dumps before one that
// exists.
func (o Order) before(index, existing int) bool {
	if o == Legacy {
		return index%buckets <= existing%buckets
	}
	return index < existing
}

func (o Order) String() string {
	if o == Legacy {
		return "by index & 255, as kernels before 6.9"
	}
	return "by index, as kernels from 6.9 on"
}

// Choice is an index for a new interface.
type Choice struct {
	Index    int    // 0: leave it to the kernel
	Possible bool   // the policy can be had
	Reason   string // if it can't: the interface that wins, and why
}

// Wanted resolves auto: the storage IP where a healthy shim lets the host reach
// it, else the pod's.
func Wanted(policy netconf.ISCSIPath, shimHealthy bool) netconf.ISCSIPath {
	switch {
	case policy == netconf.ISCSIStorageIP || policy == netconf.ISCSIPodIP:
		return policy
	case shimHealthy:
		return netconf.ISCSIStorageIP
	}
	return netconf.ISCSIPodIP
}

// Choose returns an index for a new interface by which Longhorn dials it
// (storage-ip), or anything else that it can (pod-ip). Of own the name and the
// addresses that it will have are looked at; existing are all interfaces that
// the namespace has. An index that serves in both orders is preferred to one
// that serves in the given order alone, then a small one.
//
// Where no other interface has a global unicast address every policy is
// possible: there is nothing to choose.
func Choose(policy netconf.ISCSIPath, shimHealthy bool, own Iface, existing []Iface, order Order) Choice {
	want := Wanted(policy, shimHealthy)
	others := withFamily(existing, anyFamily)
	if len(others) == 0 {
		return Choice{Possible: true}
	}
	if winner, why := settled(own, others, order); winner != "" {
		if (winner == own.Name) == (want == netconf.ISCSIStorageIP) {
			return Choice{Possible: true}
		}
		return Choice{Reason: why}
	}
	rivals := others // within the family by which own is dialled
	if own.has(netip.Addr.Is4) {
		rivals = withFamily(others, netip.Addr.Is4)
	}
	free := candidates(existing)
	for _, serves := range tests(want, rivals, order) {
		if i := slices.IndexFunc(free, serves); i >= 0 {
			return Choice{Index: free[i], Possible: true}
		}
	}
	return Choice{Reason: unfit(want, own, rivals, order)}
}

// settled finds the winner that no index can change, if there is one.
func settled(own Iface, others []Iface, order Order) (winner, why string) {
	named := slices.IndexFunc(others, func(i Iface) bool { return i.Name == preferred })
	theirs := withFamily(others, netip.Addr.Is4)
	ours4 := own.has(netip.Addr.Is4)
	switch {
	case named >= 0:
		return preferred, wins(others[named]) + " by its name: Longhorn takes an interface named " + preferred + " before it looks at the order"
	case !own.has(anyFamily):
		if len(theirs) == 0 {
			theirs = others
		}
		first := foremost(theirs, order)
		return first.Name, wins(first) + ": " + own.Name + " has no global unicast address"
	case own.Name == preferred:
		return own.Name, wins(own) + " by its name: Longhorn takes an interface named " + preferred + " before it looks at the order"
	case ours4 && len(theirs) == 0:
		return own.Name, wins(own) + ": the kernel dumps IPv4 before IPv6, and no other interface has IPv4"
	case !ours4 && len(theirs) > 0:
		first := foremost(theirs, order)
		return first.Name, wins(first) + ": the kernel dumps IPv4 before IPv6, and " + own.Name + " has no IPv4"
	}
	return "", ""
}

func wins(i Iface) string {
	addr, ok := i.first(netip.Addr.Is4)
	if !ok {
		addr, _ = i.first(netip.Addr.Is6)
	}
	return fmt.Sprintf("%s wins with %s", i.Name, addr)
}

func withFamily(ifaces []Iface, family func(netip.Addr) bool) []Iface {
	return slices.DeleteFunc(slices.Clone(ifaces), func(i Iface) bool { return !i.has(family) })
}

// foremost is the one that dumps first; of equal ones the last in the list, as
// namespaces are filled in the order of the indexes.
func foremost(ifaces []Iface, order Order) Iface {
	first := ifaces[0]
	for _, i := range ifaces[1:] {
		if order.before(i.Index, first.Index) {
			first = i
		}
	}
	return first
}

// tests are what an index must pass, the best first.
func tests(want netconf.ISCSIPath, rivals []Iface, order Order) []func(int) bool {
	first := func(o Order, index int) bool {
		return !slices.ContainsFunc(rivals, func(r Iface) bool { return !o.before(index, r.Index) })
	}
	last := func(o Order, index int) bool {
		return !slices.ContainsFunc(rivals, func(r Iface) bool { return o.before(index, r.Index) })
	}
	notFirst := func(o Order, index int) bool { return !first(o, index) }
	in := func(test func(Order, int) bool, orders ...Order) func(int) bool {
		return func(index int) bool {
			return !slices.ContainsFunc(orders, func(o Order) bool { return !test(o, index) })
		}
	}
	if want == netconf.ISCSIStorageIP {
		return []func(int) bool{in(first, Modern, Legacy), in(first, order)}
	}
	return []func(int) bool{in(last, Modern, Legacy), in(last, order), in(notFirst, Modern, Legacy), in(notFirst, order)}
}

// candidates are free indexes, ascending. Where an interface dumps depends on
// its bucket and on which indexes are below its own, so no more than one round
// of buckets above each existing index has to be looked at.
func candidates(existing []Iface) []int {
	taken := map[int]bool{}
	starts := []int{0}
	for _, i := range existing {
		taken[i.Index] = true
		starts = append(starts, max(i.Index, 0))
	}
	slices.Sort(starts)
	var free []int
	next := 1
	for _, start := range starts {
		for next = max(next, start+1); next <= start+buckets && next < math.MaxInt32; next++ {
			if !taken[next] {
				free = append(free, next)
			}
		}
	}
	return free
}

func unfit(want netconf.ISCSIPath, own Iface, rivals []Iface, order Order) string {
	var list []string
	for _, r := range rivals {
		list = append(list, fmt.Sprintf("%s (index %d)", r.Name, r.Index))
	}
	if want == netconf.ISCSIPodIP {
		return fmt.Sprintf("%s: no free index dumps after %s (%s)", wins(own), strings.Join(list, ", "), order)
	}
	winner := foremost(rivals, order)
	return fmt.Sprintf("%s: no free index dumps before its %d (%s)", wins(winner), winner.Index, order)
}
