package parent

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

var ownMAC = net.HardwareAddr{0x3e, 0, 0, 0, 0, 1}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(texts ...string) []netip.Addr {
	list := []netip.Addr{}
	for _, s := range texts {
		list = append(list, addr(s))
	}
	return list
}

// host is a node with two NICs, one of which has addresses.
func host() *kernel.Fake {
	f := kernel.NewFake()
	f.Have(kernel.Link{Name: "eth0", Kind: "device", Up: true})
	f.Have(kernel.Link{Name: "eth1", Kind: "device", Up: true})
	f.AddrOn("eth0", "192.168.1.2/24")
	return f
}

func vxlan() Desired {
	return Desired{
		Parent:  netconf.Parent{Type: netconf.ParentVXLAN, Name: "vxlan-storage", VNI: 100, Port: 4789},
		Local:   addr("10.100.100.2"),
		MAC:     ownMAC,
		AutoMTU: 1450,
		Peers:   addrs("10.100.100.1", "10.100.100.3"),
	}
}

func vlan() Desired {
	return Desired{Parent: netconf.Parent{Type: netconf.ParentVLAN, Name: "eth0.5", Device: "eth0", VLAN: 5}}
}

func device() Desired {
	return Desired{Parent: netconf.Parent{Type: netconf.ParentDevice, Name: "eth0"}}
}

func with(d Desired, change func(*Desired)) Desired {
	change(&d)
	return d
}

// settle repeats Diff and Apply as package node does. It returns what was done.
func settle(k kernel.Kernel, d Desired) (done []string, err error) {
	for range 5 {
		steps, err := Diff(k, d)
		if err != nil || len(steps) == 0 {
			return done, err
		}
		texts, err := kernel.Apply(k, steps)
		done = append(done, texts...)
		if err != nil {
			return done, err
		}
	}
	panic("it never settles: " + strings.Join(done, "; "))
}

func settled(t *testing.T, f *kernel.Fake, d Desired) string {
	t.Helper()
	_, err := settle(f, d)
	require.NoError(t, err)
	return f.Dump()
}

