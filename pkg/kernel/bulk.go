package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What is asked about each of a thousand peers is read here, not by the netlink library: that one makes a dozen objects of each forwarding
// entry, and five system calls for each route.

var native = binary.NativeEndian

// Flood implements Kernel.
func (k *Netlink) Flood(index int) ([]netip.Addr, error) {
	vteps, err := retryDump(func() ([]netip.Addr, error) { return k.dumpFlood(index) })
	if err != nil {
		return nil, fmt.Errorf("list the forwarding entries of device #%d: %w", index, err)
	}
	slices.SortFunc(vteps, netip.Addr.Compare)
	return vteps, nil
}

func (k *Netlink) dumpFlood(index int) (vteps []netip.Addr, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index)})
	err = k.do(func() error {
		return req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func(msg []byte) bool {
			if vtep, ok := floodEntry(msg, index); ok {
				vteps = append(vteps, vtep)
			}
			return true
		})
	})
	return vteps, err
}

// floodEntry reads an RTM_NEWNEIGH (struct ndmsg: family, 3 bytes, index, state, flags, type).
func floodEntry(msg []byte, index int) (vtep netip.Addr, ok bool) {
	if len(msg) < unix.SizeofNdMsg || msg[0] != unix.AF_BRIDGE || int(native.Uint32(msg[4:])) != index || native.Uint16(msg[8:])&unix.NUD_PERMANENT == 0 {
		return vtep, false
	}
	zero := true
	attributes(msg[unix.SizeofNdMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.NDA_DST:
			vtep, ok = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			zero = isZero(value)
		}
	})
	return vtep.Unmap(), ok && zero
}

// asked is how many routes are asked for at once. A socket's buffer has room for 208 KB (net.core.rmem_default), and an answer takes 4 KB
// of that at most.
const asked = 32

// RoutesTo implements Kernel.
func (k *Netlink) RoutesTo(dsts []netip.Addr) (routes []Route, err error) {
	err = k.do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(fd)                                                                     //nolint:errcheck // nothing is left to lose
		if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil { // nobody but the kernel is heard then
			return err
		}
		for some := range slices.Chunk(dsts, asked) {
			found, err := routesTo(fd, some)
			if err != nil {
				return err
			}
			routes = append(routes, found...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the routes to %d addresses: %w", len(dsts), err)
	}
	return routes, nil
}

// routesTo asks for a few routes in one message. The kernel answers each question by a message of its own, a route or an error, and has
// answered all of them when it has taken the question: nothing is waited for.
func routesTo(fd int, dsts []netip.Addr) (routes []Route, err error) {
	var questions []byte
	for _, dst := range dsts {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		family := uint8(unix.AF_INET)
		if dst.Is6() {
			family = unix.AF_INET6
		}
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Dst_len: uint8(dst.BitLen()), Flags: unix.RTM_F_LOOKUP_TABLE}})
		req.AddData(nl.NewRtAttr(unix.RTA_DST, dst.AsSlice()))
		questions = append(questions, req.Serialize()...)
	}
	if _, err := unix.Write(fd, questions); err != nil {
		return nil, err
	}
	answer := make([]byte, os.Getpagesize())
	for range dsts {
		n, err := unix.Read(fd, answer)
		if err != nil {
			return nil, err
		}
		if n >= unix.SizeofNlMsghdr && native.Uint16(answer[4:]) == unix.RTM_NEWROUTE {
			routes = append(routes, routeIn(answer[unix.SizeofNlMsghdr:n]))
		}
	}
	return routes, nil
}

// routeIn reads an RTM_NEWROUTE.
func routeIn(msg []byte) (r Route) {
	if len(msg) < unix.SizeofRtMsg {
		return r
	}
	r.Protocol = int(msg[5])
	attributes(msg[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_DST:
			if dst, ok := netip.AddrFromSlice(value); ok {
				r.Dst = netip.PrefixFrom(dst, dst.BitLen())
			}
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(value)
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(value)
		case unix.RTA_OIF:
			r.Link = int(native.Uint32(value))
		case unix.RTA_METRICS:
			attributes(value, func(kind uint16, value []byte) {
				if kind == unix.RTAX_MTU {
					r.MTU = int(native.Uint32(value))
				}
			})
		}
	})
	return r
}

// attributes calls do for each netlink attribute that there is.
func attributes(b []byte, do func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		length := int(native.Uint16(b))
		if length < unix.SizeofRtAttr || length > len(b) {
			return
		}
		do(native.Uint16(b[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:length])
		b = b[min(len(b), (length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
}
