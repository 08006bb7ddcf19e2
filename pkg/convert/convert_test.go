package convert

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

func convertText(t *testing.T, text string, o Options) ([]Result, error) {
	t.Helper()
	documents, err := Read([]byte(text))
	require.NoError(t, err)
	return Convert(documents, o)
}

// one converts one network, and reads the result as a node does.
func one(t *testing.T, text string, o Options) (Result, *netconf.Plan) {
	t.Helper()
	results, err := convertText(t, text, o)
	require.NoError(t, err)
	require.Len(t, results, 1)
	config, err := nad.Parse(results[0].NAD.Spec.Config)
	require.NoError(t, err)
	p, err := nad.Check(config)
	require.NoError(t, err)
	return results[0], p
}

const value = `{"clusterNetwork": "storage", "vlan": 100, "range": "192.168.0.0/24", "exclude": ["192.168.0.1/32"]}`

// rawHash is what sha1sum says of value.
const rawHash = "79ebb9e24713b38c300f94570f1a3b729335d07b"

func TestHarvester(t *testing.T) {
	r, p := one(t, value+"\n", Options{})
	assert.JSONEq(t, `{"cniVersion":"0.3.1","type":"bridge","bridge":"storage-br","promiscMode":true,"vlan":100,"ipam":{"type":"whereabouts","range":"192.168.0.0/24","exclude":["192.168.0.1/32"]}}`, r.Theirs.Spec.Config)
	assert.Equal(t, rawHash, r.Hashes.Raw)
	assert.Equal(t, rawHash, r.Theirs.Metadata.Labels["storage-network.settings.harvesterhci.io/hash"])
	assert.Equal(t, netconf.Parent{Type: netconf.ParentVLAN, Name: "storage-bo.100", Device: "storage-bo", VLAN: 100}, p.Parent)
	assert.Equal(t, "192.168.0.240/28", p.HostShim.Ranges[0].String())
	assert.Equal(t, "harvester-system", r.NAD.Metadata.Namespace)
	assert.Equal(t, "lhstorage-ipam", p.IPAM.Type)

	// The whole object, as JSON and as YAML, has the same hash: the raw value's.
	for _, object := range []string{
		`{"apiVersion": "harvesterhci.io/v1beta1", "kind": "Setting", "metadata": {"name": "storage-network"}, "value": "` + strings.ReplaceAll(value, `"`, `\"`) + `"}`,
		"apiVersion: harvesterhci.io/v1beta1\nkind: Setting\nmetadata:\n  name: storage-network\nvalue: '" + value + "'\n",
		"kind: List\nitems:\n- kind: Setting\n  metadata: {name: storage-network}\n  default: '" + value + "'\n",
	} {
		s, _ := one(t, object, Options{})
		assert.Equal(t, r, s)
	}
	// Another way to write the same network: another raw hash, the same canonical one.
	s, _ := one(t, `{"range":"192.168.0.0/24","vlan":100,"clusterNetwork":"storage","exclude":["192.168.0.1/32"]}`, Options{})
	assert.NotEqual(t, r.Hashes.Raw, s.Hashes.Raw)
	assert.Equal(t, r.Hashes.Canonical, s.Hashes.Canonical)

	_, p = one(t, `{"clusterNetwork": "storage", "range": "192.168.0.0/24"}`, Options{MTU: 9000, Hosts: netip.MustParsePrefix("192.168.0.16/28")})
	assert.Equal(t, netconf.Parent{Type: netconf.ParentDevice, Name: "storage-br", MTU: 9000}, p.Parent)
	assert.Equal(t, "192.168.0.16/28", p.HostShim.Ranges[0].String())
	_, p = one(t, `{"clusterNetwork": "storage-cluster", "vlan": 4000, "range": "192.168.0.0/24"}`, Options{Parent: "bond1", Name: "x", Namespace: "y"})
	assert.Equal(t, "bond1", p.Parent.Device)
	assert.Equal(t, "x", p.Name)
}

