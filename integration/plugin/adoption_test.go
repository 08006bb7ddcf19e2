package plugin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// The script's addresses: they stand for no index that lhstorage would give the node.
const (
	scriptHost = "10.100.1.5"
	scriptVTEP = "10.100.100.9"
	otherHost  = "10.100.1.4"
	otherVTEP  = "10.100.100.8"
)

// scripted sets a node up as the source design's shell script does. Where the host's
// address goes is the variants' difference.
func (n *node) scripted(t testing.TB, gateway, vtep, peer, addresses string) {
	t.Helper()
	n.sh(t, `
		ip addr add %[2]s/32 dev lo
		ip route add %[3]s/32 via %[1]s
		ip link add vxlan-storage type vxlan id 100 local %[2]s dstport 4789 nolearning
		bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst %[3]s
		ip link set vxlan-storage up
		%[4]s`, gateway, vtep, peer, addresses)
}

const (
	onParent = "ip addr add %[1]s/24 dev vxlan-storage"
	onShim   = `ip link add lhnet1-host link vxlan-storage type macvlan mode bridge
		ip addr add %[1]s/24 dev lhnet1-host
		ip link set lhnet1-host up`
)

// scriptedPod is a pod that stock macvlan has attached.
func (n *node) scriptedPod(t *testing.T, address string) *pod {
	t.Helper()
	p := n.pod(t, "of-stock")
	n.sh(t, "ip link add lhnet1 link vxlan-storage netns %s type macvlan mode bridge", p.name())
	p.sh(t, "ip addr add %s/24 dev lhnet1; ip link set lhnet1 up", address)
	p.addrs = []netip.Addr{netip.MustParseAddr(address)}
	return p
}

// scriptedConf is the network that the script's is turned into.
func (n *node) scriptedConf(start string) conf {
	return n.vxlan().with(
		"parent.peers", []string{scriptVTEP, otherVTEP},
		"parent.vtep.via", map[string]string{scriptVTEP: "to-node1", otherVTEP: "to-node2"},
		"ipam.ranges", []any{[]any{map[string]any{"subnet": "10.100.1.0/24", "rangeStart": start, "rangeEnd": "10.100.1.250"}}},
	)
}

// adopted is what of a device an adoption must not change.
func (n *node) adopted(t testing.TB, device string) map[string]any {
	t.Helper()
	l := maps.Clone(n.link(t, device))
	delete(l, "promiscuity") // of each child on a device that filters no unicast
	delete(l, "flags")       // has PROMISC then
	return l
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name, addresses string
		shim, local     bool // the script made a shim; the host reached its local pods by it
	}{
		{"address on the parent", onParent, false, false},
		{"address on the shim", onShim, true, true},
		{"address on both, the parent's first", onParent + "\n" + onShim, true, false},
		{"address on both, the shim's first", onShim + "\n" + onParent, true, true},
	} {
		for _, rpFilter := range []string{"0", "1", "2"} {
			t.Run(fmt.Sprintf("%s, rp_filter %s", v.name, rpFilter), func(t *testing.T) {
				t.Parallel()
				adopt(t, v.addresses, rpFilter, v.shim, v.local)
			})
		}
	}
}

