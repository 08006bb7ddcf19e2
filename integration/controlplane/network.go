package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/lhstorage/lhstorage/pkg/lab"
)

// The network between the nodes and the API server. It overlaps none of the lab's.
var (
	management = netip.MustParsePrefix("10.100.220.0/24")
	APIAddress = management.Addr().Next() // .1; node n has .10+n
)

const (
	managementDevice = "eth0" // on a node
	bridgeDevice     = "br0"
	apiPort          = 443 // the Service's, too: what its clients reach is the API server itself

	firstNodeHost = 10
)

// makeUnderlay makes the nodes' network namespaces and the storage underlay.
func (c *Cluster) makeUnderlay(ctx context.Context) ([]lab.Node, error) {
	o := c.opts.Lab
	o.Name, o.Root, o.BinDirs = c.Name, filepath.Join(c.Dir, "lab"), c.programs.cni
	l, err := lab.New(o)
	if err != nil {
		return nil, err
	}
	return l.Nodes(), l.Up(ctx)
}

// netns is the name of the namespace with etcd, kube-apiserver and the switch.
func (c *Cluster) netns() string { return c.Name + ".cp" }

// makeSwitch makes the control plane's namespace and connects each node to it.
func (c *Cluster) makeSwitch(nodes []lab.Node) error {
	if err := makeNetns(c.netns()); err != nil {
		return err
	}
	if err := within(c.netns(), makeBridge); err != nil {
		return fmt.Errorf("make the nodes' switch: %w", err)
	}
	for _, n := range nodes {
		if err := c.plugIn(n); err != nil {
			return fmt.Errorf("connect %s to the API server: %w", n.Name, err)
		}
	}
	return nil
}

func makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeDevice
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	if err := setUp(bridgeDevice, APIAddress); err != nil {
		return err
	}
	return serveService()
}

// serveService gives the API server the address of the Service
// kubernetes.default, which is a kube-proxy's work elsewhere: what has a route to
// this namespace reaches it as a pod expects to.
func serveService() error {
	link, err := netlinksafe.LinkByName(bridgeDevice)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: firstService(), Mask: net.CIDRMask(32, 32)}})
}

// plugIn makes a veth pair from a node's eth0 to the switch.
func (c *Cluster) plugIn(n lab.Node) error {
	port, err := netns.GetFromName(c.netns())
	if err != nil {
		return err
	}
	defer port.Close() //nolint:errcheck // read only
	err = within(n.Netns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = managementDevice
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = n.Name, netlink.NsFd(int(port))
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return setUp(managementDevice, nodeAddress(n.Index))
	})
	if err != nil {
		return err
	}
	return within(c.netns(), func() error { return join(n.Name) })
}

// join puts a device of the current namespace on the bridge.
func join(port string) error {
	bridge, err := netlinksafe.LinkByName(bridgeDevice)
	if err != nil {
		return err
	}
	link, err := netlinksafe.LinkByName(port)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(link))
}

// setUp gives a device of the current namespace its address and brings it up.
func setUp(device string, address netip.Addr) error {
	link, err := netlinksafe.LinkByName(device)
	if err != nil {
		return err
	}
	mask := net.CIDRMask(management.Bits(), address.BitLen())
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: mask}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// nodeAddress is a node's address towards the API server: its InternalIP.
func nodeAddress(index int) netip.Addr {
	b := management.Addr().As4()
	b[3] = byte(firstNodeHost + index)
	return netip.AddrFrom4(b)
}

// Within runs f on a thread that is in the control plane's network namespace.
func (c *Cluster) Within(f func() error) error { return within(c.netns(), f) }

// Dial connects from the control plane's namespace: this process is in another.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := within(c.netns(), func() (err error) {
		// One address, no name to look up: the socket is made on this very thread.
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen makes a listener with the API server's certificate that the nodes can
// reach, for a proxy in front of the API server: nobody gives a token to one
// without TLS.
func (c *Cluster) Listen(ctx context.Context) (net.Listener, error) {
	certificate, err := tls.LoadX509KeyPair(c.pki.file("apiserver.crt"), c.pki.file("apiserver.key"))
	if err != nil {
		return nil, err
	}
	var plain net.Listener
	err = within(c.netns(), func() (err error) {
		plain, err = new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(APIAddress, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen before the API server: %w", err)
	}
	return tls.NewListener(plain, &tls.Config{
		Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
	}), nil
}

// makeNetns makes a named network namespace with its loopback up.
func makeNetns(name string) error {
	err := onThread(func() error {
		handle, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		defer handle.Close() //nolint:errcheck // its mount keeps it
		lo, err := netlinksafe.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

// within runs f on a thread that is in a named network namespace.
func within(name string, f func() error) error {
	return ns.WithNetNSPath(filepath.Join(netnsDir, name), func(ns.NetNS) error { return f() })
}

// enterNetns puts the current thread into a named network namespace, for good.
func enterNetns(name string) error {
	handle, err := netns.GetFromName(name)
	if err != nil {
		return err
	}
	return errors.Join(netns.Set(handle), handle.Close())
}
