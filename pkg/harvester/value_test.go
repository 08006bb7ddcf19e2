package harvester

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

func TestFaults(t *testing.T) {
	good := Value{ClusterNetwork: "storage", VLAN: 100, Range: "192.168.0.0/24"}
	with := func(change func(*Value)) Value {
		v := good
		change(&v)
		return v
	}
	for name, c := range map[string]struct {
		v     Value
		known Known
		want  []string
	}{
		"good":                   {good, Known{Need: 254, VMVLANs: []int{100}}, nil},
		"VLAN too large":         {with(func(v *Value) { v.VLAN = 4095 }), Known{}, []string{"the valid value range for VLAN IDs is 0 to 4094"}},
		"no cluster network":     {with(func(v *Value) { v.ClusterNetwork = "" }), Known{}, []string{"clusterNetwork is missing: the name of the cluster network that carries the storage network"}},
		"untagged on mgmt":       {with(func(v *Value) { v.ClusterNetwork, v.VLAN = "mgmt", 1 }), Known{}, []string{"network with vlan id 1 not allowed on mgmt cluster"}},
		"untagged elsewhere":     {with(func(v *Value) { v.VLAN = 0 }), Known{}, nil},
		"host bits":              {with(func(v *Value) { v.Range = "192.168.0.1/24" }), Known{}, []string{"range should be subnet CIDR 192.168.0.0/24"}},
		"IPv6":                   {with(func(v *Value) { v.Range = "fd00::/64" }), Known{}, []string{"IPv6 ranges are not supported for network settings"}},
		"no range":               {with(func(v *Value) { v.Range = "" }), Known{}, []string{"invalid CIDR address: "}},
		"large":                  {with(func(v *Value) { v.Range = "10.0.0.0/15" }), Known{}, []string{"min supported prefix length for network is 16, include Range PrefixLen received 15"}},
		"exclude elsewhere":      {with(func(v *Value) { v.Exclude = []string{"10.0.0.0/24"} }), Known{}, []string{"exclude range 10.0.0.0/24 do not overlap include range 192.168.0.0/24"}},
		"exclude all":            {with(func(v *Value) { v.Exclude = []string{"192.168.0.0/23"} }), Known{}, []string{"exclude Range 192.168.0.0/23 includes include Range 192.168.0.0/24, no allocatable ip addresses"}},
		"exclude too large":      {with(func(v *Value) { v.Exclude = []string{"192.168.0.0/15"} }), Known{}, []string{"min supported prefix length for network is 16, exclude Range PrefixLen received 15", "exclude Range 192.168.0.0/15 includes include Range 192.168.0.0/24, no allocatable ip addresses"}},
		"not neighbours":         {with(func(v *Value) { v.Exclude = []string{"192.168.0.0/28", "192.168.0.64/28", "192.168.0.4/30"} }), Known{}, []string{"exclude ranges have overlapping subnets 192.168.0.4/30 192.168.0.0/28"}},
		"neighbours":             {with(func(v *Value) { v.Exclude = []string{"192.168.0.0/28", "192.168.0.4/30"} }), Known{}, []string{"exclude ranges have overlapping subnets 192.168.0.4/30 192.168.0.0/28"}},
		"too few":                {with(func(v *Value) { v.Exclude = []string{"192.168.0.1/32"} }), Known{Need: 254}, []string{"allocatable IP address range is < 254, allocate sufficient range"}},
		"exclusive and taken":    {with(func(v *Value) { v.ExclusiveVLAN = true }), Known{VMVLANs: []int{7, 100}}, []string{"storage network cannot use the same vlan 100 as VM Network vlan as exclusive vlan is enabled"}},
		"exclusive and untagged": {with(func(v *Value) { v.ExclusiveVLAN, v.VLAN = true, 1 }), Known{}, []string{"exclusive vlan cannot be enabled for vlan 1"}},
		"reserved":               {with(func(v *Value) { v.Range = "10.43.7.0/24" }), Known{Networks: plan.HarvesterReserved(true)}, []string{"range 10.43.7.0/24 overlaps the range that Harvester reserves 10.43.0.0/16"}},
		"reserved elsewhere":     {with(func(v *Value) { v.Range = "10.43.7.0/24" }), Known{Networks: plan.HarvesterReserved(false)}, nil},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, c.v.Faults(c.known)) })
	}
}

