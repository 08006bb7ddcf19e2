// Package hostshim keeps the host's own macvlan child of the parent.
//
// A macvlan parent can't exchange frames with its children; children can with
// each other. A sibling of the pods' interfaces in the host's namespace is
// therefore what lets the host's iSCSI or NVMe initiator reach a target in a pod
// of the same node.
//
// On a VXLAN parent of its own the shim has an address with the network's whole
// prefix, and an address that the parent has of that network moves to it. On a
// NIC, a VLAN or a bond, which may have an address of the same network and the
// default route with it, the shim's address is a host address and only the pods'
// part of the network is routed over it (measured: a second connected route for
// the network loses the host-to-local-pod leg, taking the NIC's address away
// loses the default route).
package hostshim

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/parent"
)

// Neighbours looks for duplicate addresses and tells neighbours of new ones, in
// the namespace that the shim is in.
type Neighbours interface {
	// Probe fails with code 100 when another device on the link holds addr.
	Probe(ctx context.Context, link kernel.Link, addr netip.Addr) error
	// Announce makes every neighbour take link's MAC for addrs at once.
	Announce(link kernel.Link, addrs []netip.Addr) error
	// Settle waits until the kernel's own duplicate detection has passed addr
	// (IPv6), and fails with code 100 when it found another holder.
	Settle(ctx context.Context, link kernel.Link, addr netip.Addr) error
}

// Desired is the shim as this node must have it.
type Desired struct {
	Name   string
	Parent string // the parent device's name
	MAC    net.HardwareAddr
	// Addresses are the shim's, each with the length of the whole network.
	Addresses []netip.Prefix
	// Hosts are the host ranges, in the order of Addresses.
	Hosts []netip.Prefix
	// Owner says that the parent is the storage network's alone: its addresses of
	// the network move to the shim. Otherwise the shim stands beside them.
	Owner bool
	// Excluded is what no pod of any node has, and Pods, where they are known for
	// all nodes, are the parts that pods have: beside a parent's own addresses
	// nothing else is routed over the shim, so that nodes go on reaching each other
	// and their gateway over the parent, with its address.
	// Grace is how long frames to the parent's MAC may still be under way after
	// neighbours were told of the shim's. A parent without addresses drops them with
	// any rp_filter but 0 (__fib_validate_source).
	Grace    time.Duration
	Excluded []netip.Prefix
	Pods     []netipx.IPRange
	// Probe says that an address is looked for on the network before it is set.
	Probe bool
}

