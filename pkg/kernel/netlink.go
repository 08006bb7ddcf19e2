package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/fault"
)

// Netlink is the kernel of one network namespace. Its netlink socket stays in
// that namespace whichever thread uses it; sysctls, which belong to the thread
// that opens them, are reached by entering the namespace.
type Netlink struct {
	h     netlinksafe.Handle
	netns ns.NetNS // nil: the namespace of the process
}

var _ Kernel = (*Netlink)(nil)

// Host opens the network namespace of the calling thread, which must be the one
// that the process started in.
func Host() (*Netlink, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Netlink{h: h}, nil
}

// In opens another network namespace, which stays the caller's to close.
func In(target ns.NetNS) (*Netlink, error) {
	h, err := netlinksafe.NewHandleAt(netns.NsHandle(int(target.Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket in %s: %w", target.Path(), err)
	}
	return &Netlink{h: h, netns: target}, nil
}

// Close closes the netlink socket.
func (k *Netlink) Close() { k.h.Close() }

// Link implements Kernel.
func (k *Netlink) Link(name string) (Link, error) {
	l, err := k.h.LinkByName(name)
	if err != nil {
		return Link{}, notFound("device "+name, err)
	}
	return fromNetlink(l), nil
}

// LinkByIndex implements Kernel.
func (k *Netlink) LinkByIndex(index int) (Link, error) {
	l, err := k.h.LinkByIndex(index)
	if err != nil {
		return Link{}, notFound(fmt.Sprintf("device #%d", index), err)
	}
	return fromNetlink(l), nil
}

func notFound(what string, err error) error {
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return fmt.Errorf("%s: %w", what, errNotFound)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Links implements Kernel.
func (k *Netlink) Links() ([]Link, error) {
	list, err := k.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the devices: %w", err)
	}
	links := make([]Link, 0, len(list))
	for _, l := range list {
		links = append(links, fromNetlink(l))
	}
	return links, nil
}

func fromNetlink(l netlink.Link) Link {
	a := l.Attrs()
	link := Link{
		Name: a.Name, Index: a.Index, Kind: l.Type(), MAC: a.HardwareAddr, MTU: a.MTU,
		Up: a.Flags&net.FlagUp != 0, Lower: a.ParentIndex, Master: a.MasterIndex,
	}
	switch t := l.(type) {
	case *netlink.Vxlan:
		local, _ := netip.AddrFromSlice(t.SrcAddr)
		link.VXLAN = VXLAN{VNI: t.VxlanId, Port: uint16(t.Port), Local: local.Unmap(), Learning: t.Learning}
		link.Lower = t.VtepDevIndex
	case *netlink.Macvlan:
		link.Macvlan = Macvlan{Mode: modeName(t.Mode), BcQueueLen: t.BCQueueLen}
	case *netlink.Vlan:
		link.VLAN = t.VlanId
	}
	return link
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"bridge":   netlink.MACVLAN_MODE_BRIDGE,
	"private":  netlink.MACVLAN_MODE_PRIVATE,
	"vepa":     netlink.MACVLAN_MODE_VEPA,
	"passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

func modeName(mode netlink.MacvlanMode) string {
	for name, m := range macvlanModes {
		if m == mode {
			return name
		}
	}
	return "source"
}

// AddLink implements Kernel.
func (k *Netlink) AddLink(l Link) error {
	link, err := toNetlink(l)
	if err != nil {
		return err
	}
	if err := k.h.LinkAdd(link); err != nil {
		return fmt.Errorf("create %s %s: %w", l.Kind, l.Name, err)
	}
	return nil
}

func toNetlink(l Link) (netlink.Link, error) {
	a := netlink.NewLinkAttrs() // a zero struct would set a transmit queue length of 0
	a.Name, a.Index, a.HardwareAddr, a.MTU, a.ParentIndex = l.Name, l.Index, l.MAC, l.MTU, l.Lower
	if l.Up {
		a.Flags |= net.FlagUp
	}
	if l.InNetns != 0 {
		a.Namespace = netlink.NsFd(l.InNetns)
	}
	switch l.Kind {
	case "dummy":
		return &netlink.Dummy{LinkAttrs: a}, nil
	case "vlan":
		return &netlink.Vlan{LinkAttrs: a, VlanId: l.VLAN}, nil
	case "macvlan":
		mode, ok := macvlanModes[l.Macvlan.Mode]
		if !ok {
			return nil, fmt.Errorf("create macvlan %s: unknown mode %q", l.Name, l.Macvlan.Mode)
		}
		return &netlink.Macvlan{LinkAttrs: a, Mode: mode, BCQueueLen: l.Macvlan.BcQueueLen}, nil
	case "vxlan":
		a.ParentIndex = 0 // never bound to a device: it would be deleted with it
		return &netlink.Vxlan{
			LinkAttrs: a, VxlanId: l.VXLAN.VNI, Port: int(l.VXLAN.Port),
			SrcAddr: l.VXLAN.Local.AsSlice(), Learning: l.VXLAN.Learning,
		}, nil
	default:
		return nil, fmt.Errorf("create %s: lhstorage makes no devices of kind %q", l.Name, l.Kind)
	}
}

// SetLink implements Kernel.
func (k *Netlink) SetLink(index int, c Change) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if c.Name != nil {
		if err := k.h.LinkSetName(link, *c.Name); err != nil {
			return fmt.Errorf("rename device #%d to %s: %w", index, *c.Name, err)
		}
	}
	if c.MAC != nil {
		if err := k.h.LinkSetHardwareAddr(link, c.MAC); err != nil {
			return fmt.Errorf("set the MAC of device #%d to %s: %w", index, c.MAC, err)
		}
	}
	if c.MTU != nil {
		if err := k.h.LinkSetMTU(link, *c.MTU); err != nil {
			return fmt.Errorf("set the MTU of device #%d to %d: %w", index, *c.MTU, err)
		}
	}
	if c.Learning != nil || c.Local != nil {
		if err := k.changeVXLAN(index, c); err != nil {
			return err
		}
	}
	if c.Up != nil {
		set, word := k.h.LinkSetDown, "down"
		if *c.Up {
			set, word = k.h.LinkSetUp, "up"
		}
		if err := set(link); err != nil {
			return fmt.Errorf("set device #%d %s: %w", index, word, err)
		}
	}
	return nil
}

// changeVXLAN sends only the attributes to change. The netlink library's
// LinkModify sends them all, and the kernel refuses a message that names the
// port of an existing device, even the same one (vxlan_nl2conf, changelink).
func (k *Netlink) changeVXLAN(index int, c Change) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	if c.Learning != nil {
		on := byte(0)
		if *c.Learning {
			on = 1
		}
		data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, []byte{on})
	}
	if c.Local != nil {
		kind := nl.IFLA_VXLAN_LOCAL
		if c.Local.Is6() {
			kind = nl.IFLA_VXLAN_LOCAL6
		}
		data.AddRtAttr(kind, c.Local.AsSlice())
	}
	req.AddData(info)
	// A request of its own opens its socket in the namespace of the thread.
	return k.do(func() error {
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("change VXLAN device #%d: %w", index, err)
		}
		return nil
	})
}

