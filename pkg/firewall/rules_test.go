package firewall_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go4.org/netipx"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

var update = flag.Bool("update", false, "write the golden files anew")

func addrs(texts ...string) []netip.Addr {
	list := []netip.Addr{}
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// vxlan is a parent as a node of ours has it.
func vxlan(peers ...string) firewall.Parent {
	return firewall.Parent{Name: "vxlan-storage", Own: true, VNI: 100, Port: 4789, VTEP: netip.MustParseAddr("10.100.100.1"), Peers: addrs(peers...)}
}

func shim(parent string, addresses ...string) firewall.Shim {
	s := firewall.Shim{Name: "lhnet1-host", Parent: parent}
	for _, p := range prefixes(addresses...) {
		s.Addresses, s.Ranges = append(s.Addresses, p.Addr()), append(s.Ranges, p)
	}
	return s
}

var cases = map[string]firewall.Desired{
	"nothing":      {},
	"vxlan":        {Parents: []firewall.Parent{vxlan("10.100.100.2", "10.100.100.3", "10.100.100.9")}, Shims: []firewall.Shim{shim("vxlan-storage", "10.100.1.1/24")}},
	"peersUnknown": {Parents: []firewall.Parent{{Name: "vxlan-storage", Own: true, VNI: 100, Port: 4789, VTEP: netip.MustParseAddr("10.100.100.1")}}},
	"noPeerYet":    {Parents: []firewall.Parent{vxlan()}},
	"flatNIC": {
		Parents: []firewall.Parent{{Name: "eth1"}}, Shims: []firewall.Shim{shim("eth1", "10.100.1.1/24")},
		Allowed: []firewall.Port{{Protocol: "tcp", Port: 9100}, {Protocol: "udp", Port: 111}},
	},
	"dualStack": {
		Parents: []firewall.Parent{{Name: "vxlan-storage", Own: true, VNI: 100, Port: 4789, VTEP: netip.MustParseAddr("fd00:100::1"), Peers: addrs("fd00:100::2")}},
		Shims:   []firewall.Shim{shim("vxlan-storage", "10.100.1.1/24", "fd00:1::1/64")}, Allowed: []firewall.Port{{Protocol: "tcp", Port: 2049}},
	},
	"sharedPort": {
		Parents: []firewall.Parent{
			func() firewall.Parent { p := vxlan("10.100.100.2"); p.Shared = true; return p }(),
			{Name: "vxlan-two", VNI: 200, Port: 4789, VTEP: netip.MustParseAddr("10.100.100.1"), Peers: addrs("10.100.100.7"), Shared: true},
		},
	},
	"scattered": {Parents: []firewall.Parent{scattered()}},
}

// scattered has peers with addresses that stand apart.
func scattered() firewall.Parent {
	p := vxlan()
	for i := range 64 {
		p.Peers = append(p.Peers, netip.AddrFrom4([4]byte{10, 100, byte(i % 4), byte(2 * i)}))
	}
	return p
}

// What the rules are is read in testdata; go test -update writes it anew.
func TestRules(t *testing.T) {
	for name, d := range cases {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for _, family := range []firewall.Family{firewall.IPv4, firewall.IPv6} {
				chains, err := d.Rules(family)
				require.NoError(t, err)
				fmt.Fprintf(&b, "# %s\n", family)
				for _, c := range chains {
					fmt.Fprintf(&b, ":%s\n", c.Name)
					for _, r := range c.Rules {
						fmt.Fprintln(&b, r.Text)
					}
				}
			}
			path := filepath.Join("testdata", name+".rules")
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, string(want), b.String())
		})
	}
}

func TestRefusedNames(t *testing.T) {
	for _, d := range []firewall.Desired{
		{Parents: []firewall.Parent{{Name: "eth+"}}}, // to iptables: every device whose name begins with eth
		{Shims: []firewall.Shim{{Name: `a" -j ACCEPT`}}},
		{Shims: []firewall.Shim{{Name: "ok", Parent: "two words"}}},
		{Parents: []firewall.Parent{{}}},
		{Allowed: []firewall.Port{{Protocol: "sctp", Port: 1}}},
		{Allowed: []firewall.Port{{Protocol: "tcp"}}},
	} {
		_, err := d.Rules(firewall.IPv4)
		assert.Error(t, err, "%+v", d)
	}
}

var peerRule = regexp.MustCompile(`^-A (LHSTORAGE-VXLAN-4789\S*) (?:-s (\S+) )?.* -([jg]) (\S+)$`)

// allowed follows a chain as a packet does and adds what it lets pass within a
// prefix; most is the number of rules that a packet meets at worst.
func allowed(t require.TestingT, chains []firewall.Chain, name string, within netip.Prefix, add func(netip.Prefix)) (most int) {
	for _, c := range chains {
		if c.Name != name {
			continue
		}
		deeper := 0
		for i, r := range c.Rules {
			m := peerRule.FindStringSubmatch(r.Text)
			require.NotNil(t, m, r.Text)
			if i == len(c.Rules)-1 {
				require.Equal(t, []string{"", "j", "DROP"}, m[2:], "a chain's last word")
				break
			}
			p := netip.MustParsePrefix(m[2])
			require.True(t, within.Overlaps(p) && p.Bits() >= within.Bits(), "%s can't be met in %s", p, within)
			if m[3] == "g" {
				deeper = max(deeper, allowed(t, chains, m[4], p, add))
			} else {
				require.Equal(t, "RETURN", m[4])
				add(p)
			}
		}
		return len(c.Rules) + deeper
	}
	require.Fail(t, "no chain "+name)
	return 0
}

