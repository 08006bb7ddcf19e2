package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go4.org/netipx"
	"pgregory.net/rapid"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func mustPool(t require.TestingT, whole, first, last string, exclude ...string) Pool {
	pool, _, err := NewPool("", false, netip.MustParsePrefix(whole), addr(first), addr(last))
	require.NoError(t, err)
	for _, e := range exclude {
		pool.Exclude = append(pool.Exclude, netip.MustParsePrefix(e))
		pool.Written = append(pool.Written, e)
	}
	return pool
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		whole, start, end string
		first, last       string
		notes             int
	}{
		{whole: "10.0.0.0/24", first: "10.0.0.1", last: "10.0.0.254"},
		{whole: "10.0.0.0/30", first: "10.0.0.1", last: "10.0.0.2"},
		{whole: "192.168.2.225/28", first: "192.168.2.225", last: "192.168.2.238"},
		{whole: "10.0.0.0/8", first: "10.0.0.1", last: "10.255.255.254"},
		{whole: "0.0.0.0/0", first: "0.0.0.1", last: "255.255.255.254"},
		{whole: "fd00::/64", first: "fd00::1", last: "fd00::ffff:ffff:ffff:fffe"},
		{whole: "fd00::/126", first: "fd00::1", last: "fd00::2"},
		{whole: "::/0", first: "::1", last: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"},
		{whole: "10.0.0.0/24", start: "10.0.0.5", end: "10.0.0.9", first: "10.0.0.5", last: "10.0.0.9"},
		{whole: "10.0.0.0/24", start: "10.0.0.5", end: "10.0.0.5", first: "10.0.0.5", last: "10.0.0.5"},
		{whole: "10.0.0.0/24", start: "10.0.0.0", end: "10.0.0.255", first: "10.0.0.1", last: "10.0.0.254"},
		{whole: "10.0.0.0/24", start: "10.0.9.5", end: "10.0.10.1", first: "10.0.0.1", last: "10.0.0.254", notes: 2},
		{whole: "10.0.0.0/24", start: "10.0.0.9", end: "10.0.0.5", first: "10.0.0.9", last: "10.0.0.254", notes: 1},
		{whole: "10.0.0.0/24", start: "fd00::5", first: "10.0.0.1", last: "10.0.0.254", notes: 1},
		{whole: "fd00::/64", end: "fd00::ff", first: "fd00::1", last: "fd00::ff"},
	} {
		t.Run(c.whole+" "+c.start+"-"+c.end, func(t *testing.T) {
			pool, notes, err := NewPool("", false, netip.MustParsePrefix(c.whole), addr(c.start), addr(c.end))
			require.NoError(t, err)
			assert.Equal(t, c.first, pool.First.String())
			assert.Equal(t, c.last, pool.Last.String())
			assert.Len(t, notes, c.notes, "%q", notes)
		})
	}
	for _, whole := range []string{"10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::/128"} {
		_, _, err := NewPool("", false, netip.MustParsePrefix(whole), netip.Addr{}, netip.Addr{})
		assert.ErrorContains(t, err, "has no usable IP addresses, it is too small", whole)
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		network  string
		isolated bool
		whole    string
		addr     string
		pool     string
		claim    string
	}{
		{whole: "10.0.0.0/8", addr: "10.0.0.1", pool: "10.0.0.0-8", claim: "10.0.0.1"},
		{network: "test", whole: "10.0.0.0/8", addr: "10.0.0.1", pool: "test-10.0.0.0-8", claim: "test-10.0.0.1"},
		{whole: "fd00:1::/64", addr: "fd00:1::1", pool: "fd00-1---64", claim: "fd00-1--1"},
		{whole: "fd00:1::/64", addr: "fd00:1::", pool: "fd00-1---64", claim: "fd00-1--0"},
		{isolated: true, whole: "10.0.0.0/8", addr: "10.0.0.1", pool: "10.0.0.0-8", claim: "10.0.0.0-8-10.0.0.1"},
		{network: "t", isolated: true, whole: "fd00:1::/64", addr: "fd00:1::a", pool: "t-fd00-1---64", claim: "t-fd00-1---64-fd00-1--a"},
	} {
		pool, _, err := NewPool(c.network, c.isolated, netip.MustParsePrefix(c.whole), netip.Addr{}, netip.Addr{})
		require.NoError(t, err)
		assert.Equal(t, c.pool, pool.Name)
		assert.Equal(t, c.claim, pool.ClaimName(addr(c.addr)))
		back, ok := pool.AddressOf(c.claim)
		assert.True(t, ok, c.claim)
		assert.Equal(t, c.addr, back.String())
	}
	pool := mustPool(t, "10.0.0.0/24", "", "")
	for _, foreign := range []string{"", "10.0.1.1", "test-10.0.0.1", "10.0.0.0-24-10.0.0.1", "fd00--1", "010.0.0.1", "10.0.0.1-", "stage"} {
		_, ok := pool.AddressOf(foreign)
		assert.False(t, ok, foreign)
	}
}