// Diff returns the steps that bring the shim nearer to d, none when it is there.
func Diff(ctx context.Context, k kernel.Kernel, n Neighbours, d Desired) ([]kernel.Step, error) {
	lower, err := k.Link(d.Parent)
	if err != nil {
		return nil, err
	}
	link, err := k.Link(d.Name)
	if kernel.IsNotFound(err) {
		return []kernel.Step{create(d, lower)}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := mismatch(k, d, link, lower); err != nil {
		return nil, err
	}
	steps, err := kernel.SysctlSteps(k, "shim.sysctl", settings(d)...)
	if err != nil {
		return nil, err
	}
	if own := slices.Equal(link.MAC, d.MAC); own && link.MTU != lower.MTU {
		steps = append(steps, kernel.Step{Name: "shim.mtu", Text: fmt.Sprintf("set the MTU of %s from %d to %d", link.Name, link.MTU, lower.MTU),
			Do: func(k kernel.Kernel) error { return k.SetLink(link.Index, kernel.Change{MTU: &lower.MTU}) }})
	}
	if !link.Up {
		steps = append(steps, kernel.Step{Name: "shim.up", Text: "bring up " + link.Name,
			Do: func(k kernel.Kernel) error { return k.SetLink(link.Index, kernel.Change{Up: new(true)}) }})
	}
	addresses, err := addresses(ctx, k, n, d, link, lower)
	if err != nil {
		return nil, err
	}
	steps = append(steps, addresses...)
	routes, err := routes(k, d, link)
	if err != nil {
		return nil, err
	}
	steps = append(steps, routes...)
	lengths, err := lengths(k, d, link, lower)
	return append(steps, lengths...), err
}

func create(d Desired, lower kernel.Link) kernel.Step {
	link := kernel.Link{Name: d.Name, Kind: "macvlan", Lower: lower.Index, MAC: d.MAC, Macvlan: kernel.Macvlan{Mode: "bridge"}}
	return kernel.Step{
		Name: "shim.create", Text: fmt.Sprintf("create host shim %s on %s", d.Name, d.Parent),
		Do: func(k kernel.Kernel) error {
			err := k.AddLink(link)
			if err != nil && lower.Master != 0 {
				return fmt.Errorf("%w (%s is a port of another device, which may keep macvlan children away: use that device as the parent)", err, d.Parent)
			}
			return err
		},
	}
}

// mismatch refuses a device that can't be our shim. It is never deleted here:
// the host's sessions run over it.
func mismatch(k kernel.Kernel, d Desired, link, lower kernel.Link) error {
	var diffs []string
	switch {
	case link.Kind != "macvlan":
		diffs = append(diffs, fmt.Sprintf("it is a %s, not a macvlan", link.Kind))
	case link.Lower != lower.Index:
		on := fmt.Sprintf("#%d", link.Lower)
		if l, err := k.LinkByIndex(link.Lower); err == nil {
			on = l.Name
		}
		diffs = append(diffs, fmt.Sprintf("it is a child of %s, not of %s", on, d.Parent))
	case link.Macvlan.Mode != "bridge":
		diffs = append(diffs, fmt.Sprintf("its mode is %s, not bridge", link.Macvlan.Mode))
	}
	if len(diffs) == 0 {
		return nil
	}
	return cnierr.New(cnierr.IncompatibleParent, "device %s can't serve as the host shim of %s: %s. "+
		"Choose another hostShim.name, or, when no volume of this node is attached, `ip link del %s`; the next attachment makes it anew",
		d.Name, d.Parent, strings.Join(diffs, "; "), d.Name)
}

// settings: the shim answers for its own addresses only and asks with them, and
// takes frames from pods whichever way the host would send to them (the value in
// force is the greater of all's and the device's). No router advertisement on
// the storage network may give the host a route.
func settings(d Desired) []kernel.Setting {
	set := func(family, key, value string) kernel.Setting {
		return kernel.Setting{Path: kernel.ConfPath(family, d.Name, key), Value: value}
	}
	list := []kernel.Setting{set("ipv4", "arp_ignore", "1"), set("ipv4", "arp_announce", "2"), set("ipv4", "rp_filter", "2"), set("ipv6", "accept_ra", "0")}
	if slices.ContainsFunc(d.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		list = append(list, set("ipv6", "disable_ipv6", "0"), set("ipv6", "keep_addr_on_down", "1"),
			set("ipv6", "router_solicitation_delay", "0")) // which also is what duplicate address detection waits for (addrconf_dad_kick)
	}
	return list
}

// addresses adds what is missing and, where the parent is the network's own,
// moves the parent's addresses of the network. The order loses no packet
// (measured with every rp_filter; the naive order lost 65 % with 1): on the shim,
// announced, then off the parent, announced again.
func addresses(ctx context.Context, k kernel.Kernel, n Neighbours, d Desired, link, lower kernel.Link) ([]kernel.Step, error) {
	all, err := k.Addrs()
	if err != nil {
		return nil, err
	}
	var steps []kernel.Step
	for _, want := range d.Addresses {
		if holder, ok := elsewhere(all, want.Addr(), link.Index, lower.Index, d.Owner); ok {
			return nil, held(k, want.Addr(), holder)
		}
		i := slices.IndexFunc(all, func(a kernel.Addr) bool { return a.Link == link.Index && a.Prefix.Addr() == want.Addr() })
		moving := slices.ContainsFunc(all, func(a kernel.Addr) bool { return a.Link == lower.Index && a.Prefix.Addr() == want.Addr() })
		switch {
		case i >= 0 && all[i].DADFailed: // the kernel never tries it again
			steps = append(steps, kernel.Step{Name: "shim.duplicate", Text: fmt.Sprintf("take %s, found a duplicate, off %s", want.Addr(), d.Name),
				Do: func(k kernel.Kernel) error { return k.DelAddr(all[i]) }}, add(ctx, n, d, link, want, d.Probe && !moving))
		case i < 0:
			steps = append(steps, add(ctx, n, d, link, want, d.Probe && !moving))
		case all[i].Tentative: // nobody can use it yet; who set it may have been killed
			steps = append(steps, settle(ctx, n, d, link, all[i]))
		}
	}
	if d.Owner {
		steps = append(steps, moves(n, d, all, link, lower)...)
	}
	return steps, nil
}

// elsewhere finds a third device of this host that has the shim's address: two
// of them would answer for it.
func elsewhere(all []kernel.Addr, addr netip.Addr, shim, lower int, owner bool) (holder int, found bool) {
	for _, a := range all {
		if a.Prefix.Addr() == addr && a.Link != shim && (a.Link != lower || !owner) {
			return a.Link, true
		}
	}
	return 0, false
}

func held(k kernel.Kernel, addr netip.Addr, holder int) error {
	name := fmt.Sprintf("#%d", holder)
	if l, err := k.LinkByIndex(holder); err == nil {
		name = l.Name
	}
	return cnierr.New(cnierr.DuplicateAddress, "the host shim's address %s is on %s of this node already: "+
		"give the node another index, or take the address off %s (it stays on a parent that isn't the storage network's own)", addr, name, name)
}

func add(ctx context.Context, n Neighbours, d Desired, link kernel.Link, want netip.Prefix, probe bool) kernel.Step {
	prefix := d.length(want)
	addr := kernel.Addr{Link: link.Index, Prefix: prefix, NoDAD: !probe}
	return kernel.Step{
		Name: "shim.address", Text: fmt.Sprintf("give %s the address %s", d.Name, prefix),
		Do: func(k kernel.Kernel) error {
			if probe {
				if err := n.Probe(ctx, link, addr.Prefix.Addr()); err != nil {
					return err
				}
			}
			if err := k.AddAddr(addr); err != nil && !kernel.IsExists(err) {
				return err
			}
			if err := fault.At("ensure.shim.address.set"); err != nil {
				return err
			}
			if probe {
				if err := n.Settle(ctx, link, addr.Prefix.Addr()); err != nil {
					return fmt.Errorf("%w%s", err, takeOff(k, addr))
				}
			}
			return n.Announce(link, []netip.Addr{addr.Prefix.Addr()})
		},
	}
}

// settle waits until the kernel lets an address be used.
func settle(ctx context.Context, n Neighbours, d Desired, link kernel.Link, addr kernel.Addr) kernel.Step {
	return kernel.Step{
		Name: "shim.settle", Text: fmt.Sprintf("wait for the kernel's duplicate address detection for %s on %s", addr.Prefix.Addr(), d.Name),
		Do: func(k kernel.Kernel) error {
			err := n.Settle(ctx, link, addr.Prefix.Addr())
			if cnierr.CodeOf(err) == cnierr.DuplicateAddress {
				return fmt.Errorf("%w%s", err, takeOff(k, addr))
			}
			if err != nil { // it takes longer than we wait, without a carrier for one
				return err
			}
			return n.Announce(link, []netip.Addr{addr.Prefix.Addr()})
		},
	}
}

// takeOff undoes an address that turned out to be a duplicate; what stood in the
// way of that is text for the error, "" if nothing did.
func takeOff(k kernel.Kernel, a kernel.Addr) string {
	if err := k.DelAddr(a); err != nil && !kernel.IsNotFound(err) {
		return "; and it could not be taken off again: " + err.Error()
	}
	return ""
}

func moves(n Neighbours, d Desired, all []kernel.Addr, link, lower kernel.Link) []kernel.Step {
	var steps []kernel.Step
	// Last first: with an address the kernel takes away those that were added
	// later within its prefix, before they have moved.
	for _, a := range slices.Backward(kernel.AddrsOf(all, lower.Index)) {
		if !slices.ContainsFunc(d.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(a.Prefix.Addr()) }) {
			continue
		}
		onShim := slices.ContainsFunc(all, func(o kernel.Addr) bool { return o.Link == link.Index && o.Prefix.Addr() == a.Prefix.Addr() })
		ours := slices.ContainsFunc(d.Addresses, func(p netip.Prefix) bool { return p.Addr() == a.Prefix.Addr() })
		steps = append(steps, kernel.Step{
			Name: "shim.move", Text: fmt.Sprintf("move %s from %s to %s", a.Prefix, d.Parent, d.Name),
			Do: func(k kernel.Kernel) error {
				if !onShim && !ours { // a second address of the network: it keeps its prefix
					moved := kernel.Addr{Link: link.Index, Prefix: a.Prefix, NoDAD: true}
					if err := k.AddAddr(moved); err != nil && !kernel.IsExists(err) {
						return err
					}
				}
				if onShim || !ours { // else it was announced when the shim got it
					if err := n.Announce(link, []netip.Addr{a.Prefix.Addr()}); err != nil {
						return err
					}
				}
				time.Sleep(d.Grace)
				if err := fault.At("ensure.shim.move.copied"); err != nil {
					return err
				}
				if err := k.DelAddr(a); err != nil && !kernel.IsNotFound(err) {
					return err
				}
				if err := fault.At("ensure.shim.move.moved"); err != nil {
					return err
				}
				return n.Announce(link, []netip.Addr{a.Prefix.Addr()})
			},
		})
	}
	return steps
}