// Exactly the peers may send, whatever their addresses, and no packet is held
// against many rules.
func TestExactlyThePeersMaySend(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.SampledFrom([]int{0, 1, 40, 1000}).Draw(rt, "n")
		size := rapid.SampledFrom([]uint32{1 << 8, 1 << 12, 1 << 16}).Draw(rt, "size")
		peers := rapid.SliceOfN(rapid.Uint32Range(0x0a640000, 0x0a640000+size-1), n, n).Draw(rt, "peers")
		p := vxlan()
		var want, got netipx.IPSetBuilder
		for _, n := range peers {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], n)
			p.Peers = append(p.Peers, netip.AddrFrom4(b))
			want.Add(netip.AddrFrom4(b))
		}
		chains, err := firewall.Desired{Parents: []firewall.Parent{p}}.Rules(firewall.IPv4)
		require.NoError(rt, err)
		most := allowed(rt, chains, "LHSTORAGE-VXLAN-4789", netip.MustParsePrefix("0.0.0.0/0"), got.AddPrefix)
		assert.LessOrEqual(rt, most, 320, "even where most stand close together, with gaps")
		wantSet, err := want.IPSet()
		require.NoError(rt, err)
		gotSet, err := got.IPSet()
		require.NoError(rt, err)
		assert.True(rt, wantSet.Equal(gotSet), "want %v, got %v", wantSet.Prefixes(), gotSet.Prefixes())
	})
}

// Every rule has a mark that no other has: a rule in another place, or another
// chain, is another rule.
func TestMarksDiffer(t *testing.T) {
	for name, d := range cases {
		for _, family := range []firewall.Family{firewall.IPv4, firewall.IPv6} {
			chains, err := d.Rules(family)
			require.NoError(t, err)
			seen := map[string]string{}
			for _, c := range chains {
				assert.LessOrEqual(t, len(c.Name), 28, "a longer name is refused (XT_EXTENSION_MAXNAMELEN)")
				for _, r := range c.Rules {
					assert.Empty(t, seen[r.Mark], "%s: %s", name, r.Text)
					seen[r.Mark] = r.Text
				}
			}
		}
	}
}

// A thousand VTEPs that follow from indexes make few rules; where they stand
// apart, a packet is held against few.
func TestThousandPeersAreFewRules(t *testing.T) {
	for gap, bound := range map[int]int{1: 24, 4: 100} {
		p := vxlan()
		addr := netip.MustParseAddr("10.100.0.1")
		for range 1000 {
			p.Peers = append(p.Peers, addr)
			for range gap {
				addr = addr.Next()
			}
		}
		chains, err := firewall.Desired{Parents: []firewall.Parent{p}}.Rules(firewall.IPv4)
		require.NoError(t, err)
		most := allowed(t, chains, "LHSTORAGE-VXLAN-4789", netip.MustParsePrefix("0.0.0.0/0"), func(netip.Prefix) {})
		assert.LessOrEqual(t, most, bound, "every %d. address", gap)
	}
}

func TestDescribe(t *testing.T) {
	k := kernel.NewFake()
	tunnel := kernel.VXLAN{VNI: 100, Port: 4789, Local: netip.MustParseAddr("10.100.100.1"), Learning: true}
	k.Have(kernel.Link{Name: "vxlan-storage", Kind: "vxlan", Up: true, VXLAN: tunnel})
	k.Have(kernel.Link{Name: "eth1", Kind: "device", Up: true})
	k.AddrOn("eth1", "10.100.2.11/24")
	k.FloodOn("vxlan-storage", "10.100.100.3")
	storage := firewall.Network{
		Parent: netconf.Parent{Type: netconf.ParentVXLAN, Name: "vxlan-storage"}, Shim: "lhnet1-host", Addrs: prefixes("10.100.1.1/24"),
		VTEP: tunnel.Local, Peers: addrs("10.100.100.2"),
	}
	flat := firewall.Network{Parent: netconf.Parent{Type: netconf.ParentDevice, Name: "eth1"}, Shim: "flat-host", Addrs: prefixes("10.100.2.1/24")}
	missing := firewall.Network{Parent: netconf.Parent{Type: netconf.ParentDevice, Name: "eth9"}, Shim: "eth9-host"}

	d, err := firewall.Describe(k, []firewall.Network{storage, flat, missing}, nil)
	require.NoError(t, err)
	assert.Equal(t, []firewall.Parent{vxlan("10.100.100.2", "10.100.100.3"), {Name: "eth1"}}, d.Parents)
	assert.Equal(t, []string{"lhnet1-host", "flat-host"}, []string{d.Shims[0].Name, d.Shims[1].Name})
	assert.Equal(t, prefixes("10.100.1.0/24"), d.Shims[0].Ranges)

	t.Run("a parent with an address isn't ours alone", func(t *testing.T) {
		k.AddrOn("vxlan-storage", "10.100.1.200/24")
		d, err := firewall.Describe(k, []firewall.Network{storage}, nil)
		require.NoError(t, err)
		assert.False(t, d.Parents[0].Own)
	})
	t.Run("another tunnel shares the port", func(t *testing.T) {
		k.Have(kernel.Link{Name: "vxlan.calico", Kind: "vxlan", Up: true, VXLAN: kernel.VXLAN{VNI: 4096, Port: 4789, Local: netip.MustParseAddr("192.0.2.1")}})
		d, err := firewall.Describe(k, []firewall.Network{storage}, nil)
		require.NoError(t, err)
		assert.True(t, d.Parents[0].Shared)
	})
	t.Run("peers that aren't known", func(t *testing.T) {
		storage.Peers = nil
		d, err := firewall.Describe(k, []firewall.Network{storage}, nil)
		require.NoError(t, err)
		assert.Nil(t, d.Parents[0].Peers)
	})
}
