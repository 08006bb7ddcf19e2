// Package place works out who this node is on a parent: its index, its VTEP and
// its host-shim addresses. It is pure; what the kernel has comes in as [Seen].
//
// What a node already holds it keeps: an address in the host range, or a VTEP in
// the VTEP range, was made by an earlier run or by the script that lhstorage
// replaces, and peers and sessions know the node by it. Only a node that holds
// nothing is given addresses from its index.
package place

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Place is this node's place on one parent. Kept on disk, it is also the answer
// for a node that comes up again with nothing in its kernel.
type Place struct {
	Index int          `json:"index,omitempty"`
	VTEP  netip.Addr   `json:"vtep,omitzero"`
	Shim  []netip.Addr `json:"shim,omitempty"` // one for each host range, in its order
	Peers []netip.Addr `json:"peers"`          // the other nodes' VTEPs; nil: not known, so left as they are
	MTU   int          `json:"mtu,omitempty"`  // the parent's as worked out last, bytes

	// Kubernetes are the addresses by which the cluster knows this node: wherever
	// they are, they stay there.
	Kubernetes []netip.Addr `json:"kubernetes,omitempty"`

	// Complete says that no node is missing among the peers. It isn't kept: a node
	// may join while the agent, which knows, is away.
	Complete bool `json:"-"`
}

// Seen is what the kernel has now.
type Seen struct {
	OnShim   []netip.Addr // addresses of the shim device, if there is one
	OnParent []netip.Addr // addresses of the parent device, if there is one
	Local    []netip.Addr // all addresses of this node
	Tunnel   netip.Addr   // the source address of the existing VXLAN parent

	// Kubernetes are the Node object's InternalIPs, as far as they are known.
	Kubernetes []netip.Addr
}

// Resolve finds this node's place. last is the one of an earlier run, or zero.
// Errors have code 7 and say what to set.
func Resolve(plan *netconf.Plan, node nodefile.File, seen Seen, last Place) (Place, error) {
	if node.Index != 0 && node.Index != last.Index {
		last = Place{} // the operator moved the node
	}
	var p Place
	if plan.Parent.Type == netconf.ParentVXLAN {
		p.VTEP = heldVTEP(plan.Parent, seen, last)
	}
	kept, faults := keptShims(plan, seen, last)
	p.Index = cmp.Or(node.Index, shimIndex(plan.HostShim, kept), last.Index, p.vtepIndex(plan.Parent.VTEP.CIDR))
	faults = append(faults, p.shims(plan.HostShim, kept))
	if plan.Parent.Type == netconf.ParentVXLAN {
		faults = append(faults, p.vtep(plan.Parent))
		p.Peers = peers(plan.Parent.Peers, p.VTEP)
	}
	if err := errors.Join(faults...); err != nil {
		return Place{}, cnierr.New(cnierr.InvalidConfig, "who node %s is on %s can't be told: %w", node.NodeName, plan.Parent.Name, err)
	}
	return p, nil
}

// Index is the index that this node must have, 0 for a fresh node: one that is
// free to take any. By its VTEP alone a node has no index yet; see [Held].
func Index(plan *netconf.Plan, node nodefile.File, seen Seen, last Place) int {
	if node.Index != 0 {
		return node.Index
	}
	kept, _ := keptShims(plan, seen, last)
	return cmp.Or(shimIndex(plan.HostShim, kept), last.Index)
}

// Held is the VTEP that a node has already, and the index that it stands for: 0
// for none. A script that numbers nodes gives both the same number, but an address
// of a LAN may have any, so the index is a wish.
func Held(plan *netconf.Plan, seen Seen) (vtep netip.Addr, index int) {
	if plan.Parent.Type != netconf.ParentVXLAN {
		return netip.Addr{}, 0
	}
	p := Place{VTEP: heldVTEP(plan.Parent, seen, Place{})}
	return p.VTEP, p.vtepIndex(plan.Parent.VTEP.CIDR)
}

