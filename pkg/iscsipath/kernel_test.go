package iscsipath

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// The simulation must be this kernel: interfaces are made with chosen indexes,
// and what Go's net package, which Longhorn uses, finds first must be what
// Dialed says of the simulated dump.
func TestTheKernelDumpsAsSimulated(t *testing.T) {
	needRoot(t)
	order := runningOrder(t)
	for n, pod := range [][]Iface{
		{iface("eth0", 57, "10.42.0.5", "fd01::5"), iface("lhnet1", 2, "10.100.1.16", "fd00::16")},
		{iface("eth0", 2, "10.42.0.5"), iface("lhnet1", 256, "10.100.1.16")},
		{iface("eth0", 258, "10.42.0.5"), iface("lhnet1", 2, "10.100.1.16")},
		{iface("eth0", 2, "fd01::5"), iface("lhnet1", 300, "10.100.1.16")},
		{iface("eth0", 300, "fd01::5"), iface("lhnet1", 57, "fd00::16")},
		{iface("eth0", 2, "10.42.0.5"), iface("eth1", 300, "fd01::9"), iface("lhnet1", 3, "10.100.1.16")},
	} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inNetns(t, func() {
				for _, i := range pod {
					add(t, i)
				}
				addr, name, _ := Dialed(dump(order, pod))
				seen, by := longhorn(t)
				assert.Equal(t, name, by)
				assert.Equal(t, addr, seen)
			})
		})
	}
}

// An index from Choose makes this kernel behave as the policy wants.
func TestChoiceOnTheKernel(t *testing.T) {
	needRoot(t)
	order := runningOrder(t)
	for _, policy := range []netconf.ISCSIPath{netconf.ISCSIStorageIP, netconf.ISCSIPodIP} {
		for _, eth0 := range []int{2, 57, 300, 257, 511} {
			t.Run(fmt.Sprint(policy, " ", eth0), func(t *testing.T) {
				inNetns(t, func() {
					pod := iface("eth0", eth0, "10.42.0.5")
					add(t, pod)
					choice := Choose(policy, true, lhnet1, []Iface{lo, pod}, order)
					own := lhnet1
					own.Index = choice.Index
					add(t, own)
					_, by := longhorn(t)
					assert.Equal(t, choice.Possible == (policy == netconf.ISCSIStorageIP), by == "lhnet1", "%+v", choice)
				})
			})
		}
	}
}

// longhorn finds the address as Longhorn does, with the same library.
func longhorn(t *testing.T) (netip.Addr, string) {
	t.Helper()
	ifaces, err := net.Interfaces()
	require.NoError(t, err)
	holder := map[netip.Addr]string{}
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		require.NoError(t, err)
		for _, a := range addrs {
			holder[addrOf(a)] = i.Name
		}
		if a, ok := firstGlobal(addrs); ok && i.Name == "eth1" {
			return a, i.Name
		}
	}
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	a, _ := firstGlobal(addrs)
	return a, holder[a]
}

func firstGlobal(addrs []net.Addr) (netip.Addr, bool) {
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return addrOf(a), true
		}
	}
	return netip.Addr{}, false
}

func addrOf(a net.Addr) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
	return addr.Unmap()
}

func runningOrder(t *testing.T) Order {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	return OrderOf(unix.ByteSliceToString(u.Release[:]))
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

// inNetns runs f in a fresh network namespace, on this goroutine, so that f may
// end the test.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	n, err := testutils.NewNS()
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, n.Close())
		assert.NoError(t, testutils.UnmountNS(n))
	})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := ns.GetCurrentNS()
	require.NoError(t, err)
	defer func() { require.NoError(t, before.Close()) }()
	require.NoError(t, n.Set())
	defer func() { require.NoError(t, before.Set()) }()
	f()
}

func add(t *testing.T, i Iface) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = i.Name, i.Index
	link := &netlink.Bridge{LinkAttrs: attrs}
	require.NoError(t, netlink.LinkAdd(link))
	for _, a := range i.Addrs {
		flags := 0
		if a.Is6() {
			flags = unix.IFA_F_NODAD
		}
		require.NoError(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, a.BitLen())}, Flags: flags}))
	}
}
