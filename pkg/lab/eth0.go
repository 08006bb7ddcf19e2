package lab

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	movedIndex  = 5000 // ifindexes that an eth0 gets which is moved in, from here on
	gatewayHost = 1    // last byte of the nodes' end
	maxEth0     = 250  // per node
)

// addEth0 gives the pod a cluster interface, if it was asked for: a veth to its
// node, addressed by the pod's place on the node.
func (l *Lab) addEth0(node Node, pod Pod) error {
	if pod.Eth0 == Eth0None {
		return nil
	}
	place := pod.Eth0Place
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("veth%d", place)
	veth := netlink.NewVeth(attrs)
	target, err := netns.GetFromName(pod.Netns)
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // read only
	switch pod.Eth0 {
	case Eth0Inside:
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(target))
		err = within(node.Netns, func() error { return netlink.LinkAdd(veth) })
	case Eth0Moved:
		err = within(node.Netns, func() error { return moveIn(veth, place, int(target)) })
	default:
		err = fmt.Errorf("%q: want %q, %q or nothing", pod.Eth0, Eth0Inside, Eth0Moved)
	}
	if err != nil {
		return err
	}
	gateway := netip.PrefixFrom(nth(podNetwork, node.Index<<8+gatewayHost), 32)
	address := netip.PrefixFrom(nth(podNetwork, node.Index<<8+gatewayHost+place), 32)
	if err := within(node.Netns, func() error { return route(attrs.Name, gateway, address) }); err != nil {
		return err
	}
	return within(pod.Netns, func() error { return route("eth0", address, gateway) })
}

// moveIn makes the pair on the node, with an ifindex that the end in the pod
// keeps, and moves that end.
func moveIn(veth *netlink.Veth, place, target int) error {
	inner := netlink.NewLinkAttrs()
	inner.Name, inner.Index = fmt.Sprintf("tmp%d", place), movedIndex+place
	outer := veth.Name
	veth.LinkAttrs, veth.PeerName = inner, outer
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	link, err := netlinksafe.LinkByName(inner.Name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, "eth0"); err != nil {
		return err
	}
	return netlink.LinkSetNsFd(link, target)
}

// route gives a device its address and makes the other end reachable over it.
func route(device string, own, other netip.Prefix) error {
	if err := configure(device, own); err != nil {
		return err
	}
	link, err := netlinksafe.LinkByName(device)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(other), Src: own.Addr().AsSlice()}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %s over %s: %w", other, device, err)
	}
	return nil
}

// freePlace numbers the pods of a node that have an eth0, from 1.
func freePlace(node string, pods []Pod) (int, error) {
	taken := map[int]bool{}
	for _, pod := range pods {
		if pod.Node == node {
			taken[pod.Eth0Place] = true
		}
	}
	for place := 1; place <= maxEth0; place++ {
		if !taken[place] {
			return place, nil
		}
	}
	return 0, fmt.Errorf("node %s has %d pods with an eth0 already", node, maxEth0)
}
