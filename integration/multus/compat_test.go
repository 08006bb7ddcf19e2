package multus

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
)

// changedType takes a NAD of macvlan and whereabouts through a change of its ipam type and back, while pods run. whereabouts has its
// kubeconfig from the flat file that its installer writes.
func changedType(t *testing.T, b bed) {
	config := func(kind string) string {
		return `{"cniVersion": "0.3.1", "name": "old", "type": "macvlan", "master": "` + parentDevice + `", "mode": "bridge",
  "ipam": {"type": "` + kind + `", "range": "10.100.6.0/24", "exclude": ["10.100.6.1/32"]}}`
	}
	change := func(kind string) {
		patch, err := json.Marshal(map[string]any{"spec": map[string]string{"config": config(kind)}})
		require.NoError(t, err)
		_, err = b.Kubectl(t.Context(), "-n", namespace, "patch", "network-attachment-definitions.k8s.cni.cncf.io", "old", "--type=merge", "-p", string(patch))
		require.NoError(t, err)
	}
	n := b.Nodes[0]
	requireAddress := func(s *controlplane.Sandbox, want string) {
		t.Helper()
		addrs, err := testnode.Addresses(s.Netns, ifName)
		require.NoError(t, err)
		require.Len(t, addrs, 1)
		require.Equal(t, want, addrs[0].String())
	}
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "old", config("whereabouts")))
	first, err := b.try(t, n, "old", "old-1")
	require.NoError(t, err)
	requireAddress(first, "10.100.6.2")

	change("lhstorage-ipam")
	second, err := b.try(t, n, "old", "old-2")
	require.NoError(t, err)
	requireAddress(second, "10.100.6.3")
	// The first pod's sandbox is made anew, as after a crash of it. What ends then is the old one.
	again, err := n.RunPod(t.Context(), namespace, "old-1")
	require.NoError(t, err)
	requireAddress(again, "10.100.6.2")
	require.NoError(t, first.Remove(t.Context()))
	_, err = b.Kubectl(t.Context(), "get", "addressclaim", "10.100.6.2")
	require.NoError(t, err, "the newer sandbox's")

	change("whereabouts")
	third, err := b.try(t, n, "old", "old-3")
	require.NoError(t, err)
	requireAddress(third, "10.100.6.4")
	for _, s := range []*controlplane.Sandbox{second, again, third} {
		require.NoError(t, s.Remove(t.Context()))
	}
	out, err := b.Kubectl(t.Context(), "get", "addressclaims", "-l", "lhstorage.io/network=old", "-o", "name")
	require.NoError(t, err)
	assert.Empty(t, out)
	out, err = b.Kubectl(t.Context(), "-n", "kube-system", "get", "ippools.whereabouts.cni.cncf.io", "10.100.6.0-24", "-o", "jsonpath={.spec.allocations}")
	require.NoError(t, err)
	assert.Equal(t, "{}", out)
	out, err = b.Kubectl(t.Context(), "-n", "kube-system", "get", "overlappingrangeipreservations.whereabouts.cni.cncf.io", "-o", "name")
	require.NoError(t, err)
	assert.NotContains(t, out, "/10.100.6.")
}

// overWhereabouts is our plugin over the real IPAM plugin: it is told to leave the host range alone, its CHECK, which always fails, is passed
// over, and its DEL leaves nothing.
func overWhereabouts(t *testing.T, b bed) {
	conf := strings.NewReplacer(`"name": "storage"`, `"name": "theirs"`, `"hostShim": {`, `"hostShim": {"name": "lhnet7-host", `,
		"lhstorage-ipam", "whereabouts", "10.100.1.0", "10.100.7.0").Replace(nad)
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "theirs", conf))
	n := b.Nodes[1]
	s, err := b.try(t, n, "theirs", "theirs-1")
	require.NoError(t, err)
	addrs, err := testnode.Addresses(s.Netns, ifName)
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.100.7.16")}, addrs, "the first after the host range")
	requireAddresses(t, n, "lhnet7-host", "10.100.7.2/24")
	requireReached(t, "host to its pod", n.Host, addrs[0])

	withResult := strings.Replace(conf, `"ipam"`, `"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "lhnet1", "sandbox": "`+s.Netns.Path()+`"}],
  "ips": [{"address": "10.100.7.16/24", "interface": 0}]}, "ipam"`, 1)
	require.NoError(t, n.Do(func() error { return callOnNode("CHECK", s.ID, s.Netns, withResult) }))
	require.NoError(t, s.Remove(t.Context()))
	out, err := b.Kubectl(t.Context(), "-n", "kube-system", "get", "ippools.whereabouts.cni.cncf.io", "10.100.7.0-24", "-o", "jsonpath={.spec.allocations}")
	require.NoError(t, err)
	assert.Equal(t, "{}", out)
}
