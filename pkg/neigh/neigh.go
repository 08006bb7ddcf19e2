// Package neigh asks a link for the holders of an address before it is used,
// and tells the neighbours about it afterwards.
//
// All functions work in the network namespace of the calling OS thread, which
// must be locked to its goroutine ([runtime.LockOSThread]) if that isn't the
// process's own. Frames go through packet sockets, so that neither an address
// nor a route is needed on the link; it must be up.
//
// The codecs are our own: ARP, one option of neighbour discovery and a
// checksum are less than what a library would add to a binary that is started
// for every pod (0.45 MB measured with mdlayher's arp, ndp and packet), and
// mdlayher/packet hides the packet type that tells a frame of another VLAN.
package neigh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// requests is how often a question is sent within a window: frames do get
// lost, first of all those sent right after a link came up.
const requests = 3

// Link is the device that frames are sent on.
type Link struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
}

func (l Link) check() error {
	if l.Index <= 0 || len(l.MAC) != macLen {
		return fmt.Errorf("link %q has index %d and MAC %q: an index above 0 and a MAC of %d bytes are needed", l.Name, l.Index, l.MAC, macLen)
	}
	return nil
}

// Conflict says that another device holds an address, or probes for it.
type Conflict struct {
	Addr      netip.Addr
	MAC       net.HardwareAddr
	Interface string // where the frame came in
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s is held by %s, seen on %s", c.Addr, c.MAC, c.Interface)
}

// Probe looks for other holders of IPv4 addresses that are about to be set, as
// RFC 5227 section 2.1 says, but with the window that the caller has time for:
// three ARP probes from 0.0.0.0 spread over it. It returns as soon as every
// address has been answered for, otherwise at the window's end, with the first
// answer for each address.
//
// An answer is any ARP packet from the address, and another's probe for it.
// MACs for which own is true don't count, nor does the link's own; own may be
// nil. IPv6 addresses are passed over: the kernel probes for them when they are
// set, see [WaitDAD].
//
// With an error the conflicts found so far are returned.
func Probe(ctx context.Context, link Link, addrs []netip.Addr, window time.Duration, own func(net.HardwareAddr) bool) ([]Conflict, error) {
	open := only(addrs, netip.Addr.Is4)
	if len(open) == 0 {
		return nil, nil
	}
	var found []Conflict
	ask := func(s *socket) error {
		for _, addr := range open {
			if err := s.send(broadcast, arpRequest(link.MAC, netip.IPv4Unspecified(), addr).bytes()); err != nil {
				return err
			}
		}
		return nil
	}
	hear := func(_ net.HardwareAddr, payload []byte) (enough bool) {
		p, ok := parseARP(payload)
		if !ok || bytes.Equal(p.senderMAC, link.MAC) || own != nil && own(p.senderMAC) {
			return false
		}
		i := slices.IndexFunc(open, p.claims)
		if i >= 0 {
			found = append(found, Conflict{Addr: open[i], MAC: p.senderMAC, Interface: link.Name})
			open = slices.Delete(open, i, i+1)
		}
		return len(open) == 0
	}
	err := converse(ctx, link, etherTypeARP, window, ask, hear)
	if err != nil {
		err = fmt.Errorf("probe for other holders of %v on %s: %w", addrs, link.Name, err)
	}
	return found, err
}

// Resolve returns every MAC that answers for dst within the window, in the
// order of their answers: an empty result means silence, more than one a
// duplicate. src is the address asked from; the zero Addr asks from the
// unspecified address, as a probe does.
func Resolve(ctx context.Context, link Link, src, dst netip.Addr, window time.Duration) ([]net.HardwareAddr, error) {
	dst = dst.Unmap()
	if src = src.Unmap(); !src.IsValid() {
		src = unspecified(dst)
	}
	if src.BitLen() != dst.BitLen() || !dst.IsValid() {
		return nil, fmt.Errorf("resolve %s on %s: it can't be asked for from %s, both must be of one family", dst, link.Name, src)
	}
	q := question{link: link, src: src, dst: dst}
	etherType, ask, answer := q.arp()
	if dst.Is6() {
		etherType, ask, answer = q.ndp()
	}
	var macs []net.HardwareAddr
	hear := func(from net.HardwareAddr, payload []byte) bool {
		mac, ok := answer(from, payload)
		if ok && !slices.ContainsFunc(macs, func(m net.HardwareAddr) bool { return bytes.Equal(m, mac) }) {
			macs = append(macs, mac)
		}
		return false // a duplicate may answer later
	}
	if err := converse(ctx, link, etherType, window, ask, hear); err != nil {
		return macs, fmt.Errorf("resolve %s on %s: %w", dst, link.Name, err)
	}
	return macs, nil
}