// heldVTEP is the tunnel address that this node has already: the one the parent
// uses, the one of an earlier run, or any address of the node in the VTEP range
// (without a range: among the peers listed).
func heldVTEP(parent netconf.Parent, seen Seen, last Place) netip.Addr {
	isVTEP := func(a netip.Addr) bool {
		if parent.VTEP.CIDR.IsValid() {
			return parent.VTEP.CIDR.Contains(a)
		}
		return slices.Contains(parent.Peers, a)
	}
	held := slices.DeleteFunc(slices.Clone(seen.Local), func(a netip.Addr) bool { return !isVTEP(a) })
	for _, first := range []netip.Addr{seen.Tunnel, last.VTEP} {
		if slices.Contains(held, first) {
			return first
		}
	}
	if len(held) == 0 {
		if isVTEP(last.VTEP) {
			return last.VTEP // after a reboot
		}
		return netip.Addr{}
	}
	return slices.MinFunc(held, netip.Addr.Compare)
}

// vtep derives the VTEP from the index where none is held.
func (p *Place) vtep(parent netconf.Parent) error {
	if p.VTEP.IsValid() {
		return nil
	}
	cidr := parent.VTEP.CIDR
	switch {
	case !cidr.IsValid():
		return fmt.Errorf("no address of this node is among parent.peers (%s): "+
			"give the node its VTEP address, or set parent.vtep.cidr and the node's index", join(parent.Peers))
	case p.Index == 0:
		return fmt.Errorf("no address of this node is in parent.vtep.cidr %s and it has no index: "+
			"set index in the node file, or give the node its VTEP address", cidr)
	}
	addr, ok := nth(usableOf(cidr), p.Index)
	if !ok {
		return fmt.Errorf("index %d is beyond parent.vtep.cidr %s", p.Index, cidr)
	}
	p.VTEP = addr
	return nil
}

// keptShims are the addresses that this node keeps, one for each host range,
// invalid where an address must be derived. They come first, because one of them
// may tell the index that those of the other family are derived from.
func keptShims(plan *netconf.Plan, seen Seen, last Place) (kept []netip.Addr, faults []error) {
	if plan.HostShim == nil {
		return nil, nil
	}
	for _, hosts := range plan.HostShim.Ranges {
		addr, err := keptShim(plan, hosts, seen, last)
		if err != nil {
			faults = append(faults, err)
		}
		kept = append(kept, addr)
	}
	return kept, faults
}

func keptShim(plan *netconf.Plan, hosts netip.Prefix, seen Seen, last Place) (netip.Addr, error) {
	pinned, before := find(plan.HostShim.Addresses, hosts), find(last.Shim, hosts)
	held := find(seen.OnShim, hosts, pinned, before)
	if !held.IsValid() && plan.Parent.Type == netconf.ParentVXLAN {
		held = find(seen.OnParent, hosts, pinned, before)
	}
	switch {
	case seen.fixed(held):
		return netip.Addr{}, fmt.Errorf("%s on %s is this node's Kubernetes address (InternalIP), which is never moved, but lies in the host range %s, whose addresses are the shims': "+
			"choose a hostShim.range that has no Node's address, or give kubelet another --node-ip", held, plan.Parent.Name, hosts)
	case held.IsValid() && pinned.IsValid() && held != pinned:
		return held, fmt.Errorf("hostShim.address is %s, but this node already has %s of the host range %s: "+
			"sessions may use it, so it isn't changed; set hostShim.address to it, or remove it from the node first", pinned, held, hosts)
	case held.IsValid():
		return held, nil
	case pinned.IsValid():
		return pinned, nil
	default:
		return before, nil // after a reboot
	}
}

// fixed says that an address is this node's Kubernetes address, and not the shim's.
func (s Seen) fixed(addr netip.Addr) bool {
	return slices.Contains(s.Kubernetes, addr) && !slices.Contains(s.OnShim, addr)
}

// shimIndex is the index that a kept address stands for, 0 for none.
func shimIndex(shim *netconf.HostShim, kept []netip.Addr) int {
	for i, addr := range kept {
		if n := ordinal(Usable(shim.Ranges[i], network(shim, i)), addr); n != 0 {
			return n
		}
	}
	return 0
}

