package controlplane

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// cable is what leads out of a node: what is in the machine and stays there.
type cable struct {
	name  string
	addrs []netlink.Addr
}

// findCables are the cables of a node that nothing else has been done on.
func findCables(netns ns.NetNS) ([]cable, error) {
	var cables []cable
	err := netns.Do(func(ns.NetNS) error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			if !isCable(link) {
				continue
			}
			addrs, err := netlinksafe.AddrList(link, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			cables = append(cables, cable{name: link.Attrs().Name, addrs: addrs})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for the cables: %w", err)
	}
	return cables, nil
}

// isCable knows the names that this package and package lab give.
func isCable(link netlink.Link) bool {
	name := link.Attrs().Name
	return link.Type() == "veth" && (name == managementDevice || name == "eth1" || strings.HasPrefix(name, "to-"))
}

// SetCables plugs all of the node's cables in, or pulls them out.
func (n *Node) SetCables(in bool) error {
	return n.Host.NetNS.Do(func(ns.NetNS) error {
		var faults []error
		for _, c := range n.cables {
			faults = append(faults, c.set(in))
		}
		return errors.Join(faults...)
	})
}

func (c cable) set(in bool) error {
	link, err := netlinksafe.LinkByName(c.name)
	if err != nil {
		return fmt.Errorf("find cable %s: %w", c.name, err)
	}
	if in {
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

// Restart gives the node what a machine has after a power cut: its disk, its
// cables with their addresses, and nothing else in its network namespace, /run and
// memory. All programs on it must have ended, and what was made of Host is of no
// use any more. Routes are the caller's.
func (n *Node) Restart() error {
	if err := n.restart(); err != nil {
		return fmt.Errorf("restart %s: %w", n.Name, err)
	}
	return nil
}

func (n *Node) restart() error {
	before := n.Host
	defer before.Close() //nolint:errcheck // of a namespace that is gone
	if err := errors.Join(removeNetns(n.Lab.Netns), makeNetns(n.Lab.Netns)); err != nil {
		return err
	}
	host, err := newHost(n.Lab.Netns, n.disk)
	if err != nil {
		return err
	}
	n.Host = host
	if err := before.NetNS.Do(func(ns.NetNS) error { return n.moveCables(int(host.Fd())) }); err != nil {
		return err
	}
	if err := host.NetNS.Do(func(ns.NetNS) error { return n.plugIn() }); err != nil {
		return err
	}
	return n.writeIdentity()
}

// moveCables takes the cables out of the current network namespace, as the kernel
// does with a machine's devices. Their other ends stay as they are.
func (n *Node) moveCables(to int) error {
	for _, c := range n.cables {
		link, err := netlinksafe.LinkByName(c.name)
		if err != nil {
			return fmt.Errorf("find cable %s: %w", c.name, err)
		}
		if err := netlink.LinkSetNsFd(link, to); err != nil {
			return fmt.Errorf("move cable %s: %w", c.name, err)
		}
	}
	return nil
}

func (n *Node) plugIn() error {
	for _, c := range n.cables {
		link, err := netlinksafe.LinkByName(c.name)
		if err != nil {
			return fmt.Errorf("find cable %s: %w", c.name, err)
		}
		for _, addr := range c.addrs {
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: addr.IPNet}); err != nil {
				return fmt.Errorf("give %s to %s: %w", addr.IPNet, c.name, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("plug %s in: %w", c.name, err)
		}
	}
	return nil
}

// Log is where a program of the node writes to.
func (n *Node) Log(program string) string {
	return filepath.Join(n.cluster.Dir, n.Name+"-"+program+".log")
}