// question is one address asked for, by the family's protocol.
type question struct {
	link     Link
	src, dst netip.Addr
}

type (
	asker    func(*socket) error
	answerer func(from net.HardwareAddr, payload []byte) (net.HardwareAddr, bool)
)

func (q question) arp() (uint16, asker, answerer) {
	ask := func(s *socket) error {
		return s.send(broadcast, arpRequest(q.link.MAC, q.src, q.dst).bytes())
	}
	answer := func(_ net.HardwareAddr, payload []byte) (net.HardwareAddr, bool) {
		p, ok := parseARP(payload)
		return p.senderMAC, ok && p.op == opReply && p.senderIP == q.dst
	}
	return etherTypeARP, ask, answer
}

func (q question) ndp() (uint16, asker, answerer) {
	ask := func(s *socket) error {
		group := solicitedNode(q.dst)
		return s.send(multicastMAC(group), solicitation(q.link.MAC, q.src, group, q.dst))
	}
	answer := func(from net.HardwareAddr, payload []byte) (net.HardwareAddr, bool) {
		target, mac, ok := parseAdvertisement(payload)
		if mac == nil {
			mac = from // the option may be left out of an answer to a unicast question
		}
		return mac, ok && target == q.dst
	}
	return etherTypeIPv6, ask, answer
}

// Announce tells all neighbours that the addresses are at the link's MAC: a
// gratuitous ARP request for IPv4 (RFC 5227 section 3), an unsolicited
// neighbour advertisement with the override flag for IPv6 (RFC 4861 section
// 7.2.6). Both change an existing neighbour entry at once and create none. One
// frame is sent per address; a caller that expects losses announces again. All
// failures are returned.
func Announce(link Link, addrs []netip.Addr) error {
	var faults []error
	for _, addr := range addrs {
		if err := announce(link, addr.Unmap()); err != nil {
			faults = append(faults, fmt.Errorf("announce %s at %s on %s: %w", addr, link.MAC, link.Name, err))
		}
	}
	return errors.Join(faults...)
}

func announce(link Link, addr netip.Addr) error {
	if !addr.IsValid() {
		return errors.New("it isn't an address")
	}
	etherType, to := etherTypeARP, broadcast
	if addr.Is6() {
		etherType, to = etherTypeIPv6, multicastMAC(allNodes)
	}
	s, err := listen(link, etherType)
	if err != nil {
		return err
	}
	defer s.close()
	if addr.Is6() {
		return s.send(to, advertisement(link.MAC, addr))
	}
	return s.send(to, arpRequest(link.MAC, addr, addr).bytes())
}

// converse asks, at even intervals over the window, and hears what comes in
// until that is enough or the window ends. Only a ctx that ends before it is an
// error.
func converse(ctx context.Context, link Link, etherType uint16, window time.Duration, ask func(*socket) error, hear func(net.HardwareAddr, []byte) bool) error {
	if window <= 0 {
		return fmt.Errorf("the window is %s: without time nobody can answer", window)
	}
	s, err := listen(link, etherType)
	if err != nil {
		return err
	}
	defer s.close()
	start := time.Now()
	for i := range requests {
		if err := ask(s); err != nil {
			return err
		}
		until := start.Add(window * time.Duration(i+1) / requests)
		if enough, err := s.receive(ctx, until, hear); enough || err != nil {
			return err
		}
	}
	return nil
}

func only(addrs []netip.Addr, family func(netip.Addr) bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); family(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
