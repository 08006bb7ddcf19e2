package parent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// DiffVTEP returns the steps that put the VTEP on this node. An address that any
// device has already stays where it is; otherwise it goes as a host address on
// conf.Interface, made as a dummy, or on lo where this kernel has no dummies.
func DiffVTEP(k kernel.Kernel, conf netconf.VTEP, vtep netip.Addr) ([]kernel.Step, error) {
	addrs, err := k.Addrs()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(addrs, func(a kernel.Addr) bool { return a.Prefix.Addr() == vtep })
	link, err := k.Link(conf.Interface)
	if kernel.IsNotFound(err) {
		if i >= 0 {
			return nil, nil
		}
		return createDummy(conf.Interface, vtep), nil
	}
	if err != nil {
		return nil, err
	}
	if i >= 0 && (addrs[i].Link != link.Index || link.Up) {
		return nil, nil
	}
	var steps []kernel.Step
	if !link.Up {
		steps = append(steps, setLink("vtep.up", "bring up "+link.Name, link.Index, kernel.Change{Up: new(true)}))
	}
	if i >= 0 {
		return steps, nil
	}
	return append(steps, vtepStep(link, vtep)), nil
}

func createDummy(name string, vtep netip.Addr) []kernel.Step {
	return []kernel.Step{{
		Name: "vtep.create", Text: fmt.Sprintf("make %s for the VTEP %s (lo serves where the kernel has no dummies)", name, vtep),
		Do: func(k kernel.Kernel) error {
			err := k.AddLink(kernel.Link{Name: name, Kind: "dummy"})
			if err == nil || !kernel.IsNotSupported(err) {
				return ignore(err, kernel.IsExists)
			}
			lo, loErr := k.Link("lo")
			if loErr != nil {
				return errors.Join(err, loErr)
			}
			return vtepStep(lo, vtep).Do(k)
		},
	}}
}

func vtepStep(link kernel.Link, vtep netip.Addr) kernel.Step {
	return kernel.Step{
		Name: "vtep.address", Text: fmt.Sprintf("put the VTEP %s on %s", vtep, link.Name),
		Do: func(k kernel.Kernel) error {
			a := kernel.Addr{Link: link.Index, Prefix: netip.PrefixFrom(vtep, vtep.BitLen()), NoDAD: true}
			return ignore(k.AddAddr(a), kernel.IsExists)
		},
	}
}

// DiffRoutes returns the steps that make the routes to the peers' VTEPs
// (parent.vtep.routes: static) and take away those of peers that are gone. Only
// routes with our protocol number are ours; a peer that another route leads to
// exactly, a routing daemon's say, is left to it.
func DiffRoutes(k kernel.Kernel, conf netconf.VTEP, peers []netip.Addr) ([]kernel.Step, error) {
	if !conf.Routes || peers == nil { // not known: what is there stays
		return nil, nil
	}
	want, err := routes(k, conf, peers)
	if err != nil {
		return nil, err
	}
	have, err := k.Routes(kernel.RouteProtocol)
	if err != nil {
		return nil, err
	}
	have = slices.DeleteFunc(have, func(r kernel.Route) bool { return !conf.CIDR.Contains(r.Dst.Addr()) })
	return DiffOwnRoutes(k, "route", have, want)
}

// DiffOwnRoutes compares routes of ours; have must be those of our protocol that
// the caller answers for. A wrong one goes before the right one comes: the
// kernel keeps one route for a destination and metric.
func DiffOwnRoutes(k kernel.Kernel, name string, have, want []kernel.Route) ([]kernel.Step, error) {
	var steps []kernel.Step
	for _, r := range have {
		if !slices.Contains(want, r) {
			steps = append(steps, kernel.Step{Name: name + ".del", Text: "delete the route " + describe(k, r),
				Do: func(k kernel.Kernel) error { return ignore(k.DelRoute(r), kernel.IsNotFound) }})
		}
	}
	missing := slices.DeleteFunc(slices.Clone(want), func(r kernel.Route) bool { return slices.Contains(have, r) })
	if len(missing) == 0 {
		return steps, nil
	}
	all, err := k.Routes(0)
	if err != nil {
		return nil, err
	}
	for _, r := range missing {
		foreign := slices.ContainsFunc(all, func(o kernel.Route) bool { return o.Dst == r.Dst && o.Protocol != kernel.RouteProtocol })
		if !foreign {
			steps = append(steps, kernel.Step{Name: name + ".add", Text: "add the route " + describe(k, r),
				Do: func(k kernel.Kernel) error { return k.AddRoute(r) }})
		}
	}
	return steps, nil
}

// describe names the route's device, where it can be found.
func describe(k kernel.Kernel, r kernel.Route) string {
	link, err := k.LinkByIndex(r.Link)
	if err != nil {
		return r.String()
	}
	return strings.Replace(r.String(), fmt.Sprintf("dev #%d", r.Link), "dev "+link.Name, 1)
}