// With children no change that would need the parent to be made again is made:
// it is refused in words, and nothing else is touched either.
func TestDestructiveChangesAreRefused(t *testing.T) {
	const vx, vl = "vxlan-storage", "eth0.5"
	changes := []struct {
		name string
		from Desired
		to   func(*Desired)
		want string
	}{
		{"VNI", vxlan(), func(d *Desired) { d.VNI = 200 }, "its VNI is 100, not 200"},
		{"port", vxlan(), func(d *Desired) { d.Port = 8472 }, "its UDP port is 4789, not 8472"},
		{"VNI and port", vxlan(), func(d *Desired) { d.VNI, d.Port = 200, 8472 }, "its VNI is 100, not 200; its UDP port is 4789, not 8472"},
		{"family", vxlan(), func(d *Desired) { d.Local = addr("fd09::2") }, "its tunnel's family is IPv4, not IPv6"},
		{"kind", vxlan(), func(d *Desired) { d.Type, d.Device, d.VLAN = netconf.ParentVLAN, "eth0", 5 }, "it is a vxlan, not a vlan"},
		{"VLAN id", vlan(), func(d *Desired) { d.VLAN = 6 }, "its VLAN id is 5, not 6"},
		{"VLAN device", vlan(), func(d *Desired) { d.Device = "eth1" }, "it isn't on eth1"},
		{"VLAN kind", vlan(), func(d *Desired) { d.Type, d.VNI, d.Local = netconf.ParentVXLAN, 100, addr("10.0.0.1") }, "it is a vlan, not a vxlan"},
	}
	children := []struct {
		name string
		make func(f *kernel.Fake, parent string)
	}{
		{"shim", func(f *kernel.Fake, p string) {
			f.Have(kernel.Link{Name: "lhnet1-host", Kind: "macvlan", Lower: at(f, p)})
		}},
		{"pod", func(f *kernel.Fake, p string) { f.ForeignChild(p, 1400) }},
		{"VLAN on top", func(f *kernel.Fake, p string) {
			f.Have(kernel.Link{Name: "top.9", Kind: "vlan", VLAN: 9, Lower: at(f, p)})
		}},
		{"bridge above", func(f *kernel.Fake, p string) {
			br := f.Have(kernel.Link{Name: "br0", Kind: "bridge"})
			f.Alter(p, func(l *kernel.Link) { l.Master = br })
		}},
	}
	for _, c := range changes {
		for _, child := range children {
			t.Run(c.name+"/"+child.name, func(t *testing.T) {
				f := host()
				settled(t, f, c.from)
				child.make(f, c.from.Name)
				before, calls, mtus := f.Dump(), len(f.Log), f.ForeignMTUs(c.from.Name)
				_, err := settle(f, with(c.from, c.to))
				assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
				assert.ErrorContains(t, err, c.want)
				assert.ErrorContains(t, err, c.from.Name)
				assert.ErrorContains(t, err, "drain the node")
				assert.Equal(t, before, f.Dump())
				assert.Equal(t, mtus, f.ForeignMTUs(c.from.Name))
				assert.Len(t, f.Log, calls, "nothing was even tried")
				assert.Contains(t, []string{vx, vl}, c.from.Name)
			})
		}
		t.Run(c.name+"/childless", func(t *testing.T) {
			f := host()
			settled(t, f, c.from)
			before := f.Dump()
			got, err := settle(f, with(c.from, c.to))
			if strings.HasPrefix(c.want, "it is a ") { // not what we make: not ours to delete
				assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
				assert.Equal(t, before, f.Dump())
				return
			}
			require.NoError(t, err)
			assert.Contains(t, got, "delete the childless parent "+c.from.Name+" to make it again")
			fresh := host()
			assert.Equal(t, settled(t, fresh, with(c.from, c.to)), f.Dump())
		})
	}
}

func at(f *kernel.Fake, name string) int {
	l, err := f.Link(name)
	if err != nil {
		panic(err)
	}
	return l.Index
}

// A child that is made between the look and the deletion keeps its parent.
func TestAChildThatComesInBetween(t *testing.T) {
	f := host()
	settled(t, f, vxlan())
	steps, err := Diff(f, with(vxlan(), func(d *Desired) { d.VNI = 200 }))
	require.NoError(t, err)
	f.ForeignChild("vxlan-storage", 1450)
	_, err = kernel.Apply(f, steps)
	assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
	assert.Equal(t, []int{1450}, f.ForeignMTUs("vxlan-storage"))
}

// script makes the parent that the source design's shell script leaves.
func script(f *kernel.Fake) {
	i := f.Have(kernel.Link{
		Name: "vxlan-storage", Kind: "vxlan", MTU: 1400, Up: true,
		VXLAN: kernel.VXLAN{VNI: 100, Port: 4789, Local: addr("10.100.100.2")},
	})
	f.FloodOn("vxlan-storage", "10.100.100.3")
	_ = f.Have(kernel.Link{Name: "lhnet1-host", Kind: "macvlan", Lower: i, Up: true, Macvlan: kernel.Macvlan{Mode: "bridge"}})
	f.ForeignChild("vxlan-storage", 1400)
}

