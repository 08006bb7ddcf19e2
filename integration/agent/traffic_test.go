package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
)

// elsewhere sends packets from a pod of the second node to one of the third, and back, for as long as the test runs: all of them
// must come. It returns the address of the latter.
func (b *bed) elsewhere(t *testing.T, name string) netip.Addr {
	t.Helper()
	from, to := b.run(t, b.Nodes[1], name+"-from"), b.run(t, b.Nodes[2], name+"-to")
	target := netip.MustParseAddr(address(t, to))
	require.Eventually(t, func() bool { return answers(from, target) }, settle, 20*time.Millisecond)
	t.Cleanup(testnode.Traffic(t, from.Netns, target)) // ends before the pods are removed
	return target
}

// answers says that an address answers a pod.
func answers(from *controlplane.Sandbox, to netip.Addr) bool {
	result, err := testnode.Ping(from.Netns, to, 1)
	return err == nil && result.Received == 1
}
