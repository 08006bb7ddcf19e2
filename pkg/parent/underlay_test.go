package parent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// bring repeats a difference until nothing is left and returns the calls made.
func bring(t *testing.T, f *kernel.Fake, diff func() ([]kernel.Step, error)) []string {
	t.Helper()
	f.Log = nil
	for range 5 {
		steps, err := diff()
		require.NoError(t, err)
		if len(steps) == 0 {
			return f.Log
		}
		_, err = kernel.Apply(f, steps)
		require.NoError(t, err)
	}
	require.Fail(t, "it never settles", "%v", f.Log)
	return nil
}

func TestVTEP(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(f *kernel.Fake)
		vtep    string
		want    []string
	}{
		{"a fresh node", nil, "10.100.100.2",
			[]string{"add dummy dummy0", "set dummy0 up=true", "add address 10.100.100.2/32 to dummy0"}},
		{"IPv6", nil, "fd09::2",
			[]string{"add dummy dummy0", "set dummy0 up=true", "add address fd09::2/128 to dummy0"}},
		{"without dummies", func(f *kernel.Fake) { f.NoDummy = true }, "10.100.100.2",
			[]string{"add dummy dummy0", "add address 10.100.100.2/32 to lo"}},
		{"the device is there, down", func(f *kernel.Fake) { f.Have(kernel.Link{Name: "dummy0", Kind: "dummy"}) }, "10.100.100.2",
			[]string{"set dummy0 up=true", "add address 10.100.100.2/32 to dummy0"}},
		{"the device is there, up", func(f *kernel.Fake) { f.Have(kernel.Link{Name: "dummy0", Kind: "dummy", Up: true}) }, "10.100.100.2",
			[]string{"add address 10.100.100.2/32 to dummy0"}},
		{"it has the address, but is down", func(f *kernel.Fake) {
			f.Have(kernel.Link{Name: "dummy0", Kind: "dummy"})
			f.AddrOn("dummy0", "10.100.100.2/24")
		}, "10.100.100.2", []string{"set dummy0 up=true"}},
		{"the address is elsewhere", func(f *kernel.Fake) { f.AddrOn("eth0", "10.100.100.2/24") }, "10.100.100.2", nil},
		{"the address is elsewhere, the device down", func(f *kernel.Fake) {
			f.Have(kernel.Link{Name: "dummy0", Kind: "dummy"})
			f.AddrOn("lo", "10.100.100.2/32")
		}, "10.100.100.2", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := host()
			if c.prepare != nil {
				c.prepare(f)
			}
			conf := netconf.VTEP{Interface: "dummy0"}
			got := bring(t, f, func() ([]kernel.Step, error) { return DiffVTEP(f, conf, addr(c.vtep)) })
			assert.Equal(t, c.want, got)
		})
	}
}

// mesh is a node with two point-to-point links to its peers.
func mesh() *kernel.Fake {
	f := host()
	for _, name := range []string{"p1", "p2"} {
		f.Have(kernel.Link{Name: name, Kind: "veth", MTU: 9000, Up: true})
	}
	f.AddrOn("p1", "10.0.0.2/31")
	f.AddrOn("p2", "10.0.0.5/31")
	f.AddrOn("p2", "fd01::4/127")
	return f
}

func static(via map[string]string) netconf.VTEP {
	return netconf.VTEP{CIDR: netip.MustParsePrefix("10.100.100.0/24"), Routes: true, Via: via}
}

