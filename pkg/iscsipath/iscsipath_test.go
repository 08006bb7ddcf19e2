package iscsipath

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

func iface(name string, index int, addrs ...string) Iface {
	i := Iface{Name: name, Index: index}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParseAddr(a))
	}
	return i
}

var (
	lo     = iface("lo", 1, "127.0.0.1", "::1")
	lhnet1 = iface("lhnet1", 0, "10.100.1.16")
)

func TestDialed(t *testing.T) {
	for _, c := range []struct {
		name        string
		dump        []Iface
		addr, iface string
	}{
		{"nothing", nil, "", ""},
		{"no global address", []Iface{lo, iface("eth0", 2, "169.254.1.1", "fe80::1", "224.0.0.1", "255.255.255.255", "0.0.0.0")}, "", ""},
		{"the first", []Iface{lo, iface("lhnet1", 2, "10.100.1.16"), iface("eth0", 57, "10.42.0.5")}, "10.100.1.16", "lhnet1"},
		{"private and ULA are global", []Iface{iface("eth0", 2, "fe80::1", "fd00::5")}, "fd00::5", "eth0"},
		{"mapped", []Iface{iface("eth0", 2, "::ffff:10.42.0.5")}, "10.42.0.5", "eth0"},
		{"IPv4 first, listed by interface", []Iface{iface("eth0", 2, "fd00::5"), iface("lhnet1", 3, "10.100.1.16")}, "10.100.1.16", "lhnet1"},
		{"IPv4 first, listed by family", []Iface{iface("lhnet1", 3, "10.100.1.16"), iface("eth0", 2, "fd00::5"), iface("lhnet1", 3, "fd00::6")}, "10.100.1.16", "lhnet1"},
		{"eth1 by name", []Iface{iface("eth0", 2, "10.42.0.5"), iface("eth1", 9, "fd00::9")}, "fd00::9", "eth1"},
		{"eth1 without a global address", []Iface{iface("eth0", 2, "10.42.0.5"), iface("eth1", 9, "fe80::9")}, "10.42.0.5", "eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr, name, ok := Dialed(c.dump)
			assert.Equal(t, c.addr != "", ok)
			assert.Equal(t, c.iface, name)
			if ok {
				assert.Equal(t, c.addr, addr.String())
			}
		})
	}
}

func TestOrderOf(t *testing.T) {
	for release, want := range map[string]Order{
		"6.18.44":                          Modern,
		"6.9.0":                            Modern,
		"6.9":                              Modern,
		"6.9-rc1":                          Modern,
		"6.10.0-rc3+":                      Modern,
		"v6.12.1-talos\n":                  Modern,
		"7.0.1":                            Modern,
		"10.1":                             Modern,
		"6.8.0-45-generic":                 Legacy,
		"6.8.12-1-pve":                     Legacy,
		"6.1.0-28-amd64":                   Legacy,
		"6.6.87.2-microsoft-standard-WSL2": Legacy,
		"5.14.0-427.13.1.el9_4.x86_64":     Legacy,
		"4.18.0-553.el8_10.x86_64":         Legacy,
		"3.10.0-1160.el7.x86_64":           Legacy,
		"5":                                Legacy,
		"6":                                Modern,
		"6.x":                              Modern,
		"2.6.78":                           Modern,
		"":                                 Modern,
		"linux":                            Modern,
		"-6.1":                             Modern,
		"99999999999999999999.1":           Modern,
	} {
		assert.Equal(t, want, OrderOf(release), "%q", release)
	}
}

func TestWanted(t *testing.T) {
	assert.Equal(t, netconf.ISCSIStorageIP, Wanted(netconf.ISCSIAuto, true))
	assert.Equal(t, netconf.ISCSIPodIP, Wanted(netconf.ISCSIAuto, false))
	assert.Equal(t, netconf.ISCSIStorageIP, Wanted(netconf.ISCSIStorageIP, false))
	assert.Equal(t, netconf.ISCSIPodIP, Wanted(netconf.ISCSIPodIP, true))
}

