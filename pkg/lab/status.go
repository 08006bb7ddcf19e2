package lab

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// Status is what a lab consists of and what its kernels say.
type Status struct {
	Options Options      `json:"options"`
	Created time.Time    `json:"created"`
	Nodes   []NodeStatus `json:"nodes"`
}

// NodeStatus is one node. Devices that aren't there are left out.
type NodeStatus struct {
	Node
	ParentMTU     int            `json:"parentMTU,omitempty"` // bytes
	ParentAddress []netip.Prefix `json:"parentAddresses,omitempty"`
	Shim          []netip.Prefix `json:"shimAddresses,omitempty"`
	Pods          []Pod          `json:"pods"`
}

// Status looks at the lab's state file and at its nodes' interfaces.
func (l *Lab) Status() (Status, error) {
	state, err := l.store.load()
	if err != nil {
		return Status{}, err
	}
	status := Status{Options: state.Options, Created: state.Created}
	for _, node := range l.Nodes() {
		n := NodeStatus{Node: node}
		if err := within(node.Netns, n.observe); err != nil {
			return status, fmt.Errorf("lab %s: node %s: %w", l.opts.Name, node.Name, err)
		}
		for _, pod := range state.Pods {
			if pod.Node == node.Name {
				n.Pods = append(n.Pods, pod)
			}
		}
		status.Nodes = append(status.Nodes, n)
	}
	return status, nil
}

func (n *NodeStatus) observe() error {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		switch link.Attrs().Name {
		case n.Parent:
			n.ParentMTU = link.Attrs().MTU
			n.ParentAddress, err = globalAddresses(link)
		case shimDevice:
			n.Shim, err = globalAddresses(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func globalAddresses(link netlink.Link) ([]netip.Prefix, error) {
	addrs, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var global []netip.Prefix
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ones, _ := a.Mask.Size(); ok && addr.Unmap().IsGlobalUnicast() {
			global = append(global, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return global, nil
}
