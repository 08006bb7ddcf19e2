// Command moved is a CNI plugin for tests that gives a pod its eth0 as Cilium
// does: made on the node and moved in, so that it keeps a high ifindex of the
// node's. Longhorn's initiator then dials what has a lower one. Stock plugins make
// the interface inside the pod, where it is the first.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ipam"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	firstIndex = 5000    // of the interfaces that are moved in
	indexes    = 100_000 // that are drawn from
	tries      = 10      // to find one that no other ADD has on the node at this moment
)

func main() {
	ok := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: ok, Status: ok, GC: ok}, version.All, "moved: a test's cluster network")
}

func add(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	raw, err := ipam.ExecAdd(conf.IPAM.Type, args.StdinData)
	if err != nil {
		return err
	}
	result, err := types100.NewResultFromResult(raw)
	if err == nil {
		err = attach(args, result)
	}
	if err != nil {
		return errors.Join(err, del(args))
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	return errors.Join(remove(args), ipam.ExecDel(conf.IPAM.Type, args.StdinData))
}

// remove removes the pod's end, and with it the node's. No pod is no error.
func remove(args *skel.CmdArgs) error {
	if args.Netns == "" {
		return nil
	}
	err := ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(args.IfName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	var noLink netlink.LinkNotFoundError
	var noNetns ns.NSPathNotExistErr
	if errors.As(err, &noLink) || errors.As(err, &noNetns) {
		return nil
	}
	return err
}

// attach makes the interface with the one address that result has and notes it
// there.
func attach(args *skel.CmdArgs, result *types100.Result) error {
	if len(result.IPs) != 1 || result.IPs[0].Gateway == nil {
		return fmt.Errorf("want one address with a gateway of the ipam plugin, not %v", result.IPs)
	}
	address, gateway := result.IPs[0].Address.IP, result.IPs[0].Gateway
	pod, err := ns.GetNS(args.Netns)
	if err != nil {
		return err
	}
	defer pod.Close() //nolint:errcheck // read only
	inner, outer, err := makePair()
	if err != nil {
		return fmt.Errorf("make the pair of interfaces: %w", err)
	}
	if err := netlink.LinkSetNsFd(inner, int(pod.Fd())); err != nil {
		return errors.Join(fmt.Errorf("move an interface into the pod: %w", err), netlink.LinkDel(outer))
	}
	if err := configure(outer, gateway, address); err != nil {
		return err
	}
	err = pod.Do(func(ns.NetNS) error { return settle(inner.Attrs().Name, args.IfName, address, gateway) })
	if err != nil {
		return err
	}
	result.Interfaces = []*types100.Interface{{Name: args.IfName, Mac: inner.Attrs().HardwareAddr.String(), Sandbox: args.Netns}}
	result.IPs[0].Interface = types100.Int(0)
	return nil
}

// makePair makes both ends on the node, the one for the pod with a high index.
func makePair() (inner, outer netlink.Link, err error) {
	for range tries {
		attrs := netlink.NewLinkAttrs()
		attrs.Index = firstIndex + rand.IntN(indexes)
		attrs.Name = fmt.Sprintf("tmp%d", attrs.Index)
		pair := netlink.NewVeth(attrs)
		pair.PeerName = fmt.Sprintf("moved%d", attrs.Index)
		if err = netlink.LinkAdd(pair); errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		inner, err = netlinksafe.LinkByName(attrs.Name)
		if err != nil {
			return nil, nil, err
		}
		outer, err = netlinksafe.LinkByName(pair.PeerName)
		return inner, outer, err
	}
	return nil, nil, err
}

// settle names and configures the pod's end, which is in the current namespace.
func settle(from, to string, address, gateway net.IP) error {
	link, err := netlinksafe.LinkByName(from)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, to); err != nil {
		return fmt.Errorf("call the pod's interface %s: %w", to, err)
	}
	if err := configure(link, address, gateway); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway}); err != nil {
		return fmt.Errorf("default route via %s: %w", gateway, err)
	}
	return nil
}

// configure gives an end its address, brings it up and makes the other end
// reachable over it.
func configure(link netlink.Link, own, other net.IP) error {
	single := func(ip net.IP) *net.IPNet { return &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)} }
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: single(own)}); err != nil {
		return fmt.Errorf("give %s to %s: %w", own, link.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", link.Attrs().Name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: single(other), Src: own}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %s over %s: %w", other, link.Attrs().Name, err)
	}
	return nil
}
