package neigh

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// window is generous: the machine may be busy, and a silent answer would fail.
const window = 300 * time.Millisecond

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

// station is one link in a network namespace of its own.
type station struct {
	t    *testing.T
	ns   ns.NetNS
	link Link
}

// do runs f in the station's namespace, on a locked thread.
func (s station) do(f func() error) error {
	return s.ns.Do(func(ns.NetNS) error { return f() })
}

func (s station) must(f func() error) { s.t.Helper(); require.NoError(s.t, s.do(f)) }

func newNS(t *testing.T) ns.NetNS {
	t.Helper()
	n, err := testutils.NewNS()
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, n.Close())
		assert.NoError(t, testutils.UnmountNS(n))
	})
	return n
}

// pair makes two stations at the ends of a veth.
func pair(t *testing.T) (a, b station) {
	t.Helper()
	needRoot(t)
	a, b = station{t: t, ns: newNS(t)}, station{t: t, ns: newNS(t)}
	a.must(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("x0"), PeerName: "x0", PeerNamespace: netlink.NsFd(b.ns.Fd())})
	})
	a.up("x0")
	b.up("x0")
	a.link, b.link = a.find("x0"), b.find("x0")
	return a, b
}

// siblings makes n stations that are macvlan children of one parent.
func siblings(t *testing.T, n int) []station {
	t.Helper()
	needRoot(t)
	host, all := station{t: t, ns: newNS(t)}, make([]station, n)
	host.must(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("parent")}) })
	host.up("parent")
	for i := range all {
		all[i] = station{t: t, ns: newNS(t)}
		host.must(func() error {
			child := attrs("lhnet1")
			child.ParentIndex, child.Namespace = host.find("parent").Index, netlink.NsFd(all[i].ns.Fd())
			return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: child, Mode: netlink.MACVLAN_MODE_BRIDGE})
		})
		all[i].up("lhnet1")
		all[i].link = all[i].find("lhnet1")
	}
	return all
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func (s station) find(name string) (link Link) {
	s.t.Helper()
	s.must(func() error {
		l, err := netlinksafe.LinkByName(name)
		if err == nil {
			link = Link{Name: name, Index: l.Attrs().Index, MAC: l.Attrs().HardwareAddr}
		}
		return err
	})
	return link
}

func (s station) up(name string) {
	s.t.Helper()
	s.must(func() error {
		l, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// add sets an address; nodad leaves out the kernel's own probing.
func (s station) add(cidr string, flags int) {
	s.t.Helper()
	s.must(func() error {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		addr.Flags = flags
		return netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: s.link.Index}}, addr)
	})
}