func routes(k kernel.Kernel, conf netconf.VTEP, peers []netip.Addr) ([]kernel.Route, error) {
	var want []kernel.Route
	var faults []error
	for _, peer := range peers {
		via, ok := conf.Via[peer.String()]
		if !ok {
			continue // reached by what the node has, its default route for one
		}
		r, err := routeVia(k, peer, via)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		want = append(want, r)
	}
	if len(faults) > 0 {
		return nil, cnierr.New(cnierr.InvalidConfig, "%w", errors.Join(faults...))
	}
	return want, nil
}

// routeVia turns a value of parent.vtep.via into a route. A device that has a
// point-to-point prefix (/31, RFC 3021; /127, RFC 6164) leads to the other end.
func routeVia(k kernel.Kernel, peer netip.Addr, via string) (kernel.Route, error) {
	r := kernel.Route{Dst: netip.PrefixFrom(peer, peer.BitLen()), Protocol: kernel.RouteProtocol}
	if hop, err := netip.ParseAddr(via); err == nil {
		out, err := k.RouteTo(hop)
		if err != nil {
			return r, fmt.Errorf("parent.vtep.via: %s for peer %s can't be reached from this node: %w", via, peer, err)
		}
		r.Via, r.Link = hop, out.Link
		return r, nil
	}
	link, err := k.Link(via)
	if err != nil {
		return r, fmt.Errorf("parent.vtep.via: %s for peer %s is neither an address nor a device of this node: %w", via, peer, err)
	}
	r.Link = link.Index
	addrs, err := k.Addrs()
	if err != nil {
		return r, err
	}
	for _, a := range kernel.AddrsOf(addrs, link.Index) {
		if p := a.Prefix; p.Bits() == p.Addr().BitLen()-1 && p.Addr().Is4() == peer.Is4() {
			r.Via = p.Masked().Addr()
			if r.Via == p.Addr() {
				r.Via = r.Via.Next()
			}
		}
	}
	return r, nil
}

// VXLAN overhead in bytes: outer IP, UDP and VXLAN headers and the inner
// Ethernet header (RFC 7348, section 5).
const (
	overheadIPv4 = 20 + 8 + 8 + 14
	overheadIPv6 = 40 + 8 + 8 + 14
)

// AutoMTU works out the MTU of a vxlan parent in bytes: the smallest route MTU
// over all peers less the encapsulation. Without a reachable peer it is that of
// the underlay.
func AutoMTU(k kernel.Kernel, vtep netip.Addr, peers []netip.Addr) (int, error) {
	overhead := overheadIPv4
	if vtep.Is6() {
		overhead = overheadIPv6
	}
	smallest, err := smallestRoute(k, peers)
	if err != nil {
		return 0, err
	}
	if smallest == 0 {
		mtu, err := underlayMTU(k)
		if err != nil {
			return 0, err
		}
		smallest = mtu
	}
	if smallest-overhead < minMTU {
		return 0, cnierr.New(cnierr.MTUMismatch, "the route to a peer VTEP carries %d bytes, too few for VXLAN (%d bytes of headers): "+
			"raise the underlay's MTU", smallest, overhead)
	}
	return smallest - overhead, nil
}

// smallestRoute is the smallest MTU of the routes to peers, 0 where none can be reached: a peer that is away must not keep pods from
// starting. A thousand peers are behind a few devices, so each of those is asked once.
func smallestRoute(k kernel.Kernel, peers []netip.Addr) (int, error) {
	routes, err := k.RoutesTo(peers)
	if err != nil {
		return 0, err
	}
	smallest := 0
	devices := map[int]int{} // MTU by index; 0 for one that is gone
	for _, r := range routes {
		if r.MTU == 0 {
			mtu, known := devices[r.Link]
			if !known {
				if link, err := k.LinkByIndex(r.Link); err == nil {
					mtu = link.MTU
				}
				devices[r.Link] = mtu
			}
			r.MTU = mtu
		}
		if r.MTU != 0 && (smallest == 0 || r.MTU < smallest) {
			smallest = r.MTU
		}
	}
	return smallest, nil
}

const minMTU = 576 // what every IPv4 host must take, RFC 1122 section 3.3.2

// underlayMTU is the smallest MTU among the devices that could carry the tunnel,
// so that no later peer is met with frames that its link drops.
func underlayMTU(k kernel.Kernel) (int, error) {
	links, err := k.Links()
	if err != nil {
		return 0, err
	}
	addrs, err := k.Addrs()
	if err != nil {
		return 0, err
	}
	smallest := 0
	for _, l := range links {
		carrier := l.Up && l.Name != "lo" && !slices.Contains([]string{"dummy", "macvlan", "vxlan"}, l.Kind)
		routable := slices.ContainsFunc(kernel.AddrsOf(addrs, l.Index), func(a kernel.Addr) bool { return !a.Prefix.Addr().IsLinkLocalUnicast() })
		if carrier && routable && (smallest == 0 || l.MTU < smallest) {
			smallest = l.MTU
		}
	}
	if smallest == 0 {
		return 0, cnierr.New(cnierr.InvalidConfig, "no device of this node has an address that could carry the tunnel: "+
			"bring the underlay up, or set parent.mtu")
	}
	return smallest, nil
}
