package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go4.org/netipx"
	"pgregory.net/rapid"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// Harvester's example: five nodes, two disks each, ten images at the same time.
func TestHarvestersExample(t *testing.T) {
	d := Demand{Nodes: 5, Disks: 10, Images: 10, V1: true, Upgrade: true}
	p, err := Make(d, Options{})
	require.NoError(t, err)
	assert.Equal(t, 30, p.Compare[0].IPs, "as their documents add it up")
	assert.Equal(t, 40, p.Compare[1].IPs, "by their formula")
	assert.Equal(t, 30, p.Compare[2].IPs, "by their webhook")
	assert.Equal(t, Need{Pods: 40}, p.Need, "ours is their formula where nothing is used that they don't count")
	assert.Equal(t, 26, p.Smallest.Bits, "the prefix that they conclude with")
	d.Upgrade = false
	assert.Equal(t, Need{Pods: 25}, need(d.Items()))

	shared, err := Make(Demand{Nodes: 5, Disks: 10, V1: true, Upgrade: true, RWX: true}, Options{})
	require.NoError(t, err)
	assert.Equal(t, 30+5+32, shared.Compare[2].IPs)
}

func TestGrowthRoundsUp(t *testing.T) {
	d := Demand{Nodes: 3, Disks: 11, Images: 0, V1: true, Shares: 1}.grown(10)
	assert.Equal(t, Demand{Nodes: 4, Disks: 13, Images: 0, V1: true, Shares: 2}, d)
}

func TestItems(t *testing.T) {
	for name, c := range map[string]struct {
		d    Demand
		want Need
	}{
		"v1, as small as can be": {Demand{Nodes: 1, V1: true}, Need{Pods: 1}},
		"v2 alone":               {Demand{Nodes: 3, V2: true}, Need{Pods: 3}},
		"both engines":           {Demand{Nodes: 3, V1: true, V2: true}, Need{Pods: 6}},
		"an upgrade doubles managers of instances and of images, not data sources": {Demand{Nodes: 3, V1: true, V2: true, Disks: 4, Images: 5, Upgrade: true}, Need{Pods: 12 + 8 + 5}},
		"shared volumes":         {Demand{Nodes: 3, V1: true, RWX: true, Shares: 7}, Need{Pods: 3 + 3 + 7}},
		"shims are of the nodes": {Demand{Nodes: 3, V1: true, Shims: true, Upgrade: true}, Need{Pods: 6, Hosts: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.d.check())
			assert.Equal(t, c.want, need(c.d.Items()))
			for _, i := range c.d.Items() {
				assert.Equal(t, i.Count*i.Each, i.IPs)
				assert.NotEmpty(t, i.Why)
			}
		})
	}
}

func TestAllFaultsOfTheInputAtOnce(t *testing.T) {
	_, err := Make(Demand{Nodes: 0, Disks: -1, Images: 2_000_000, Shares: 1}, Options{Growth: -1, Exclude: []netip.Prefix{prefix("10.0.0.0/30")}})
	for _, want := range []string{"0 nodes", "-1 disks", "2000000 images", "neither data engine", "1 shared volumes", "growth of -1 %", "no range was given"} {
		assert.ErrorContains(t, err, want)
	}
	_, err = Make(Demand{Nodes: 1, V1: true}, Options{Range: prefix("10.0.0.0/24"), Exclude: []netip.Prefix{prefix("10.0.1.0/30")}})
	assert.ErrorContains(t, err, "10.0.1.0/30 lies outside the range 10.0.0.0/24")
	_, err = Make(Demand{Nodes: maxCount, Disks: maxCount, Images: maxCount, V1: true, V2: true, RWX: true, Shares: maxCount, Upgrade: true, Shims: true}, Options{Growth: maxGrowth})
	assert.ErrorContains(t, err, "don't fit in a /8")
}

