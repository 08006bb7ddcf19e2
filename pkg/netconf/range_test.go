package netconf

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseRange(t *testing.T) {
	for in, want := range map[string][3]string{
		"10.0.0.0/24":                 {"10.0.0.0/24"},
		"192.168.2.225/28":            {"192.168.2.224/28"},
		"00192.00168.1.0/24":          {"192.168.1.0/24"},
		"10.0.0.5-10.0.0.9/24":        {"10.0.0.0/24", "10.0.0.5", "10.0.0.9"},
		"010.000.0.5-10.0.0.09/24":    {"10.0.0.0/24", "10.0.0.5", "10.0.0.9"},
		"10.0.0.9-10.0.0.5/24":        {"10.0.0.0/24", "10.0.0.9", "10.0.0.5"},
		"fd00:1::/64":                 {"fd00:1::/64"},
		"fd00:1::5-fd00:1::ff/64":     {"fd00:1::/64", "fd00:1::5", "fd00:1::ff"},
		"0.0.0.0/0":                   {"0.0.0.0/0"},
		"::ffff:10.0.0.1-10.0.0.9/24": {"10.0.0.0/24", "10.0.0.1", "10.0.0.9"},
	} {
		got, err := ParseRange(in)
		require.NoError(t, err, in)
		assert.Equal(t, want[0], got.Prefix.String(), in)
		if want[1] == "" {
			assert.False(t, got.First.IsValid() || got.Last.IsValid(), in)
			continue
		}
		assert.Equal(t, want[1:], []string{got.First.String(), got.Last.String()}, in) //nolint:testifylint // want is what is expected
	}
	for in, want := range map[string]string{
		"192.168.1.5-192.168.2.25/28": "invalid range start for CIDR 192.168.2.16/28: 192.168.1.5",
		"nope":                        "invalid CIDR nope: invalid CIDR address: nope",
		"nope-10.0.0.1/24":            "invalid range start IP: nope",
		"10.0.0.1-nope":               "invalid CIDR nope: invalid CIDR address: nope",
		"10.0.0.1-fd00::1/64":         "invalid range start for CIDR fd00::/64: 10.0.0.1",
		"10.0.0.0/33":                 "invalid CIDR 10.0.0.0/33: invalid CIDR address: 10.0.0.0/33",
		"10.0.0.0/024":                "invalid CIDR 10.0.0.0/024: invalid CIDR address: 10.0.0.0/024",
		"10.0.0.1 - 10.0.0.9/24":      "invalid range start IP: 10.0.0.1 ",
		"":                            "invalid CIDR : invalid CIDR address: ",
		"10..0.1/24":                  "invalid CIDR 10..0.1/24: invalid CIDR address: 10..0.1/24",
		"fe80::1%eth0/64":             "invalid CIDR fe80::1%eth0/64: invalid CIDR address: fe80::1%eth0/64",
	} {
		_, err := ParseRange(in)
		assert.EqualError(t, err, want, in)
	}
}

func TestLastAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/24": "10.0.0.255", "10.0.0.7/32": "10.0.0.7", "0.0.0.0/0": "255.255.255.255", "10.0.0.8/31": "10.0.0.9",
		"fd00::/64": "fd00::ffff:ffff:ffff:ffff", "fd00::/65": "fd00::7fff:ffff:ffff:ffff", "fd00::/63": "fd00::1:ffff:ffff:ffff:ffff",
		"fd00::1/128": "fd00::1", "::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		assert.Equal(t, want, lastAddr(netip.MustParsePrefix(in)).String(), in)
	}
}

// Subtraction against the obvious way of doing it, address by address.
func TestSubtractAgainstCounting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	base := netip.MustParseAddr("10.0.0.0").As4()
	addr := func(n int) netip.Addr { a := base; a[3] = byte(n); return netip.AddrFrom4(a) }
	for range 2000 {
		lo, hi := rng.IntN(256), rng.IntN(256)
		if hi < lo {
			lo, hi = hi, lo
		}
		var holes []netip.Prefix
		for range rng.IntN(4) {
			holes = append(holes, netip.PrefixFrom(addr(rng.IntN(256)), 24+rng.IntN(9)).Masked())
		}
		got := map[int]bool{}
		for _, s := range subtract([]span{{addr(lo), addr(hi)}}, holes) {
			require.False(t, s.empty())
			for a := s.first; ; a = a.Next() {
				n := int(a.As4()[3])
				require.False(t, got[n], "twice")
				got[n] = true
				if a == s.last {
					break
				}
			}
		}
		for n := range 256 {
			want := n >= lo && n <= hi
			for _, h := range holes {
				want = want && !h.Contains(addr(n))
			}
			require.Equal(t, want, got[n])
		}
	}
}

func TestSpansAtTheEndsOfTheAddressSpace(t *testing.T) {
	all4 := span{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255")}
	assert.Empty(t, all4.without(netip.MustParsePrefix("0.0.0.0/0")))
	assert.Len(t, all4.without(netip.MustParsePrefix("255.255.255.255/32")), 1)
	assert.Len(t, all4.without(netip.MustParsePrefix("::/0")), 1)
	assert.True(t, usable(netip.MustParsePrefix("255.255.255.255/32")).empty())
	assert.True(t, usable(netip.MustParsePrefix("10.0.0.0/31")).empty())
	assert.True(t, usable(netip.MustParsePrefix("::/128")).empty())
	assert.False(t, usable(netip.MustParsePrefix("10.0.0.0/30")).empty())
}

func TestWindow(t *testing.T) {
	net := netip.MustParsePrefix("10.0.0.0/24")
	for _, c := range []struct{ first, last, wantFirst, wantLast string }{
		{"", "", "10.0.0.1", "10.0.0.254"},
		{"10.0.0.5", "10.0.0.9", "10.0.0.5", "10.0.0.9"},
		{"10.0.9.5", "10.0.10.1", "10.0.0.1", "10.0.0.254"},
		{"10.0.0.9", "10.0.0.5", "10.0.0.9", "10.0.0.254"},
		{"10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.0.254"},
		{"fd00::1", "", "10.0.0.1", "10.0.0.254"},
	} {
		first, _ := parseAddr(c.first)
		last, _ := parseAddr(c.last)
		assert.Equal(t, span{netip.MustParseAddr(c.wantFirst), netip.MustParseAddr(c.wantLast)}, window(net, first, last), "%+v", c)
	}
}

func TestBadDeviceName(t *testing.T) {
	for _, good := range []string{"eth0", "bond0.100", "a", "vxlan-storage15", "lhnet1-host", "é0"} {
		assert.Empty(t, badDeviceName(good), good)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u00a0b", "a%d", "sixteen-bytes-xx", "a\x00", "a\xff"} {
		assert.NotEmpty(t, badDeviceName(bad), bad)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"range", "name", "address"}
	assert.Equal(t, "range", nearest("rang", words))
	assert.Equal(t, "address", nearest("adress", words))
	assert.Empty(t, nearest("colour", words))
	assert.Equal(t, 3, distance("kitten", "sitting"))
}