func (s station) probe(ctx context.Context, own func(net.HardwareAddr) bool, addrs ...netip.Addr) (found []Conflict, err error) {
	err = s.do(func() (err error) {
		found, err = Probe(ctx, s.link, addrs, window, own)
		return err
	})
	return found, err
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestProbeFindsTheHolder(t *testing.T) {
	a, b := pair(t)
	b.add("10.1.0.5/24", 0)
	b.add("10.1.0.7/24", 0)

	started := time.Now()
	found, err := a.probe(t.Context(), nil, ip("10.1.0.5"))
	require.NoError(t, err)
	assert.Equal(t, []Conflict{{ip("10.1.0.5"), b.link.MAC, "x0"}}, found)
	assert.Less(t, time.Since(started), window, "the first answer ends it")
	assert.Equal(t, fmt.Sprintf("10.1.0.5 is held by %s, seen on x0", b.link.MAC), found[0].String())

	found, err = a.probe(t.Context(), nil, ip("10.1.0.5"), ip("10.1.0.6"), ip("10.1.0.7"), ip("10.1.0.5"), ip("fd00::5"))
	require.NoError(t, err)
	assert.ElementsMatch(t, []Conflict{{ip("10.1.0.5"), b.link.MAC, "x0"}, {ip("10.1.0.7"), b.link.MAC, "x0"}}, found)
}

func TestProbeOfAFreeAddressTakesTheWindow(t *testing.T) {
	a, b := pair(t)
	b.add("10.1.0.5/24", 0)
	started := time.Now()
	found, err := a.probe(t.Context(), nil, ip("10.1.0.6"))
	require.NoError(t, err)
	assert.Empty(t, found)
	assert.GreaterOrEqual(t, time.Since(started), window)
}

func TestProbeAmongMacvlanSiblings(t *testing.T) {
	s := siblings(t, 3)
	s[2].add("10.1.0.5/24", 0)
	found, err := s[0].probe(t.Context(), nil, ip("10.1.0.5"), ip("10.1.0.6"))
	require.NoError(t, err)
	assert.Equal(t, []Conflict{{ip("10.1.0.5"), s[2].link.MAC, "lhnet1"}}, found)
}

func TestProbeIgnoresOwnMACs(t *testing.T) {
	a, b := pair(t)
	b.add("10.1.0.5/24", 0)
	found, err := a.probe(t.Context(), func(mac net.HardwareAddr) bool { return mac.String() == b.link.MAC.String() }, ip("10.1.0.5"))
	require.NoError(t, err)
	assert.Empty(t, found)
}

// A parent that reflects frames (a hairpin switch port) must not make us our
// own rival.
func TestProbeIgnoresItsReflection(t *testing.T) {
	a, b := pair(t)
	reflected := arpRequest(a.link.MAC, netip.IPv4Unspecified(), ip("10.1.0.5"))
	stop := b.repeat(etherTypeARP, broadcast, reflected.bytes())
	defer stop()
	found, err := a.probe(t.Context(), nil, ip("10.1.0.5"))
	require.NoError(t, err)
	assert.Empty(t, found)
}

func TestProbeHearsEveryKindOfClaim(t *testing.T) {
	rival := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	addr, other := ip("10.1.0.5"), ip("10.1.0.6")
	for _, c := range []struct {
		name   string
		packet arpPacket
		want   bool
	}{
		{"reply to us", arpPacket{op: opReply, senderMAC: rival, senderIP: addr}, true},
		{"gratuitous request", arpRequest(rival, addr, addr), true},
		{"request for another address", arpRequest(rival, addr, other), true},
		{"probe", arpRequest(rival, netip.IPv4Unspecified(), addr), true},
		{"a neighbour asks for the address", arpRequest(rival, other, addr), false},
		{"probe for another address", arpRequest(rival, netip.IPv4Unspecified(), other), false},
		{"another's reply", arpPacket{op: opReply, senderMAC: rival, senderIP: other, targetIP: addr}, false},
		{"reply from nowhere", arpPacket{op: opReply, senderMAC: rival, senderIP: netip.IPv4Unspecified(), targetIP: addr}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			stop := b.repeat(etherTypeARP, broadcast, c.packet.bytes())
			defer stop()
			found, err := a.probe(t.Context(), nil, addr)
			require.NoError(t, err)
			if c.want {
				assert.Equal(t, []Conflict{{addr, rival, "x0"}}, found)
			} else {
				assert.Empty(t, found)
			}
		})
	}
}

// The kernel hands frames of an unconfigured VLAN to packet sockets with their
// tag taken off; what is used there is no conflict here.
func TestProbeIgnoresOtherVLANs(t *testing.T) {
	a, b := pair(t)
	claim := arpPacket{op: opReply, senderMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, senderIP: ip("10.1.0.5")}
	tagged := append([]byte{0, 42, 0x08, 0x06}, claim.bytes()...) // VLAN 42, then the inner type
	stop := b.repeat(unix.ETH_P_8021Q, broadcast, tagged)
	defer stop()
	found, err := a.probe(t.Context(), nil, ip("10.1.0.5"))
	require.NoError(t, err)
	assert.Empty(t, found)
}

