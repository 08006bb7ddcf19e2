package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

func netConf(ipam string) []byte {
	return fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": %s}`, ipam)
}

// show is a pool in short.
func show(p Pool) string {
	text := fmt.Sprintf("%s %s-%s /%d", p.Name, p.First, p.Last, p.Range.Bits())
	for _, e := range p.Exclude {
		text += " -" + e.String()
	}
	if p.Isolated {
		text += " isolated"
	}
	return text
}

func TestParsePools(t *testing.T) {
	for _, c := range []struct {
		name, ipam string
		want       []string
		warns      []string
	}{
		{"plain", `{"range": "10.0.0.0/24"}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, nil},
		{"host bits", `{"range": "192.168.2.225/28"}`, []string{"192.168.2.224-28 192.168.2.225-192.168.2.238 /28"}, nil},
		{"leading zeros are decimal", `{"range": "010.000.0.0/24", "range_start": "10.0.0.010"}`, []string{"10.0.0.0-24 10.0.0.10-10.0.0.254 /24"}, nil},
		{"dashed", `{"range": "192.168.2.225-192.168.2.230/28"}`, []string{"192.168.2.224-28 192.168.2.225-192.168.2.230 /28"}, nil},
		{"dashed wins over range_start", `{"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.50"}`, []string{"10.0.0.0-24 10.0.0.5-10.0.0.9 /24"}, nil},
		{"window outside", `{"range": "10.0.0.0/24", "range_start": "10.0.9.5", "range_end": "10.0.10.1"}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"},
			[]string{"start 10.0.9.5 is outside", "end 10.0.10.1 is outside"}},
		{"exclude", `{"range": "10.0.0.0/24", "exclude": ["10.0.0.0/28", "10.0.0.77"]}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.0.0.0/28 -10.0.0.77/32"}, nil},
		{"exclude with host bits", `{"range": "192.168.14.0/23", "exclude": ["192.168.14.1/23"]}`, []string{"192.168.14.0-23 192.168.14.1-192.168.15.254 /23 -192.168.14.0/23"},
			[]string{`ipam.exclude "192.168.14.1/23" has host bits: all of 192.168.14.0/23 is meant`}},
		{"several", `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1"], "ipRanges": [{"range": "fd00:1::/64", "range_start": "fd00:1::10"}, {"range": "10.0.0.0/16", "exclude": ["10.0.0.2"]}]}`,
			[]string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.0.0.1/32", "fd00-1---64 fd00:1::10-fd00:1::ffff:ffff:ffff:fffe /64", "10.0.0.0-16 10.0.0.1-10.0.255.254 /16 -10.0.0.2/32"}, nil},
		{"exclude beside ipRanges alone counts for all of them", `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.1.0.0/24"}], "exclude": ["10.1.0.1"]}`,
			[]string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.1.0.1/32", "10.1.0.0-24 10.1.0.1-10.1.0.254 /24 -10.1.0.1/32"}, nil},
		{"host range", `{"range": "10.0.0.0/24", "host_shim_range": "10.0.0.0/28"}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.0.0.0/28"}, nil},
		{"host ranges", `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/64"}], "host_shim_range": ["10.0.0.0/28", "fd00::/120"]}`,
			[]string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.0.0.0/28 -fd00::/120", "fd00---64 fd00::1-fd00::ffff:ffff:ffff:fffe /64 -10.0.0.0/28 -fd00::/120"}, nil},
		{"named and isolated", `{"range": "10.0.0.0/24", "network_name": "blue", "enable_overlapping_ranges": false}`, []string{"blue-10.0.0.0-24 10.0.0.1-10.0.0.254 /24 isolated"}, nil},
		{"keys of Whereabouts without a meaning here", `{"type": "whereabouts", "range": "10.0.0.0/24", "log_file": "/x", "log_level": "debug", "datastore": "kubernetes",
			"leader_lease_duration": 1500, "leader_renew_deadline": 1000, "leader_retry_period": 500, "sleep_for_race": 1, "reconciler_cron_expression": "x",
			"etcd_host": "x", "configuration_path": "/x", "kubernetes": {"kubeconfig": "", "k8s_api_root": "x"}}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, nil},
		{"unknown key", `{"range": "10.0.0.0/24", "exlude": ["10.0.0.1"]}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, []string{`ipam.exlude ["10.0.0.1"]: unknown key`}},
		{"unknown keys below", `{"ipRanges": [{"range": "10.0.0.0/24", "rangestart": "x"}]}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, []string{`ipam.ipRanges[0].rangestart "x": unknown key`}},
		{"keys in any case", `{"Range": "10.0.0.0/24", "ipranges": [{"RANGE": "10.1.0.0/24"}]}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24", "10.1.0.0-24 10.1.0.1-10.1.0.254 /24"}, nil},
		{"null is absent", `{"range": "10.0.0.0/24", "exclude": null, "gateway": null, "ipRanges": null, "routes": null}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, nil},
		{"gateway that a pod may get", `{"range": "10.0.0.0/24", "gateway": "10.0.0.254"}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, []string{"ipam.gateway 10.0.0.254 can be given to a pod"}},
		{"gateway out of reach", `{"range": "10.0.0.0/24", "gateway": "10.0.0.254", "range_end": "10.0.0.200"}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.200 /24"}, nil},
		{"window without range", `{"range_start": "10.0.0.5", "ipRanges": [{"range": "10.0.0.0/24"}]}`, []string{"10.0.0.0-24 10.0.0.1-10.0.0.254 /24"}, []string{"ipam.range_start 10.0.0.5 has no effect"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := Parse(Input{NetConf: netConf(c.ipam)})
			require.NoError(t, err)
			var got []string
			for _, p := range cfg.Pools {
				got = append(got, show(p))
			}
			assert.Equal(t, c.want, got)
			require.Len(t, cfg.Warnings, len(c.warns), "%q", cfg.Warnings)
			for i, w := range c.warns {
				assert.Contains(t, cfg.Warnings[i], w)
			}
			assert.Equal(t, Lowest, cfg.Order)
			assert.Equal(t, 20*time.Second, cfg.Timeout)
			assert.Empty(t, cfg.Kubeconfig)
		})
	}
}

func TestParseFaults(t *testing.T) {
	for _, c := range []struct {
		name, ipam string
		want       []string
	}{
		{"no range", `{}`, []string{"ipam.range: is missing"}},
		{"empty range", `{"range": ""}`, []string{"ipam.range: is missing"}},
		{"range type", `{"range": 5}`, []string{"ipam.range 5: must be a string"}},
		{"range text", `{"range": "ten"}`, []string{`ipam.range "ten": invalid CIDR ten: invalid CIDR address: ten`}},
		{"dashed start outside", `{"range": "192.168.1.5-192.168.2.20/28"}`, []string{`ipam.range "192.168.1.5-192.168.2.20/28": invalid range start for CIDR 192.168.2.16/28: 192.168.1.5`}},
		{"too small", `{"range": "10.0.0.0/31"}`, []string{`ipam.range "10.0.0.0/31": net mask is too short, subnet 10.0.0.0/31 has no usable IP addresses, it is too small`}},
		{"too small v6", `{"range": "fd00::/128"}`, []string{"has no usable IP addresses, it is too small"}},
		{"window", `{"range": "10.0.0.0/24", "range_start": "ten", "range_end": 5}`, []string{`ipam.range_start "ten": must be an IPv4 or IPv6 address`, "ipam.range_end 5: must be a string"}},
		{"exclude", `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1", "nope"]}`, []string{`ipam.exclude[1] "nope": could not parse exclude range, err: "invalid CIDR address: nope"`}},
		{"exclude type", `{"range": "10.0.0.0/24", "exclude": "10.0.0.1"}`, []string{`ipam.exclude "10.0.0.1": must be a list of strings`}},
		{"ipRanges entry", `{"ipRanges": [5, {"exclude": ["nope"]}]}`, []string{"ipam.ipRanges[0] 5: must be an object", `ipam.ipRanges[1].exclude[0] "nope"`, "ipam.ipRanges[1].range: is missing"}},
		{"ipRanges type", `{"ipRanges": {}}`, []string{"ipam.ipRanges {}: must be a list", "ipam.range: is missing"}},
		{"host range elsewhere", `{"range": "10.0.0.0/24", "host_shim_range": "10.0.1.0/28"}`, []string{`ipam.host_shim_range "10.0.1.0/28": must lie inside`}},
		{"host range too large", `{"range": "10.0.0.0/24", "host_shim_range": ["10.0.0.0/16"]}`, []string{`ipam.host_shim_range "10.0.0.0/16": must lie inside`}},
		{"host range text", `{"range": "10.0.0.0/24", "host_shim_range": "x"}`, []string{`ipam.host_shim_range[0] "x": could not parse`}},
		{"host range type", `{"range": "10.0.0.0/24", "host_shim_range": 7}`, []string{"ipam.host_shim_range 7: must be a string or a list of strings"}},
		{"gateway", `{"range": "10.0.0.0/24", "gateway": "x"}`, []string{`ipam.gateway "x": must be`}},
		{"allocation", `{"range": "10.0.0.0/24", "allocation": "random"}`, []string{`ipam.allocation "random": must be "lowest" or "sticky"`}},
		{"timeout", `{"range": "10.0.0.0/24", "timeout": "-1s"}`, []string{`ipam.timeout "-1s": must be a duration`}},
		{"timeout too long", `{"range": "10.0.0.0/24", "timeout": "1h"}`, []string{`ipam.timeout "1h": must be a duration`}},
		{"routes", `{"range": "10.0.0.0/24", "routes": [{"gw": "10.0.0.1"}, {"dst": "x"}, 5]}`, []string{`ipam.routes[0] {"gw":"10.0.0.1"}: dst is missing`, `ipam.routes[1] {"dst":"x"}: `, "ipam.routes[2] 5: "}},
		{"dns", `{"range": "10.0.0.0/24", "dns": []}`, []string{"ipam.dns []: must be an object"}},
		{"addresses", `{"range": "10.0.0.0/24", "addresses": [{"address": "10.0.0.9"}, 5, {"address": "10.0.0.9/24", "gateway": "x"}]}`,
			[]string{`ipam.addresses[0].address "10.0.0.9": must be an address with a prefix length`, "ipam.addresses[1] 5: must be an object", `ipam.addresses[2].gateway "x"`}},
		{"network_name", `{"range": "10.0.0.0/24", "network_name": "../../etc"}`, []string{`ipam.network_name "../../etc": becomes a part of names`}},
		{"network_name length", `{"range": "10.0.0.0/24", "network_name": "` + strings.Repeat("a", 101) + `"}`, []string{"at most 100 long"}},
		{"node slices", `{"range": "10.0.0.0/24", "node_slice_size": "/26"}`, []string{`ipam.node_slice_size "/26": slices are kept in the cluster's NodeSlicePool, and this node has no cluster`}},
		{"node slice text", `{"range": "10.0.0.0/24", "node_slice_size": "x"}`, []string{`ipam.node_slice_size "x": must be a prefix length`}},
		{"kubernetes", `{"range": "10.0.0.0/24", "kubernetes": 5}`, []string{"ipam.kubernetes 5: must be an object"}},
		{"twice", `{"range": "10.0.0.0/24", "Range": "10.1.0.0/24"}`, []string{"ipam.range \"10.0.0.0/24\": the key is given twice"}},
		{"not an object", `[]`, []string{"ipam []: must be an object"}},
		{"all at once", `{"range": "x", "range_start": "y", "exclude": ["z"], "gateway": "g", "allocation": "a", "timeout": "t", "network_name": "N"}`,
			[]string{`ipam.range "x"`, `ipam.range_start "y"`, `ipam.exclude[0] "z"`, `ipam.gateway "g"`, `ipam.allocation "a"`, `ipam.timeout "t"`, `ipam.network_name "N"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(Input{NetConf: netConf(c.ipam)})
			require.Error(t, err)
			assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err), err)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
			assert.Equal(t, len(c.want), strings.Count(err.Error(), "\n"), "one line for each fault and a headline: %v", err)
		})
	}
	_, err := Parse(Input{NetConf: []byte(`{"cniVersion": "1.1.0", "name": "net"}`)})
	require.ErrorContains(t, err, "ipam: is missing")
	_, err = Parse(Input{NetConf: []byte(`[`)})
	assert.Equal(t, cnierr.Decode, cnierr.CodeOf(err))
}

// A cluster makes node slices possible; what is wrong elsewhere doesn't hide that one is meant.
func TestParseCluster(t *testing.T) {
	cfg, err := Parse(Input{NetConf: netConf(`{"range": "10.0.0.0/24", "node_slice_size": "26"}`), Cluster: true})
	require.NoError(t, err)
	assert.Equal(t, 26, cfg.NodeSlice)
	cfg, err = Parse(Input{NetConf: netConf(`{"range": "10.0.0.0/24", "node_slice_size": "/28", "kubernetes": {"kubeconfig": "/k"}}`)})
	require.NoError(t, err)
	assert.Equal(t, 28, cfg.NodeSlice)
	assert.Equal(t, "/k", cfg.Kubeconfig)
	for _, broken := range []string{`{"kubernetes": {"kubeconfig": 5}}`, `{"kubernetes": "/k"}`} {
		cfg, err = Parse(Input{NetConf: netConf(broken)})
		require.Error(t, err)
		assert.NotEmpty(t, cfg.Kubeconfig, broken)
	}
}

func TestParseFlatFile(t *testing.T) {
	flat := `{"datastore": "kubernetes", "kubernetes": {"kubeconfig": "/flat"}, "range": "10.9.0.0/24", "gateway": "10.9.0.1", "exclude": ["10.9.0.1"], "enable_overlapping_ranges": false}`
	cfg, err := Parse(Input{NetConf: netConf(`{"range": "10.0.0.0/24", "exclude": [], "gateway": ""}`), Flat: []byte(flat), FlatPath: "/flat.conf"})
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.0-24 10.0.0.1-10.0.0.254 /24 -10.9.0.1/32", show(cfg.Pools[0]))
	assert.Equal(t, "10.9.0.1", cfg.Gateway.String())
	assert.Equal(t, "/flat", cfg.Kubeconfig)

	cfg, err = Parse(Input{NetConf: netConf(`{"kubernetes": {"kubeconfig": "/inline"}}`), Flat: []byte(flat), FlatPath: "/flat.conf"})
	require.NoError(t, err)
	assert.Equal(t, "/inline", cfg.Kubeconfig)
	assert.Equal(t, "10.9.0.0-24 10.9.0.1-10.9.0.254 /24 -10.9.0.1/32", show(cfg.Pools[0]))

	_, err = Parse(Input{NetConf: netConf(`{"range": "10.0.0.0/24"}`), Flat: []byte(`[]`), FlatPath: "/flat.conf"})
	require.ErrorContains(t, err, "/flat.conf []: isn't a JSON object")
	_, err = Parse(Input{NetConf: netConf(`{}`), Flat: []byte(`{}`), FlatPath: "/flat.conf"})
	require.ErrorContains(t, err, "/flat.conf doesn't say it either")

	assert.Equal(t, flatPaths, FlatPaths(netConf(`{}`)))
	assert.Equal(t, flatPaths, FlatPaths([]byte(`[`)))
	assert.Equal(t, "/mine", FlatPaths(netConf(`{"configuration_path": "/mine"}`))[0])

	// The file with the node's name is beside it, or where the flat file says.
	assert.Equal(t, "/mine/nodename", NodeNamePath(netConf(`{"configuration_path": "/mine"}`), []byte(`{"configuration_path": "/flat"}`)))
	assert.Equal(t, "/flat/nodename", NodeNamePath(netConf(`{}`), []byte(`{"configuration_path": "/flat"}`)))
	for _, flat := range []string{"", "{}", "[", `{"configuration_path": 1}`} {
		assert.Empty(t, NodeNamePath(netConf(`{}`), []byte(flat)), flat)
	}
}

func TestArgs(t *testing.T) {
	conf := netConf(`{"range": "10.0.0.0/24", "addresses": [{"address": "10.0.0.8/24", "gateway": "10.0.0.1"}]}`)
	cfg, err := Parse(Input{NetConf: conf, Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u;MAC=02:00:00:00:00:01;IP=10.0.0.9/24, fd00::9/64;GATEWAY=fd00::1;Other=1"})
	require.NoError(t, err)
	assert.Equal(t, "ns/pod", cfg.Pod.Ref)
	assert.Equal(t, "u", cfg.Pod.UID)
	assert.Equal(t, "02:00:00:00:00:01", cfg.Pod.MAC)
	assert.Equal(t, []Static{
		{netip.MustParsePrefix("10.0.0.8/24"), addr("10.0.0.1")},
		{netip.MustParsePrefix("10.0.0.9/24"), netip.Addr{}},
		{netip.MustParsePrefix("fd00::9/64"), addr("fd00::1")},
	}, cfg.Static)

	for args, want := range map[string]string{
		"IP=10.0.0.9":  `CNI_ARGS IP "10.0.0.9": must be an address with a prefix length`,
		"GATEWAY=x":    `CNI_ARGS GATEWAY "x": must be an address`,
		"K8S_POD_NAME": `CNI_ARGS "K8S_POD_NAME": must be KEY=VALUE`,
	} {
		_, err := Parse(Input{NetConf: conf, Args: args})
		require.ErrorContains(t, err, want)
		assert.Equal(t, cnierr.InvalidEnvironment, cnierr.CodeOf(err))
	}
	cfg, err = Parse(Input{NetConf: conf, Args: "K8S_POD_NAME=pod"})
	require.NoError(t, err)
	assert.Empty(t, cfg.Pod.Ref)
	assert.Contains(t, cfg.Warnings[0], "the address belongs to the container")
}

func TestOldResultsHoldOneAddressPerFamily(t *testing.T) {
	conf := `{"cniVersion": %q, "name": "net", "ipam": {"ipRanges": [{"range": "10.0.0.0/24"}, {"range": %q}]}}`
	_, err := Parse(Input{NetConf: fmt.Appendf(nil, conf, "0.2.0", "10.1.0.0/24")})
	require.ErrorContains(t, err, "CNI version 0.2.0 does not support more than 1 address per family")
	for version, second := range map[string]string{"0.2.0": "fd00::/64", "0.3.0": "10.1.0.0/24"} {
		_, err = Parse(Input{NetConf: fmt.Appendf(nil, conf, version, second)})
		assert.NoError(t, err)
	}
}

func TestAttachments(t *testing.T) {
	for text, want := range map[string]*[]Attachment{
		`{}`:                               nil,
		`{"cni.dev/attachments": null}`:    {},
		`{"cni.dev/valid-attachments":[]}`: {},
		`{"cni.dev/attachments": [{"containerID":"a","ifname":"b"}]}`:                                  {{ContainerID: "a", IfName: "b"}},
		`{"cni.dev/attachments": [], "cni.dev/valid-attachments": [{"containerID":"a","ifname":"b"}]}`: {{ContainerID: "a", IfName: "b"}},
		`{"cni.dev/valid-attachments": 5}`:                                                             nil,
	} {
		cfg, err := Parse(Input{NetConf: []byte(text)})
		require.Error(t, err, "there is no ipam section")
		if want == nil {
			assert.Nil(t, cfg.Valid, text)
			continue
		}
		require.NotNil(t, cfg.Valid, text)
		assert.ElementsMatch(t, *want, *cfg.Valid, text)
	}
}

func TestResult(t *testing.T) {
	cfg, err := Parse(Input{NetConf: netConf(`{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/64"}], "gateway": "10.0.0.1", "exclude": ["10.0.0.1"],
		"routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}], "dns": {"nameservers": ["10.0.0.10"]}, "addresses": [{"address": "10.5.0.8/16"}]}`)})
	require.NoError(t, err)
	out, err := json.Marshal(cfg.Result([]netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::1/64")}))
	require.NoError(t, err)
	assert.JSONEq(t, `{"cniVersion": "1.1.0",
		"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::1/64"}, {"address": "10.5.0.8/16"}],
		"routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}], "dns": {"nameservers": ["10.0.0.10"]}}`, string(out))

	cfg.Previous = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("10.5.0.8/16")}
	assert.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, cfg.Claimed())
}

func FuzzParse(f *testing.F) {
	f.Add(netConf(`{"range": "10.0.0.5-10.0.0.9/24", "exclude": ["10.0.0.6", "10.0.0.0/30"], "host_shim_range": ["10.0.0.0/28"], "allocation": "sticky"}`), "IP=10.0.0.9/24;GATEWAY=10.0.0.1", []byte(nil))
	f.Add(netConf(`{"ipRanges": [{"range": "fd00::/64", "range_end": "fd00::5"}], "addresses": [{"address": "10.0.0.1/8"}], "routes": [{"dst": "::/0"}]}`), "", []byte(`{"kubernetes": {"kubeconfig": "/k"}, "range": "10.0.0.0/8"}`))
	f.Add([]byte(`{"ipam": {"dns": null, "node_slice_size": 26}, "prevResult": {"ips": [null, {"address": 5}]}, "cni.dev/attachments": null}`), "K8S_POD_NAME=a", []byte(`[]`))
	f.Fuzz(func(t *testing.T, conf []byte, args string, flat []byte) {
		cfg, err := Parse(Input{NetConf: conf, Args: args, Flat: flat, FlatPath: "/flat"})
		FlatPaths(conf)
		if err != nil {
			code := cnierr.CodeOf(err)
			assert.Contains(t, []cnierr.Code{cnierr.InvalidEnvironment, cnierr.Decode, cnierr.InvalidConfig}, code)
			return
		}
		require.NotEmpty(t, cfg.Pools)
		for _, p := range cfg.Pools {
			assert.True(t, p.Range.Contains(p.First) && p.Range.Contains(p.Last) && p.First.Compare(p.Last) <= 0, "%+v", p)
			for a := range p.Candidates(nil, p.start(cfg.Order, Owner{ContainerID: "c"})) {
				assert.True(t, p.Window().Contains(a) && !p.Excluded(a))
				break
			}
		}
	})
}
