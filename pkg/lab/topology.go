package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go4.org/netipx"
)

const switchDevice = "br0"

// connect makes the underlay between the nodes.
func (l *Lab) connect(ctx context.Context) error {
	if l.opts.Topology == TopologyLAN {
		return l.connectLAN(ctx)
	}
	return l.connectMesh(ctx)
}

func (l *Lab) connectMesh(ctx context.Context) error {
	nodes := l.Nodes()
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			if err := stopped(ctx); err != nil {
				return err
			}
			addrA, addrB := l.opts.meshLink(a.Index, b.Index)
			if err := l.makeVeth(a.Netns, linkTo(b.Name), b.Netns, linkTo(a.Name)); err != nil {
				return err
			}
			if err := within(a.Netns, func() error { return configure(linkTo(b.Name), addrA) }); err != nil {
				return fmt.Errorf("node %s: %w", a.Name, err)
			}
			if err := within(b.Netns, func() error { return configure(linkTo(a.Name), addrB) }); err != nil {
				return fmt.Errorf("node %s: %w", b.Name, err)
			}
		}
	}
	return nil
}

func (l *Lab) connectLAN(ctx context.Context) error {
	if err := within(l.opts.lanNetns(), l.makeSwitch); err != nil {
		return fmt.Errorf("make the LAN's switch: %w", err)
	}
	for _, node := range l.Nodes() {
		if err := stopped(ctx); err != nil {
			return err
		}
		port := "to-" + node.Name
		if err := l.makeVeth(node.Netns, lanDevice, l.opts.lanNetns(), port); err != nil {
			return err
		}
		if err := within(l.opts.lanNetns(), func() error { return plugIn(port) }); err != nil {
			return fmt.Errorf("LAN: %w", err)
		}
		if err := within(node.Netns, func() error { return l.joinLAN(node) }); err != nil {
			return fmt.Errorf("node %s: %w", node.Name, err)
		}
	}
	return nil
}

func (l *Lab) makeSwitch() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = switchDevice, l.opts.MTU
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", switchDevice, err)
	}
	return configure(switchDevice, l.opts.gateway())
}

func plugIn(port string) error {
	bridge, err := netlinksafe.LinkByName(switchDevice)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", switchDevice, err)
	}
	link, err := netlinksafe.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s: %w", port, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", port, switchDevice, err)
	}
	return netlink.LinkSetUp(link)
}

func (l *Lab) joinLAN(node Node) error {
	if err := configure(lanDevice, node.LAN); err != nil {
		return err
	}
	gateway := l.opts.gateway().Addr()
	if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("default route via %s: %w", gateway, err)
	}
	return nil
}

// makeVeth makes a pair directly in both namespaces: nothing is moved, and no
// name is used in this one.
func (l *Lab) makeVeth(netnsA, nameA, netnsB, nameB string) error {
	other, err := netns.GetFromName(netnsB)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", netnsB, err)
	}
	defer other.Close() //nolint:errcheck // read only
	err = within(netnsA, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = nameA, l.opts.MTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = nameB, netlink.NsFd(int(other))
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("add veth %s in %s to %s in %s: %w", nameA, netnsA, nameB, netnsB, err)
	}
	return nil
}

// configure gives a device of the current namespace an address and brings it up.
func configure(device string, address netip.Prefix) error {
	link, err := netlinksafe.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return fmt.Errorf("add %s to %s: %w", address, device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", device, err)
	}
	return nil
}

// ipNet keeps the host bits, as an interface's address needs.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: netipx.PrefixIPNet(p.Masked()).Mask}
}