func TestRoutes(t *testing.T) {
	const p1, p3 = "10.100.100.1", "10.100.100.3"
	for _, c := range []struct {
		name    string
		prepare func(f *kernel.Fake)
		conf    netconf.VTEP
		peers   []netip.Addr
		want    []string
	}{
		{"over a /31 the other end is the next hop", nil, static(map[string]string{p1: "p1", p3: "p2"}), addrs(p1, p3),
			[]string{"add route 10.100.100.1/32 via 10.0.0.3 dev p1", "add route 10.100.100.3/32 via 10.0.0.4 dev p2"}},
		{"over a /127 too", nil, netconf.VTEP{CIDR: netip.MustParsePrefix("fd09::/64"), Routes: true, Via: map[string]string{"fd09::3": "p2"}}, addrs("fd09::3"),
			[]string{"add route fd09::3/128 via fd01::5 dev p2"}},
		{"a /31 of the other family doesn't count", nil,
			netconf.VTEP{CIDR: netip.MustParsePrefix("fd09::/64"), Routes: true, Via: map[string]string{"fd09::3": "p1"}}, addrs("fd09::3"),
			[]string{"add route fd09::3/128 dev p1"}},
		{"a device with a LAN: on the link", nil, static(map[string]string{p1: "eth0"}), addrs(p1),
			[]string{"add route 10.100.100.1/32 dev eth0"}},
		{"a next hop: by its device", nil, static(map[string]string{p1: "192.168.1.9"}), addrs(p1),
			[]string{"add route 10.100.100.1/32 via 192.168.1.9 dev eth0"}},
		{"a peer that nothing is said about", nil, static(map[string]string{p1: "p1"}), addrs(p3), nil},
		{"not wanted", nil, netconf.VTEP{CIDR: netip.MustParsePrefix("10.100.100.0/24"), Via: map[string]string{p1: "p1"}}, addrs(p1), nil},
		{"there already", func(f *kernel.Fake) {
			require.NoError(t, f.AddRoute(kernel.Route{Dst: netip.MustParsePrefix(p1 + "/32"), Via: addr("10.0.0.3"), Link: at(f, "p1"), Protocol: kernel.RouteProtocol}))
		}, static(map[string]string{p1: "p1"}), addrs(p1), nil},
		{"another way: first the wrong one goes", func(f *kernel.Fake) {
			require.NoError(t, f.AddRoute(kernel.Route{Dst: netip.MustParsePrefix(p1 + "/32"), Link: at(f, "eth0"), Protocol: kernel.RouteProtocol}))
		}, static(map[string]string{p1: "p1"}), addrs(p1),
			[]string{"del route 10.100.100.1/32 dev eth0", "add route 10.100.100.1/32 via 10.0.0.3 dev p1"}},
		{"a peer that is gone", func(f *kernel.Fake) {
			require.NoError(t, f.AddRoute(kernel.Route{Dst: netip.MustParsePrefix(p3 + "/32"), Link: at(f, "p2"), Protocol: kernel.RouteProtocol}))
		}, static(nil), addrs(p1), []string{"del route 10.100.100.3/32 dev p2"}},
		{"peers not known: what is there stays", func(f *kernel.Fake) {
			require.NoError(t, f.AddRoute(kernel.Route{Dst: netip.MustParsePrefix(p3 + "/32"), Link: at(f, "p2"), Protocol: kernel.RouteProtocol}))
		}, static(nil), nil, nil},
		{"one of ours for another network", func(f *kernel.Fake) {
			require.NoError(t, f.AddRoute(kernel.Route{Dst: netip.MustParsePrefix("10.200.0.1/32"), Link: at(f, "p2"), Protocol: kernel.RouteProtocol}))
		}, static(nil), addrs(p1), nil},
		{"a routing daemon's exact route is respected", func(f *kernel.Fake) { f.RouteVia(p1+"/32", "p2", 0) }, static(map[string]string{p1: "p1"}), addrs(p1), nil},
		{"a wider one isn't exact", func(f *kernel.Fake) { f.RouteVia("10.100.100.0/24", "p2", 0) }, static(map[string]string{p1: "p1"}), addrs(p1),
			[]string{"add route 10.100.100.1/32 via 10.0.0.3 dev p1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := mesh()
			if c.prepare != nil {
				c.prepare(f)
			}
			got := bring(t, f, func() ([]kernel.Step, error) { return DiffRoutes(f, c.conf, c.peers) })
			assert.Equal(t, c.want, got)
		})
	}
}

