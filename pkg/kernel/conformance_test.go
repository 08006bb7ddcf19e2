package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// world is a namespace with a veth pair under0 and under1 in it, up, and a second
// namespace for foreign children.
type world struct {
	t     *testing.T
	k     Kernel
	pod   int                        // file descriptor for AddLink
	inPod func(parent string) string // the MTUs of the children in the other namespace
}

func fakeWorld(t *testing.T) *world {
	f := NewFake()
	f.Have(Link{Name: "under1", Kind: "veth", Up: true})
	f.Have(Link{Name: "under0", Kind: "veth", Up: true})
	return &world{t: t, k: f, pod: 99, inPod: func(parent string) string {
		mtus := slices.DeleteFunc(f.ForeignMTUs(parent), func(mtu int) bool { return mtu < 0 })
		return fmt.Sprint(mtus)
	}}
}

func realWorld(t *testing.T) *world {
	needRoot(t)
	host, pod := newNetns(t), newNetns(t)
	inside(t, host, func() {
		for _, family := range []string{"default", "all"} { // no fe80:: addresses, which come when they like
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+family+"/addr_gen_mode", []byte("1"), 0o600))
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "under0"
		require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "under1"}))
	})
	k, podKernel := open(t, host), open(t, pod)
	for _, name := range []string{"lo", "under0", "under1"} {
		require.NoError(t, k.SetLink(index(t, k, name), Change{Up: new(true)}))
	}
	return &world{t: t, k: k, pod: int(pod.Fd()), inPod: func(string) string {
		links, err := podKernel.Links()
		require.NoError(t, err)
		mtus := []int{}
		for _, l := range links {
			if l.Kind == "macvlan" {
				mtus = append(mtus, l.MTU)
			}
		}
		return fmt.Sprint(mtus)
	}}
}

func newNetns(t *testing.T) ns.NetNS {
	n, err := testutils.NewNS()
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, n.Close())
		assert.NoError(t, testutils.UnmountNS(n))
	})
	return n
}

func open(t *testing.T, n ns.NetNS) *Netlink {
	k, err := In(n)
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k
}

func inside(t *testing.T, n ns.NetNS, f func()) {
	t.Helper()
	require.NoError(t, n.Do(func(ns.NetNS) error { f(); return nil }))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("network namespaces need root, and CI must run these tests")
	}
	t.Skip("network namespaces need root")
}

func index(t *testing.T, k Kernel, name string) int {
	t.Helper()
	l, err := k.Link(name)
	require.NoError(t, err)
	return l.Index
}

// The shorthands of the scripts below. A device that isn't there has index 9999.

func (w *world) at(name string) int {
	l, err := w.k.Link(name)
	if err != nil {
		return 9999
	}
	return l.Index
}

func (w *world) vxlan(name string, vni int, port uint16, local string) error {
	v := VXLAN{VNI: vni, Port: port}
	if local != "" {
		v.Local = netip.MustParseAddr(local)
	}
	return w.k.AddLink(Link{Name: name, Kind: "vxlan", MTU: 1450, VXLAN: v})
}

func (w *world) macvlan(name, lower, mode string, last byte) error {
	return w.k.AddLink(Link{
		Name: name, Kind: "macvlan", Lower: w.at(lower), Macvlan: Macvlan{Mode: mode},
		MAC: net.HardwareAddr{2, 0, 0, 0, 1, last},
	})
}

func (w *world) child(name, lower string) error {
	return w.k.AddLink(Link{Name: name, Kind: "macvlan", Lower: w.at(lower), InNetns: w.pod, Macvlan: Macvlan{Mode: "bridge"}})
}

func (w *world) set(name string, c Change) error { return w.k.SetLink(w.at(name), c) }
func (w *world) up(name string) error            { return w.set(name, Change{Up: new(true)}) }
func (w *world) down(name string) error          { return w.set(name, Change{Up: new(false)}) }
func (w *world) mtu(name string, mtu int) error  { return w.set(name, Change{MTU: &mtu}) }
func (w *world) local(name, addr string) error {
	return w.set(name, Change{Local: new(netip.MustParseAddr(addr))})
}

