package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/convert"
)

// converted is what `lhstoragectl convert` makes of a text, as a plugin gets it.
func converted(t *testing.T, text string, o convert.Options) conf {
	t.Helper()
	documents, err := convert.Read([]byte(text))
	require.NoError(t, err)
	results, err := convert.Convert(documents, o)
	require.NoError(t, err)
	require.Len(t, results, 1)
	return parse("%s", results[0].NAD.Spec.Config)
}

// definition is a stock NAD.
func definition(t *testing.T, config conf) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"kind": "NetworkAttachmentDefinition", "metadata": map[string]any{"name": "storage", "namespace": "lh"}, "spec": map[string]any{"config": string(config.json())},
	})
	require.NoError(t, err)
	return string(data)
}

// Networks of stock plugins, converted, attach pods that their host reaches.
func TestConvertedStockNetworks(t *testing.T) {
	t.Parallel()
	pools := map[string]any{"type": "whereabouts", "range": "192.168.77.0/24", "exclude": []string{"192.168.77.1/32", "192.168.77.200/29"}}
	for name, c := range map[string]struct {
		stock  conf
		parent string
	}{
		"macvlan": {conf{"cniVersion": "0.3.1", "type": "macvlan", "master": "eth0", "ipam": pools}, "eth0"},
		"ipvlan":  {conf{"cniVersion": "0.3.1", "type": "ipvlan", "master": "eth0", "mode": "l2", "ipam": pools}, "eth0"},
		"bridge":  {conf{"cniVersion": "0.3.1", "type": "bridge", "bridge": "storage-br", "promiscMode": true, "vlan": 1, "ipam": pools}, "storage-br"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lan := newLAN(t)
			n1 := onLAN(t, lan, 1)
			if c.parent != "eth0" {
				n1.sh(t, `ip link add %[1]s type bridge
					ip link set eth0 master %[1]s
					ip link set %[1]s up`, c.parent)
			}
			network := converted(t, definition(t, c.stock), convert.Options{})
			a, beside := n1.pod(t, "a"), n1.pod(t, "beside")
			n1.add(t, a, network)
			n1.add(t, beside, network)
			assert.Equal(t, c.parent, n1.record(t, a).Parent)
			assert.Equal(t, netip.MustParseAddr("192.168.77.2"), a.addr(), "the lowest that isn't excluded")
			shim := netip.MustParseAddr("192.168.77.240")
			assert.Equal(t, []string{shim.String() + "/32"}, n1.addrs(t, "lhnet1-host"), "the first of the upper end")
			requireLegs(t,
				leg{"host-pod", n1.space, a.addr()}, leg{"pod-host", a.space, shim}, leg{"pod-pod", a.space, beside.addr()},
				leg{"pod-LAN", a.space, netip.MustParseAddr("192.168.77.1")})
			n1.must(t, "DEL", a, network)
			n1.requireNothingOf(t, a)
		})
	}
}

// The source design's manifests, converted, take over what its script has made.
func TestConvertedSourceDesign(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	n1.scripted(t, "10.100.0.1", scriptVTEP, otherVTEP, fmt.Sprintf(onShim, scriptHost))
	n2.scripted(t, "10.100.0.0", otherVTEP, scriptVTEP, fmt.Sprintf(onShim, otherHost))
	text, err := os.ReadFile("../../pkg/convert/testdata/source-design.yaml")
	require.NoError(t, err)
	// Two nodes with the addresses that the script gave, and an MTU that the test's links carry.
	parts := strings.Split(string(text), "\n---\n")
	parts[0] = fmt.Sprintf("kind: ConfigMap\nmetadata: {name: nodes}\ndata:\n  n1.env: |\n    NODE_VTEP=%[1]s\n    NODE_OVERLAY_IP=%[2]s\n    PEER1_VTEP=%[3]s\n  n2.env: |\n    NODE_VTEP=%[3]s\n    NODE_OVERLAY_IP=%[4]s\n    PEER1_VTEP=%[1]s\n",
		scriptVTEP, scriptHost, otherVTEP, otherHost)
	manifests := strings.ReplaceAll(strings.ReplaceAll(strings.Join(parts, "\n---\n"), "mtu 8950", "mtu 1400"), `"mtu": 8950`, `"mtu": 1400`)
	network := converted(t, manifests, convert.Options{}).with("parent.peers", []string{scriptVTEP, otherVTEP})
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	n1.add(t, a, network)
	n1.add(t, beside, network)
	n2.add(t, b, network.with("ipam.range_start", "10.100.1.100")) // without a cluster each node has a store of its own
	assert.Equal(t, netip.MustParseAddr("10.100.1.16"), a.addr(), "behind the host range")
	requireLegs(t, legsOf(n1, n2, netip.MustParseAddr(scriptHost), netip.MustParseAddr(otherHost), a, beside, b)...)
	assert.NotContains(t, n1.sh(t, "ip -d link show dev vxlan-storage"), "nolearning")
}