// smallPool draws a pool small enough to be walked.
func smallPool(t *rapid.T) Pool {
	base := rapid.SampledFrom([]string{"10.0.0.0", "0.0.0.0", "255.255.255.0", "fd00::", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00", "fd00::ffff:ffff:ffff:ff00"}).Draw(t, "base")
	spare := rapid.IntRange(2, 8).Draw(t, "host bits")
	a := netip.MustParseAddr(base)
	whole := netip.PrefixFrom(a, a.BitLen()-spare)
	near := rapid.Custom(func(t *rapid.T) netip.Addr {
		return advance(whole.Masked().Addr(), uint64(rapid.IntRange(0, 1<<spare-1).Draw(t, "offset")))
	})
	edge := rapid.OneOf(rapid.Just(netip.Addr{}), near)
	pool, _, err := NewPool("", false, whole, edge.Draw(t, "start"), edge.Draw(t, "end"))
	require.NoError(t, err)
	for range rapid.IntRange(0, 3).Draw(t, "excludes") {
		e := netip.PrefixFrom(near.Draw(t, "exclude"), a.BitLen()-rapid.IntRange(0, 9).Draw(t, "exclude bits"))
		pool.Exclude = append(pool.Exclude, e.Masked())
	}
	return pool
}

// The candidates are what a walk over each address gives, in the order of a walk from start.
func TestCandidatesAgainstAWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := smallPool(t)
		taken := rapid.SliceOf(rapid.Custom(func(t *rapid.T) netip.Addr {
			return advance(pool.Range.Addr(), uint64(rapid.IntRange(0, 255).Draw(t, "n")))
		})).Draw(t, "taken")
		owner := Owner{PodRef: rapid.StringN(1, 5, -1).Draw(t, "pod"), IfName: "net1"}
		order := rapid.SampledFrom([]Order{Lowest, Sticky}).Draw(t, "order")
		start := pool.start(order, owner)
		require.True(t, pool.Window().Contains(start), "start %s outside of %s", start, pool.Window())

		var above, below []netip.Addr
		for a := pool.First; a.Compare(pool.Last) <= 0; a = a.Next() {
			switch {
			case slices.Contains(taken, a) || pool.Excluded(a):
			case a.Less(start):
				below = append(below, a)
			default:
				above = append(above, a)
			}
			if a == pool.Last { // the last address of a family has no next
				break
			}
		}
		want := slices.Concat(above, below)
		assert.Equal(t, want, slices.Collect(pool.Candidates(taken, start)))
		assert.Equal(t, fmt.Sprint(len(want)), countFree(pool.free(taken)))
	})
}

func TestNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := smallPool(t)
		pool.NetworkName = rapid.SampledFrom([]string{"", "net", "a-b", "fd00"}).Draw(t, "network")
		pool.Isolated = rapid.Bool().Draw(t, "isolated")
		for a := range walkSeq(pool) {
			back, ok := pool.AddressOf(pool.ClaimName(a))
			require.True(t, ok, pool.ClaimName(a))
			require.Equal(t, a, back)
		}
	})
}

func walkSeq(p Pool) func(func(netip.Addr) bool) { return p.Candidates(nil, p.First) }

func TestStickyIsStableAndSpread(t *testing.T) {
	pool := mustPool(t, "fd00::/64", "", "")
	starts := map[netip.Addr]bool{}
	for i := range 100 {
		owner := Owner{PodRef: fmt.Sprintf("ns/pod-%d", i), IfName: "net1", ContainerID: "a"}
		again := owner
		again.ContainerID, again.Node = "b", "elsewhere"
		assert.Equal(t, pool.start(Sticky, owner), pool.start(Sticky, again))
		starts[pool.start(Sticky, owner)] = true
	}
	assert.Len(t, starts, 100)
}

