package netconf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// What host-local's own parser makes of the split sets: every address that it had
// before but those of the host range, and its gateway.
func TestHostLocalTakesTheSplitRanges(t *testing.T) {
	for _, ipam := range []string{
		`"subnet":"10.1.2.0/24"`,
		`"subnet":"10.1.2.0/24","rangeStart":"10.1.2.60","rangeEnd":"10.1.2.200","gateway":"10.1.2.100"`,
		`"subnet":"10.1.2.0/24","rangeStart":"10.1.2.70"`,
		`"ranges":[[{"subnet":"10.1.2.0/24","rangeEnd":"10.1.2.100"},{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.101"}]]`,
		`"subnet":"10.1.2.0/24","ranges":[[{"subnet":"fd00::/64"}]]`,
		`"SUBNET":"10.1.2.0/24"`,
	} {
		conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"a","type":"lhstorage","master":"eth0","hostShim":{"range":"10.1.2.64/26"},"ipam":{"type":"host-local",%s}}`, ipam)
		plan, err := netconf.Parse(netconf.Add, []byte(conf), "")
		require.NoError(t, err, conf)
		before, _, err := allocator.LoadIPAMConfig([]byte(conf), "")
		require.NoError(t, err, conf)
		after, _, err := allocator.LoadIPAMConfig(plan.IPAM.Delegate, "")
		require.NoError(t, err, "%s", plan.IPAM.Delegate)
		require.Len(t, after.Ranges, len(before.Ranges))
		host := netip.MustParsePrefix("10.1.2.64/26")
		for a := netip.MustParseAddr("10.1.2.0"); a != netip.MustParseAddr("10.1.3.0"); a = a.Next() {
			want := before.Ranges[0].Contains(a.AsSlice()) && !host.Contains(a)
			assert.Equal(t, want, after.Ranges[0].Contains(a.AsSlice()), "%s of %s", a, plan.IPAM.Delegate)
		}
		assert.Equal(t, before.Ranges[0][0].Gateway.String(), after.Ranges[0][0].Gateway.String())
	}
}