// DelLink implements Kernel.
func (k *Netlink) DelLink(index int) error {
	if err := k.h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}); err != nil {
		return fmt.Errorf("delete device #%d: %w", index, err)
	}
	return nil
}

// DelChildless implements Kernel. A macvlan child in passthru mode can only be
// made on a device that has no other child in any namespace, and keeps others
// from being made (macvlan_common_newlink): so the kernel itself answers the
// question, and the answer stays true until the device is gone, its passthru
// child with it.
func (k *Netlink) DelChildless(index int) error {
	guard := Guard(index)
	err := k.AddLink(Link{Name: guard, Kind: "macvlan", Lower: index, Macvlan: Macvlan{Mode: "passthru"}})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("delete device #%d: %w", index, ErrHasChildren)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) { // a guard left by a killed process serves as well
		return err
	}
	err = fault.At("ensure.parent.guarded")
	if err == nil {
		err = k.DelLink(index)
	}
	if err != nil {
		return errors.Join(err, k.delGuard(guard))
	}
	return nil
}

func (k *Netlink) delGuard(name string) error {
	link, err := k.Link(name)
	if IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return k.DelLink(link.Index)
}

// Addrs implements Kernel.
func (k *Netlink) Addrs() ([]Addr, error) {
	list, err := retryDump(func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	addrs := make([]Addr, 0, len(list))
	for _, a := range list {
		prefix, ok := fromIPNet(a.IPNet)
		if !ok {
			continue
		}
		addrs = append(addrs, Addr{
			Link: a.LinkIndex, Prefix: prefix,
			NoDAD: a.Flags&unix.IFA_F_NODAD != 0, NoPrefixRoute: a.Flags&unix.IFA_F_NOPREFIXROUTE != 0,
			Tentative: a.Flags&unix.IFA_F_TENTATIVE != 0, DADFailed: a.Flags&unix.IFA_F_DADFAILED != 0,
		})
	}
	return addrs, nil
}

// retryDump repeats a dump that the kernel says it was interrupted in, as
// netlinksafe does for the calls that it knows.
func retryDump[T any](dump func() ([]T, error)) ([]T, error) {
	const attempts = 5
	for i := 1; ; i++ {
		list, err := dump()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) || i == attempts {
			return list, err
		}
	}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (a Addr) netlink() *netlink.Addr {
	addr := &netlink.Addr{IPNet: toIPNet(a.Prefix)}
	if a.NoDAD {
		addr.Flags |= unix.IFA_F_NODAD
	}
	if a.NoPrefixRoute {
		addr.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return addr
}

// AddAddr implements Kernel.
func (k *Netlink) AddAddr(a Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.Link}}
	if err := k.h.AddrAdd(link, a.netlink()); err != nil {
		return fmt.Errorf("add address %s to device #%d: %w", a.Prefix, a.Link, err)
	}
	return nil
}

