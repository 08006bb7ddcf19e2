package nad

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

func overlay() Network {
	return Network{
		Namespace: "longhorn-system", Name: "longhorn-storage",
		Parent: Parent{Type: netconf.ParentVXLAN, Name: "vxlan-storage", VNI: 100, VTEP: netip.MustParsePrefix("10.100.100.0/24")},
		Hosts:  netip.MustParsePrefix("10.100.1.0/28"), Range: netip.MustParsePrefix("10.100.1.0/24"),
	}
}

func TestText(t *testing.T) {
	d, err := overlay().Definition()
	require.NoError(t, err)
	const want = `{
  "cniVersion": "1.1.0",
  "name": "longhorn-storage",
  "type": "lhstorage",
  "parent": {"name": "vxlan-storage", "type": "vxlan", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`
	assert.Equal(t, strings.Split(want, "\n"), strings.Split(d.Spec.Config, "\n"))
	long := Config{"a": []any{strings.Repeat("x", width), "<&>"}, "empty": Config{}, "n": json.Number("12345678901234567890")}
	assert.Equal(t, "{\n  \"a\": [\n    \""+strings.Repeat("x", width)+"\",\n    \"<&>\"\n  ],\n  \"empty\": {},\n  \"n\": 12345678901234567890\n}", long.String())
}

// What is written is read as what was meant.
func TestNetworks(t *testing.T) {
	vlan, device, large := overlay(), overlay(), overlay()
	vlan.Parent = Parent{Type: netconf.ParentVLAN, Device: "bond0", VLAN: 100}
	vlan.Exclude = []string{"10.100.1.254/32"}
	device.Parent = Parent{Type: netconf.ParentDevice, Name: "eth1"}
	device.IPAM, device.MTU = "whereabouts", 1400
	large.Parent.Port, large.Parent.MTU, large.ShimName = 4790, 8950, "storage-host"
	for name, c := range map[string]struct {
		n    Network
		want func(*netconf.Plan)
	}{
		"vlan": {vlan, func(p *netconf.Plan) {
			assert.Equal(t, "bond0.100", p.Parent.Name)
			assert.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.100.1.254/32")}, p.IPAM.Excluded)
		}},
		"device": {device, func(p *netconf.Plan) {
			assert.Equal(t, "eth1", p.Parent.Name)
			assert.Equal(t, "whereabouts", p.IPAM.Type)
			assert.Equal(t, 1400, p.MTU)
		}},
		"all of vxlan": {large, func(p *netconf.Plan) {
			assert.EqualValues(t, 4790, p.Parent.Port)
			assert.Equal(t, 8950, p.Parent.MTU)
			assert.Equal(t, "storage-host", p.HostShim.Name)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := c.n.Definition()
			require.NoError(t, err)
			plan, err := netconf.Parse(netconf.Add, []byte(d.Spec.Config), "")
			require.NoError(t, err)
			assert.Equal(t, []netip.Prefix{c.n.Hosts}, plan.HostShim.Ranges)
			assert.Equal(t, []netip.Prefix{c.n.Range}, plan.IPAM.Ranges)
			c.want(plan)
		})
	}
}

func TestFaultsAreThoseOfTheNode(t *testing.T) {
	n := overlay()
	n.Hosts, n.Parent.VNI = netip.MustParsePrefix("10.200.0.0/28"), 0
	_, err := n.Definition()
	require.ErrorContains(t, err, "parent.vni")
	require.ErrorContains(t, err, "hostShim.range")
}

func TestCheckOfLists(t *testing.T) {
	chained, err := Parse(`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "macvlan", "master": "eth1"}, {"type": "lhstorage", "hostShim": {"range": "10.0.0.0/28"}}]}`)
	require.NoError(t, err)
	plan, err := Check(chained)
	require.NoError(t, err)
	assert.True(t, plan.Chained)
	first, err := Parse(`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "lhstorage", "master": "eth1"}, {"type": "tuning"}]}`)
	require.NoError(t, err)
	plan, err = Check(first)
	require.NoError(t, err)
	assert.False(t, plan.Chained)
	_, err = Check(Config{"plugins": []any{Config{"type": "macvlan"}, "x"}})
	require.ErrorContains(t, err, "no plugin")
	for _, bad := range []string{"", "null", "[]", "{"} {
		_, err := Parse(bad)
		require.Error(t, err, bad)
	}
}
