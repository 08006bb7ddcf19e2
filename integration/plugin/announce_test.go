package plugin

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Neighbours that know an address as the MAC of the pod that had it before are told of the next pod's, in both families,
// before they send it anything: otherwise they would go on sending to nobody for some 10 s (plugins 756).
func TestNeighboursAreToldOfTheNewMAC(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	addresses := []any{map[string]any{"address": "10.100.1.200/24"}, map[string]any{"address": "fd00:10:100:1::200/64"}}
	c := n1.dual().with("ipam", map[string]any{"type": "static", "addresses": addresses})
	beside, remote := n1.pod(t, "beside"), n2.pod(t, "remote")
	n1.add(t, beside, n1.dual())
	n2.add(t, remote, n2.dual())
	askers := map[string]space{"a pod beside it": beside.space, "a remote pod": remote.space}

	for _, pod := range []string{"first", "second"} {
		p := n1.pod(t, pod)
		n1.add(t, p, c)
		mac := p.mac(t, "lhnet1")
		for who, asker := range askers {
			for _, addr := range p.addrs {
				if pod == "second" {
					assert.Eventually(t, func() bool { return knows(t, asker, addr) == mac }, time.Second, 20*time.Millisecond,
						"%s still knows %s as %s, not as %s", who, addr, knows(t, asker, addr), mac)
				}
				requireLegs(t, leg{who, asker, addr})
				require.Equal(t, mac, knows(t, asker, addr), "%s, after it has sent to %s", who, addr)
			}
		}
		n1.must(t, "DEL", p, c)
	}
}

// knows is the MAC that a namespace knows of an address, without asking for it.
func knows(t testing.TB, s space, addr netip.Addr) string {
	out, err := s.try("ip neigh show to %s dev lhnet1", addr)
	assert.NoError(t, err)
	_, mac, _ := strings.Cut(out, "lladdr ")
	mac, _, _ = strings.Cut(mac, " ")
	return mac
}
