package kubeipam

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/recorder"
)

// record starts a recorder, and stops it as a signal would.
func (b *bed) record(t *testing.T, identity string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	r := &recorder.Recorder{API: b.client(t, ""), Identity: identity, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	go func() { ended <- r.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

var _ io.Writer = testLog{}

func (b *bed) holder(_ require.TestingT) string {
	var lease kube.Lease
	if b.api.Get(context.Background(), kube.Leases("kube-system"), kube.RecorderLease, &lease) != nil || !lease.Fresh(time.Now()) {
		return ""
	}
	return lease.Spec.HolderIdentity
}

func (b *bed) eventually(t *testing.T, want string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, b.objects(c)) }, callTime, 50*time.Millisecond)
}

// With a recorder an ADD makes nothing but its claim, and a DEL marks it; the recorder does the rest. Without one
// both do it themselves.
func agentMode(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	n.agent = true
	conf := `{"range": "10.0.0.0/24"}`
	whole := "claim 10.0.0.1 cid1 default/pod1 net1\nentry 10.0.0.0-24 1 cid1 default/pod1 net1\nreservation 10.0.0.1 cid1 default/pod1 net1"
	_, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	assert.Equal(t, whole, b.objects(t), "without a recorder")
	require.NoError(t, n.del(t, conf, pod1))
	assert.Empty(t, b.objects(t))

	stop := b.record(t, "one")
	defer func() { stop() }()
	require.Eventually(t, func() bool { return b.holder(t) == "one" }, callTime, 20*time.Millisecond)
	b.counted()
	_, err = n.add(t, conf, pod1)
	require.NoError(t, err)
	b.eventually(t, whole)
	// A newer sandbox, one whose pool entry isn't ours yet, a quarantine.
	_, err = n.add(t, conf, who("default/pod1", "cid2", "net1"))
	require.NoError(t, err)
	b.eventually(t, "claim 10.0.0.1 cid2 default/pod1 net1\nentry 10.0.0.0-24 1 cid2 default/pod1 net1\nreservation 10.0.0.1 cid2 default/pod1 net1")
	require.NoError(t, n.del(t, conf, who("default/pod1", "cid2", "net1")))
	b.eventually(t, "")

	_, err = n.add(t, conf, pod1)
	require.NoError(t, err)
	alloc, _ := n.call(t, conf, pod1)
	require.NoError(t, alloc.Decline(t.Context(), addr("10.0.0.1"), "02:00:00:00:00:09"))
	got, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.2/24", got)
	b.eventually(t, "claim 10.0.0.1 cid1 default/pod1 net1 declined\nclaim 10.0.0.2 cid1 default/pod1 net1\nentry 10.0.0.0-24 2 cid1 default/pod1 net1\nreservation 10.0.0.2 cid1 default/pod1 net1")
	require.NoError(t, n.del(t, conf, pod1))
	b.eventually(t, "claim 10.0.0.1 cid1 default/pod1 net1 declined")
	b.wipe(t)

	// One recorder follows the other, and what came in between is recorded.
	second := b.record(t, "two")
	stop()
	stop = second
	require.Eventually(t, func() bool { return b.holder(t) == "two" }, callTime, 20*time.Millisecond)
	_, err = n.add(t, conf, pod1)
	require.NoError(t, err)
	b.eventually(t, whole)
	require.NoError(t, n.del(t, conf, pod1))
	b.eventually(t, "")

	const pods = 100
	owner := func(i int) ipam.Owner { return who(fmt.Sprint("default/pod", i), fmt.Sprint("cid", i), "net1") }
	wide := `{"range": "10.1.0.0/22"}`
	b.counted()
	took := atOnce(pods, func(i int) { _, err := n.add(t, wide, owner(i)); assert.NoError(t, err) })
	t.Logf("%d ADDs at once in %s: %s", pods, took.Round(time.Millisecond), b.counted())
	require.Eventually(t, func() bool { return b.settled(t) == pods }, callTime, 100*time.Millisecond)
	took = atOnce(pods, func(i int) { assert.NoError(t, n.del(t, wide, owner(i))) })
	t.Logf("%d DELs at once in %s: %s", pods, took.Round(time.Millisecond), b.counted())
	b.eventually(t, "")

	// Addresses that were given up just now are found when no others are left.
	small := `{"range": "10.2.0.0/30"}`
	for i := range 6 {
		_, err := n.add(t, small, owner(i))
		require.NoError(t, err)
		require.NoError(t, n.del(t, small, owner(i)))
	}
	b.eventually(t, "")

	stop()
	stop = func() {}
	assert.Empty(t, b.holder(t), "the Lease is given back")
	time.Sleep(kube.LeaseSeen) // the node may have asked just before
	_, err = n.add(t, conf, pod1)
	require.NoError(t, err)
	assert.Equal(t, whole, b.objects(t))
}

// A pod's own place: no pool is read before a claim, and it comes back to its address.
func stickyAgent(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	n.agent = true
	stop := b.record(t, "one")
	defer stop()
	require.Eventually(t, func() bool { return b.holder(t) == "one" }, callTime, 20*time.Millisecond)
	conf := `{"range": "10.0.0.0/24", "allocation": "sticky"}`
	b.counted()
	first, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	require.NoError(t, n.del(t, conf, pod1))
	b.eventually(t, "")
	again, err := n.add(t, conf, who("default/pod1", "cid2", "net1"))
	require.NoError(t, err)
	assert.Equal(t, first, again)
	got := map[string]bool{first: true}
	for i := range 40 {
		text, err := n.add(t, conf, who(fmt.Sprint("default/other", i), fmt.Sprint("c", i), "net1"))
		require.NoError(t, err)
		assert.False(t, got[text], text)
		got[text] = true
	}
	require.Eventually(t, func() bool { return b.settled(t) == 41 }, callTime, 100*time.Millisecond)
}