// A search that walked would not end: 2^64 addresses are excluded, or the whole of IPv6 is the range.
func TestHugeRanges(t *testing.T) {
	for _, c := range []struct {
		pool  Pool
		taken []netip.Addr
		want  string
	}{
		{pool: mustPool(t, "fd00::/48", "", "", "fd00::/64", "fd00:0:0:1::/64"), want: "fd00:0:0:2::"},
		{pool: mustPool(t, "::/0", "", "", "::/1"), want: "8000::"},
		{pool: mustPool(t, "fd00::/64", "", "", "fd00::/65"), taken: []netip.Addr{addr("fd00::8000:0:0:0")}, want: "fd00::8000:0:0:1"},
		{pool: mustPool(t, "fd00::/64", "", "", "fd00::/64"), want: ""},
		{pool: mustPool(t, "10.0.0.0/8", "", "", "10.0.0.0/9", "10.128.0.0/10"), want: "10.192.0.0"},
	} {
		got := ""
		for a := range c.pool.Candidates(c.taken, c.pool.First) {
			got = a.String()
			break
		}
		assert.Equal(t, c.want, got)
	}
	assert.Equal(t, "more than 10^19", countFree(mustPool(t, "::/0", "", "").free(nil)))
	assert.Equal(t, "18446744073709551614", countFree(mustPool(t, "fd00::/64", "", "").free(nil)))
}

func BenchmarkCandidates(b *testing.B) {
	for _, c := range []struct {
		name string
		pool Pool
		free int // of the window
	}{
		{"slash20/99percent", mustPool(b, "10.0.0.0/20", "", ""), 41},
		{"slash64/windowOf65536NearlyFull", mustPool(b, "fd00::/64", "fd00::1:0", "fd00::1:ffff", "fd00::/112"), 1},
		{"slash64/empty", mustPool(b, "fd00::/64", "", ""), -1},
	} {
		var taken []netip.Addr
		if c.free >= 0 {
			taken = slices.Collect(c.pool.Candidates(nil, c.pool.First))
			taken = taken[:len(taken)-c.free]
		}
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				for a := range c.pool.Candidates(taken, c.pool.First) {
					if !netipx.IPRangeFrom(c.pool.First, c.pool.Last).Contains(a) {
						b.Fatal(a)
					}
					break
				}
			}
			b.ReportMetric(float64(len(taken)), "taken")
		})
	}
}

func FuzzAddressOf(f *testing.F) {
	f.Add("10.0.0.1", "", false)
	f.Add("net-fd00--1", "net", false)
	f.Add("net-fd00---64-fd00--0", "net", true)
	f.Fuzz(func(t *testing.T, name, network string, isolated bool) {
		for _, whole := range []string{"10.0.0.0/8", "fd00::/64"} {
			pool, _, err := NewPool(network, isolated, netip.MustParsePrefix(whole), netip.Addr{}, netip.Addr{})
			require.NoError(t, err)
			if a, ok := pool.AddressOf(name); ok {
				assert.True(t, pool.Range.Contains(a))
				assert.Equal(t, name, pool.ClaimName(a))
			}
		}
	})
}

// A node's slice has Whereabouts' name, keys that count from it, and the whole range's length.
func TestSliced(t *testing.T) {
	slice := netip.MustParsePrefix("10.0.0.64/26")
	for _, c := range []struct{ network, name string }{{"", "node1-10.0.0.64-26"}, {"blue", "blue-node1-10.0.0.64-26"}} {
		pool, _, err := NewPool(c.network, false, netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.100"), netip.Addr{})
		require.NoError(t, err)
		require.Equal(t, pool.Range, pool.Kept())
		pool, err = pool.Sliced("node1", slice)
		require.NoError(t, err)
		assert.Equal(t, c.name, pool.Name)
		assert.Equal(t, slice, pool.Kept())
		assert.Equal(t, "10.0.0.65-10.0.0.126", pool.Window().String())
		assert.Equal(t, 24, pool.Range.Bits())
		_, err = pool.Sliced("node1", netip.MustParsePrefix("10.0.0.64/31"))
		assert.Error(t, err)
	}
}
