package hostshim

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// recorder writes what neighbours are asked into the kernel's log, so that the
// order of both is seen.
type recorder struct {
	f *kernel.Fake
	// holders are addresses that others hold: found by Probe, or by Settle only.
	probed, settled string
	fail            string // the call that fails
}

func (r *recorder) note(call string, link kernel.Link, addrs ...netip.Addr) error {
	line := call
	for _, a := range addrs {
		line += " " + a.String()
	}
	line += " on " + link.Name
	if r.fail == line {
		return assert.AnError
	}
	r.f.Log = append(r.f.Log, line)
	return nil
}

func (r *recorder) Probe(_ context.Context, link kernel.Link, addr netip.Addr) error {
	if err := r.note("probe", link, addr); err != nil || addr.String() != r.probed {
		return err
	}
	return cnierr.New(cnierr.DuplicateAddress, "%s is held by 02:00:00:00:00:99", addr)
}

func (r *recorder) Announce(link kernel.Link, addrs []netip.Addr) error {
	return r.note("announce", link, addrs...)
}

func (r *recorder) Settle(_ context.Context, link kernel.Link, addr netip.Addr) error {
	if err := r.note("settle", link, addr); err != nil {
		return err
	}
	if addr.String() != r.settled {
		r.f.DAD(addr.String(), false, false)
		return nil
	}
	return cnierr.New(cnierr.DuplicateAddress, "%s failed duplicate address detection", addr)
}

const (
	shim = "lhnet1-host"
	vx   = "vxlan-storage"
)

var ownMAC = net.HardwareAddr{0x3e, 0, 0, 0, 0, 2}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// onVXLAN is the shim on a parent of its own, onNIC the one beside a NIC's address.
func onVXLAN() Desired {
	return Desired{
		Name: shim, Parent: vx, MAC: ownMAC, Addresses: prefixes("10.100.1.2/24"), Hosts: prefixes("10.100.1.0/28"),
		Owner: true, Probe: true,
	}
}

func onNIC() Desired {
	d := onVXLAN()
	d.Parent, d.Owner = "eth0", false
	return d
}

func dual(d Desired) Desired {
	d.Addresses, d.Hosts = prefixes("10.100.1.2/24", "fd00::2/64"), prefixes("10.100.1.0/28", "fd00::/124")
	return d
}

func with(d Desired, change func(*Desired)) Desired {
	change(&d)
	return d
}

func host() (*kernel.Fake, *recorder) {
	f := kernel.NewFake()
	f.Have(kernel.Link{Name: "eth0", Kind: "device", Up: true})
	f.AddrOn("eth0", "10.100.1.200/24")
	f.Have(kernel.Link{Name: vx, Kind: "vxlan", MTU: 1450, Up: true})
	return f, &recorder{f: f}
}

func at(f *kernel.Fake, name string) int {
	l, err := f.Link(name)
	if err != nil {
		panic(err)
	}
	return l.Index
}

func bring(f *kernel.Fake, r *recorder, d Desired) error {
	for range 5 {
		steps, err := Diff(context.Background(), f, r, d)
		if err != nil || len(steps) == 0 {
			return err
		}
		if _, err := kernel.Apply(f, steps); err != nil {
			return err
		}
	}
	panic("it never settles: " + strings.Join(f.Log, "; "))
}

