package attach

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/neigh"
)

// hostNeighbours implements hostshim.Neighbours in the host's namespace.
type hostNeighbours struct {
	k      kernel.Kernel
	window time.Duration
}

// settleTime bounds the kernel's own duplicate address detection, 2 s by default.
const settleTime = 5 * time.Second

func (h hostNeighbours) Probe(ctx context.Context, link kernel.Link, addr netip.Addr) error {
	links, err := h.k.Links()
	if err != nil {
		return err
	}
	own := func(mac net.HardwareAddr) bool {
		return slices.ContainsFunc(links, func(l kernel.Link) bool { return slices.Equal(l.MAC, mac) })
	}
	conflicts, err := neigh.Probe(ctx, neighLink(link), []netip.Addr{addr}, h.window, own)
	if err != nil {
		return err
	}
	if len(conflicts) > 0 {
		return cnierr.New(cnierr.DuplicateAddress, "the host shim's address %s is held by another device, MAC %s, seen on %s: "+
			"find it (`bridge fdb`, the switch's table), or give this node another index", addr, conflicts[0].MAC, link.Name)
	}
	return nil
}

func (h hostNeighbours) Announce(link kernel.Link, addrs []netip.Addr) error {
	return neigh.Announce(neighLink(link), addrs)
}

func (h hostNeighbours) Settle(ctx context.Context, link kernel.Link, addr netip.Addr) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	failed, err := neigh.WaitDAD(wait, link.Index, []netip.Addr{addr})
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return cnierr.New(cnierr.DuplicateAddress, "the host shim's address %s is held by another device (the kernel's duplicate "+
			"address detection on %s failed): find it, or give this node another index", addr, link.Name)
	}
	return nil
}

func neighLink(l kernel.Link) neigh.Link {
	return neigh.Link{Name: l.Name, Index: l.Index, MAC: l.MAC}
}

func texts[T interface{ String() string }](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ", ")
}