// length is the prefix that an address has on the shim.
func (d Desired) length(want netip.Prefix) netip.Prefix {
	if d.Owner {
		return want
	}
	return netip.PrefixFrom(want.Addr(), want.Addr().BitLen())
}

// lengths mends the prefix length that a script gave an address which the shim
// keeps: beside a NIC's address of the same network it would bring a second route
// to the whole of it. It comes after the routes, and the right one is there before
// the wrong one goes. IPv6 allows an address once on a device, so there a length
// could only be changed by taking it away: it stays.
func lengths(k kernel.Kernel, d Desired, link, lower kernel.Link) ([]kernel.Step, error) {
	all, err := k.Addrs()
	if err != nil {
		return nil, err
	}
	var steps []kernel.Step
	for _, a := range kernel.AddrsOf(all, link.Index) {
		for _, want := range d.Addresses {
			right := d.length(want)
			if a.Prefix.Addr() != want.Addr() || a.Prefix == right || !right.Addr().Is4() {
				continue
			}
			if !d.Owner && !hasAddress(all, lower.Index, want) {
				continue // no second route to it: the script's length does no harm, and other nodes are reached by it
			}
			steps = append(steps, kernel.Step{
				Name: "shim.length", Text: fmt.Sprintf("change %s on %s to %s", a.Prefix, d.Name, right),
				Do: func(k kernel.Kernel) error {
					if err := k.AddAddr(kernel.Addr{Link: link.Index, Prefix: right}); err != nil && !kernel.IsExists(err) {
						return err
					}
					if err := fault.At("ensure.shim.length.added"); err != nil {
						return err
					}
					return k.DelAddr(a)
				},
			})
		}
	}
	return steps, nil
}

