package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/neigh"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// pod is the pod's network namespace.
type pod struct {
	netns ns.NetNS
	k     *kernel.Netlink
}

// openPod opens the sandbox. A missing one is code 3, the host's own code 8, so
// that nothing is created in the wrong place.
func openPod(path string) (*pod, error) {
	if path == "" {
		return nil, cnierr.New(cnierr.InvalidEnvironment, "CNI_NETNS is empty: the runtime must name the pod's network namespace")
	}
	netns, err := ns.GetNS(path)
	if err != nil {
		return nil, cnierr.New(cnierr.UnknownContainer, "CNI_NETNS %s can't be entered: %w", path, err)
	}
	if own, err := isOwnNetns(path); err != nil || own {
		_ = netns.Close()
		if err != nil {
			return nil, cnierr.New(cnierr.IO, "compare CNI_NETNS %s with the host's namespace: %w", path, err)
		}
		return nil, cnierr.New(cnierr.HostNetns, "CNI_NETNS %s is the network namespace of the host: nothing was changed", path)
	}
	k, err := kernel.In(netns)
	if err != nil {
		_ = netns.Close()
		return nil, cnierr.New(cnierr.IO, "%w", err)
	}
	return &pod{netns, k}, nil
}

// isGone says that a sandbox isn't there any more, which DEL takes as success.
func isGone(path string) bool {
	if path == "" {
		return true
	}
	netns, err := ns.GetNS(path)
	if err == nil {
		_ = netns.Close()
		return false
	}
	notNS := ns.NSPathNotNSErr{}
	return errors.Is(err, fs.ErrNotExist) || errors.As(err, &notNS) || errors.As(err, &ns.NSPathNotExistErr{})
}

func isOwnNetns(path string) (bool, error) {
	var theirs, own unix.Stat_t
	if err := unix.Stat(path, &theirs); err != nil {
		return false, err
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return false, err
	}
	return theirs.Ino == own.Ino && theirs.Dev == own.Dev, nil
}

// lock keeps two calls for the same pod apart, a runtime's retry and the call that
// it gave up on, say: the second would take the first one's work for leftovers.
// It is a lock on the namespace itself, so nothing of it stays behind.
func (p *pod) lock(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(p.netns.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return cnierr.New(cnierr.IO, "lock the pod's namespace %s: %w", p.netns.Path(), err)
		}
		select {
		case <-wait.Done():
			return cnierr.New(cnierr.TryAgain, "another call for the pod %s has been running for %s: try again", p.netns.Path(), lockWait)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// close closes the pod; of one that is gone (nil) there is nothing to close.
func (p *pod) close() {
	if p == nil {
		return
	}
	p.k.Close()
	_ = p.netns.Close()
}

// isAnothers says that the interface that a record names is another attachment's: the path by which the record names its
// sandbox (/proc/PID/ns/net, say) may lead into another one by now.
func (p *pod) isAnothers(at record.Attachment) bool {
	link, err := p.k.Link(at.IfName)
	return err == nil && at.MAC != "" && (link.Index != at.IfIndex || link.MAC.String() != at.MAC)
}

// do runs f on a thread that is in the pod's namespace.
func (p *pod) do(f func() error) error {
	return p.netns.Do(func(ns.NetNS) error { return f() })
}

// ifaces lists the pod's interfaces with their addresses, in the kernel's
// address-dump order, which is what Longhorn goes by.
func (p *pod) ifaces() ([]iscsipath.Iface, error) {
	links, err := p.k.Links()
	if err != nil {
		return nil, err
	}
	addrs, err := p.k.Addrs()
	if err != nil {
		return nil, err
	}
	return iscsipath.Dump(links, addrs), nil
}

// prepare sets the interface's sysctls before it is up and has an address. On a
// network with a host shim no router advertisement may give the pod a route; on
// others that is left as the stock plugin has it, for networks that rely on it.
func (p *pod) prepare(name string, ipv6, storage bool, dad time.Duration) error {
	conf := func(family, key, value string) kernel.Setting {
		return kernel.Setting{Path: kernel.ConfPath(family, name, key), Value: value}
	}
	settings := []kernel.Setting{conf("ipv4", "arp_notify", "1"), conf("ipv6", "ndisc_notify", "1")}
	if storage {
		settings = append(settings, conf("ipv6", "accept_ra", "0"))
	}
	if ipv6 {
		settings = append(settings, kernel.Setting{Path: kernel.ConfPath("ipv6", "lo", "disable_ipv6"), Value: "0"},
			conf("ipv6", "disable_ipv6", "0"), conf("ipv6", "keep_addr_on_down", "1"))
	}
	if ipv6 && dad > 0 {
		// The kernel waits a random part of router_solicitation_delay (1 s) before it
		// probes, and retrans_time_ms (1 s) for an answer: the window that the
		// configuration allows is enough on a storage network (addrconf_dad_kick).
		settings = append(settings, conf("ipv6", "router_solicitation_delay", "0"),
			kernel.Setting{Path: retransPath(name), Value: fmt.Sprint(max(dad.Milliseconds(), 1))})
	}
	return p.set(settings...)
}

const kernelRetrans = "1000" // ms, RFC 4861 section 10, RETRANS_TIMER

func retransPath(name string) string { return "net/ipv6/neigh/" + name + "/retrans_time_ms" }

// settled gives neighbour discovery its ordinary timer back.
func (p *pod) settled(name string) error {
	return p.set(kernel.Setting{Path: retransPath(name), Value: kernelRetrans})
}

// set enters the namespace once for all settings.
func (p *pod) set(settings ...kernel.Setting) error {
	return p.do(func() error {
		for _, s := range settings {
			err := os.WriteFile("/proc/sys/"+s.Path, []byte(s.Value), 0o644) //nolint:gosec // a sysctl
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("set sysctl %s to %s in the pod: %w", s.Path, s.Value, err)
			}
		}
		return nil
	})
}

// probe looks for other holders of the IPv4 addresses.
func (p *pod) probe(ctx context.Context, link kernel.Link, addrs []netip.Addr, window time.Duration) (conflicts []neigh.Conflict, err error) {
	err = p.do(func() error {
		conflicts, err = neigh.Probe(ctx, neighLink(link), addrs, window, func(mac net.HardwareAddr) bool { return slices.Equal(mac, link.MAC) })
		return err
	})
	return conflicts, err
}

func (p *pod) waitDAD(ctx context.Context, link kernel.Link, addrs []netip.Addr) (failed []netip.Addr, err error) {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	err = p.do(func() error {
		failed, err = neigh.WaitDAD(wait, link.Index, addrs)
		return err
	})
	return failed, err
}

// whoHas asks the network for the MAC that holds addr, for an error's text.
func (p *pod) whoHas(ctx context.Context, link kernel.Link, addr netip.Addr, window time.Duration) string {
	var macs []net.HardwareAddr
	err := p.do(func() (err error) {
		macs, err = neigh.Resolve(ctx, neighLink(link), netip.IPv6Unspecified(), addr, max(window, 100*time.Millisecond))
		return err
	})
	if err != nil || len(macs) == 0 {
		return "unknown"
	}
	return macs[0].String()
}

func kernelOrder() iscsipath.Order {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return iscsipath.Modern
	}
	return iscsipath.OrderOf(unix.ByteSliceToString(u.Release[:]))
}