func TestFit(t *testing.T) {
	for name, c := range map[string]struct {
		whole   string
		exclude []string
		need    Need
		hosts   string // "" for none, "-" when nothing fits
		room    [2]int
	}{
		"the source design's":                    {"10.100.1.0/24", nil, Need{100, 9}, "10.100.1.0/28", [2]int{239, 15}},
		"pods alone":                             {"10.0.0.0/30", nil, Need{Pods: 2}, "", [2]int{2, 0}},
		"one too many":                           {"10.0.0.0/30", nil, Need{Pods: 3}, "-", [2]int{}},
		"a power of two goes where none is lost": {"10.0.0.0/27", nil, Need{26, 4}, "10.0.0.4/30", [2]int{26, 4}},
		"the lower end is spoilt by a gateway":   {"10.0.0.0/24", []string{"10.0.0.1/32"}, Need{10, 3}, "10.0.0.4/30", [2]int{249, 4}},
		"a large exclude is jumped over":         {"10.0.0.0/16", []string{"10.0.0.0/17", "10.0.3.0/24"}, Need{10, 7}, "10.0.128.0/29", [2]int{32767 - 8, 8}},
		"IPv6":                                   {"fd00::/64", nil, Need{100, 9}, "fd00::/124", [2]int{1<<31 - 2 - 15, 15}},
		"host bits":                              {"10.0.0.77/24", nil, Need{10, 3}, "10.0.0.0/30", [2]int{251, 3}},
		"nodes only in all of it":                {"10.0.0.0/30", nil, Need{0, 2}, "-", [2]int{}},
		"all is excluded":                        {"10.0.0.0/24", []string{"10.0.0.0/23"}, Need{0, 1}, "-", [2]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			var exclude []netip.Prefix
			for _, x := range c.exclude {
				exclude = append(exclude, prefix(x))
			}
			l, ok := Fit(prefix(c.whole), exclude, c.need)
			require.Equal(t, c.hosts != "-", ok)
			if c.hosts == "" || c.hosts == "-" {
				assert.False(t, l.Hosts.IsValid())
			} else {
				assert.Equal(t, c.hosts, l.Hosts.String())
			}
			room := [2]int{l.PodRoom, l.HostRoom}
			assert.Equal(t, c.room, room)
		})
	}
}

// best is Smallest by looking at every division of every range of up to 2^11 addresses.
func best(n Need) int {
	for length := 30; length >= 21; length-- {
		total := 1<<(32-length) - 2
		if n.Hosts == 0 && total >= n.Pods {
			return length
		}
		for part := 32; n.Hosts > 0 && part > length; part-- {
			for i := range 1 << (part - length) {
				first := i << (32 - part)
				last := first + 1<<(32-part) - 1
				free := last - first + 1
				if first == 0 {
					free--
				}
				if last == total+1 {
					free--
				}
				if free >= n.Hosts && total-free >= n.Pods {
					return length
				}
			}
		}
	}
	return 0
}

func TestSmallestIsTheSmallest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := Need{Pods: rapid.IntRange(0, 700).Draw(t, "pods"), Hosts: rapid.IntRange(0, 300).Draw(t, "hosts")}
		l, err := Smallest(n)
		require.NoError(t, err)
		require.Equal(t, best(n), l.Bits)
		require.GreaterOrEqual(t, l.PodRoom, n.Pods)
		require.GreaterOrEqual(t, l.HostRoom, n.Hosts)
		require.Equal(t, 1<<(32-l.Bits)-2, l.PodRoom+l.HostRoom)
	})
}

// More of anything never needs less, and growth never chooses a smaller range.
func TestMoreNeverNeedsLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		flag := rapid.Bool()
		d := Demand{
			Nodes: rapid.IntRange(1, 40).Draw(t, "nodes"), Disks: rapid.IntRange(0, 80).Draw(t, "disks"), Images: rapid.IntRange(0, 40).Draw(t, "images"),
			V1: true, V2: flag.Draw(t, "v2"), Upgrade: flag.Draw(t, "upgrade"), RWX: flag.Draw(t, "rwx"), Shims: flag.Draw(t, "shims"),
		}
		more := d
		switch rapid.IntRange(0, 7).Draw(t, "more of") {
		case 0:
			more.Nodes += rapid.IntRange(1, 20).Draw(t, "n")
		case 1:
			more.Disks += rapid.IntRange(1, 20).Draw(t, "n")
		case 2:
			more.Images += rapid.IntRange(1, 20).Draw(t, "n")
		case 3:
			more.V2 = true
		case 4:
			more.Upgrade = true
		case 5:
			more.RWX = true
		case 6:
			more.Shims = true
		case 7:
			more.RWX, more.Shares = true, rapid.IntRange(1, 20).Draw(t, "n")
		}
		growth := rapid.IntRange(0, 200).Draw(t, "growth")
		a, err := Make(d, Options{Growth: growth})
		require.NoError(t, err)
		b, err := Make(more, Options{Growth: growth})
		require.NoError(t, err)
		require.GreaterOrEqual(t, b.Need.Pods, a.Need.Pods)
		require.GreaterOrEqual(t, b.Need.Hosts, a.Need.Hosts)
		require.LessOrEqual(t, b.Smallest.Bits, a.Smallest.Bits)
		require.LessOrEqual(t, b.Choose.Bits, a.Choose.Bits)
		require.LessOrEqual(t, a.Choose.Bits, a.Smallest.Bits)
		for i, c := range a.Compare {
			require.GreaterOrEqual(t, b.Compare[i].IPs, c.IPs)
		}
	})
}

