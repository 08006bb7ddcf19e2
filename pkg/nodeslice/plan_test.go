package nodeslice

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func network(whole, size string) Network {
	var bits int
	_, _ = fmt.Sscan(strings.TrimPrefix(size, "/"), &bits)
	return Network{Name: "net", Size: size, Range: netip.MustParsePrefix(whole), Bits: bits}
}

// allocated reads "slice=node slice= …".
func allocated(text string) (list []Allocation) {
	for _, word := range strings.Fields(text) {
		slice, node, _ := strings.Cut(word, "=")
		list = append(list, Allocation{node, slice})
	}
	return list
}

func nodes(members string) Nodes {
	n := Nodes{Members: strings.Fields(members), Live: map[string]bool{}}
	for _, m := range n.Members {
		n.Live[m] = true
	}
	return n
}

func TestPlan(t *testing.T) {
	have := func(whole, size, list string) *State { return &State{whole, size, allocated(list)} }
	const whole, size = "10.0.0.0/26", "/28"
	inUse := func(a Allocation) bool {
		assert.NotEmpty(t, a.NodeName, "nobody's needn't be asked about")
		return a.NodeName == "used"
	}
	for _, c := range []struct {
		name    string
		have    *State
		network Network
		nodes   Nodes
		want    string
		without []string
	}{
		{"new", nil, network(whole, size), nodes("a b"), "10.0.0.0/28=a 10.0.0.16/28=b 10.0.0.32/28= 10.0.0.48/28=", nil},
		{"new, no nodes", nil, network("10.0.0.0/27", "28"), nodes(""), "10.0.0.0/28= 10.0.0.16/28=", nil},
		{"new, the slice is the range", nil, network("10.0.0.0/27", "/27"), nodes("a b"), "10.0.0.0/27=a", []string{"b"}},
		{"across octets", nil, network("10.0.254.0/23", "/24"), nodes("a"), "10.0.254.0/24=a 10.0.255.0/24=", nil},
		{"nothing to do", have(whole, size, "10.0.0.0/28=b 10.0.0.16/28=a"), network(whole, size), nodes("a b"), "10.0.0.0/28=b 10.0.0.16/28=a", nil},
		{"a node comes, and takes the first that is free", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28= 10.0.0.32/28=c"), network(whole, size), nodes("a b c"), "10.0.0.0/28=a 10.0.0.16/28=b 10.0.0.32/28=c", nil},
		{"a node leaves", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28=b"), network(whole, size), nodes("b"), "10.0.0.0/28= 10.0.0.16/28=b", nil},
		{"one leaves, one comes: what came free rests", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28="), network(whole, size), nodes("b"), "10.0.0.0/28= 10.0.0.16/28=b", nil},
		{"one leaves, one comes, and there is no other", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28=b"), network(whole, size), nodes("b c"), "10.0.0.0/28=c 10.0.0.16/28=b", nil},
		{"full", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28=b"), network(whole, size), nodes("a b c d"), "10.0.0.0/28=a 10.0.0.16/28=b", []string{"c", "d"}},
		{"one that left is still in use", have(whole, size, "10.0.0.0/28=used 10.0.0.16/28=gone"), network(whole, size), Nodes{[]string{"c"}, map[string]bool{"c": true}, inUse}, "10.0.0.0/28=used 10.0.0.16/28=c", nil},
		{"one that left is in use, others are free", have(whole, size, "10.0.0.0/28=used 10.0.0.16/28= 10.0.0.32/28="), network(whole, size), Nodes{[]string{"c"}, map[string]bool{"c": true}, inUse}, "10.0.0.0/28=used 10.0.0.16/28=c 10.0.0.32/28=", nil},
		{"one that left is in use, and there is no other", have(whole, size, "10.0.0.0/28=used"), network(whole, size), Nodes{[]string{"c"}, map[string]bool{"c": true}, inUse}, "10.0.0.0/28=used", []string{"c"}},
		{"one that is no member keeps what it has", have(whole, size, "10.0.0.0/28=a 10.0.0.16/28="), network(whole, size), Nodes{[]string{"b"}, map[string]bool{"a": true, "b": true}, nil}, "10.0.0.0/28=a 10.0.0.16/28=b", nil},
		{"another range", have(whole, size, "10.0.0.0/28=b 10.0.0.16/28=a"), network("10.1.0.0/27", size), nodes("a b"), "10.1.0.0/28=a 10.1.0.16/28=b", nil},
		{"another size", have("10.0.0.0/27", "/27", "10.0.0.0/27=b"), network("10.0.0.0/27", size), nodes("a b"), "10.0.0.0/28=a 10.0.0.16/28=b", nil},
		{"the same size, written otherwise", have("10.0.0.0/27", "/28", "10.0.0.0/28=b 10.0.0.16/28=a"), network("10.0.0.0/27", "28"), nodes("a b"), "10.0.0.0/28=b 10.0.0.16/28=a", nil},
		{"nonsense for a size", have("10.0.0.0/27", "x", "10.0.0.0/28=b 10.0.0.16/28=a"), network("10.0.0.0/27", "28"), nodes("a b"), "10.0.0.0/28=a 10.0.0.16/28=b", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before []Allocation
			if c.have != nil {
				before = slices.Clone(c.have.Allocations)
			}
			got, without := Plan(c.have, c.network, c.nodes)
			assert.Equal(t, State{c.network.Range.String(), c.network.Size, allocated(c.want)}, got)
			assert.Equal(t, c.without, without)
			if c.have != nil {
				assert.Equal(t, before, c.have.Allocations, "what was read is left alone")
			}
			again, _ := Plan(&got, c.network, c.nodes)
			assert.Equal(t, got, again, "a second time changes nothing")
		})
	}
}

// Whatever comes and goes: no node has two slices, no two nodes one, who has one keeps it, and nobody lacks one while one is free.
func TestPlanHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := network("10.0.0.0/25", "/28")
		state, _ := Plan(nil, n, nodes(""))
		names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
		for range 20 {
			live := map[string]bool{}
			for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(rt, "live") {
				live[name] = true
			}
			members := slices.Sorted(maps.Keys(live))
			before := state
			var without []string
			state, without = Plan(&before, n, Nodes{Members: members, Live: live})
			has := map[string]int{}
			for i, a := range state.Allocations {
				has[a.NodeName]++
				require.Equal(rt, before.Allocations[i].SliceRange, a.SliceRange)
				if old := before.Allocations[i].NodeName; live[old] {
					require.Equal(rt, old, a.NodeName)
				}
			}
			free := has[""]
			delete(has, "")
			for name, n := range has {
				require.True(rt, live[name])
				require.Equal(rt, 1, n)
			}
			require.Equal(rt, len(members), len(has)+len(without))
			require.True(rt, len(without) == 0 || free == 0)
		}
	})
}

func TestNetworks(t *testing.T) {
	old, young := time.Unix(1, 0), time.Unix(2, 0)
	define := func(name string, created time.Time, config string) Definition {
		return Definition{Namespace: "ns", Name: name, Created: created, Config: config}
	}
	const plain = `{"name": "net", "type": "lhstorage", "parent": {"nonsense": 1}, "ipam": {"type": "lhstorage-ipam", "range": "10.0.0.0/24", "node_slice_size": "/28"}}`
	for _, c := range []struct {
		name        string
		definitions []Definition
		want        string // "pool range size owners"
		fault       string
	}{
		{"ours", []Definition{define("d", old, plain)}, "net 10.0.0.0/24 /28 ns/d", ""},
		{"Whereabouts'", []Definition{define("d", old, `{"name": "net", "type": "macvlan", "ipam": {"type": "whereabouts", "range": "10.0.0.5/24", "node_slice_size": "28"}}`)}, "net 10.0.0.0/24 28 ns/d", ""},
		{"a list", []Definition{define("d", old, `{"name": "net", "plugins": [{"type": "tuning"}, {"type": "macvlan", "ipam": {"type": "whereabouts", "range": "10.0.0.0/24", "node_slice_size": "/28"}}]}`)}, "net 10.0.0.0/24 /28 ns/d", ""},
		{"without a name", []Definition{define("d", old, `{"type": "macvlan", "ipam": {"type": "whereabouts", "range": "10.0.0.0/24", "node_slice_size": "/28"}}`)}, "d 10.0.0.0/24 /28 ns/d", ""},
		{"with network_name", []Definition{define("d", old, strings.Replace(plain, `"range"`, `"network_name": "other", "range"`, 1))}, "other 10.0.0.0/24 /28 ns/d", ""},
		{"a range of two addresses", []Definition{define("d", old, strings.Replace(plain, "10.0.0.0/24", "10.0.0.9-10.0.0.20/24", 1))}, "net 10.0.0.0/24 /28 ns/d", ""},
		{"its IPv4 range is the second one", []Definition{define("d", old, strings.Replace(plain, `"range": "10.0.0.0/24"`, `"ipRanges": [{"range": "fd00::/64"}, {"range": "10.0.0.0/24"}]`, 1))}, "net 10.0.0.0/24 /28 ns/d", ""},
		{"two of one network", []Definition{define("b", young, plain), define("a", old, plain)}, "net 10.0.0.0/24 /28 ns/a,ns/b", ""},
		{"two that contradict each other", []Definition{define("b", young, strings.Replace(plain, "/28", "/27", 1)), define("a", old, plain)}, "net 10.0.0.0/24 /28 ns/a", "in slices of /28 by ns/a, which is older"},
		{"two ranges of one name, the younger one first by name", []Definition{define("a", young, strings.Replace(plain, "10.0.0.0", "10.1.0.0", 1)), define("b", old, plain)}, "net 10.0.0.0/24 /28 ns/b", "for 10.1.0.0/24 in slices of /28 by this one"},
		{"without slices", []Definition{define("d", old, strings.Replace(plain, `"/28"`, `""`, 1)), define("e", old, `{"name": "x", "type": "macvlan"}`), define("f", old, ``), define("g", old, `{"plugins": 1}`)}, "", ""},
		{"another IPAM", []Definition{define("d", old, strings.Replace(plain, "lhstorage-ipam", "host-local", 1))}, "", ""},
		{"IPv6 alone", []Definition{define("d", old, strings.Replace(plain, "10.0.0.0/24", "fd00::/64", 1))}, "", "no range is IPv4"},
		{"slices bigger than the range", []Definition{define("d", old, strings.Replace(plain, "/28", "/23", 1))}, "", "is bigger than the range 10.0.0.0/24"},
		{"too many slices", []Definition{define("d", old, strings.Replace(plain, "10.0.0.0/24", "10.0.0.0/8", 1))}, "", "has 1048576 slices of /28"},
		{"nonsense for a size", []Definition{define("d", old, strings.Replace(plain, "/28", "big", 1))}, "", "node_slice_size"},
		{"nonsense for a range", []Definition{define("d", old, strings.Replace(plain, "10.0.0.0/24", "ten", 1))}, "", "ten"},
	} {
		t.Run(c.name, func(t *testing.T) {
			networks, faults := Networks(c.definitions)
			var got []string
			for _, n := range networks {
				got = append(got, fmt.Sprint(n.Name, " ", n.Range, " ", n.Size, " ", marks(n)))
			}
			assert.Equal(t, c.want, strings.Join(got, "\n"))
			if c.fault == "" {
				assert.Empty(t, faults)
				return
			}
			require.Len(t, faults, 1)
			assert.ErrorContains(t, faults[0].Err, c.fault)
		})
	}
}

func FuzzNetworks(f *testing.F) {
	f.Add(`{"name": "net", "type": "lhstorage", "ipam": {"type": "lhstorage-ipam", "range": "10.0.0.0/24", "node_slice_size": "/28"}}`)
	f.Add(`{"plugins": [{"ipam": {"type": "whereabouts", "ipRanges": [{"range": "fd00::/64"}], "node_slice_size": 26}}]}`)
	f.Fuzz(func(t *testing.T, config string) {
		networks, _ := Networks([]Definition{{Namespace: "ns", Name: "d", Config: config}})
		for _, n := range networks {
			state, _ := Plan(nil, n, nodes("a"))
			assert.NotEmpty(t, state.Allocations)
			for _, a := range state.Allocations {
				slice, err := netip.ParsePrefix(a.SliceRange)
				require.NoError(t, err)
				assert.True(t, n.Range.Contains(slice.Addr()))
			}
		}
	})
}