func adopt(t *testing.T, addresses, rpFilter string, hasShim, local bool) {
	n1, n2 := twoNodes(t)
	for _, n := range []*node{n1, n2} {
		for _, key := range []string{"all", "default"} {
			n.sysctl(t, "ipv4/conf/"+key+"/rp_filter", rpFilter)
		}
	}
	n1.scripted(t, "10.100.0.1", scriptVTEP, otherVTEP, fmt.Sprintf(addresses, scriptHost))
	n2.scripted(t, "10.100.0.0", otherVTEP, scriptVTEP, fmt.Sprintf(addresses, otherHost))
	here, there := n1.scriptedPod(t, "10.100.1.100"), n2.scriptedPod(t, "10.100.1.101")
	beside := n1.scriptedPod(t, "10.100.1.102")
	host := netip.MustParseAddr(scriptHost)

	devices := map[string]map[string]any{"vxlan-storage": n1.adopted(t, "vxlan-storage")}
	if hasShim {
		devices["lhnet1-host"] = n1.adopted(t, "lhnet1-host")
	}
	flows := []*flow{
		there.flow(t, "remote pod to host", host),
		beside.flow(t, "pod to pod of one node", here.addr()),
		there.flow(t, "pod to remote pod", here.addr()),
	}
	if local {
		flows = append(flows, n1.flow(t, "host to local pod", here.addr()), here.flow(t, "local pod to host", host))
	}
	fresh := n1.pod(t, "fresh")
	n1.add(t, fresh, n1.scriptedConf("10.100.1.150"))
	requireLossless(t, flows...)

	for name, before := range devices {
		if name == "vxlan-storage" {
			data := before["linkinfo"].(map[string]any)["info_data"].(map[string]any)
			require.Equal(t, false, data["learning"])
			data["learning"] = true
		}
		assert.Equal(t, before, n1.adopted(t, name), "%s differs in learning alone", name)
	}
	assert.Equal(t, []string{scriptHost + "/24"}, n1.addrs(t, "lhnet1-host"), "the node keeps its address")
	assert.Empty(t, n1.addrs(t, "vxlan-storage"))
	requireLegs(t,
		leg{"host-local", n1.space, here.addr()}, leg{"host-local, new pod", n1.space, fresh.addr()},
		leg{"host-remote", n1.space, there.addr()}, leg{"host-host", n1.space, netip.MustParseAddr(otherHost)},
		leg{"pod-pod, new pod", there.space, fresh.addr()})
}

// What a node holds wins over what its node file says, whichever node is first.
func TestAdoptionKeepsPlaces(t *testing.T) {
	t.Parallel()
	for _, order := range [][]int{{1, 2}, {2, 1}} {
		for _, indexes := range [][2]int{{0, 0}, {7, 3}, {4, 5}} {
			t.Run(fmt.Sprintf("order %v, indexes %v", order, indexes), func(t *testing.T) {
				t.Parallel()
				n1, n2 := twoNodes(t)
				n1.scripted(t, "10.100.0.1", scriptVTEP, otherVTEP, fmt.Sprintf(onParent, scriptHost))
				n2.scripted(t, "10.100.0.0", otherVTEP, scriptVTEP, fmt.Sprintf(onShim, otherHost))
				n1.identify(t, nodefile.File{NodeName: "node1", Index: indexes[0]})
				n2.identify(t, nodefile.File{NodeName: "node2", Index: indexes[1]})
				for _, i := range order {
					n := []*node{n1, n2}[i-1]
					n.add(t, n.pod(t, "a"), n.scriptedConf(fmt.Sprintf("10.100.1.%d", 40*i)))
				}
				for i, n := range []*node{n1, n2} {
					host, vtep := []string{scriptHost, otherHost}[i], []string{scriptVTEP, otherVTEP}[i]
					assert.Equal(t, []string{host + "/24"}, n.addrs(t, "lhnet1-host"))
					assert.Equal(t, []string{vtep + "/32"}, n.addrs(t, "lo"))
					data := n.link(t, "vxlan-storage")["linkinfo"].(map[string]any)["info_data"].(map[string]any)
					assert.Equal(t, vtep, data["local"])
				}
				requireLegs(t, leg{"host-host", n1.space, netip.MustParseAddr(otherHost)})
			})
		}
	}
}

// The adopted addresses are the node's after a reboot without the script, too.
func TestRebootAfterAdoption(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	n1.scripted(t, "10.100.0.1", scriptVTEP, otherVTEP, fmt.Sprintf(onParent, scriptHost))
	n1.add(t, n1.pod(t, "before"), n1.scriptedConf("10.100.1.150"))
	load := func() (p place.Place) {
		files, err := filepath.Glob(filepath.Join(n1.file.StateDir, "place", "*vxlan-storage.json"))
		require.NoError(t, err)
		require.Len(t, files, 1)
		data, err := os.ReadFile(files[0])
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &p))
		return p
	}
	kept := load()
	n1.sh(t, "ip link del to-node2")
	n1.reboot(t)
	connect(t, n1, n2, "10.100.0.0/31", "10.100.0.1/31")
	n1.add(t, n1.pod(t, "after"), n1.scriptedConf("10.100.1.160"))
	assert.Equal(t, []string{scriptHost + "/24"}, n1.addrs(t, "lhnet1-host"))
	assert.Contains(t, n1.sh(t, "ip -o addr show to 10.100.100.0/24"), " "+scriptVTEP+"/32 ", "the VTEP, on a dummy or on lo")
	assert.Equal(t, kept.Shim, load().Shim)
	assert.Equal(t, kept.VTEP, load().VTEP)
}
