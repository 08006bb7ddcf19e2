// Package kernel is the one way in which lhstorage reads and changes links,
// addresses, routes, forwarding entries and sysctls.
//
// [Kernel] is small on purpose: it says what the other packages need in their own
// terms, so that [Fake], a stateful model of the kernel rules that matter (a
// parent takes its children with it, a VNI can't change, a lowered MTU lowers the
// children), can stand in for it. [Netlink] is the real one.
package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Kernel is one network namespace.
type Kernel interface {
	// Link finds a device by name; IsNotFound tells a missing one.
	Link(name string) (Link, error)
	LinkByIndex(index int) (Link, error)
	Links() ([]Link, error)
	AddLink(l Link) error
	// SetLink changes in place what change names; nothing else of the device is touched.
	SetLink(index int, change Change) error
	DelLink(index int) error
	// DelChildless deletes a device unless it has a macvlan child in any network
	// namespace; ErrHasChildren then. The check and the deletion can't be
	// separated by a new child.
	DelChildless(index int) error

	// Addrs lists all addresses of the namespace in the kernel's own order.
	Addrs() ([]Addr, error)
	AddAddr(a Addr) error
	DelAddr(a Addr) error

	// Routes lists the main table's routes with this protocol number, all for 0.
	Routes(protocol int) ([]Route, error)
	AddRoute(r Route) error
	DelRoute(r Route) error
	// RouteTo says how the kernel would send to dst.
	RouteTo(dst netip.Addr) (Route, error)
	// RoutesTo is RouteTo for many; those that can't be reached are left out.
	RoutesTo(dsts []netip.Addr) ([]Route, error)

	// Flood lists the VTEPs that a VXLAN device sends unknown, broadcast and
	// multicast frames to: its permanent forwarding entries for 00:00:00:00:00:00.
	Flood(index int) ([]netip.Addr, error)
	AddFlood(index int, vtep netip.Addr) error
	DelFlood(index int, vtep netip.Addr) error

	// Sysctl reads /proc/sys/<path>, as in "net/ipv4/conf/eth0/rp_filter".
	Sysctl(path string) (string, error)
	SetSysctl(path, value string) error
}

// Link is a device.
type Link struct {
	Name   string
	Index  int
	Kind   string // as in `ip -d link`: vxlan, macvlan, vlan, dummy, veth, bridge; "device" for hardware
	MAC    net.HardwareAddr
	MTU    int // bytes
	Up     bool
	Lower  int // IFLA_LINK: the index of the device below (a macvlan's parent), in that device's own netns
	Master int // the bridge or bond it is a port of

	VXLAN   VXLAN
	Macvlan Macvlan
	VLAN    int // VLAN id

	// InNetns is the file descriptor of the network namespace that AddLink makes
	// the device in, 0 for this one.
	InNetns int
}

// VXLAN is what is particular to a vxlan device.
type VXLAN struct {
	VNI      int
	Port     uint16
	Local    netip.Addr
	Learning bool
}

// Macvlan is what is particular to a macvlan device.
type Macvlan struct {
	Mode       string // bridge, private, vepa, passthru
	BcQueueLen uint32 // 0: the kernel's default
}

// Change names what SetLink changes; nil fields stay.
type Change struct {
	Up       *bool
	MTU      *int
	Learning *bool
	Local    *netip.Addr // a VXLAN's source address
	Name     *string
	MAC      net.HardwareAddr
}

// Addr is an address of a device.
type Addr struct {
	Link   int // the device's index
	Prefix netip.Prefix
	// NoDAD adds an IPv6 address without duplicate address detection.
	NoDAD bool
	// NoPrefixRoute adds the address without the connected route.
	NoPrefixRoute bool
	Tentative     bool // IPv6: duplicate address detection is still running
	DADFailed     bool // IPv6: another device holds the address
}

// Route is a route of the main table.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // invalid: the destination is on the link
	Link     int
	Src      netip.Addr
	Protocol int
	MTU      int // bytes; 0: that of its device

	// What a pod's route may have besides; set, never read back.
	Metric, Table, AdvMSS int
	Scope                 *int
}

func (r Route) String() string {
	var b strings.Builder
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	fmt.Fprintf(&b, " dev #%d", r.Link)
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	return b.String()
}

// RouteProtocol is the protocol number that marks the routes made by lhstorage
// (rtnetlink(7), rtm_protocol; 5 to 255 are for user space, those below 200 are
// mostly taken in /etc/iproute2/rt_protos).
const RouteProtocol = 211

// Guard names the device that DelChildless makes on a device while it deletes it.
// One that is there at any other time was left by a killed process; it keeps
// children away.
func Guard(index int) string { return fmt.Sprintf("lhsdel%d", index) }

// ErrHasChildren is returned by DelChildless.
var ErrHasChildren = errors.New("the device has macvlan children")

// errNotFound is what Fake and Netlink wrap for a missing device.
var errNotFound = errors.New("no such device")

// IsNotFound says that a device, address, route or entry isn't there.
func IsNotFound(err error) bool {
	for _, target := range []error{errNotFound, syscall.ENODEV, syscall.ENXIO, syscall.ESRCH, syscall.EADDRNOTAVAIL, syscall.ENOENT} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// IsExists says that the thing to add is already there.
func IsExists(err error) bool { return errors.Is(err, syscall.EEXIST) }

// IsNotSupported says that this kernel has no such kind of device or feature.
func IsNotSupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// AddrsOf picks the addresses of one device.
func AddrsOf(all []Addr, link int) []Addr {
	return slices.DeleteFunc(slices.Clone(all), func(a Addr) bool { return a.Link != link })
}

// ConfPath is the path, for Sysctl, of a per-device setting: family is ipv4 or
// ipv6. A device name may hold a dot, never a slash, so the path is unambiguous.
func ConfPath(family, device, key string) string {
	return "net/" + family + "/conf/" + device + "/" + key
}