// Adoption of what a script made: learning, peers and sysctls; MAC and MTU stay.
func TestAdoption(t *testing.T) {
	f := host()
	script(f)
	before, err := f.Link("vxlan-storage")
	require.NoError(t, err)
	_, err = settle(f, vxlan())
	require.NoError(t, err)
	assert.Equal(t, []string{
		"set vxlan-storage learning=true",
		"sysctl net/ipv4/conf/vxlan-storage/arp_ignore=8",
		"sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1",
		"add flood 10.100.100.1 to vxlan-storage",
	}, f.Log)
	before.VXLAN.Learning = true
	after, err := f.Link("vxlan-storage")
	require.NoError(t, err)
	assert.Equal(t, before, after)
	assert.Equal(t, []int{1400}, f.ForeignMTUs("vxlan-storage"))
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		name           string
		adopted        bool
		explicit, auto int
		want           string
	}{
		{"as it is", false, 0, 1450, ""},
		{"auto lowers", false, 0, 1350, "set vxlan-storage mtu=1350"},
		{"auto raises", false, 0, 8950, "set vxlan-storage mtu=8950"},
		{"explicit wins", false, 1300, 8950, "set vxlan-storage mtu=1300"},
		{"adopted keeps its own", true, 0, 8950, ""},
		{"adopted follows an explicit one", true, 1300, 8950, "set vxlan-storage mtu=1300"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := host()
			if c.adopted {
				f.Have(kernel.Link{Name: "vxlan-storage", Kind: "vxlan", MTU: 1450})
				f.Alter("vxlan-storage", func(l *kernel.Link) { l.VXLAN = kernel.VXLAN{VNI: 100, Port: 4789, Local: addr("10.100.100.2")} })
			}
			settled(t, f, vxlan())
			f.Log = nil
			settled(t, f, with(vxlan(), func(d *Desired) { d.MTU, d.AutoMTU = c.explicit, c.auto }))
			assert.Equal(t, c.want, strings.Join(f.Log, "; "))
		})
	}
	t.Run("a NIC's and a VLAN's are left alone unless named", func(t *testing.T) {
		for _, d := range []Desired{device(), vlan()} {
			f := host()
			settled(t, f, d)
			f.Log = nil
			settled(t, f, with(d, func(d *Desired) { d.AutoMTU = 1234 }))
			assert.Empty(t, f.Log)
			settled(t, f, with(d, func(d *Desired) { d.MTU = 1400 }))
			assert.Equal(t, []string{"set " + d.Name + " mtu=1400"}, f.Log)
		}
	})
}

// A tunnel whose VTEP is new is changed under its children's feet.
func TestVTEPChangesInPlace(t *testing.T) {
	f := host()
	settled(t, f, vxlan())
	f.ForeignChild("vxlan-storage", 1450)
	f.Log = nil
	settled(t, f, with(vxlan(), func(d *Desired) { d.Local = addr("10.100.100.9") }))
	assert.Equal(t, []string{"set vxlan-storage local=10.100.100.9"}, f.Log)
	assert.Equal(t, []int{1450}, f.ForeignMTUs("vxlan-storage"))
}

