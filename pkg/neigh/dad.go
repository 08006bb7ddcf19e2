package neigh

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// recheck bounds how long a lost notification can delay WaitDAD.
const recheck = 500 * time.Millisecond

// WaitDAD waits until the kernel has ended duplicate address detection for the
// IPv6 addresses among addrs on the link with that index, and returns those
// that another device holds ("dadfailed"); they are set but unusable, and stay
// so until they are deleted. Detection takes 1 to 2 s with the kernel's default
// settings, and doesn't begin while the link is down or has no carrier. IPv4
// addresses are passed over.
//
// It is an error if ctx ends first, or if an address isn't on the link.
func WaitDAD(ctx context.Context, index int, addrs []netip.Addr) (failed []netip.Addr, err error) {
	wanted := only(addrs, netip.Addr.Is6)
	if len(wanted) == 0 {
		return nil, nil
	}
	changes, stop, err := subscribe()
	if err != nil {
		return nil, fmt.Errorf("wait for duplicate address detection on link %d: %w", index, err)
	}
	defer stop()
	for {
		state, err := observe(index, wanted)
		if err != nil {
			return nil, fmt.Errorf("wait for duplicate address detection on link %d: %w", index, err)
		}
		if len(state.missing) > 0 {
			return state.failed, fmt.Errorf("wait for duplicate address detection on link %d: %v isn't set there: it was never added, or deleted meanwhile", index, state.missing)
		}
		if len(state.tentative) == 0 {
			return state.failed, nil
		}
		select {
		case <-ctx.Done():
			return state.failed, fmt.Errorf("duplicate address detection on link %d hasn't ended for %v: %w; is the link up, with carrier?", index, state.tentative, ctx.Err())
		case _, ok := <-changes:
			if !ok {
				changes = nil // from here on by the clock alone
			}
		case <-time.After(recheck):
		}
	}
}

// dadState sorts addresses by what the kernel says of them; those not listed
// are usable.
type dadState struct {
	failed, tentative, missing []netip.Addr
}

func observe(index int, wanted []netip.Addr) (dadState, error) {
	list, err := netlinksafe.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return dadState{}, fmt.Errorf("list addresses: %w", err)
	}
	flags := map[netip.Addr]int{}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == index {
			flags[addr] = a.Flags
		}
	}
	var s dadState
	for _, addr := range wanted {
		f, set := flags[addr]
		switch {
		case !set:
			s.missing = append(s.missing, addr)
		case f&unix.IFA_F_DADFAILED != 0: // tentative too, for good
			s.failed = append(s.failed, addr)
		case f&unix.IFA_F_TENTATIVE != 0:
			s.tentative = append(s.tentative, addr)
		}
	}
	return s, nil
}

// subscribe reports that some address has changed, which one isn't of interest.
func subscribe() (<-chan netlink.AddrUpdate, func(), error) {
	changes, done := make(chan netlink.AddrUpdate), make(chan struct{})
	if err := netlink.AddrSubscribe(changes, done); err != nil {
		return nil, nil, fmt.Errorf("subscribe to address changes: %w", err)
	}
	stop := func() {
		close(done)
		for range changes { // its sender ends only when it isn't blocked
		}
	}
	return changes, stop, nil
}