// DelAddr implements Kernel.
func (k *Netlink) DelAddr(a Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.Link}}
	if err := k.h.AddrDel(link, &netlink.Addr{IPNet: toIPNet(a.Prefix)}); err != nil {
		return fmt.Errorf("delete address %s from device #%d: %w", a.Prefix, a.Link, err)
	}
	return nil
}

// Routes implements Kernel.
func (k *Netlink) Routes(protocol int) ([]Route, error) {
	filter := &netlink.Route{Protocol: netlink.RouteProtocol(protocol), Table: unix.RT_TABLE_MAIN}
	mask := netlink.RT_FILTER_TABLE
	if protocol != 0 {
		mask |= netlink.RT_FILTER_PROTOCOL
	}
	list, err := k.h.RouteListFiltered(netlink.FAMILY_ALL, filter, mask)
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	routes := make([]Route, 0, len(list))
	for i := range list {
		routes = append(routes, fromNetlinkRoute(&list[i]))
	}
	return routes, nil
}

func fromNetlinkRoute(r *netlink.Route) Route {
	dst, _ := fromIPNet(r.Dst)
	via, _ := netip.AddrFromSlice(r.Gw)
	src, _ := netip.AddrFromSlice(r.Src)
	return Route{Dst: dst, Via: via.Unmap(), Link: r.LinkIndex, Src: src.Unmap(), Protocol: int(r.Protocol), MTU: r.MTU}
}

func (r Route) netlink() *netlink.Route {
	route := &netlink.Route{
		Dst: toIPNet(r.Dst), LinkIndex: r.Link, Protocol: netlink.RouteProtocol(r.Protocol), MTU: r.MTU,
		Priority: r.Metric, Table: r.Table, AdvMSS: r.AdvMSS,
	}
	if r.Src.IsValid() {
		route.Src = r.Src.AsSlice()
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else if r.Dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Scope != nil {
		route.Scope = netlink.Scope(*r.Scope)
	}
	return route
}

// AddRoute implements Kernel.
func (k *Netlink) AddRoute(r Route) error {
	if err := k.h.RouteAdd(r.netlink()); err != nil {
		return fmt.Errorf("add route %s: %w", r, err)
	}
	return nil
}

// DelRoute implements Kernel.
func (k *Netlink) DelRoute(r Route) error {
	if err := k.h.RouteDel(r.netlink()); err != nil {
		return fmt.Errorf("delete route %s: %w", r, err)
	}
	return nil
}

// RouteTo implements Kernel.
func (k *Netlink) RouteTo(dst netip.Addr) (Route, error) {
	list, err := k.h.RouteGet(dst.AsSlice())
	if err != nil {
		return Route{}, fmt.Errorf("find the route to %s: %w", dst, err)
	}
	if len(list) == 0 {
		return Route{}, fmt.Errorf("find the route to %s: %w", dst, unix.ENETUNREACH)
	}
	route := fromNetlinkRoute(&list[0])
	route.Dst = netip.PrefixFrom(dst, dst.BitLen())
	return route, nil
}

func isZero(mac []byte) bool {
	return !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 })
}

func flood(index int, vtep netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF,
		IP: vtep.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
	}
}

// AddFlood implements Kernel. It appends: the kernel refuses to replace entries
// for the zero address.
func (k *Netlink) AddFlood(index int, vtep netip.Addr) error {
	if err := k.h.NeighAppend(flood(index, vtep)); err != nil {
		return fmt.Errorf("add the flood entry for VTEP %s to device #%d: %w", vtep, index, err)
	}
	return nil
}

// DelFlood implements Kernel.
func (k *Netlink) DelFlood(index int, vtep netip.Addr) error {
	if err := k.h.NeighDel(flood(index, vtep)); err != nil {
		return fmt.Errorf("delete the flood entry for VTEP %s from device #%d: %w", vtep, index, err)
	}
	return nil
}

// ProcSysEnv names another place of /proc/sys. A container's own is read-only unless it is privileged, and a runtime mounts nothing over it, so the
// agent has the host's /proc/sys/net elsewhere; whose it shows is a matter of who reads, not of where it is mounted.
const ProcSysEnv = "LHSTORAGE_PROC_SYS"

var procSys = cmp.Or(os.Getenv(ProcSysEnv), "/proc/sys") + "/"

// Sysctl implements Kernel.
func (k *Netlink) Sysctl(path string) (value string, err error) {
	err = k.do(func() error {
		data, err := os.ReadFile(procSys + path) //nolint:gosec // paths are made by ConfPath
		value = strings.TrimSpace(string(data))
		return err
	})
	return value, err
}

// SetSysctl implements Kernel.
func (k *Netlink) SetSysctl(path, value string) error {
	return k.do(func() error {
		if err := os.WriteFile(procSys+path, []byte(value), 0o644); err != nil { //nolint:gosec // a sysctl
			return fmt.Errorf("set sysctl %s to %s: %w", path, value, err)
		}
		return nil
	})
}

// do runs f on a thread that is in k's namespace.
func (k *Netlink) do(f func() error) error {
	if k.netns == nil {
		return f()
	}
	return k.netns.Do(func(ns.NetNS) error { return f() })
}