func TestHarvestersFaults(t *testing.T) {
	_, err := convertText(t, `{"clusterNetwork": "mgmt", "range": "10.52.0.1/15", "exclude": ["10.52.0.0/24", "10.53.0.0/24", "10.52.0.0/25", "1.2.3.4/32", "x"]}`, Options{Need: 1 << 20})
	for _, want := range []string{
		"network with vlan id 0 not allowed on mgmt cluster", "range should be subnet CIDR 10.52.0.0/15", "min supported prefix length for network is 16, include Range PrefixLen received 15",
		"exclude ranges have overlapping subnets 10.52.0.0/25 10.52.0.0/24", "exclude range 1.2.3.4/32 do not overlap include range", "invalid CIDR address: x",
		"allocatable IP address range is < 1048576", "overlaps the range that Harvester reserves 10.53.0.0/16",
	} {
		assert.ErrorContains(t, err, want)
	}
}

const whereabouts = `"ipam": {"type": "whereabouts", "range": "10.0.0.0/24"}`

func nadOf(config string) string {
	return "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: storage, namespace: lh}\nspec:\n  config: '" + config + "'\n"
}

func TestStock(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		o      Options
		check  func(r Result, p *netconf.Plan)
	}{
		"macvlan": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "mode": "bridge", "mtu": 9000, ` + whereabouts + `}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Equal(t, "eth1", p.Parent.Name)
			assert.Equal(t, 9000, p.MTU)
			assert.Equal(t, "10.0.0.240/28", p.HostShim.Ranges[0].String())
			assert.Equal(t, "lhstorage-ipam", p.IPAM.Type)
			assert.Equal(t, "storage", p.Name, "the definition's, as Multus does")
			assert.Equal(t, "lh", r.NAD.Metadata.Namespace)
		}},
		"whereabouts is kept": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", ` + whereabouts + `}`, Options{KeepIPAM: true, Hosts: netip.MustParsePrefix("10.0.0.16/28")}, func(_ Result, p *netconf.Plan) {
			assert.Equal(t, "whereabouts", p.IPAM.Type)
			assert.Equal(t, "10.0.0.16/28", p.HostShim.Ranges[0].String())
		}},
		"a window": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "10.0.0.64-10.0.0.127/24"}}`, Options{}, func(_ Result, p *netconf.Plan) {
			assert.Equal(t, "10.0.0.112/28", p.HostShim.Ranges[0].String())
		}},
		"host-local": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.200"}], [{"subnet": "fd00::/64"}]]}}`, Options{Nodes: 3}, func(r Result, p *netconf.Plan) {
			assert.Equal(t, "10.0.0.196/30", p.HostShim.Ranges[0].String())
			assert.Len(t, p.HostShim.Ranges, 2)
			assert.Contains(t, r.Notes[0], "nothing of other nodes")
		}},
		"at most a quarter": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "10.0.0.0/27"}}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Equal(t, "10.0.0.28/30", p.HostShim.Ranges[0].String())
			assert.Contains(t, r.Notes[0], "for 3 nodes at most")
		}},
		"no mode for a shim": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "mode": "vepa", ` + whereabouts + `}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Nil(t, p.HostShim)
			assert.Contains(t, r.Notes[0], "no host range")
		}},
		"dhcp": {`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", "ipam": {"type": "dhcp"}}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Nil(t, p.HostShim)
			assert.Contains(t, r.Notes[0], "DHCP server")
		}},
		"old": {`{"type": "macvlan", "master": "eth1", ` + whereabouts + `}`, Options{}, func(_ Result, p *netconf.Plan) { assert.Equal(t, "0.3.1", p.CNIVersion) }},
		"ipvlan": {`{"cniVersion": "0.3.1", "type": "ipvlan", "master": "eth1", "mode": "l2", ` + whereabouts + `}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Equal(t, "bridge", p.Mode)
			assert.Contains(t, r.Notes[0], "a MAC of its own")
		}},
		"no master": {`{"cniVersion": "0.3.1", "type": "macvlan", ` + whereabouts + `}`, Options{Parent: "eth2"}, func(_ Result, p *netconf.Plan) { assert.Equal(t, "eth2", p.Parent.Name) }},
		"bridge": {`{"cniVersion": "0.3.1", "type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": false, ` + whereabouts + `}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Equal(t, netconf.Parent{Type: netconf.ParentDevice, Name: "br0"}, p.Parent)
			assert.Contains(t, r.Notes[0], "any more: isGateway")
			assert.NotContains(t, r.Notes[0], "ipMasq")
		}},
		"bridge of Harvester's": {`{"cniVersion":"0.3.1","type":"bridge","bridge":"storage-br","promiscMode":true,"vlan":100,` + whereabouts + `}`, Options{}, func(_ Result, p *netconf.Plan) {
			assert.Equal(t, netconf.Parent{Type: netconf.ParentVLAN, Name: "storage-bo.100", Device: "storage-bo", VLAN: 100}, p.Parent)
		}},
		"bridge on a NIC": {`{"cniVersion":"0.3.1","type":"bridge","vlan":7,` + whereabouts + `}`, Options{Parent: "eth3"}, func(_ Result, p *netconf.Plan) { assert.Equal(t, "eth3.7", p.Parent.Name) }},
		"bridge, NIC named": {`{"cniVersion":"0.3.1","type":"bridge",` + whereabouts + `}`, Options{Parent: "eth3"}, func(_ Result, p *netconf.Plan) {
			assert.Equal(t, netconf.Parent{Type: netconf.ParentDevice, Name: "eth3"}, p.Parent)
		}},
		"a list": {`{"cniVersion": "1.0.0", "plugins": [{"type": "macvlan", "master": "eth1", ` + whereabouts + `}, {"type": "tuning", "sysctl": {"a": "b"}}]}`, Options{}, func(r Result, p *netconf.Plan) {
			assert.Contains(t, r.NAD.Spec.Config, "tuning")
			assert.Equal(t, "10.0.0.240/28", p.HostShim.Ranges[0].String())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, p := one(t, nadOf(c.config), c.o)
			assert.Equal(t, "lhstorage", p.Type)
			c.check(r, p)
		})
	}
	r, _ := one(t, `{"cniVersion": "0.3.1", "name": "mine", "type": "macvlan", "master": "eth1", `+whereabouts+`}`, Options{})
	assert.Equal(t, "mine", r.NAD.Metadata.Name, "a configuration without its definition")
}

func TestFaultsOfAllDocumentsAtOnce(t *testing.T) {
	text := strings.Join([]string{
		nadOf(`{"type": "macvlan", ` + whereabouts + `}`), nadOf(`{"type": "ipvlan", "master": "eth1", "mode": "l3", ` + whereabouts + `}`),
		nadOf(`{"type": "bridge", "bridge": "br0", "vlan": 7}`), nadOf(`{"type": "sriov"}`), nadOf(`{"type": "lhstorage"}`), nadOf(`[]`), nadOf(`{"plugins": [{"type": "tuning"}]}`),
		nadOf(`{"type": "macvlan", "master": "eth1", "nonsense": 1, ` + whereabouts + `}`), `{"foo": 1}`, `{"clusterNetwork": 7}`, `{kind: Setting, metadata: {name: other}, value: x}`, `{kind: Setting, metadata: {name: storage-network}}`,
	}, "\n---\n")
	_, err := convertText(t, text, Options{})
	require.Error(t, err)
	for _, want := range []string{
		"names no master", `mode "l3" is routed`, "VLAN 7: name the NIC or bond", `type "sriov" can't be converted`, "already", "isn't a JSON object", "none of its plugins", "nonsense",
		"neither a Kubernetes object", "failed to unmarshal the setting value", "another setting", "has no value",
	} {
		assert.ErrorContains(t, err, want)
	}
	_, err = convertText(t, "kind: Namespace\nmetadata: {name: x}\n", Options{})
	require.ErrorContains(t, err, "nothing here is a network")
	_, err = convertText(t, nadOf(`{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth1", `+whereabouts+`}`), Options{Networks: []plan.Network{{Kind: plan.Pod, Prefix: netip.MustParsePrefix("10.0.0.0/8")}}})
	require.ErrorContains(t, err, "range 10.0.0.0/24 overlaps the pod range 10.0.0.0/8")
	for _, bad := range []string{"a: [", "- 1", "\x00", "3"} {
		_, err := Read([]byte(bad))
		require.Error(t, err, bad)
	}
}