func (w *world) addr(name, prefix string) Addr {
	return Addr{Link: w.at(name), Prefix: netip.MustParsePrefix(prefix), NoDAD: true}
}
func (w *world) addAddr(name, prefix string) error { return w.k.AddAddr(w.addr(name, prefix)) }
func (w *world) delAddr(name, prefix string) error { return w.k.DelAddr(w.addr(name, prefix)) }

func (w *world) route(dst, via, dev, src string) Route {
	r := Route{Dst: netip.MustParsePrefix(dst), Link: w.at(dev), Protocol: RouteProtocol}
	if via != "" {
		r.Via = netip.MustParseAddr(via)
	}
	if src != "" {
		r.Src = netip.MustParseAddr(src)
	}
	return r
}
func (w *world) addRoute(dst, via, dev, src string) error {
	return w.k.AddRoute(w.route(dst, via, dev, src))
}

func (w *world) conf(family, dev, key, value string) error {
	return w.k.SetSysctl(ConfPath(family, dev, key), value)
}

func (w *world) addFlood(name, vtep string) error {
	return w.k.AddFlood(w.at(name), netip.MustParseAddr(vtep))
}
func (w *world) delFlood(name, vtep string) error {
	return w.k.DelFlood(w.at(name), netip.MustParseAddr(vtep))
}

// routeTo gives what the kernel would do with dst as an error's text, so that it
// is compared like all else.
func (w *world) routeTo(dst string) error {
	addr := netip.MustParseAddr(dst)
	r, err := w.k.RouteTo(addr)
	if err != nil {
		if many, manyErr := w.k.RoutesTo([]netip.Addr{addr}); manyErr != nil || len(many) > 0 {
			return fmt.Errorf("asked for many it leads to %v, %w", many, manyErr)
		}
		return err
	}
	if many, err := w.k.RoutesTo([]netip.Addr{addr, addr}); err != nil || !slices.Equal(many, []Route{r, r}) {
		return fmt.Errorf("asked for many it is %v instead of %+v, %w", many, r, err)
	}
	l, err := w.k.LinkByIndex(r.Link)
	if err != nil {
		return err
	}
	return fmt.Errorf("goes by %s, MTU %d", l.Name, cmp.Or(r.MTU, l.MTU))
}

// connected says whether the main table has the route of an address.
func (w *world) connected(dst string) error {
	routes, err := w.k.Routes(0)
	if err != nil {
		return err
	}
	return fmt.Errorf("connected: %t", slices.ContainsFunc(routes, func(r Route) bool {
		return r.Dst == netip.MustParsePrefix(dst) && r.Protocol == 2
	}))
}

// op is a step of a script; want is a predicate on its error that both kernels
// must fulfil, nil where only agreement counts.
type op struct {
	text string
	do   func(w *world) error
	want func(error) bool
}

func ok(err error) bool          { return err == nil }
func hasChildren(err error) bool { return errors.Is(err, ErrHasChildren) }
func errno(n syscall.Errno) func(error) bool {
	return func(err error) bool { return errors.Is(err, n) }
}