func TestSimultaneousProbesSeeEachOther(t *testing.T) {
	s := siblings(t, 2)
	var found [2][]Conflict
	var both sync.WaitGroup
	for i := range s {
		both.Go(func() {
			var err error
			found[i], err = s[i].probe(t.Context(), nil, ip("10.1.0.5"))
			assert.NoError(t, err)
		})
	}
	both.Wait()
	require.NotEmpty(t, append(found[0], found[1]...), "one of two at least must give way")
	for i, c := range found {
		if len(c) > 0 {
			assert.Equal(t, s[1-i].link.MAC, c[0].MAC)
		}
	}
}

func TestProbeErrors(t *testing.T) {
	a, _ := pair(t)
	addr := ip("10.1.0.5")
	probe := func(link Link, window time.Duration) error {
		return a.do(func() error { _, err := Probe(t.Context(), link, []netip.Addr{addr}, window, nil); return err })
	}
	assert.ErrorContains(t, probe(a.link, 0), "without time nobody can answer")
	assert.ErrorContains(t, probe(Link{Name: "x0", Index: a.link.Index}, window), "MAC")
	assert.ErrorContains(t, probe(Link{Name: "x0", MAC: a.link.MAC}, window), "index 0")
	gone := probe(Link{Name: "gone", Index: 4711, MAC: a.link.MAC}, window)
	require.ErrorIs(t, gone, unix.ENODEV)
	assert.ErrorContains(t, gone, "isn't in this network namespace")

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	started := time.Now()
	_, err := a.probe(ctx, nil, addr)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(started), window)

	a.must(func() error {
		return netlink.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: a.link.Index}})
	})
	down := probe(a.link, window)
	require.ErrorIs(t, down, unix.ENETDOWN)
	assert.ErrorContains(t, down, "10.1.0.5")
	assert.ErrorContains(t, down, "x0")
	assert.ErrorContains(t, down, "set the link up first")
	assert.ErrorIs(t, a.do(func() error { return Announce(a.link, []netip.Addr{addr}) }), unix.ENETDOWN)
}

// repeat sends a payload every few milliseconds until stop is called.
func (s station) repeat(etherType uint16, to net.HardwareAddr, payload []byte) (stop func()) {
	s.t.Helper()
	var out *socket
	s.must(func() (err error) { out, err = listen(s.link, etherType); return err })
	done := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			assert.NoError(s.t, out.send(to, payload))
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() { close(done); sender.Wait(); out.close() }
}

func TestAnnounceUpdatesStaleNeighbours(t *testing.T) {
	for _, c := range []struct{ family, addr, cidr, peer string }{
		{"IPv4", "10.1.0.5", "10.1.0.5/24", "10.1.0.1/24"},
		{"IPv6", "fd00::5", "fd00::5/64", "fd00::1/64"},
	} {
		for _, state := range []int{netlink.NUD_STALE, netlink.NUD_REACHABLE} {
			t.Run(fmt.Sprint(c.family, " ", state), func(t *testing.T) {
				a, b := pair(t)
				a.add(c.cidr, unix.IFA_F_NODAD)
				b.add(c.peer, unix.IFA_F_NODAD)
				old := net.HardwareAddr{2, 0, 0, 0, 0, 9}
				b.must(func() error {
					return netlink.NeighSet(&netlink.Neigh{LinkIndex: b.link.Index, State: state, IP: net.ParseIP(c.addr), HardwareAddr: old})
				})
				require.Equal(t, old.String(), b.neighbour(c.addr))

				a.must(func() error { return Announce(a.link, []netip.Addr{ip(c.addr)}) })
				assert.Eventually(t, func() bool { return b.neighbour(c.addr) == a.link.MAC.String() }, time.Second, 2*time.Millisecond)
			})
		}
	}
}

