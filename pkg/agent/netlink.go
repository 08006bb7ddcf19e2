package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

const (
	socketBuffer = 4 << 20 // bytes: a node that starts a hundred pods makes thousands of messages
	resubscribe  = time.Second
)

// listen calls wake for each message of the kernel that may concern the storage network. When messages are lost (the
// buffer is full) it calls wake, too, and begins anew.
func listen(ctx context.Context, seen *observed, log *slog.Logger, wake func()) {
	for ctx.Err() == nil {
		if err := listenOnce(ctx, seen, wake); err != nil && ctx.Err() == nil {
			log.Warn("the kernel's messages are interrupted", "error", err)
		}
		wake()
		pause(ctx, resubscribe)
	}
}

func listenOnce(ctx context.Context, seen *observed, wake func()) error {
	done := make(chan struct{})
	defer close(done)
	lost := make(chan error, 4)
	failed := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	links, addrs := make(chan netlink.LinkUpdate, 256), make(chan netlink.AddrUpdate, 256)
	neighs, routes := make(chan netlink.NeighUpdate, 256), make(chan netlink.RouteUpdate, 256)
	for what, subscribe := range map[string]func() error{
		"devices": func() error {
			return netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: failed, ReceiveBufferSize: socketBuffer})
		},
		"addresses": func() error {
			return netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: failed, ReceiveBufferSize: socketBuffer})
		},
		"forwarding entries": func() error {
			return netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{ErrorCallback: failed, ReceiveBufferSize: socketBuffer})
		},
		"routes": func() error {
			return netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: failed, ReceiveBufferSize: socketBuffer})
		},
	} {
		if err := subscribe(); err != nil {
			return fmt.Errorf("subscribe to the kernel's messages about %s: %w", what, err)
		}
	}
	wake() // for what happened before
	for {
		var concerns, open bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-lost:
			return err
		case u, ok := <-links:
			open = ok
			// A tunnel of another's, as of a pod network that has just come up, may share the port that the firewall guards.
			concerns = ok && (seen.concerns(u.Link.Attrs().Name, u.Link.Attrs().Index) || u.Type() == "vxlan")
		case _, ok := <-addrs:
			open, concerns = ok, ok // any device may come to hold the VTEP, or an address of the shim's
		case u, ok := <-neighs:
			open = ok
			concerns = ok && isFlood(u.Neigh) && seen.concerns("", u.LinkIndex) && !seen.isOwn(changeOf(u))
		case u, ok := <-routes:
			open = ok
			concerns = ok && (int(u.Protocol) == kernel.RouteProtocol || seen.concerns("", u.LinkIndex))
		}
		if !open {
			return fmt.Errorf("the kernel's messages: %w", unix.EPIPE)
		}
		if concerns {
			wake()
		}
	}
}

// isFlood tells an entry for unknown destinations from those that a VXLAN device learns, which come and go with the traffic.
func isFlood(n netlink.Neigh) bool {
	if n.Family != unix.AF_BRIDGE {
		return false
	}
	for _, b := range n.HardwareAddr {
		if b != 0 {
			return false
		}
	}
	return true
}

func changeOf(u netlink.NeighUpdate) floodChange {
	vtep, _ := netip.AddrFromSlice(u.IP)
	return floodChange{index: u.LinkIndex, vtep: vtep.Unmap(), gone: u.Type == unix.RTM_DELNEIGH}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
