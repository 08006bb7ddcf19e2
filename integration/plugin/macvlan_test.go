package plugin

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// What a stock NAD says, ours does, with the type changed and nothing else.
func TestOptionsOfStockMacvlan(t *testing.T) {
	t.Parallel()
	const mac = "02:00:00:00:00:42"
	for _, tt := range []struct {
		name string
		with []any
		how  call
	}{
		{"nothing", nil, nil},
		{"private", []any{"mode", "private"}, nil},
		{"vepa", []any{"mode", "vepa"}, nil},
		{"passthru", []any{"mode", "passthru"}, nil},
		{"MTU", []any{"mtu", 1400}, nil},
		{"bcqueuelen", []any{"bcqueuelen", 200}, nil},
		{"MAC", []any{"mac", mac}, nil},
		{"MAC by runtimeConfig", []any{"runtimeConfig", map[string]any{"mac": mac}}, nil},
		{"MAC by CNI_ARGS", nil, cniArgs("MAC=" + mac)},
		{"all", []any{"mac", "02:00:00:00:00:41", "runtimeConfig", map[string]any{"mac": mac}, "mtu", 1300, "mode", "vepa", "bcqueuelen", 500}, nil},
		{"linkInContainer", []any{"linkInContainer", true}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			made := map[string]map[string]any{}
			for _, plugin := range []string{"macvlan", "lhstorage"} {
				n1 := onLAN(t, newLAN(t), 1)
				p := n1.pod(t, "a")
				p.sh(t, "ip link add eth0 index 7 type veth peer name far; ip link set eth0 up")
				p.sh(t, "ip link set far up")
				c := n1.stockMacvlan().with("type", plugin).with(tt.with...)
				how := []call{}
				if tt.how != nil {
					how = append(how, tt.how)
				}
				n1.add(t, p, c, how...)
				l := p.link(t, "lhnet1")
				made[plugin] = map[string]any{
					"linkinfo": l["linkinfo"], "mtu": l["mtu"], "txqlen": l["txqlen"], "flags": l["flags"], "operstate": l["operstate"],
					"parent in the pod": l["link"], "addrs": p.space.addrs(t, "lhnet1"), "routes": p.sh(t, "ip route"),
				}
				if _, hasMAC := c["mac"]; hasMAC || c["runtimeConfig"] != nil || tt.how != nil {
					made[plugin]["mac"] = l["address"]
				}
				n1.must(t, "DEL", p, c)
				assert.NotContains(t, p.interfaces(t), "lhnet1")
				assert.Contains(t, p.interfaces(t), "eth0")
			}
			assert.Equal(t, made["macvlan"], made["lhstorage"])
			if want, ok := made["macvlan"]["mac"]; ok {
				assert.Equal(t, mac, want)
			}
		})
	}
}

func TestStaticIPAM(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	static := func(addresses ...string) map[string]any {
		var list []any
		for _, a := range addresses {
			list = append(list, map[string]any{"address": a})
		}
		return map[string]any{"type": "static", "addresses": list, "routes": []any{map[string]any{"dst": "10.55.0.0/16", "gw": "10.100.1.1"}}}
	}
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	n1.add(t, a, n1.vxlan().with("ipam", static("10.100.1.50/24")))
	n1.add(t, beside, n1.vxlan().with("ipam", static("10.100.1.51/24")))
	n2.add(t, b, n2.vxlan().with("ipam", static("10.100.1.52/24")))
	requireLegs(t, legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b)...)
	assert.Contains(t, a.sh(t, "ip route"), "10.55.0.0/16 via 10.100.1.1 dev lhnet1")

	// In a plugin list, as NADs often have it.
	c := n1.chain(t, n1.vxlan().with("ipam", static("10.100.1.53/24")))
	p := n1.pod(t, "in-list")
	_, err := c.add(t, p)
	require.NoError(t, err)
	require.NoError(t, c.check(t, p))
	c.del(t, p)
	n1.requireNothingOf(t, p)

	_, err = n1.run(t, "ADD", p, n1.vxlan().with("ipam", static("10.100.1.9/24")))
	requireRefusal(t, err, cnierr.InvalidConfig, "10.100.1.9", "10.100.1.0/28")
	n1.requireNothingOf(t, p)
}

// An IPAM plugin that doesn't keep to what it is told has its address undone.
func TestHostRangeViolation(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	calls := filepath.Join(n1.dir, "calls")
	n1.ipamScript(t, "whereabouts", `
		echo $CNI_COMMAND >> `+calls+`
		if [ $CNI_COMMAND = ADD ]; then echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.9/24"}]}'; fi`)
	p := n1.pod(t, "a")
	_, err := n1.run(t, "ADD", p, n1.vxlan().with("ipam", map[string]any{"type": "whereabouts", "range": "10.100.1.0/24"}))
	requireRefusal(t, err, cnierr.InvalidConfig, "whereabouts", "10.100.1.9", "10.100.1.0/28")
	n1.requireNothingOf(t, p)
	data, err := os.ReadFile(calls)
	require.NoError(t, err)
	assert.Equal(t, "ADD\nDEL\n", string(data), "the address is given back")
}

// Without an IPAM it is a layer-2 interface.
func TestWithoutIPAM(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	p := n1.pod(t, "a")
	result := n1.add(t, p, n1.vxlan().with("hostShim", nil, "ipam", nil))
	assert.Empty(t, result.IPs)
	require.Len(t, result.Interfaces, 1)
	assert.Empty(t, p.space.addrs(t, "lhnet1"))
	p.sh(t, "ip addr add 10.9.9.1/24 dev lhnet1")
	q := n1.pod(t, "q")
	n1.add(t, q, n1.vxlan().with("hostShim", nil, "ipam", nil))
	q.sh(t, "ip addr add 10.9.9.2/24 dev lhnet1")
	requireLegs(t, leg{"pod-pod", p.space, netip.MustParseAddr("10.9.9.2")})
}