// shims fills in the address of each host range.
func (p *Place) shims(shim *netconf.HostShim, kept []netip.Addr) error {
	var faults []error
	for i, addr := range kept {
		hosts := shim.Ranges[i]
		if !addr.IsValid() {
			var ok bool
			addr, ok = nth(Usable(hosts, network(shim, i)), p.Index)
			switch {
			case p.Index == 0:
				faults = append(faults, fmt.Errorf("no address of host range %s is on this node and it has no index: "+
					"set index in the node file, or hostShim.address", hosts))
			case !ok:
				faults = append(faults, fmt.Errorf("index %d is beyond host range %s: widen hostShim.range or give the node a lower index",
					p.Index, hosts))
			}
		}
		p.Shim = append(p.Shim, addr)
	}
	return errors.Join(faults...)
}

// vtepIndex is the index that a held VTEP stands for, 0 for none.
func (p *Place) vtepIndex(cidr netip.Prefix) int {
	if !p.VTEP.IsValid() || !cidr.IsValid() {
		return 0
	}
	return ordinal(usableOf(cidr), p.VTEP)
}

// Usable is the part of a host range that shims may have: all of it but the
// whole network's first and last address. A network of two addresses, or of one,
// has none to spare (RFC 3021, RFC 6164).
func Usable(hosts, network netip.Prefix) netipx.IPRange {
	r := netipx.RangeOfPrefix(hosts)
	if !network.IsValid() {
		network = hosts
	}
	if network.Bits() >= network.Addr().BitLen()-1 {
		return r
	}
	whole := netipx.RangeOfPrefix(network)
	first, last := r.From(), r.To()
	if first == whole.From() {
		first = first.Next()
	}
	if last == whole.To() {
		last = last.Prev()
	}
	return netipx.IPRangeFrom(first, last)
}

func usableOf(p netip.Prefix) netipx.IPRange { return Usable(p, p) }

func network(shim *netconf.HostShim, i int) netip.Prefix {
	if i < len(shim.Networks) {
		return shim.Networks[i]
	}
	return netip.Prefix{}
}

// maxIndex bounds the walks below: an index is a small number, a range of IPv6
// may have no end.
const maxIndex = 1 << 16

// nth is the address that index stands for, counted from 1.
func nth(r netipx.IPRange, index int) (netip.Addr, bool) {
	if index < 1 || index > maxIndex {
		return netip.Addr{}, false
	}
	addr := r.From()
	for i := 1; i < index && r.Contains(addr); i++ {
		addr = addr.Next()
	}
	return addr, r.Contains(addr)
}

// ordinal is the index that addr stands for, 0 for none.
func ordinal(r netipx.IPRange, addr netip.Addr) int {
	if !r.Contains(addr) {
		return 0
	}
	at := r.From()
	for i := 1; i <= maxIndex; i++ {
		if at == addr {
			return i
		}
		at = at.Next()
	}
	return 0
}

// find picks an address that lies in a range: the first of prefer that is among
// addrs, else the first of addrs. The order of addrs is the kernel's, which
// lists IPv6 addresses newest first.
func find(addrs []netip.Addr, in netip.Prefix, prefer ...netip.Addr) netip.Addr {
	for _, a := range slices.Concat(prefer, addrs) {
		if in.Contains(a) && slices.Contains(addrs, a) {
			return a
		}
	}
	return netip.Addr{}
}

// peers are the other nodes' VTEPs, sorted; nil stays nil.
func peers(all []netip.Addr, own netip.Addr) []netip.Addr {
	if all == nil {
		return nil
	}
	others := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if a != own {
			others = append(others, a)
		}
	}
	slices.SortFunc(others, netip.Addr.Compare)
	return slices.Compact(others)
}

func join(addrs []netip.Addr) string {
	texts := make([]string, 0, len(addrs))
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// MAC is the address that a device of ours gets at creation: stable for a node,
// parent and role, locally administered, unicast. id is what no other node has:
// the VTEP, or the shim's address, since node names do repeat ("localhost").
// Giving it at creation keeps systemd-udevd's MACAddressPolicy from changing it
// later (systemd.link(5); flannel 1155).
func MAC(node nodefile.File, parent, role string, id netip.Addr) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "lhstorage/%s/%s/%s/%s", node.NodeName, id, parent, role))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}