// room against counting one by one.
func TestRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sub := func(label string, shortest int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 255).Draw(t, label))}), rapid.IntRange(shortest, 32).Draw(t, label+" length")).Masked()
		}
		whole := prefix("10.0.0.0/24")
		part := sub("part", 24)
		var exclude []netip.Prefix
		for range rapid.IntRange(0, 5).Draw(t, "excludes") {
			exclude = append(exclude, sub("exclude", 23))
		}
		want := 0
		for a := part.Addr(); part.Contains(a); a = a.Next() {
			out := a == whole.Addr() || a == netipx.PrefixLastIP(whole)
			for _, x := range exclude {
				out = out || x.Contains(a)
			}
			if !out {
				want++
			}
		}
		require.Equal(t, want, room(part, whole, exclude), "%v %v", part, exclude)
	})
}

func TestProposedRangeIsClear(t *testing.T) {
	d := Demand{Nodes: 3, Disks: 3, Images: 2, V1: true, Upgrade: true, Shims: true}
	p, err := Make(d, Options{})
	require.NoError(t, err)
	assert.Equal(t, "10.100.1.0/27", p.Choose.Range.String())
	assert.Equal(t, "10.100.1.4/30", func() string { p, _ := Fit(prefix("10.100.1.0/27"), nil, Need{26, 4}); return p.Hosts.String() }())
	rapid.Check(t, func(t *rapid.T) {
		var known []Network
		for range rapid.IntRange(0, 12).Draw(t, "known") {
			base := rapid.SampledFrom([]string{"10.0.0.0/9", "10.64.0.0/10", "10.100.0.0/16", "10.100.1.0/24", "10.100.1.9/32", "172.16.0.0/12", "10.96.0.0/12", "192.168.0.0/17", "10.0.0.0/8", "fd00::/8"}).Draw(t, "network")
			known = append(known, Network{Kind: Pod, Prefix: prefix(base)})
		}
		p, err := Make(d, Options{Known: known})
		if err != nil {
			require.ErrorContains(t, err, "name one by its range")
			return
		}
		require.Empty(t, Overlapping(p.Choose.Range, known))
		require.Empty(t, p.Findings)
		require.True(t, p.Choose.Range.Addr().IsPrivate())
		require.True(t, within(p.Choose.Hosts, p.Choose.Range))
	})
	_, err = Make(d, Options{Known: []Network{{Prefix: prefix("0.0.0.0/0")}}})
	require.ErrorContains(t, err, "no private network")
}