// hasAddress says that a device has an address of a network.
func hasAddress(all []kernel.Addr, index int, network netip.Prefix) bool {
	return slices.ContainsFunc(kernel.AddrsOf(all, index), func(a kernel.Addr) bool { return network.Masked().Contains(a.Prefix.Addr()) })
}

// routes: beside a parent's own addresses the pods' part of the network is
// routed over the shim, with the shim's address as source.
func routes(k kernel.Kernel, d Desired, link kernel.Link) ([]kernel.Step, error) {
	if !link.Up {
		return nil, nil // the next round, once it is up
	}
	var want []kernel.Route
	if !d.Owner {
		for i, a := range d.Addresses {
			for _, p := range d.podsPart(a.Masked(), d.Hosts[i]) {
				want = append(want, kernel.Route{Dst: p, Link: link.Index, Src: a.Addr(), Protocol: kernel.RouteProtocol})
			}
		}
	}
	have, err := k.Routes(kernel.RouteProtocol)
	if err != nil {
		return nil, err
	}
	have = slices.DeleteFunc(have, func(r kernel.Route) bool { return r.Link != link.Index })
	return parent.DiffOwnRoutes(k, "shim.route", have, want)
}

// podsPart is the part of a network that pods have, as the fewest prefixes.
func (d Desired) podsPart(network, hosts netip.Prefix) []netip.Prefix {
	var b, pods netipx.IPSetBuilder
	b.AddPrefix(network)
	for _, r := range d.Pods {
		pods.AddRange(r)
	}
	if known, err := pods.IPSet(); err == nil && len(d.Pods) > 0 {
		b.Intersect(known)
	}
	b.RemovePrefix(hosts)
	for _, p := range d.Excluded {
		b.RemovePrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return nil // only prefixes that netipx calls invalid; the configuration's are checked
	}
	return set.Prefixes()
}