// scripts: one for each rule that Fake's comment lists.
var scripts = map[string][]op{
	"children die with their parent, in other namespaces too": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"shim", func(w *world) error { return w.macvlan("shim0", "vx0", "bridge", 1) }, ok},
		{"child", func(w *world) error { return w.child("eth9", "vx0") }, ok},
		{"guarded deletion is refused", func(w *world) error { return w.k.DelChildless(w.at("vx0")) }, hasChildren},
		{"deletion", func(w *world) error { return w.k.DelLink(w.at("vx0")) }, ok},
		{"again", func(w *world) error { return w.k.DelLink(9999) }, IsNotFound},
	},
	"a child in another namespace alone keeps its parent": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"child", func(w *world) error { return w.child("eth9", "vx0") }, ok},
		{"guarded deletion is refused", func(w *world) error { return w.k.DelChildless(w.at("vx0")) }, hasChildren},
	},
	"a childless parent goes": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"shim", func(w *world) error { return w.macvlan("shim0", "vx0", "bridge", 1) }, ok},
		{"shim goes", func(w *world) error { return w.k.DelLink(w.at("shim0")) }, ok},
		{"guarded deletion", func(w *world) error { return w.k.DelChildless(w.at("vx0")) }, ok},
		{"again", func(w *world) error { return w.k.DelChildless(9999) }, IsNotFound},
	},
	"MTUs": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"shim", func(w *world) error { return w.macvlan("shim0", "vx0", "bridge", 1) }, ok},
		{"child", func(w *world) error { return w.child("eth9", "vx0") }, ok},
		{"a child can't exceed its parent", func(w *world) error { return w.mtu("shim0", 1451) }, errno(syscall.EINVAL)},
		{"nor be made so", func(w *world) error {
			return w.k.AddLink(Link{Name: "big0", Kind: "macvlan", Lower: w.at("vx0"), MTU: 9000, Macvlan: Macvlan{Mode: "bridge"}})
		}, errno(syscall.EINVAL)},
		{"lower the parent", func(w *world) error { return w.mtu("vx0", 1300) }, ok},
		{"raise the parent", func(w *world) error { return w.mtu("vx0", 1400) }, ok},
		{"raise the shim", func(w *world) error { return w.mtu("shim0", 1400) }, ok},
	},
	"passthru is alone": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"one", func(w *world) error { return w.macvlan("pass0", "vx0", "passthru", 1) }, ok},
		{"two", func(w *world) error { return w.macvlan("shim0", "vx0", "bridge", 2) }, errno(syscall.EINVAL)},
		{"the other way about", func(w *world) error {
			return errors.Join(w.k.DelLink(w.at("pass0")), w.macvlan("shim0", "vx0", "bridge", 2))
		}, ok},
		{"refused", func(w *world) error { return w.macvlan("pass0", "vx0", "passthru", 1) }, errno(syscall.EINVAL)},
	},
	"two children with one MAC": {
		{"parent", func(w *world) error { return errors.Join(w.vxlan("vx0", 100, 4789, "10.9.0.1"), w.up("vx0")) }, ok},
		{"one", func(w *world) error { return errors.Join(w.macvlan("shim0", "vx0", "bridge", 1), w.up("shim0")) }, ok},
		{"two", func(w *world) error { return w.macvlan("shim1", "vx0", "bridge", 1) }, ok},
		{"up", func(w *world) error { return w.up("shim1") }, errno(syscall.EADDRINUSE)},
	},
	"down": {
		{"address", func(w *world) error { return w.addAddr("under0", "10.9.0.1/24") }, ok},
		{"IPv6 address", func(w *world) error { return w.addAddr("under0", "fd00::1/64") }, ok},
		{"route", func(w *world) error { return w.addRoute("10.8.0.0/24", "10.9.0.2", "under0", "") }, ok},
		{"down", func(w *world) error { return w.down("under0") }, ok},
		{"no way", func(w *world) error { return w.routeTo("10.9.0.7") }, errno(syscall.ENETUNREACH)},
		{"no route on it", func(w *world) error { return w.addRoute("10.7.0.0/24", "", "under0", "") }, errno(syscall.ENETDOWN)},
		{"connected", func(w *world) error { return w.connected("10.9.0.0/24") }, nil},
		{"up", func(w *world) error { return w.up("under0") }, ok},
		{"connected", func(w *world) error { return w.connected("10.9.0.0/24") }, nil},
		{"kept", func(w *world) error {
			return errors.Join(w.conf("ipv6", "under0", "keep_addr_on_down", "1"), w.addAddr("under0", "fd00::2/64"), w.down("under0"))
		}, ok},
	},
	"addresses": {
		{"one", func(w *world) error { return w.addAddr("under0", "10.9.0.1/24") }, ok},
		{"again", func(w *world) error { return w.addAddr("under0", "10.9.0.1/24") }, IsExists},
		{"elsewhere", func(w *world) error { return w.addAddr("under1", "10.9.0.1/24") }, ok},
		{"later", func(w *world) error { return w.addAddr("under0", "10.9.0.2/24") }, ok},
		{"another prefix", func(w *world) error { return w.addAddr("under0", "10.9.0.1/32") }, ok},
		{"a later one goes alone", func(w *world) error { return w.delAddr("under0", "10.9.0.2/24") }, ok},
		{"later", func(w *world) error { return w.addAddr("under0", "10.9.0.3/24") }, ok},
		{"the first takes it along", func(w *world) error { return w.delAddr("under0", "10.9.0.1/24") }, ok},
		{"gone", func(w *world) error { return w.delAddr("under0", "10.9.0.3/24") }, IsNotFound},
		{"no device", func(w *world) error { return w.addAddr("none", "10.9.0.1/24") }, IsNotFound},
		{"connected", func(w *world) error { return w.connected("10.9.0.0/24") }, nil},
		{"without", func(w *world) error {
			a := w.addr("under0", "10.6.0.1/24")
			a.NoPrefixRoute = true
			return w.k.AddAddr(a)
		}, ok},
		{"without", func(w *world) error { return w.connected("10.6.0.0/24") }, nil},
	},
	"IPv6 addresses": {
		{"one", func(w *world) error { return w.addAddr("under0", "fd00::1/64") }, ok},
		{"again", func(w *world) error { return w.addAddr("under0", "fd00::1/64") }, IsExists},
		{"again, another length", func(w *world) error { return w.addAddr("under0", "fd00::1/128") }, IsExists},
		{"newest first", func(w *world) error { return w.addAddr("under0", "fd00::2/64") }, ok},
		{"connected", func(w *world) error { return w.connected("fd00::/64") }, nil},
		{"the first goes alone", func(w *world) error { return w.delAddr("under0", "fd00::1/64") }, ok},
		{"off", func(w *world) error { return w.conf("ipv6", "under0", "disable_ipv6", "1") }, ok},
		{"refused", func(w *world) error { return w.addAddr("under0", "fd00::1/64") }, errno(syscall.EACCES)},
		{"on", func(w *world) error {
			return errors.Join(w.conf("ipv6", "under0", "disable_ipv6", "0"), w.addAddr("under0", "fd00::1/64"))
		}, ok},
	},
	"routes": {
		{"address", func(w *world) error { return w.addAddr("under0", "10.9.0.1/24") }, ok},
		{"IPv6 address", func(w *world) error { return w.addAddr("under0", "fd00::1/64") }, ok},
		{"by a next hop", func(w *world) error { return w.addRoute("10.100.100.3/32", "10.9.0.3", "under0", "") }, ok},
		{"again", func(w *world) error { return w.addRoute("10.100.100.3/32", "10.9.0.3", "under0", "") }, IsExists},
		{"on the link", func(w *world) error { return w.addRoute("10.100.100.4/32", "", "under0", "") }, ok},
		{"with a source", func(w *world) error { return w.addRoute("10.8.0.0/24", "", "under0", "10.9.0.1") }, ok},
		{"with a stranger's source", func(w *world) error { return w.addRoute("10.7.0.0/24", "", "under0", "10.9.0.77") }, errno(syscall.EINVAL)},
		{"by a hop that isn't there", func(w *world) error { return w.addRoute("10.7.0.0/24", "10.66.0.1", "under0", "") }, errno(syscall.ENETUNREACH)},
		{"IPv6 by a next hop", func(w *world) error { return w.addRoute("fd09::3/128", "fd00::3", "under0", "") }, ok},
		{"IPv6 on the link", func(w *world) error { return w.addRoute("fd09::4/128", "", "under0", "") }, ok},
		{"IPv6 with a source", func(w *world) error { return w.addRoute("fd08::/64", "", "under0", "fd00::1") }, ok},
		{"IPv6 again", func(w *world) error { return w.addRoute("fd09::4/128", "", "under0", "") }, IsExists},
		{"the longest match", func(w *world) error { return w.routeTo("10.100.100.3") }, nil},
		{"connected", func(w *world) error { return w.routeTo("10.9.0.200") }, nil},
		{"its own", func(w *world) error { return w.routeTo("10.9.0.1") }, nil},
		{"IPv6", func(w *world) error { return w.routeTo("fd09::3") }, nil},
		{"nowhere", func(w *world) error { return w.routeTo("10.55.0.1") }, errno(syscall.ENETUNREACH)},
		{"with an MTU", func(w *world) error {
			r := w.route("10.100.100.5/32", "10.9.0.3", "under0", "")
			r.MTU = 1400
			return w.k.AddRoute(r)
		}, ok},
		{"with an MTU", func(w *world) error { return w.routeTo("10.100.100.5") }, nil},
		{"off", func(w *world) error { return w.k.DelRoute(w.route("10.100.100.4/32", "", "under0", "")) }, ok},
		{"again", func(w *world) error { return w.k.DelRoute(w.route("10.100.100.4/32", "", "under0", "")) }, IsNotFound},
		{"the source's address goes, and the route with it", func(w *world) error { return w.delAddr("under0", "10.9.0.1/24") }, ok},
	},
	"one VNI, port and family": {
		{"one", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"again", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, IsExists},
		{"another name and address", func(w *world) error { return w.vxlan("vx1", 100, 4789, "10.9.0.2") }, IsExists},
		{"another port", func(w *world) error { return w.vxlan("vx2", 100, 4790, "10.9.0.1") }, ok},
		{"another VNI", func(w *world) error { return w.vxlan("vx3", 101, 4789, "10.9.0.1") }, ok},
		{"another family", func(w *world) error { return w.vxlan("vx4", 100, 4789, "fd00::1") }, ok},
		{"a new source", func(w *world) error { return w.local("vx0", "10.9.0.9") }, ok},
		{"of another family", func(w *world) error { return w.local("vx0", "fd00::9") }, IsNotSupported},
		{"of another family", func(w *world) error { return w.local("vx4", "10.9.0.9") }, IsNotSupported},
		{"a new IPv6 source", func(w *world) error { return w.local("vx4", "fd00::9") }, ok},
		{"without a source", func(w *world) error { return w.vxlan("vx5", 102, 4789, "") }, ok},
		{"it is IPv4", func(w *world) error { return w.local("vx5", "fd00::9") }, IsNotSupported},
		{"it gets one", func(w *world) error { return w.local("vx5", "10.9.0.9") }, ok},
	},
	"flood entries": {
		{"parent", func(w *world) error { return w.vxlan("vx0", 100, 4789, "10.9.0.1") }, ok},
		{"one", func(w *world) error { return w.addFlood("vx0", "10.9.0.3") }, ok},
		{"two", func(w *world) error { return w.addFlood("vx0", "10.9.0.2") }, ok},
		{"again", func(w *world) error { return w.addFlood("vx0", "10.9.0.2") }, ok},
		{"off", func(w *world) error { return w.delFlood("vx0", "10.9.0.3") }, ok},
		{"again", func(w *world) error { return w.delFlood("vx0", "10.9.0.3") }, ok},
		{"the last", func(w *world) error { return w.delFlood("vx0", "10.9.0.2") }, ok},
		{"again", func(w *world) error { return w.delFlood("vx0", "10.9.0.2") }, IsNotFound},
		{"IPv6 parent", func(w *world) error { return w.vxlan("vx6", 100, 4789, "fd00::1") }, ok},
		{"IPv6", func(w *world) error { return w.addFlood("vx6", "fd00::2") }, ok},
	},
	"names": {
		{"no device", func(w *world) error { return w.macvlan("shim0", "none", "bridge", 1) }, IsNotFound},
		{"unknown", func(w *world) error { _, err := w.k.Link("none"); return err }, IsNotFound},
		{"unknown", func(w *world) error { _, err := w.k.LinkByIndex(9999); return err }, IsNotFound},
		{"taken", func(w *world) error { return w.macvlan("under1", "under0", "bridge", 1) }, IsExists},
		{"set", func(w *world) error { return w.k.SetLink(9999, Change{Up: new(true)}) }, IsNotFound},
		{"rename", func(w *world) error {
			return errors.Join(w.macvlan("tmp0", "under0", "bridge", 1), w.set("tmp0", Change{Name: new("shim0")}))
		}, ok},
	},
	"sysctls": {
		{"parent", func(w *world) error { return w.vxlan("vx0.1", 100, 4789, "10.9.0.1") }, ok},
		{"a name with a dot", func(w *world) error { return w.conf("ipv4", "vx0.1", "arp_ignore", "8") }, ok},
		{"read", func(w *world) error {
			v, err := w.k.Sysctl(ConfPath("ipv4", "vx0.1", "arp_ignore"))
			return errors.Join(err, errors.New(v))
		}, nil},
	},
}