func TestChoose(t *testing.T) {
	eth0 := func(index int, addrs ...string) Iface {
		if addrs == nil {
			addrs = []string{"10.42.0.5", "fe80::5"}
		}
		return iface("eth0", index, addrs...)
	}
	const storage, pod, auto = netconf.ISCSIStorageIP, netconf.ISCSIPodIP, netconf.ISCSIAuto
	for _, c := range []struct {
		name     string
		policy   netconf.ISCSIPath
		own      Iface
		existing []Iface
		modern   Choice
		legacy   Choice
	}{
		{"eth0 made inside, storage", storage, lhnet1, []Iface{lo, eth0(2)},
			Choice{Reason: "eth0 wins with 10.42.0.5: no free index dumps before its 2 (by index, as kernels from 6.9 on)"},
			Choice{Index: 256, Possible: true}},
		{"eth0 made inside, pod", pod, lhnet1, []Iface{lo, eth0(2)}, Choice{Index: 3, Possible: true}, Choice{Index: 3, Possible: true}},
		{"eth0 moved in, storage", storage, lhnet1, []Iface{lo, eth0(57)}, Choice{Index: 2, Possible: true}, Choice{Index: 2, Possible: true}},
		{"eth0 moved in, auto with a shim", auto, lhnet1, []Iface{lo, eth0(57)}, Choice{Index: 2, Possible: true}, Choice{Index: 2, Possible: true}},
		{"eth0 moved in, pod", pod, lhnet1, []Iface{lo, eth0(57)}, Choice{Index: 58, Possible: true}, Choice{Index: 58, Possible: true}},
		{"eth0 moved in high, storage", storage, lhnet1, []Iface{lo, eth0(300)}, Choice{Index: 2, Possible: true}, Choice{Index: 2, Possible: true}},
		{"eth0 moved in high, pod", pod, lhnet1, []Iface{lo, eth0(300)}, Choice{Index: 301, Possible: true}, Choice{Index: 301, Possible: true}},
		{"bucket 1, storage: bucket 0 serves both", storage, lhnet1, []Iface{lo, eth0(257)}, Choice{Index: 256, Possible: true}, Choice{Index: 256, Possible: true}},
		{"bucket 0, storage: none serves both", storage, lhnet1, []Iface{lo, eth0(256)}, Choice{Index: 2, Possible: true}, Choice{Index: 512, Possible: true}},
		{"bucket 255, pod", pod, lhnet1, []Iface{lo, eth0(511)}, Choice{Index: 512, Possible: true},
			Choice{Reason: "lhnet1 wins with 10.100.1.16: no free index dumps after eth0 (index 511) (by index & 255, as kernels before 6.9)"}},
		{"taken indexes", storage, lhnet1, []Iface{lo, iface("tunl0", 2), iface("net1", 3, "fe80::1"), eth0(57)}, Choice{Index: 4, Possible: true}, Choice{Index: 4, Possible: true}},
		{"the highest index, pod", pod, lhnet1, []Iface{lo, eth0(math.MaxInt32)},
			Choice{Reason: "lhnet1 wins with 10.100.1.16: no free index dumps after eth0 (index 2147483647) (by index, as kernels from 6.9 on)"},
			Choice{Reason: "lhnet1 wins with 10.100.1.16: no free index dumps after eth0 (index 2147483647) (by index & 255, as kernels before 6.9)"}},
		{"nothing to compete with", storage, lhnet1, []Iface{lo, iface("eth0", 2, "fe80::1")}, Choice{Possible: true}, Choice{Possible: true}},
		{"nothing else to dial", pod, lhnet1, []Iface{lo}, Choice{Possible: true}, Choice{Possible: true}},
		{"eth1, storage", storage, lhnet1, []Iface{lo, eth0(57), iface("eth1", 58, "192.0.2.9")},
			Choice{Reason: "eth1 wins with 192.0.2.9 by its name: Longhorn takes an interface named eth1 before it looks at the order"},
			Choice{Reason: "eth1 wins with 192.0.2.9 by its name: Longhorn takes an interface named eth1 before it looks at the order"}},
		{"eth1, pod", pod, lhnet1, []Iface{lo, iface("eth1", 58, "192.0.2.9")}, Choice{Possible: true}, Choice{Possible: true}},
		{"eth1 without an address", storage, lhnet1, []Iface{lo, eth0(57), iface("eth1", 58)}, Choice{Index: 2, Possible: true}, Choice{Index: 2, Possible: true}},
		{"own name eth1, storage", storage, iface("eth1", 0, "10.100.1.16"), []Iface{lo, eth0(2)}, Choice{Possible: true}, Choice{Possible: true}},
		{"own name eth1, pod", pod, iface("eth1", 0, "10.100.1.16"), []Iface{lo, eth0(2)},
			Choice{Reason: "eth1 wins with 10.100.1.16 by its name: Longhorn takes an interface named eth1 before it looks at the order"},
			Choice{Reason: "eth1 wins with 10.100.1.16 by its name: Longhorn takes an interface named eth1 before it looks at the order"}},
		{"IPv6 storage among IPv4 pods, storage", storage, iface("lhnet1", 0, "fd00::16"), []Iface{lo, eth0(57)},
			Choice{Reason: "eth0 wins with 10.42.0.5: the kernel dumps IPv4 before IPv6, and lhnet1 has no IPv4"},
			Choice{Reason: "eth0 wins with 10.42.0.5: the kernel dumps IPv4 before IPv6, and lhnet1 has no IPv4"}},
		{"IPv6 storage among IPv4 pods, pod", pod, iface("lhnet1", 0, "fd00::16"), []Iface{lo, eth0(57)}, Choice{Possible: true}, Choice{Possible: true}},
		{"IPv4 storage among IPv6 pods, storage", storage, lhnet1, []Iface{lo, eth0(2, "fd00::5")}, Choice{Possible: true}, Choice{Possible: true}},
		{"IPv4 storage among IPv6 pods, pod", pod, lhnet1, []Iface{lo, eth0(2, "fd00::5")},
			Choice{Reason: "lhnet1 wins with 10.100.1.16: the kernel dumps IPv4 before IPv6, and no other interface has IPv4"},
			Choice{Reason: "lhnet1 wins with 10.100.1.16: the kernel dumps IPv4 before IPv6, and no other interface has IPv4"}},
		{"IPv6 everywhere", storage, iface("lhnet1", 0, "fd00::16"), []Iface{lo, eth0(57, "fd01::5")}, Choice{Index: 2, Possible: true}, Choice{Index: 2, Possible: true}},
		{"dual stack beside IPv6", storage, iface("lhnet1", 0, "10.100.1.16", "fd00::16"), []Iface{lo, iface("net1", 2, "fd01::5"), eth0(57)}, Choice{Index: 3, Possible: true}, Choice{Index: 3, Possible: true}},
		{"layer 2 only, storage", storage, iface("lhnet1", 0), []Iface{lo, eth0(57)},
			Choice{Reason: "eth0 wins with 10.42.0.5: lhnet1 has no global unicast address"},
			Choice{Reason: "eth0 wins with 10.42.0.5: lhnet1 has no global unicast address"}},
		{"layer 2 only, pod", pod, iface("lhnet1", 0), []Iface{lo, eth0(57)}, Choice{Possible: true}, Choice{Possible: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.modern, Choose(c.policy, true, c.own, c.existing, Modern), "modern")
			assert.Equal(t, c.legacy, Choose(c.policy, true, c.own, c.existing, Legacy), "legacy")
		})
	}
}

