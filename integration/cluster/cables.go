package cluster

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

const (
	burst      = 128 << 10 // bytes that go at once: more than any frame has
	queue      = 4 << 20   // bytes that wait: none is lost before that
	tooSmall   = 10        // bytes: less than any frame has
	anyRate    = 1000      // bytes per second
	management = "eth0"
)

// SlowDown lets each storage cable of the node send no more than so many bytes per
// second, until [Node.Restore]. What others send to it isn't slowed.
func (n *Node) SlowDown(bytesPerSecond uint64) error {
	return n.shape("slow down", func(link netlink.Link) error {
		if link.Attrs().Name == management {
			return nil
		}
		return netlink.QdiscReplace(bucket(link, bytesPerSecond, burst))
	})
}

// CutOff lets nothing out of the node by any cable, until [Node.Restore]: nobody
// hears from it, and it from nobody that has to be asked first. Its devices stay
// up, with their routes, as they do behind a switch that fails.
func (n *Node) CutOff() error {
	return n.shape("cut off", func(link netlink.Link) error {
		return netlink.QdiscReplace(bucket(link, anyRate, tooSmall))
	})
}

// Restore takes back what SlowDown or CutOff did.
func (n *Node) Restore() error {
	return n.shape("restore", func(link netlink.Link) error {
		qdiscs, err := netlinksafe.QdiscList(link)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			if q.Type() == "tbf" {
				return netlink.QdiscDel(q)
			}
		}
		return nil
	})
}

// shape calls f for each cable of the node.
func (n *Node) shape(what string, f func(netlink.Link) error) error {
	err := n.Do(func() error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		var faults []error
		for _, link := range links {
			name := link.Attrs().Name
			if name == management || name == "eth1" || strings.HasPrefix(name, "to-") {
				faults = append(faults, f(link))
			}
		}
		return errors.Join(faults...)
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, n.Name, err)
	}
	return nil
}

// bucket lets frames pass as they fit into it; one that is larger than the bucket
// never does.
func bucket(link netlink.Link, bytesPerSecond uint64, size uint32) *netlink.Tbf {
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Buffer:     netlink.Xmittime(bytesPerSecond, size),
		Limit:      queue,
	}
}