func TestSysctlsOfTheParent(t *testing.T) {
	const name = "vxlan-storage"
	quiet := []string{"ipv4/arp_ignore=8", "ipv6/disable_ipv6=1"}
	for _, c := range []struct {
		name    string
		desired Desired
		prepare func(f *kernel.Fake)
		want    []string
	}{
		{"address-less", vxlan(), nil, quiet},
		{"link-local addresses are no addresses", vxlan(), func(f *kernel.Fake) { f.AddrOn(name, "fe80::1/64") }, quiet},
		{"its address is about to move", with(vxlan(), func(d *Desired) { d.Moving = addrs("10.100.1.2") }),
			func(f *kernel.Fake) { f.AddrOn(name, "10.100.1.2/24") }, quiet},
		{"an IPv6 address is about to move: IPv6 stays on", with(vxlan(), func(d *Desired) { d.Moving = addrs("10.100.1.2", "fd00::2") }),
			func(f *kernel.Fake) { f.AddrOn(name, "fd00::2/64") }, quiet[:1]},
		{"an address of its own", vxlan(), func(f *kernel.Fake) { f.AddrOn(name, "172.16.0.1/24") }, nil},
		{"one that came later: it isn't left deaf", vxlan(), func(f *kernel.Fake) {
			require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", name, "arp_ignore"), "8"))
			f.AddrOn(name, "172.16.0.1/24")
		}, []string{"ipv4/arp_ignore=1"}},
		{"VLAN, address-less", vlan(), nil, quiet},
		{"VLAN with an address, beside a shim", with(vlan(), func(d *Desired) { d.Beside = true }),
			func(f *kernel.Fake) { f.AddrOn("eth0.5", "10.100.1.200/24") }, []string{"ipv4/arp_ignore=1"}},
		{"NIC", device(), nil, nil},
		{"NIC beside a shim", with(device(), func(d *Desired) { d.Beside = true }), nil, []string{"ipv4/arp_ignore=1"}},
		{"NIC without an address beside a shim", with(device(), func(d *Desired) { d.Name, d.Beside = "eth1", true }), nil, []string{"ipv4/arp_ignore=1"}},
		{"a value that serves as well stays", with(device(), func(d *Desired) { d.Beside = true }), func(f *kernel.Fake) {
			require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", "eth0", "arp_ignore"), "2"))
		}, []string{"ipv4/arp_ignore=2"}},
		{"also for all devices", with(device(), func(d *Desired) { d.Beside = true }), func(f *kernel.Fake) {
			require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", "all", "arp_ignore"), "1"))
		}, nil},
		{"a strict filter would drop what comes for the NIC's own address", with(device(), func(d *Desired) { d.Beside = true }), func(f *kernel.Fake) {
			require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", "eth0", "rp_filter"), "1"))
		}, []string{"ipv4/arp_ignore=1", "ipv4/rp_filter=2"}},
		{"without a shim it is none of ours", device(), func(f *kernel.Fake) {
			require.NoError(t, f.SetSysctl(kernel.ConfPath("ipv4", "eth0", "rp_filter"), "1"))
		}, []string{"ipv4/rp_filter=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := host()
			steps, err := create(f, c.desired)
			if err == nil {
				_, err = kernel.Apply(f, steps)
				require.NoError(t, err)
			}
			if c.prepare != nil {
				c.prepare(f)
			}
			dump := settled(t, f, c.desired)
			var got []string
			for line := range strings.SplitSeq(dump, "\n") {
				for _, family := range []string{"ipv4", "ipv6"} {
					if rest, ok := strings.CutPrefix(line, "sysctl net/"+family+"/conf/"+c.desired.Name+"/"); ok {
						got = append(got, family+"/"+rest)
					}
				}
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestFlood(t *testing.T) {
	for _, c := range []struct {
		name  string
		have  []string
		peers []netip.Addr
		want  []string
	}{
		{"none yet", nil, addrs("10.100.100.1", "10.100.100.3"), []string{"add 10.100.100.1", "add 10.100.100.3"}},
		{"one more", []string{"10.100.100.1"}, addrs("10.100.100.1", "10.100.100.3"), []string{"add 10.100.100.3"}},
		{"one less", []string{"10.100.100.1", "10.100.100.3"}, addrs("10.100.100.3"), []string{"del 10.100.100.1"}},
		{"first add, then delete", []string{"10.100.100.1"}, addrs("10.100.100.3"), []string{"add 10.100.100.3", "del 10.100.100.1"}},
		{"nobody", []string{"10.100.100.1"}, addrs(), []string{"del 10.100.100.1"}},
		{"not known", []string{"10.100.100.1"}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := host()
			settled(t, f, with(vxlan(), func(d *Desired) { d.Peers = addrs(c.have...) }))
			f.Log = nil
			settled(t, f, with(vxlan(), func(d *Desired) { d.Peers = c.peers }))
			var got []string
			for _, line := range f.Log {
				words := strings.Fields(line)
				got = append(got, words[0]+" "+words[2])
			}
			assert.Equal(t, c.want, got)
		})
	}
}

// What somebody else did in between is no fault.
func TestFloodRaces(t *testing.T) {
	f := host()
	settled(t, f, with(vxlan(), func(d *Desired) { d.Peers = addrs("10.100.100.9") }))
	steps, err := Diff(f, vxlan())
	require.NoError(t, err)
	require.NoError(t, f.AddFlood(at(f, "vxlan-storage"), addr("10.100.100.1")))
	require.NoError(t, f.DelFlood(at(f, "vxlan-storage"), addr("10.100.100.9")))
	_, err = kernel.Apply(f, steps)
	require.NoError(t, err)
	have, err := f.Flood(at(f, "vxlan-storage"))
	require.NoError(t, err)
	assert.Equal(t, vxlan().Peers, have)
}

func TestFaultsOfCreation(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(f *kernel.Fake)
		desired Desired
		code    cnierr.Code
		want    []string
	}{
		{"the NIC isn't there", nil, with(device(), func(d *Desired) { d.Name = "eth7" }), cnierr.InvalidConfig, []string{"eth7", "ip link"}},
		{"the VLAN's NIC isn't there", nil, with(vlan(), func(d *Desired) { d.Device = "bond0" }), cnierr.InvalidConfig, []string{"parent.device bond0"}},
		{"another device has the VNI", func(f *kernel.Fake) {
			f.Have(kernel.Link{Name: "flannel.1", Kind: "vxlan", VXLAN: kernel.VXLAN{VNI: 100, Port: 4789}})
		}, vxlan(), cnierr.IncompatibleParent, []string{"flannel.1 has VNI 100 on UDP port 4789", "set parent.name to flannel.1", "parent.vni"}},
		{"the kernel has no 802.1q", func(f *kernel.Fake) { f.NoVLAN = true }, vlan(), cnierr.Unclassified, []string{"create vlan parent eth0.5", "not supported"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := host()
			if c.prepare != nil {
				c.prepare(f)
			}
			before := f.Dump()
			_, err := settle(f, c.desired)
			assert.Equal(t, c.code, cnierr.CodeOf(err))
			for _, text := range c.want {
				assert.ErrorContains(t, err, text)
			}
			assert.Equal(t, before, f.Dump())
		})
	}
	t.Run("the VLAN's NIC went away", func(t *testing.T) {
		f := host()
		settled(t, f, vlan())
		_, err := settle(f, with(vlan(), func(d *Desired) { d.Device = "bond0" }))
		assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	})
}

// A NIC that is down is the operator's own affair; what we made is brought up.
func TestUp(t *testing.T) {
	f := host()
	require.NoError(t, f.SetLink(at(f, "eth1"), kernel.Change{Up: new(false)}))
	f.Log = nil
	settled(t, f, with(device(), func(d *Desired) { d.Name = "eth1" }))
	assert.Empty(t, f.Log)
	for _, d := range []Desired{vxlan(), vlan()} {
		settled(t, f, d)
		require.NoError(t, f.SetLink(at(f, d.Name), kernel.Change{Up: new(false)}))
		settled(t, f, d)
		l, err := f.Link(d.Name)
		require.NoError(t, err)
		assert.True(t, l.Up)
	}
}

// Whatever call fails, the error says what was tried, and doing it again mends it.
func TestEachCallMayFail(t *testing.T) {
	for _, d := range []Desired{vxlan(), vlan(), with(device(), func(d *Desired) { d.Beside, d.MTU = true, 1400 })} {
		clean := host()
		golden := settled(t, clean, d)
		require.NotEmpty(t, clean.Log)
		for _, call := range clean.Log {
			f := host()
			f.Fail = func(c string) error {
				if c == call {
					return assert.AnError
				}
				return nil
			}
			_, err := settle(f, d)
			require.ErrorIs(t, err, assert.AnError, call)
			f.Fail = nil
			assert.Equal(t, golden, settled(t, f, d), "after %q failed", call)
		}
	}
}