func TestRouteFaultsComeAtOnce(t *testing.T) {
	f := mesh()
	_, err := DiffRoutes(f, static(map[string]string{"10.100.100.1": "eth9", "10.100.100.3": "172.31.0.1"}), addrs("10.100.100.1", "10.100.100.3"))
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	for _, text := range []string{"parent.vtep.via", "eth9", "10.100.100.1", "172.31.0.1", "10.100.100.3", "can't be reached"} {
		assert.ErrorContains(t, err, text)
	}
	assert.Empty(t, f.Log)
}

func TestAutoMTU(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(f *kernel.Fake)
		vtep    string
		peers   []netip.Addr
		want    int
		refused string
	}{
		{"the smallest route MTU", func(f *kernel.Fake) {
			f.RouteVia("10.100.100.1/32", "p1", 0)
			f.RouteVia("10.100.100.3/32", "p2", 8000)
		}, "10.100.100.2", addrs("10.100.100.1", "10.100.100.3"), 7950, ""},
		{"that of the device", func(f *kernel.Fake) { f.RouteVia("10.100.100.0/24", "p1", 0) }, "10.100.100.2", addrs("10.100.100.1"), 8950, ""},
		{"IPv6 has greater headers", func(f *kernel.Fake) { f.RouteVia("fd09::/64", "p2", 0) }, "fd09::2", addrs("fd09::1"), 8930, ""},
		{"an unreachable peer doesn't count", func(f *kernel.Fake) { f.RouteVia("10.100.100.1/32", "p1", 0) },
			"10.100.100.2", addrs("10.100.100.1", "10.100.100.3"), 8950, ""},
		{"none reachable: the smallest of the underlay", nil, "10.100.100.2", addrs("10.100.100.1"), 1450, ""},
		{"none known: the same", nil, "10.100.100.2", nil, 1450, ""},
		{"a device that is down carries nothing", func(f *kernel.Fake) {
			require.NoError(t, f.SetLink(at(f, "eth0"), kernel.Change{Up: new(false)}))
		}, "10.100.100.2", nil, 8950, ""},
		{"nor do a dummy, a VXLAN or a macvlan", func(f *kernel.Fake) {
			for _, kind := range []string{"dummy", "vxlan", "macvlan"} {
				f.Have(kernel.Link{Name: kind, Kind: kind, MTU: 1000, Up: true, Lower: at(f, "p1")})
				f.AddrOn(kind, "10.9.0.1/24")
			}
		}, "10.100.100.2", nil, 1450, ""},
		{"nor one without an address", func(f *kernel.Fake) { f.Alter("eth1", func(l *kernel.Link) { l.MTU = 1000 }) }, "10.100.100.2", nil, 1450, ""},
		{"too small", func(f *kernel.Fake) { f.RouteVia("10.100.100.1/32", "p1", 600) }, "10.100.100.2", addrs("10.100.100.1"), 0, "carries 600 bytes"},
		{"just enough", func(f *kernel.Fake) { f.RouteVia("10.100.100.1/32", "p1", 626) }, "10.100.100.2", addrs("10.100.100.1"), 576, ""},
		{"no underlay", func(f *kernel.Fake) {
			for _, name := range []string{"eth0", "p1", "p2"} {
				require.NoError(t, f.SetLink(at(f, name), kernel.Change{Up: new(false)}))
			}
		}, "10.100.100.2", nil, 0, "set parent.mtu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := mesh()
			if c.prepare != nil {
				c.prepare(f)
			}
			got, err := AutoMTU(f, addr(c.vtep), c.peers)
			assert.Equal(t, c.want, got)
			if c.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.refused)
			assert.Contains(t, []cnierr.Code{cnierr.MTUMismatch, cnierr.InvalidConfig}, cnierr.CodeOf(err))
		})
	}
}

// The error of a refused route names the device, not its number.
func TestStepTextsNameDevices(t *testing.T) {
	f := mesh()
	steps, err := DiffRoutes(f, static(map[string]string{"10.100.100.1": "p1"}), addrs("10.100.100.1"))
	require.NoError(t, err)
	require.Len(t, steps, 1)
	assert.True(t, strings.HasSuffix(steps[0].Text, "via 10.0.0.3 dev p1"), steps[0].Text)
}
