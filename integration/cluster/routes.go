package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/lhstorage/lhstorage/integration/controlplane"
)

// pods is the network of the nodes' pods: node n has 10.244.n.0/24.
var pods = netip.MustParsePrefix("10.244.0.0/16")

// podNetwork is the part of pods that a node has.
func podNetwork(index int) netip.Prefix {
	b := pods.Addr().As4()
	b[2] = byte(index)
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

// route lets a node forward, and makes the routes between pods, Services and
// nodes: without an overlay or translation, as on a flat network.
func (n *Node) route() error {
	err := n.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
			return fmt.Errorf("let the node forward: %w", err)
		}
		faults := []error{routeTo(controlplane.Services, controlplane.APIAddress)}
		for _, other := range n.cluster.Nodes {
			if other != n {
				faults = append(faults, routeTo(podNetwork(other.Lab.Index), other.Address))
			}
		}
		return errors.Join(faults...)
	})
	if err != nil {
		return fmt.Errorf("make the routes of %s: %w", n.Name, err)
	}
	return nil
}

// routeBack makes the control plane's routes to the pods.
func (c *Cluster) routeBack() error {
	return c.Within(func() error {
		var faults []error
		for _, n := range c.Nodes {
			faults = append(faults, routeTo(podNetwork(n.Lab.Index), n.Address))
		}
		return errors.Join(faults...)
	})
}

func routeTo(to netip.Prefix, via netip.Addr) error {
	mask := net.CIDRMask(to.Bits(), to.Addr().BitLen())
	if err := netlink.RouteReplace(&netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: mask}, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route to %s via %s: %w", to, via, err)
	}
	return nil
}
