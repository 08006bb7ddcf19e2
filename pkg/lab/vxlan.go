package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// zeroMAC is the FDB key for frames whose destination isn't known.
var zeroMAC = make(net.HardwareAddr, 6)

// makeStockParent does what an administrator's script has to do before stock
// macvlan can be used: the VTEP, a route to each peer, a VXLAN device with one
// zero-MAC entry per peer, and the host's address on that device.
func (l *Lab) makeStockParent(node Node) error {
	err := within(node.Netns, func() error {
		if l.opts.Topology == TopologyMesh {
			if err := l.makeVTEP(node); err != nil {
				return err
			}
		}
		if err := l.addVXLAN(node); err != nil {
			return err
		}
		if err := configure(vxlanDevice, node.Host); err != nil {
			return err
		}
		return l.addPeers(node)
	})
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
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = vxlanDevice, l.opts.MTU-vxlanHeaders
	vxlan := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: vxlanPort, SrcAddr: node.VTEP.AsSlice(), Learning: !l.opts.NoLearning}
	if err := netlink.LinkAdd(vxlan); err != nil {
		return fmt.Errorf("add %s: %w", vxlanDevice, err)
	}
	return nil
}

func (l *Lab) addPeers(node Node) error {
	link, err := netlink.LinkByName(vxlanDevice)
	if err != nil {
		return fmt.Errorf("find %s: %w", vxlanDevice, err)
	}
	for _, peer := range l.peers(node) {
		entry := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, HardwareAddr: zeroMAC, IP: peer.VTEP.AsSlice(),
		}
		if err := netlink.NeighAppend(entry); err != nil {
			return fmt.Errorf("add the FDB entry for peer %s to %s: %w", peer.VTEP, vxlanDevice, err)
		}
	}
	return nil
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
		if err := within(node.Netns, func() error { return setLearning(on) }); err != nil {
			errs = append(errs, fmt.Errorf("node %s: set learning on %s: %w", node.Name, vxlanDevice, err))
		}
	}
	return errors.Join(errs...)
}

func setLearning(on bool) error {
	link, err := netlink.LinkByName(vxlanDevice)
	if err != nil {
		return err
	}
	// Only this attribute is named: the kernel refuses a change that repeats the
	// port or other attributes that can't be changed, which LinkModify would send.
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(link.Attrs().Index)
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	request.AddData(message)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(vni))
	value := byte(0)
	if on {
		value = 1
	}
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, []byte{value})
	request.AddData(info)
	if _, err := request.Execute(syscall.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	return forgetLearned(link.Attrs().Index)
}

// forgetLearned removes the FDB's entries, except those that say where frames
// without a known destination go.
func forgetLearned(ifindex int) error {
	entries, err := netlink.NeighList(ifindex, unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.HardwareAddr.String() == zeroMAC.String() || entry.State&netlink.NUD_PERMANENT != 0 {
			continue
		}
		if err := netlink.NeighDel(&entry); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget %s: %w", entry.HardwareAddr, err)
		}
	}
	return nil
}
