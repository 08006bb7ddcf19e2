package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// makeStockParent does what an administrator's script has to do before stock
// macvlan can be used: the VTEP, a route to each peer, a VXLAN device with one
// zero-MAC entry per peer, and the host's address on that device.
func (l *Lab) makeStockParent(node Node) error {
	var err error
	if l.opts.Topology == TopologyMesh {
		err = within(node.Netns, func() error { return l.makeVTEP(node) })
	}
	if err == nil {
		err = l.addVXLAN(node)
	}
	if err == nil {
		err = within(node.Netns, func() error { return configure(vxlanDevice, node.Host) })
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node.Name, err)
	}
	return nil
}

func (l *Lab) makeVTEP(node Node) error {
	if err := configure("lo", netip.PrefixFrom(node.VTEP, 32)); err != nil {
		return err
	}
	for _, peer := range l.peers(node) {
		low, high := l.opts.meshLink(min(node.Index, peer.Index), max(node.Index, peer.Index))
		next := high
		if peer.Index < node.Index {
			next = low
		}
		route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(peer.VTEP, 32)), Gw: next.Addr().AsSlice(), Src: node.VTEP.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route to VTEP %s via %s: %w", peer.VTEP, next.Addr(), err)
		}
	}
	return nil
}

func (l *Lab) peers(node Node) []Node {
	var peers []Node
	for _, n := range l.Nodes() {
		if n.Index != node.Index {
			peers = append(peers, n)
		}
	}
	return peers
}

func (l *Lab) addVXLAN(node Node) error {
	vxlan := kernel.VXLAN{VNI: vni, Port: vxlanPort, Local: node.VTEP, Learning: !l.opts.NoLearning}
	return onKernel(node, func(k kernel.Kernel) error {
		if err := k.AddLink(kernel.Link{Name: vxlanDevice, Kind: "vxlan", MTU: l.opts.MTU - vxlanHeaders, VXLAN: vxlan}); err != nil {
			return err
		}
		link, err := k.Link(vxlanDevice)
		if err != nil {
			return err
		}
		for _, peer := range l.peers(node) {
			if err := k.AddFlood(link.Index, peer.VTEP); err != nil {
				return err
			}
		}
		return nil
	})
}

// onKernel gives f a node's kernel.
func onKernel(node Node, f func(kernel.Kernel) error) error {
	target, err := ns.GetNS(netnsPath(node.Netns))
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // read only
	k, err := kernel.In(target)
	if err != nil {
		return err
	}
	defer k.Close()
	return f(k)
}

// SetLearning turns the learning of MAC addresses on or off on every node's
// VXLAN parent and forgets what was learned. Without it, as the source design
// had it, each frame goes to all peers.
func (l *Lab) SetLearning(on bool) error {
	if l.opts.Parent != ParentVXLAN {
		return fmt.Errorf("lab %s: parent %s doesn't learn: it is no VXLAN", l.opts.Name, l.opts.Parent)
	}
	var errs []error
	for _, node := range l.Nodes() {
		if err := setLearning(node, on); err != nil {
			errs = append(errs, fmt.Errorf("node %s: set learning on %s: %w", node.Name, vxlanDevice, err))
		}
	}
	return errors.Join(errs...)
}

func setLearning(node Node, on bool) error {
	return onKernel(node, func(k kernel.Kernel) error {
		link, err := k.Link(vxlanDevice)
		if err != nil {
			return err
		}
		if err := k.SetLink(link.Index, kernel.Change{Learning: &on}); err != nil {
			return err
		}
		return within(node.Netns, func() error { return forgetLearned(link.Index) })
	})
}

// forgetLearned removes the FDB's entries, except those that say where frames
// without a known destination go.
func forgetLearned(ifindex int) error {
	const tries = 5
	var entries []netlink.Neigh
	var err error = netlink.ErrDumpInterrupted
	for i := 0; i < tries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		entries, err = netlink.NeighList(ifindex, unix.AF_BRIDGE) //nolint:forbidigo // repeated here: the packages named don't have it
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.State&netlink.NUD_PERMANENT != 0 { // the zero MAC's entries
			continue
		}
		if err := netlink.NeighDel(&entry); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget %s: %w", entry.HardwareAddr, err)
		}
	}
	return nil
}