func TestAutoWithoutShimIsPodIP(t *testing.T) {
	existing := []Iface{lo, iface("eth0", 57, "10.42.0.5")}
	assert.Equal(t, Choice{Index: 58, Possible: true}, Choose(netconf.ISCSIAuto, false, lhnet1, existing, Modern))
}

// dump simulates the kernel: present holds the interfaces in the order in which
// they came into the namespace. A legacy kernel puts a new one at the head of
// its bucket; both dump one family after the other.
func dump(order Order, present []Iface) (out []Iface) {
	var sorted []Iface
	if order == Modern {
		sorted = slices.SortedFunc(slices.Values(present), func(a, b Iface) int { return a.Index - b.Index })
	} else {
		var table [256][]Iface
		for _, i := range present {
			table[i.Index&255] = append([]Iface{i}, table[i.Index&255]...)
		}
		sorted = slices.Concat(table[:]...)
	}
	for _, v4 := range []bool{true, false} {
		for _, i := range sorted {
			addrs := slices.DeleteFunc(slices.Clone(i.Addrs), func(a netip.Addr) bool { return a.Is4() != v4 })
			out = append(out, Iface{i.Name, i.Index, addrs})
		}
	}
	return out
}

func dials(order Order, own Iface, index int, existing []Iface) bool {
	own.Index = index
	_, name, ok := Dialed(dump(order, append(slices.Clone(existing), own)))
	return ok && name == own.Name
}

