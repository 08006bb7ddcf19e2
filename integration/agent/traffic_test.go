package agent

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

// elsewhere sends packets from a pod of the second node to one of the third, and back, for as long as the test runs: all of them
// must come. It returns the address of the latter.
func (b *bed) elsewhere(t *testing.T, name string) netip.Addr {
	t.Helper()
	from, to := b.run(t, b.Nodes[1], name+"-from"), b.run(t, b.Nodes[2], name+"-to")
	target := netip.MustParseAddr(address(t, to))
	require.Eventually(t, func() bool { return answers(t, from, target) }, settle, 20*time.Millisecond)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		sent, lost := 0, 0
		for ctx.Err() == nil {
			result, err := ping(from, target, 50)
			assert.NoError(t, err)
			sent, lost = sent+result.Wanted, lost+result.Wanted-result.Received
		}
		assert.Zero(t, lost, "of %d packets between pods on nodes that nothing was done to", sent)
		t.Logf("between other nodes %d of %d packets came", sent-lost, sent)
	}()
	t.Cleanup(func() { // before the pods are removed
		cancel()
		<-done
	})
	return target
}

// answers says that an address answers a pod.
func answers(t *testing.T, from *controlplane.Sandbox, to netip.Addr) bool {
	t.Helper()
	result, err := ping(from, to, 1)
	return err == nil && result.Received == 1
}

func ping(from *controlplane.Sandbox, to netip.Addr, count int) (result probe.PingResult, err error) {
	err = from.Netns.Do(func(ns.NetNS) (err error) {
		result, err = probe.Ping(context.Background(), probe.PingOptions{Target: to, Count: count, Interval: 5 * time.Millisecond, Wait: 5 * time.Second})
		return err
	})
	return result, err
}