// What the fake kernel does is what the real one does: each script gives the same
// outcomes and the same states on both.
func TestFakeAndKernelAgree(t *testing.T) {
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			play(fakeWorld(t), script)
			t.Run("real", func(t *testing.T) {
				model, kernel := play(fakeWorld(t), script), play(realWorld(t), script)
				for i, o := range script {
					require.Equal(t, model[i], kernel[i], o.text)
				}
			})
		})
	}
}

// play runs a script and tells what could be seen after each step.
func play(w *world, script []op) []string {
	var seen []string
	for _, o := range script {
		err := o.do(w)
		if o.want != nil {
			assert.True(w.t, o.want(err), "%s: %v", o.text, err)
		}
		seen = append(seen, o.text+": "+class(err)+"\n"+state(w))
	}
	return seen
}

// class of an error; what an operation has to tell is in those without a class.
func class(err error) string {
	for _, c := range []struct {
		name string
		is   func(error) bool
	}{
		{"done", ok}, {"there already", IsExists}, {"not found", IsNotFound}, {"not supported", IsNotSupported}, {"has children", hasChildren},
	} {
		if c.is(err) {
			return c.name
		}
	}
	if n := syscall.Errno(0); errors.As(err, &n) {
		return n.Error()
	}
	return err.Error()
}