// Harvester's own definition, byte for byte.
func TestDefinition(t *testing.T) {
	raw := `{"vlan":0,"clusterNetwork":"storage","exclusiveVlan":false,"range":"192.168.0.0/24","exclude":[]}`
	v, err := ParseValue(raw)
	require.NoError(t, err)
	d, err := v.Definition(raw, 1500)
	require.NoError(t, err)
	const want = `{"cniVersion":"0.3.1","type":"bridge","bridge":"storage-br","promiscMode":true,"vlan":1,"ipam":{"type":"whereabouts","range":"192.168.0.0/24"}}`
	assert.Equal(t, []byte(want), []byte(d.Spec.Config)) //nolint:testifylint // to the letter: Harvester hashes it
	assert.Equal(t, "storagenetwork-", d.Metadata.GenerateName)
	assert.Equal(t, "harvester-system", d.Metadata.Namespace)
	assert.Equal(t, map[string]string{"storage-network.settings.harvesterhci.io": "true"}, d.Metadata.Annotations)
	assert.Equal(t, map[string]string{"storage-network.settings.harvesterhci.io/hash": Hash(raw)}, d.Metadata.Labels)
	v.ExclusiveVLAN, v.VLAN = true, 9
	d, err = v.Definition(raw, 9000)
	require.NoError(t, err)
	assert.Contains(t, d.Spec.Config, `"mtu":9000`)
	assert.Equal(t, "true", d.Metadata.Labels["storage-network.settings.harvesterhci.io/exclusivevlan"])
	_, err = ParseValue("{")
	require.ErrorContains(t, err, "failed to unmarshal the setting value {, ")
}

func TestHashes(t *testing.T) {
	assert.Equal(t, "da39a3ee5e6b4b0d3255bfef95601890afd80709", Hash(""))
	assert.NotEqual(t, Hash("{}"), Hash("{ }"), "white space counts")
	a := Value{ClusterNetwork: "s", VLAN: 1, Range: "10.0.0.0/24", Exclude: []string{"10.0.0.1/32", "10.0.0.16/28"}}
	b := Value{ClusterNetwork: "s", Range: "10.0.0.7/24", Exclude: []string{"10.0.0.17/28", "10.0.0.1/32"}}
	assert.Equal(t, a.CanonicalHash(), b.CanonicalHash())
	for _, change := range []func(*Value){
		func(v *Value) { v.ClusterNetwork = "t" }, func(v *Value) { v.VLAN = 2 }, func(v *Value) { v.ExclusiveVLAN = true },
		func(v *Value) { v.Range = "10.0.0.0/25" }, func(v *Value) { v.Exclude = nil },
	} {
		c := b
		change(&c)
		assert.NotEqual(t, a.CanonicalHash(), c.CanonicalHash())
	}
}

func TestNetwork(t *testing.T) {
	hosts := netip.MustParsePrefix("10.0.0.16/28")
	n, notes, err := Value{ClusterNetwork: "a-long-name", VLAN: 4000, Range: "10.0.0.0/24"}.Network("n", hosts, 9000)
	require.NoError(t, err)
	assert.Len(t, notes, 1)
	d, err := n.Definition()
	require.NoError(t, err)
	p, err := netconf.Parse(netconf.Add, []byte(d.Spec.Config), "")
	require.NoError(t, err)
	assert.Equal(t, netconf.Parent{Type: netconf.ParentVLAN, Name: "storage.4000", Device: "a-long-name-bo", VLAN: 4000, MTU: 9000}, p.Parent)
	_, _, err = Value{}.Network("n", hosts, 0)
	require.Error(t, err)
}

func FuzzValue(f *testing.F) {
	f.Add(`{"clusterNetwork":"storage","vlan":100,"range":"192.168.0.0/24","exclude":["192.168.0.1/32"]}`)
	f.Add(`{"range":"10.0.0.0/16","exclude":["10.0.0.0/17","10.0.128.1/30","::/0","0.0.0.0/0"]}`)
	f.Fuzz(func(t *testing.T, raw string) {
		v, err := ParseValue(raw)
		if err != nil {
			return
		}
		if len(v.Faults(Known{Need: 12, Networks: plan.HarvesterReserved(true)})) > 0 {
			return
		}
		_, _, err = v.Network("n", netip.Prefix{}, 0)
		require.NoError(t, err)
		require.NotEmpty(t, v.CanonicalHash())
	})
}
