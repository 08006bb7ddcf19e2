package ipam

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUsage(t *testing.T) {
	list := func(addresses ...string) (out []netip.Addr) {
		for _, a := range addresses {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	for _, c := range []struct {
		name, whole, first, last string
		exclude                  []string
		taken                    []netip.Addr
		want                     Usage
	}{
		{"all free", "10.0.0.0/24", "", "", nil, nil, Usage{254, 0}},
		{"some taken, one named twice", "10.0.0.0/24", "", "", nil, list("10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.254"), Usage{254, 3}},
		{"what it can't give isn't counted", "10.0.0.0/24", "10.0.0.10", "10.0.0.19", []string{"10.0.0.12/31"}, list("10.0.0.9", "10.0.0.12", "10.0.0.13", "10.0.0.19", "10.0.1.11"), Usage{8, 1}},
		{"overlapping excludes", "10.0.0.0/24", "", "", []string{"10.0.0.0/28", "10.0.0.8/29", "10.0.0.16/28"}, nil, Usage{223, 0}},
		{"full", "10.0.0.0/30", "", "", nil, list("10.0.0.1", "10.0.0.2"), Usage{2, 2}},
		{"all excluded", "10.0.0.0/30", "", "", []string{"10.0.0.0/30"}, list("10.0.0.1"), Usage{0, 0}},
		{"big", "10.0.0.0/8", "", "", nil, list("10.0.0.1"), Usage{1<<24 - 2, 1}},
		{"IPv6", "fd00::/112", "", "", []string{"fd00::/124"}, list("fd00::1", "fd00::10"), Usage{65536 - 16 - 1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			parse := func(text string) netip.Addr {
				addr, _ := netip.ParseAddr(text) // none is none
				return addr
			}
			pool, notes, err := NewPool("", false, netip.MustParsePrefix(c.whole), parse(c.first), parse(c.last))
			require.NoError(t, err)
			require.Empty(t, notes)
			for _, e := range c.exclude {
				pool.Exclude = append(pool.Exclude, netip.MustParsePrefix(e))
			}
			assert.Equal(t, c.want, pool.Usage(c.taken))
		})
	}
}