// The sysctls come before the shim is up and has its address, so that the
// kernel never answers or asks in the wrong way; the probe before the address.
func TestAFreshShim(t *testing.T) {
	settings := func(keys ...string) []string {
		var list []string
		for _, k := range keys {
			family, rest, _ := strings.Cut(k, ".")
			list = append(list, fmt.Sprintf("sysctl net/%s/conf/%s/%s", family, shim, rest))
		}
		return list
	}
	v4 := settings("ipv4.arp_ignore=1", "ipv4.arp_announce=2", "ipv4.rp_filter=2")
	for _, c := range []struct {
		name    string
		desired Desired
		want    []string
	}{
		{"on a VXLAN", onVXLAN(), append(append([]string{"add macvlan " + shim}, v4...),
			"set lhnet1-host up=true", "probe 10.100.1.2 on lhnet1-host", "add address 10.100.1.2/24 to lhnet1-host",
			"settle 10.100.1.2 on lhnet1-host", "announce 10.100.1.2 on lhnet1-host")},
		{"without probing", with(onVXLAN(), func(d *Desired) { d.Probe = false }), append(append([]string{"add macvlan " + shim}, v4...),
			"set lhnet1-host up=true", "add address 10.100.1.2/24 to lhnet1-host", "announce 10.100.1.2 on lhnet1-host")},
		{"beside a NIC's address", onNIC(), append(append([]string{"add macvlan " + shim}, v4...),
			"set lhnet1-host up=true", "probe 10.100.1.2 on lhnet1-host", "add address 10.100.1.2/32 to lhnet1-host",
			"settle 10.100.1.2 on lhnet1-host", "announce 10.100.1.2 on lhnet1-host",
			"add route 10.100.1.16/28 dev lhnet1-host src 10.100.1.2", "add route 10.100.1.32/27 dev lhnet1-host src 10.100.1.2",
			"add route 10.100.1.64/26 dev lhnet1-host src 10.100.1.2", "add route 10.100.1.128/25 dev lhnet1-host src 10.100.1.2")},
		{"dual stack", dual(with(onVXLAN(), func(d *Desired) { d.Probe = false })), append(append([]string{"add macvlan " + shim}, v4...),
			append(settings("ipv6.keep_addr_on_down=1"), "set lhnet1-host up=true",
				"add address 10.100.1.2/24 to lhnet1-host", "announce 10.100.1.2 on lhnet1-host",
				"add address fd00::2/64 to lhnet1-host", "announce fd00::2 on lhnet1-host")...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := host()
			require.NoError(t, bring(f, r, c.desired))
			assert.Equal(t, c.want, f.Log)
			l, err := f.Link(shim)
			require.NoError(t, err)
			assert.Equal(t, ownMAC, l.MAC)
			nic, err := f.Link("eth0")
			require.NoError(t, err)
			addrs, err := f.Addrs()
			require.NoError(t, err)
			assert.Equal(t, prefixes("10.100.1.200/24")[0], kernel.AddrsOf(addrs, nic.Index)[0].Prefix, "the NIC keeps its address")
		})
	}
}

// script leaves a shim, up, without sysctls.
func script(f *kernel.Fake, parent string) {
	f.Have(kernel.Link{Name: shim, Kind: "macvlan", Lower: at(f, parent), Up: true, Macvlan: kernel.Macvlan{Mode: "bridge"}})
	for _, s := range settings(dual(onVXLAN())) {
		if err := f.SetSysctl(s.Path, s.Value); err != nil {
			panic(err)
		}
	}
	f.Log = nil
}

// Rule 4: on the shim, announced, off the parent, announced again. An address
// that the parent holds isn't probed for: the parent would answer.
func TestAddressesMoveInThisOrder(t *testing.T) {
	for _, c := range []struct {
		name     string
		onParent []string
		onShim   []string
		desired  Desired
		want     []string
	}{
		{"one", []string{"10.100.1.2/24"}, nil, onVXLAN(), []string{
			"add address 10.100.1.2/24 to lhnet1-host", "announce 10.100.1.2 on lhnet1-host",
			"del address 10.100.1.2/24 from vxlan-storage", "announce 10.100.1.2 on lhnet1-host",
		}},
		{"on both already", []string{"10.100.1.2/24"}, []string{"10.100.1.2/24"}, onVXLAN(), []string{
			"announce 10.100.1.2 on lhnet1-host", "del address 10.100.1.2/24 from vxlan-storage", "announce 10.100.1.2 on lhnet1-host",
		}},
		{"another of the network keeps its prefix; the last goes first", []string{"10.100.1.2/24", "10.100.1.9/24"}, nil, onVXLAN(), []string{
			"add address 10.100.1.2/24 to lhnet1-host", "announce 10.100.1.2 on lhnet1-host",
			"add address 10.100.1.9/24 to lhnet1-host", "announce 10.100.1.9 on lhnet1-host",
			"del address 10.100.1.9/24 from vxlan-storage", "announce 10.100.1.9 on lhnet1-host",
			"del address 10.100.1.2/24 from vxlan-storage", "announce 10.100.1.2 on lhnet1-host",
		}},
		{"of another network stays", []string{"172.16.0.1/24"}, []string{"10.100.1.2/24"}, onVXLAN(), nil},
		{"IPv6", []string{"fd00::2/64"}, []string{"10.100.1.2/24"}, dual(onVXLAN()), []string{
			"add address fd00::2/64 to lhnet1-host", "announce fd00::2 on lhnet1-host",
			"del address fd00::2/64 from vxlan-storage", "announce fd00::2 on lhnet1-host",
		}},
		{"link-local stays", []string{"fe80::1/64"}, []string{"10.100.1.2/24", "fd00::2/64"}, dual(onVXLAN()), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := host()
			script(f, vx)
			for _, a := range c.onParent {
				f.AddrOn(vx, a)
			}
			for _, a := range c.onShim {
				f.AddrOn(shim, a)
			}
			require.NoError(t, bring(f, r, c.desired))
			assert.Equal(t, c.want, f.Log)
		})
	}
}

