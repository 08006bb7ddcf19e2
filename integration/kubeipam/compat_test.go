package kubeipam

import (
	"fmt"
	"testing"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// TestCompatibility takes what users of Whereabouts have, on a cluster of its own.
func TestCompatibility(t *testing.T) {
	b := newBed(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"node slices", nodeSlices},
		{"flat file", flatFile},
		{"big pools", bigPools},
		{"columns", columns},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.wipe(t)
			test.run(t, b)
		})
	}
}

// Whereabouts' flat file serves both programs: the one that the network names, and the one that its installer writes.
func flatFile(t *testing.T, b *bed) {
	m := b.machine(t, "node1", "sync")
	const whole = `{"range": "10.6.0.0/24", "exclude": ["10.6.0.1"], "gateway": "10.6.0.254", "kubernetes": {"kubeconfig": "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"}}`
	require.NoError(t, m.WriteFile("/etc/cni/net.d/custom.conf", []byte(whole)))
	network := func(kind, more string) string {
		return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "flat", "type": "macvlan", "ipam": {"type": %q%s}}`, kind, more)
	}
	for i, more := range []string{`, "configuration_path": "/etc/cni/net.d/custom.conf"`, `, "range": "10.6.0.0/24", "exclude": ["10.6.0.1"]`} {
		t.Run([]string{"named", "in its place"}[i], func(t *testing.T) {
			got, _, err := m.theirs().call(t, "ADD", "t", "theirs", network("whereabouts", more))
			require.NoError(t, err)
			assert.Equal(t, "10.6.0.2/24", got)
			got, _, err = m.call(t, "ADD", "o", "ours", network("lhstorage-ipam", more))
			require.NoError(t, err)
			assert.Equal(t, "10.6.0.3/24", got)
			// The network's type is changed while a pod of the other's runs; then it's changed back.
			_, _, err = m.call(t, "DEL", "t", "theirs", network("lhstorage-ipam", more))
			require.NoError(t, err)
			assert.Equal(t, 1, b.whole(t, false), "%s", b.objects(t))
			_, _, err = m.call(t, "DEL", "o", "ours", network("lhstorage-ipam", more))
			require.NoError(t, err)
			assert.Empty(t, b.objects(t))
		})
	}

	// With nothing but what Whereabouts' installer left, its account's rights don't do: the error says which one is missing.
	require.NoError(t, m.WriteFile(nodeFile, []byte(`{"nodeName": "node1"}`)))
	_, _, err := m.call(t, "ADD", "o", "ours", network("lhstorage-ipam", `, "range": "10.6.0.0/24"`))
	require.ErrorContains(t, err, "system:serviceaccount:kube-system:whereabouts")
	require.ErrorContains(t, err, "addressclaims")
	assert.Empty(t, b.objects(t))
}

// A pool of 5000 entries warns, one of 7000 takes no more; who has an address keeps it and can give it up.
func bigPools(t *testing.T, b *bed) {
	m := b.machine(t, "node1", "sync")
	c := conf(`"range": "10.16.0.0/19", "timeout": "1m"`)
	add := func(pod string) (string, string, error) { return m.call(t, "ADD", "c-"+pod, pod, c) }

	b.makePool(t, "10.16.0.0-19", "10.16.0.0/19", span(1, 4999)...)
	got, said, err := add("last-quiet")
	require.NoError(t, err)
	assert.Equal(t, "10.16.19.136/19", got)
	assert.Empty(t, said)
	b.remembers(t, "10.16.0.0-19", 5000)
	_, said, err = add("first-warned")
	require.NoError(t, err)
	assert.Contains(t, said, "IPPool kube-system/10.16.0.0-19 has 5000 entries: each ADD gets slower, and at 7000 it is refused; split the range into node slices (node_slice_size)")

	b.wipe(t)
	b.makePool(t, "10.16.0.0-19", "10.16.0.0/19", span(1, 6999)...)
	b.remembers(t, "10.16.0.0-19", 6999)
	got, said, err = add("last")
	require.NoError(t, err)
	assert.Equal(t, "10.16.27.88/19", got)
	assert.Contains(t, said, "has 6999 entries")
	b.remembers(t, "10.16.0.0-19", 7000)
	for range 2 {
		_, _, err = add("refused")
		assert.Equal(t, cnierr.Exhausted, cnierr.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "IPPool kube-system/10.16.0.0-19 has 7000 entries, and more than 7000 make it too big for etcd: split the range into node slices (node_slice_size)")
		assert.Equal(t, 1, b.kinds(t)["claim"], "nothing is left of it")
	}
	again, _, err := m.call(t, "ADD", "newer", "last", c)
	require.NoError(t, err)
	assert.Equal(t, got, again)
	_, _, err = m.call(t, "DEL", "newer", "last", c)
	require.NoError(t, err)
	assert.Zero(t, b.kinds(t)["claim"])
	b.remembers(t, "10.16.0.0-19", 6999)
	_, _, err = add("refused")
	require.NoError(t, err)
}

// remembers waits until the API server's memory, which an ADD reads, has a pool with n entries: with a big one that takes a
// moment.
func (b *bed) remembers(t *testing.T, name string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		var pool whereabouts.IPPool
		return b.api.Get(t.Context(), kube.Pools(metav1.NamespaceSystem), name, &pool, kubeapi.Cached()) == nil && len(pool.Spec.Allocations) == n
	}, callTime, 100*time.Millisecond)
}

// What people see of claims.
func columns(t *testing.T, b *bed) {
	m := b.machine(t, "node1", "sync")
	_, _, err := m.call(t, "ADD", "c1", "pod1", conf(`"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00:1::/64"}]`))
	require.NoError(t, err)
	for _, line := range []string{"10.0.0.1 10.0.0.1 ns/pod1 net1 node1 net", "fd00-1--1 fd00:1::1 ns/pod1 net1 node1 net"} {
		requireColumns(t, b, "addressclaims", "NAME ADDRESS POD IFACE NODE NETWORK AGE", line)
	}
}
