package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// Network is a storage network of this node.
type Network struct {
	Parent netconf.Parent
	Shim   string         // the host shim's name, "" where the network has none
	Addrs  []netip.Prefix // the shim's, with the network's length
	VTEP   netip.Addr     // vxlan: this node's
	Peers  []netip.Addr   // vxlan: the other nodes' VTEPs; nil: not known
}

// Describe works out what the firewall must know of a node's networks, from what
// they are and what the kernel has. A peer that only a flood entry names, a node
// that a script still looks after, is one.
func Describe(k kernel.Kernel, networks []Network, allowed []Port) (Desired, error) {
	d := Desired{Allowed: allowed}
	links, err := k.Links()
	if err != nil {
		return d, err
	}
	addrs, err := k.Addrs()
	if err != nil {
		return d, err
	}
	for _, n := range networks {
		i := slices.IndexFunc(links, func(l kernel.Link) bool { return l.Name == n.Parent.Name })
		if i < 0 {
			continue // the node isn't ready yet; nothing enters by what isn't there
		}
		p, err := parentOf(k, n, links[i], links, addrs)
		if err != nil {
			return d, err
		}
		d.addParent(p)
		d.addShim(n)
	}
	return d, nil
}

func parentOf(k kernel.Kernel, n Network, link kernel.Link, links []kernel.Link, addrs []kernel.Addr) (Parent, error) {
	has := slices.ContainsFunc(kernel.AddrsOf(addrs, link.Index), func(a kernel.Addr) bool { return !a.Prefix.Addr().IsLinkLocalUnicast() })
	p := Parent{Name: link.Name, Own: n.Parent.Type != netconf.ParentDevice && !has}
	if n.Parent.Type != netconf.ParentVXLAN || link.Kind != "vxlan" {
		return p, nil
	}
	p.VNI, p.Port, p.VTEP = link.VXLAN.VNI, link.VXLAN.Port, n.VTEP
	p.Shared = slices.ContainsFunc(links, func(o kernel.Link) bool {
		return o.Kind == "vxlan" && o.Index != link.Index && o.VXLAN.Port == link.VXLAN.Port
	})
	if n.Peers == nil {
		return p, nil
	}
	flood, err := k.Flood(link.Index)
	if err != nil {
		return p, fmt.Errorf("who the peers of %s are: %w", link.Name, err)
	}
	p.Peers = ordered(slices.Concat([]netip.Addr{}, n.Peers, flood))
	return p, nil
}

// ordered has each address once, in an order that doesn't depend on the kernel's: what is the same reads the same.
func ordered(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// addParent adds a parent, or its peers where another network has it too.
func (d *Desired) addParent(p Parent) {
	i := slices.IndexFunc(d.Parents, func(o Parent) bool { return o.Name == p.Name })
	if i < 0 {
		d.Parents = append(d.Parents, p)
		return
	}
	if d.Parents[i].Peers != nil && p.Peers != nil {
		d.Parents[i].Peers = ordered(append(d.Parents[i].Peers, p.Peers...))
	}
}

func (d *Desired) addShim(n Network) {
	if n.Shim == "" {
		return
	}
	i := slices.IndexFunc(d.Shims, func(s Shim) bool { return s.Name == n.Shim })
	if i < 0 {
		d.Shims = append(d.Shims, Shim{Name: n.Shim, Parent: n.Parent.Name})
		i = len(d.Shims) - 1
	}
	for _, a := range n.Addrs {
		d.Shims[i].Addresses = append(d.Shims[i].Addresses, a.Addr())
		d.Shims[i].Ranges = append(d.Shims[i].Ranges, a.Masked())
	}
}