func TestAnnounceReportsEveryFault(t *testing.T) {
	needRoot(t)
	err := Announce(Link{Name: "x0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}, []netip.Addr{ip("10.1.0.5"), ip("fd00::5"), {}})
	for _, part := range []string{"announce 10.1.0.5", "announce fd00::5", "invalid IP", "x0"} {
		assert.ErrorContains(t, err, part)
	}
}

// neighbour is what the station's kernel believes the address's MAC to be.
func (s station) neighbour(addr string) (mac string) {
	s.t.Helper()
	s.must(func() error {
		list, err := netlink.NeighList(s.link.Index, netlink.FAMILY_ALL) //nolint:forbidigo // a few entries; read again until they are there
		for _, n := range list {
			if n.IP.String() == addr {
				mac = n.HardwareAddr.String()
			}
		}
		return err
	})
	return mac
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		family     string
		src        netip.Addr
		dst        netip.Addr
		cidr, from string
	}{
		{"IPv4", ip("10.1.0.1"), ip("10.1.0.5"), "10.1.0.5/24", "10.1.0.1/24"},
		{"IPv4 from nowhere", netip.Addr{}, ip("10.1.0.5"), "10.1.0.5/24", ""},
		{"IPv6", ip("fd00::1"), ip("fd00::5"), "fd00::5/64", "fd00::1/64"},
		{"IPv6 from nowhere", netip.Addr{}, ip("fd00::5"), "fd00::5/64", ""},
	} {
		t.Run(c.family, func(t *testing.T) {
			s := siblings(t, 3)
			if c.from != "" {
				s[0].add(c.from, unix.IFA_F_NODAD)
			}
			resolve := func() (macs []net.HardwareAddr) {
				s[0].must(func() (err error) { macs, err = Resolve(t.Context(), s[0].link, c.src, c.dst, window); return err })
				return macs
			}
			assert.Empty(t, resolve(), "silence")
			s[1].add(c.cidr, unix.IFA_F_NODAD)
			s[2].add(c.cidr, unix.IFA_F_NODAD)
			assert.ElementsMatch(t, []net.HardwareAddr{s[1].link.MAC, s[2].link.MAC}, resolve(), "each of two holders once")
		})
	}
}

func TestResolveRefusesMixedFamilies(t *testing.T) {
	_, err := Resolve(t.Context(), Link{Name: "x0"}, ip("10.1.0.1"), ip("fd00::5"), window)
	assert.ErrorContains(t, err, "one family")
	_, err = Resolve(t.Context(), Link{Name: "x0"}, netip.Addr{}, netip.Addr{}, window)
	assert.ErrorContains(t, err, "one family")
}

func TestWaitDAD(t *testing.T) {
	a, b := pair(t)
	b.add("fd00::5/64", unix.IFA_F_NODAD)
	a.add("fd00::5/64", 0)
	a.add("fd00::6/64", 0)
	a.add("10.1.0.5/24", 0)
	wait := func(ctx context.Context, addrs ...netip.Addr) (failed []netip.Addr, err error) {
		err = a.do(func() error { failed, err = WaitDAD(ctx, a.link.Index, addrs); return err })
		return failed, err
	}
	running := goleak.IgnoreCurrent()
	failed, err := wait(t.Context(), ip("fd00::5"), ip("fd00::6"), ip("10.1.0.5"))
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{ip("fd00::5")}, failed)
	s, err := a.observe("fd00::6")
	require.NoError(t, err)
	assert.Empty(t, s.tentative, "a free address is usable on return")
	goleak.VerifyNone(t, running)

	_, err = wait(t.Context(), ip("fd00::6"), ip("fd00::7"))
	assert.ErrorContains(t, err, "fd00::7")
	failed, err = wait(t.Context(), ip("10.1.0.5"))
	require.NoError(t, err, "IPv4 is passed over")
	assert.Empty(t, failed)

	a.add("fd00::8/64", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = wait(ctx, ip("fd00::8"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, "fd00::8")
}

func (s station) observe(addr string) (state dadState, err error) {
	err = s.do(func() error { state, err = observe(s.link.Index, []netip.Addr{ip(addr)}); return err })
	return state, err
}