func state(w *world) string {
	var b strings.Builder
	links, err := w.k.Links()
	require.NoError(w.t, err)
	name := map[int]string{}
	for _, l := range links {
		name[l.Index] = l.Name
	}
	for _, l := range links {
		if l.Name == "lo" {
			continue
		}
		lower := ""
		if l.Kind == "macvlan" {
			lower = name[l.Lower]
		}
		fmt.Fprintln(&b, l.Kind, l.Name, l.MTU, l.Up, lower, l.VXLAN, l.Macvlan.Mode)
		flood, err := w.k.Flood(l.Index)
		require.NoError(w.t, err)
		fmt.Fprintln(&b, " flood", flood)
		if l.Kind == "vxlan" {
			fmt.Fprintln(&b, " children elsewhere", w.inPod(l.Name))
		}
	}
	addrs, err := w.k.Addrs()
	require.NoError(w.t, err)
	for _, a := range addrs {
		if !a.Prefix.Addr().IsLoopback() {
			fmt.Fprintln(&b, name[a.Link], a.Prefix)
		}
	}
	routes, err := w.k.Routes(RouteProtocol)
	require.NoError(w.t, err)
	var lines []string
	for _, r := range routes {
		lines = append(lines, fmt.Sprintln(r.Dst, r.Via, name[r.Link], r.Src, r.MTU))
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	return b.String()
}

// A route reads back as it was made: differences are found by comparing them.
func TestRoutesReadBackAsMade(t *testing.T) {
	for name, w := range map[string]*world{"fake": fakeWorld(t), "real": realWorld(t)} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, errors.Join(w.addAddr("under0", "10.9.0.1/24"), w.addAddr("under0", "fd00::1/64")))
			made := []Route{
				w.route("10.100.100.3/32", "10.9.0.3", "under0", ""), w.route("10.8.0.0/24", "", "under0", "10.9.0.1"),
				w.route("fd09::3/128", "fd00::3", "under0", ""), w.route("fd08::/64", "", "under0", "fd00::1"),
			}
			for _, r := range made {
				require.NoError(t, w.k.AddRoute(r))
			}
			have, err := w.k.Routes(RouteProtocol)
			require.NoError(t, err)
			assert.ElementsMatch(t, made, have)
		})
	}
}

// A missing sysctl is a missing one on the real kernel; the fake has them all.
func TestMissingSysctl(t *testing.T) {
	w := realWorld(t)
	_, err := w.k.Sysctl(ConfPath("ipv4", "none", "arp_ignore"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.True(t, IsNotFound(err))
	steps, err := SysctlSteps(w.k, "x", Setting{ConfPath("ipv4", "none", "arp_ignore"), "1"}, Setting{ConfPath("ipv4", "under0", "arp_ignore"), "1"})
	require.NoError(t, err)
	assert.Len(t, steps, 1, "a sysctl that this kernel lacks is left out")
}