// Whatever call of a move fails, no address is ever on neither device, and doing
// it again ends in the same state.
func TestAMoveMayFailAnywhere(t *testing.T) {
	start := func() (*kernel.Fake, *recorder) {
		f, r := host()
		script(f, vx)
		for _, a := range []string{"10.100.1.2/24", "10.100.1.9/24", "fd00::2/64", "fd00::9/64"} {
			f.AddrOn(vx, a)
		}
		return f, r
	}
	clean, r := start()
	require.NoError(t, bring(clean, r, dual(onVXLAN())))
	require.Len(t, clean.Log, 16)
	for i, call := range clean.Log {
		f, r := start()
		nth := 0
		stop := func() error { // the i-th call, whoever makes it
			if nth++; nth == i+1 {
				return assert.AnError
			}
			return nil
		}
		f.Fail = func(string) error { return stop() }
		err := settleWith(f, failing{r, stop}, dual(onVXLAN()))
		require.ErrorIs(t, err, assert.AnError, call)
		for _, a := range []string{"10.100.1.2", "10.100.1.9", "fd00::2", "fd00::9"} {
			assert.Contains(t, f.Dump(), "address "+a+"/", "when %q failed", call)
		}
		f.Fail = nil
		require.NoError(t, bring(f, r, dual(onVXLAN())))
		assert.Equal(t, clean.Dump(), f.Dump(), "after %q failed", call)
	}
}

type failing struct {
	*recorder
	stop func() error
}

func (n failing) Announce(link kernel.Link, addrs []netip.Addr) error {
	if err := n.stop(); err != nil {
		return err
	}
	return n.recorder.Announce(link, addrs)
}

func settleWith(f *kernel.Fake, n Neighbours, d Desired) error {
	for range 5 {
		steps, err := Diff(context.Background(), f, n, d)
		if err != nil || len(steps) == 0 {
			return err
		}
		if _, err := kernel.Apply(f, steps); err != nil {
			return err
		}
	}
	panic("it never settles")
}

// A duplicate is an error with code 100, and the address isn't left on the shim.
func TestDuplicates(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(f *kernel.Fake, r *recorder)
		desired Desired
		want    string
	}{
		{"found by the probe", func(_ *kernel.Fake, r *recorder) { r.probed = "10.100.1.2" }, onVXLAN(), "02:00:00:00:00:99"},
		{"found by the kernel", func(_ *kernel.Fake, r *recorder) { r.settled = "fd00::2" }, dual(onVXLAN()), "failed duplicate address detection"},
		{"found by the kernel, the process was killed then", func(f *kernel.Fake, r *recorder) {
			r.probed = "fd00::2"
			f.AddrOn(shim, "10.100.1.2/24")
			f.AddrOn(shim, "fd00::2/64")
			f.DAD("fd00::2", false, true)
		}, dual(onVXLAN()), "02:00:00:00:00:99"},
		{"found by the kernel after the process was killed", func(f *kernel.Fake, r *recorder) {
			r.settled = "fd00::2"
			f.AddrOn(shim, "10.100.1.2/24")
			f.AddrOn(shim, "fd00::2/64")
			f.DAD("fd00::2", true, false)
		}, dual(onVXLAN()), "failed duplicate address detection"},
		{"on another device of this host", func(f *kernel.Fake, _ *recorder) { f.AddrOn("eth0", "10.100.1.2/24") }, onVXLAN(), "is on eth0 of this node already"},
		{"the NIC's own", func(f *kernel.Fake, _ *recorder) { f.AddrOn("eth0", "10.100.1.2/24") },
			with(onNIC(), func(d *Desired) { d.Parent = "eth0" }), "is on eth0 of this node already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := host()
			script(f, c.desired.Parent)
			c.prepare(f, r)
			err := bring(f, r, c.desired)
			assert.Equal(t, cnierr.DuplicateAddress, cnierr.CodeOf(err), err)
			require.ErrorContains(t, err, c.want)
			addrs, err := f.Addrs()
			require.NoError(t, err)
			bad := c.desired.Addresses[len(c.desired.Addresses)-1].Addr()
			for _, a := range kernel.AddrsOf(addrs, at(f, shim)) {
				assert.NotEqual(t, bad, a.Prefix.Addr())
			}
		})
	}
	t.Run("the foreign holder went away", func(t *testing.T) {
		f, r := host()
		script(f, vx)
		f.AddrOn(shim, "fd00::2/64")
		f.DAD("fd00::2", false, true)
		require.NoError(t, bring(f, r, dual(onVXLAN())))
		addrs, err := f.Addrs()
		require.NoError(t, err)
		assert.NotContains(t, fmt.Sprint(addrs), "true true}")
	})
	t.Run("it can't be taken off again", func(t *testing.T) {
		f, r := host()
		script(f, vx)
		r.settled = "10.100.1.2"
		f.Fail = func(call string) error {
			if strings.HasPrefix(call, "del address") {
				return assert.AnError
			}
			return nil
		}
		err := bring(f, r, onVXLAN())
		assert.Equal(t, cnierr.DuplicateAddress, cnierr.CodeOf(err))
		assert.ErrorContains(t, err, "could not be taken off again")
	})
}