var addresses = rapid.SliceOfN(rapid.SampledFrom([]netip.Addr{
	netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("169.254.0.1"),
	netip.MustParseAddr("fd00::5"), netip.MustParseAddr("fe80::5"),
}), 0, 3)

// pods draws namespaces whose indexes crowd around the edges of the buckets.
func pods(t *rapid.T) []Iface {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"eth0", "eth1", "net1", "net2", "tunl0"}), 0, 5, rapid.ID).Draw(t, "names")
	near := rapid.Custom(func(t *rapid.T) int {
		return rapid.SampledFrom([]int{1, 255, 256, 511, 512, 300, 57}).Draw(t, "edge") + rapid.IntRange(1, 4).Draw(t, "offset")
	})
	indexes := rapid.SliceOfNDistinct(near, len(names), len(names), rapid.ID).Draw(t, "indexes")
	all := []Iface{lo}
	for n, name := range names {
		all = append(all, Iface{name, indexes[n], addresses.Draw(t, name)})
	}
	return all
}

// Against the simulation: a choice holds, in both orders if any index does;
// none in reach is better, smaller or overlooked.
func TestChooseAgainstTheSimulation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		existing := pods(t)
		own := Iface{Name: "lhnet1", Addrs: addresses.Draw(t, "own")}
		order := rapid.SampledFrom([]Order{Modern, Legacy}).Draw(t, "order")
		policy := rapid.SampledFrom([]netconf.ISCSIPath{netconf.ISCSIStorageIP, netconf.ISCSIPodIP}).Draw(t, "policy")
		got := Choose(policy, true, own, existing, order)

		if _, _, others := Dialed(existing); !others {
			if got != (Choice{Possible: true}) {
				t.Fatalf("nothing to choose, yet %+v", got)
			}
			return
		}
		serves := func(o Order, index int) bool {
			return dials(o, own, index, existing) == (policy == netconf.ISCSIStorageIP)
		}
		taken := func(index int) bool {
			return slices.ContainsFunc(existing, func(i Iface) bool { return i.Index == index })
		}
		var both, one []int
		for index := 1; index < 1024; index++ {
			if taken(index) {
				continue
			}
			if serves(order, index) {
				one = append(one, index)
				if serves(Modern+Legacy-order, index) {
					both = append(both, index)
				}
			}
		}
		switch {
		case !got.Possible:
			if len(one) > 0 || got.Reason == "" || got.Index != 0 {
				t.Fatalf("%+v, but %d would do", got, one)
			}
		case got.Reason != "" || got.Index < 0 || taken(got.Index):
			t.Fatalf("%+v", got)
		case got.Index == 0:
			if len(both) != 1023-len(existing) {
				t.Fatalf("left to the kernel, but it matters")
			}
		case policy == netconf.ISCSIStorageIP:
			best := append(both, one...)
			if best[0] != got.Index {
				t.Fatalf("%d, but %d is better", got.Index, best[0])
			}
		case !slices.Contains(one, got.Index):
			t.Fatalf("%d doesn't serve", got.Index)
		}
	})
}

// Under pod-ip the new interface dumps after all others of its family, where
// that can be had, so that losing one of them changes nothing.
func TestPodIPDumpsLast(t *testing.T) {
	existing := []Iface{lo, iface("eth0", 2, "10.42.0.5"), iface("net1", 10, "192.0.2.1")}
	assert.Equal(t, Choice{Index: 11, Possible: true}, Choose(netconf.ISCSIPodIP, true, lhnet1, existing, Modern))
	crowded := []Iface{lo, iface("eth0", 2, "10.42.0.5"), iface("net1", 255, "192.0.2.1")}
	assert.Equal(t, Choice{Index: 256, Possible: true}, Choose(netconf.ISCSIPodIP, true, lhnet1, crowded, Modern))
	assert.Equal(t, Choice{Index: 3, Possible: true}, Choose(netconf.ISCSIPodIP, true, lhnet1, crowded, Legacy), "not last, but behind eth0")
}