func TestSourceDesign(t *testing.T) {
	text, err := os.ReadFile("testdata/source-design.yaml")
	require.NoError(t, err)
	r, p := one(t, string(text), Options{})
	assert.Equal(t, netconf.ParentVXLAN, p.Parent.Type)
	assert.Equal(t, "vxlan-storage", p.Parent.Name)
	assert.Equal(t, 100, p.Parent.VNI)
	assert.EqualValues(t, 4789, p.Parent.Port)
	assert.Equal(t, 8950, p.Parent.MTU)
	assert.Equal(t, "10.100.100.0/24", p.Parent.VTEP.CIDR.String())
	assert.Equal(t, "lhnet1-host", p.HostShim.Name)
	assert.Equal(t, "10.100.1.0/28", p.HostShim.Ranges[0].String())
	assert.Equal(t, 8950, p.MTU)
	assert.Equal(t, "lhstorage-ipam", p.IPAM.Type)
	assert.Equal(t, "storage", r.NAD.Metadata.Namespace)
	assert.Equal(t, map[string]int{"node1": 1, "node2": 2, "node3": 5}, r.Indexes)
	notes := strings.Join(r.Notes, "\n")
	assert.Len(t, r.Notes, 3, notes)
	assert.Contains(t, notes, "node2.env doesn't list 10.100.100.3 (node3)")
	assert.Contains(t, notes, "node2.env lists 10.100.100.9 as a peer, which is no node's")
	assert.Contains(t, notes, "learning is switched on")

	parts := strings.Split(string(text), "\n---\n")
	_, p = one(t, parts[1]+"\n---\n"+parts[0], Options{})
	assert.Equal(t, "10.100.1.0/24", p.IPAM.Ranges[0].String(), "of the script")
	assert.Equal(t, "10.100.1.0/28", p.HostShim.Ranges[0].String())
	lone := "kind: ConfigMap\nmetadata: {name: x}\ndata: {n.env: \"NODE_VTEP=10.100.100.1\\nNODE_OVERLAY_IP=10.100.1.1\"}\n"
	_, p = one(t, lone+"---\n"+parts[1]+"\n---\n"+strings.Replace(parts[2], "10.100.1.0/28", "10.100.1.1/32", 1), Options{})
	assert.Equal(t, "10.100.1.0/28", p.HostShim.Ranges[0].String(), "a single address leaves no place for a second node")
	_, err = convertText(t, parts[0], Options{})
	require.ErrorContains(t, err, "DaemonSet is missing")
	_, err = convertText(t, parts[1], Options{})
	require.ErrorContains(t, err, "ConfigMap is missing")
	twice := strings.NewReplacer("10.100.100.3\n    NODE", "10.100.100.1\n    NODE", "NODE_OVERLAY_IP=10.100.1.2", "NODE_OVERLAY_IP=nothing").Replace(string(text))
	_, err = convertText(t, twice, Options{})
	require.ErrorContains(t, err, "node3.env NODE_VTEP 10.100.100.1: is that of node1.env NODE_VTEP, too")
	require.ErrorContains(t, err, `node2.env NODE_OVERLAY_IP "nothing"`)
}

func FuzzConvert(f *testing.F) {
	text, err := os.ReadFile("testdata/source-design.yaml")
	require.NoError(f, err)
	f.Add(string(text))
	f.Add(value)
	f.Add(nadOf(`{"cniVersion": "0.3.1", "type": "bridge", "vlan": 7, ` + whereabouts + `}`))
	f.Add(nadOf(`{"cniVersion": "1.0.0", "plugins": [{"type": "ipvlan", "master": "eth1", ` + whereabouts + `}]}`))
	f.Add(`{"kind": "Setting", "metadata": {"name": "storage-network"}, "value": "{}"}`)
	f.Fuzz(func(t *testing.T, text string) {
		documents, err := Read([]byte(text))
		if err != nil {
			return
		}
		results, err := Convert(documents, Options{})
		for _, r := range results {
			config, err := nad.Parse(r.NAD.Spec.Config)
			require.NoError(t, err)
			_, err = nad.Check(config)
			require.NoError(t, err, r.NAD.Spec.Config)
		}
		if err == nil {
			require.NotEmpty(t, results)
		}
	})
}