func TestFindings(t *testing.T) {
	d := Demand{Nodes: 3, Disks: 3, V1: true, Upgrade: true, Shims: true}
	known := append(HarvesterReserved(true),
		Network{Kind: Service, Prefix: prefix("10.96.0.0/12")}, Network{Kind: Node, Name: "n1", Prefix: prefix("192.168.7.11/32")},
		Network{Kind: VTEP, Name: "vxlan-storage", Prefix: prefix("10.100.100.0/24")}, Network{Kind: Pod, Name: "n2", Prefix: prefix("10.244.2.0/24")})
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"clear":                 {Options{Range: prefix("10.200.1.0/24"), Growth: 100}, nil},
		"reserved by Harvester": {Options{Range: prefix("10.52.3.0/24")}, []string{"wrong: 10.52.3.0/24 overlaps the range that Harvester reserves 10.52.0.0/16"}},
		"end points":            {Options{Range: prefix("10.100.0.0/16")}, []string{"wrong: 10.100.0.0/16 overlaps the service range 10.96.0.0/12", "wrong: 10.100.0.0/16 overlaps the VTEP range 10.100.100.0/24 of vxlan-storage"}},
		"pods of a node":        {Options{Range: prefix("10.244.2.128/25")}, []string{"wrong: 10.244.2.128/25 overlaps the pod range 10.244.2.0/24 of n2"}},
		"a node":                {Options{Range: prefix("192.168.7.0/24")}, []string{"wrong: 192.168.7.0/24 overlaps the node address 192.168.7.11/32 of n1"}},
		"a node on its own NIC": {Options{Range: prefix("192.168.7.0/24"), Flat: true}, []string{"wrong: the node address 192.168.7.11/32 of n1 lies in 192.168.7.0/24 and isn't excluded: a pod would get it"}},
		"the same, excluded":    {Options{Range: prefix("192.168.7.0/24"), Flat: true, Exclude: []netip.Prefix{prefix("192.168.7.0/28")}}, nil},
		"too small":             {Options{Range: prefix("10.200.1.0/28"), Growth: 100}, []string{"wrong: 10.200.1.0/28 is too small: 12 addresses for pods and 3 for nodes are needed, so /27 or larger (/26 with room to grow)"}},
		"no room to grow":       {Options{Range: prefix("10.200.1.0/27"), Growth: 100}, []string{"warning: 10.200.1.0/27 holds what is needed today, but not with room to grow by 100 %; to change the range later all volumes must be detached"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Known = known
			p, err := Make(d, c.o)
			require.NoError(t, err)
			var got []string
			wrong := false
			for _, f := range p.Findings {
				got = append(got, fmt.Sprintf("%s: %s", f.Level, f.Text))
				wrong = wrong || f.Level == Wrong
			}
			assert.Equal(t, c.want, got)
			assert.Equal(t, !wrong, p.OK())
		})
	}
	p, err := Make(d, Options{Range: prefix("10.52.3.0/24"), Known: HarvesterReserved(false)})
	require.NoError(t, err)
	require.Len(t, p.Findings, 1)
	assert.Equal(t, Warning, p.Findings[0].Level, "elsewhere than on Harvester")
}

func TestPoolsHaveALimit(t *testing.T) {
	for disks, want := range map[int]Level{2400: "", 2600: Warning, 3600: Wrong} {
		p, err := Make(Demand{Nodes: 3, Disks: disks, V1: true, Upgrade: true}, Options{})
		require.NoError(t, err)
		var got Level
		for _, f := range p.Findings {
			got = f.Level
			assert.Contains(t, f.Text, "node_slice_size")
		}
		assert.Equal(t, want, got, "%d", disks)
	}
}

func TestStepsAddUp(t *testing.T) {
	p, err := Make(Demand{Nodes: 3, Disks: 6, Images: 10, V1: true, V2: true, Upgrade: true, RWX: true, Shares: 4, Shims: true}, Options{Growth: 50})
	require.NoError(t, err)
	text := strings.Join(p.Steps, "\n")
	for _, i := range p.Items {
		assert.Contains(t, text, fmt.Sprintf("%s: %d × %d = %d", i.What, i.Count, i.Each, i.IPs))
	}
	assert.Contains(t, text, "together 44: 41 for pods, 3 for nodes")
	assert.Contains(t, text, "choose: "+p.Choose.Range.String())
	data, err := json.Marshal(p)
	require.NoError(t, err)
	assert.Contains(t, string(data), `"podRoom"`)
}

// Top against looking at every block.
func TestTop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(0, 255).Draw(t, "first")
		last := rapid.IntRange(first, 255).Draw(t, "last")
		n, atMost := rapid.IntRange(1, 40).Draw(t, "n"), rapid.IntRange(0, 80).Draw(t, "at most")
		addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
		want := -1
		size := 1
		for size <= n {
			size *= 2
		}
		for ; size >= 1 && want < 0; size /= 2 {
			for start := 0; start+size <= 256 && size <= atMost; start += size {
				if start >= first && start+size-1 <= last {
					want = start
				}
			}
			if want >= 0 {
				break
			}
		}
		got, ok := Top(addr(first), addr(last), n, atMost)
		require.Equal(t, want >= 0, ok)
		if ok {
			require.Equal(t, netip.PrefixFrom(addr(want), 33-len(fmt.Sprintf("%b", size))), got)
		}
	})
	_, ok := Top(netip.Addr{}, netip.Addr{}, 3, 9)
	require.False(t, ok)
}