// A device that can't be our shim is refused in words, and never touched.
func TestForeignDevices(t *testing.T) {
	for _, c := range []struct {
		name string
		link kernel.Link
		want string
	}{
		{"another kind", kernel.Link{Kind: "bridge"}, "it is a bridge, not a macvlan"},
		{"on another parent", kernel.Link{Kind: "macvlan", Lower: 2, Macvlan: kernel.Macvlan{Mode: "bridge"}}, "it is a child of eth0, not of vxlan-storage"},
		{"on a parent that can't be seen", kernel.Link{Kind: "macvlan", Lower: 77, MTU: 1400}, "it is a child of #77, not of vxlan-storage"},
		{"in another mode", kernel.Link{Kind: "macvlan", Lower: 3, Macvlan: kernel.Macvlan{Mode: "private"}}, "its mode is private, not bridge"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := host()
			require.Equal(t, 3, at(f, vx))
			c.link.Name = shim
			f.Have(c.link)
			before := f.Dump()
			err := bring(f, r, onVXLAN())
			assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
			for _, text := range []string{c.want, shim, "hostShim.name"} {
				assert.ErrorContains(t, err, text)
			}
			assert.Equal(t, before, f.Dump())
			assert.Empty(t, f.Log)
		})
	}
}

// Our own shim follows its parent's MTU, an adopted one keeps what it came with.
func TestMTU(t *testing.T) {
	f, r := host()
	require.NoError(t, bring(f, r, onVXLAN()))
	require.NoError(t, f.SetLink(at(f, vx), kernel.Change{MTU: new(8950)}))
	f.Log = nil
	require.NoError(t, bring(f, r, onVXLAN()))
	assert.Equal(t, []string{"set lhnet1-host mtu=8950"}, f.Log)

	f, r = host()
	script(f, vx)
	require.NoError(t, f.SetLink(at(f, shim), kernel.Change{MTU: new(1300)}))
	f.Log = nil
	require.NoError(t, bring(f, r, with(onVXLAN(), func(d *Desired) { d.Probe = false })))
	assert.NotContains(t, strings.Join(f.Log, ";"), "mtu")
}

// Routes and sysctls are observed and repaired like all else.
func TestRepairs(t *testing.T) {
	f, r := host()
	require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv6", shim, "accept_ra"), "1")) // as it is by default
	require.NoError(t, bring(f, r, onNIC()))
	golden := f.Dump()
	own := func() kernel.Route {
		routes, err := f.Routes(kernel.RouteProtocol)
		require.NoError(t, err)
		return routes[0]
	}
	for name, disturb := range map[string]func(){
		"down":         func() { require.NoError(t, f.SetLink(at(f, shim), kernel.Change{Up: new(false)})) },
		"a route went": func() { require.NoError(t, f.DelRoute(own())) },
		"all its routes": func() {
			require.NoError(t, f.DelAddr(kernel.Addr{Link: at(f, shim), Prefix: prefixes("10.100.1.2/32")[0]}))
		},
		"a stale route":  func() { stale := own(); stale.Dst = prefixes("10.55.0.0/24")[0]; require.NoError(t, f.AddRoute(stale)) },
		"rp_filter":      func() { require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", shim, "rp_filter"), "1")) },
		"router adverts": func() { require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv6", shim, "accept_ra"), "2")) },
		"the shim went":  func() { require.NoError(t, f.DelLink(at(f, shim))) },
		"nothing":        func() {},
		"a script's length": func() {
			require.NoError(t, f.DelAddr(kernel.Addr{Link: at(f, shim), Prefix: prefixes("10.100.1.2/32")[0]}))
			f.AddrOn(shim, "10.100.1.2/24")
		},
		"a foreign neighbor": func() { f.ForeignChild("eth0", 1500) },
	} {
		t.Run(name, func(t *testing.T) {
			disturb()
			require.NoError(t, bring(f, r, onNIC()))
			assert.Equal(t, golden, f.Dump())
			calls := len(f.Log)
			require.NoError(t, bring(f, r, onNIC()))
			assert.Len(t, f.Log, calls, "a second run changes nothing")
		})
	}
}

// A route of somebody else's to just a part of the network is left to it.
func TestForeignRouteBeside(t *testing.T) {
	f, r := host()
	f.RouteVia("10.100.1.128/25", "eth0", 0)
	require.NoError(t, bring(f, r, onNIC()))
	routes, err := f.Routes(kernel.RouteProtocol)
	require.NoError(t, err)
	assert.Len(t, routes, 3)
}

// An explanation where a bridge or bond keeps macvlan children away.
func TestAPortAsParent(t *testing.T) {
	f, r := host()
	br := f.Have(kernel.Link{Name: "br0", Kind: "bridge"})
	f.Alter("eth0", func(l *kernel.Link) { l.Master = br })
	f.Fail = func(string) error { return assert.AnError }
	err := bring(f, r, onNIC())
	require.ErrorIs(t, err, assert.AnError)
	assert.ErrorContains(t, err, "eth0 is a port of another device")
}

func TestPodsPart(t *testing.T) {
	for _, c := range []struct {
		network, hosts string
		want           []string
	}{
		{"10.100.1.0/24", "10.100.1.0/28", []string{"10.100.1.16/28", "10.100.1.32/27", "10.100.1.64/26", "10.100.1.128/25"}},
		{"10.100.1.0/24", "10.100.1.128/25", []string{"10.100.1.0/25"}},
		{"10.100.1.0/24", "10.100.1.0/24", nil},
		{"10.100.1.2/32", "10.100.1.0/28", nil},
		{"10.100.1.0/24", "192.168.0.0/24", []string{"10.100.1.0/24"}},
		{"fd00::/126", "fd00::2/127", []string{"fd00::/127"}},
	} {
		got := Desired{}.podsPart(netip.MustParsePrefix(c.network), netip.MustParsePrefix(c.hosts))
		assert.Equal(t, prefixes(c.want...), append([]netip.Prefix(nil), got...), "%s without %s", c.network, c.hosts)
	}
}

// Nodes' own addresses and the gateway's stay on the parent.
func TestPodsPartIsNarrowed(t *testing.T) {
	network, hosts := netip.MustParsePrefix("10.100.1.0/24"), netip.MustParsePrefix("10.100.1.0/28")
	d := Desired{Excluded: prefixes("10.100.1.128/25")}
	assert.Equal(t, prefixes("10.100.1.16/28", "10.100.1.32/27", "10.100.1.64/26"), d.podsPart(network, hosts))
	d.Pods = []netipx.IPRange{netipx.MustParseIPRange("10.100.1.8-10.100.1.33"), netipx.MustParseIPRange("10.100.1.120-10.100.1.140")}
	assert.Equal(t, prefixes("10.100.1.16/28", "10.100.1.32/31", "10.100.1.120/29"), d.podsPart(network, hosts))
	d.Pods = []netipx.IPRange{netipx.MustParseIPRange("fd00::1-fd00::5")}
	assert.Empty(t, d.podsPart(network, hosts))
}
