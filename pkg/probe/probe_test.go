package probe_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const linkMTU = 2000

var (
	left4, right4 = netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	left6, right6 = netip.MustParseAddr("fd09::1"), netip.MustParseAddr("fd09::2")
)

// pair is two namespaces with a link between them.
func pair(t *testing.T) (left, right probe.In) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root, and in CI it must run")
		}
		t.Skip("needs root")
	}
	a, b := netns(t), netns(t)
	require.NoError(t, a.Do(func(ns.NetNS) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "left", linkMTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "right", netlink.NsFd(int(b.Fd()))
		return netlink.LinkAdd(veth)
	}))
	up(t, a, "left", left4, left6)
	up(t, b, "right", right4, right6)
	return in(a), in(b)
}

func netns(t *testing.T) ns.NetNS {
	t.Helper()
	n, err := ns.TempNetNS()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	return n
}

func in(n ns.NetNS) probe.In {
	return func(f func() error) error { return n.Do(func(ns.NetNS) error { return f() }) }
}

func up(t *testing.T, n ns.NetNS, device string, v4, v6 netip.Addr) {
	t.Helper()
	require.NoError(t, n.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(device)
		require.NoError(t, err)
		for _, prefix := range []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)} {
			addr, err := netlink.ParseAddr(prefix.String())
			require.NoError(t, err)
			addr.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(link, addr))
		}
		return netlink.LinkSetUp(link)
	}))
}

func ping(t *testing.T, from probe.In, o probe.PingOptions) probe.PingResult {
	t.Helper()
	var result probe.PingResult
	require.NoError(t, from(func() (err error) {
		result, err = probe.Ping(t.Context(), o)
		return err
	}))
	return result
}

func TestPing(t *testing.T) {
	left, _ := pair(t)
	for _, to := range []struct{ target, source, nobody netip.Addr }{
		{right4, left4, netip.MustParseAddr("10.9.0.99")},
		{right6, left6, netip.MustParseAddr("fd09::99")},
	} {
		t.Run(to.target.String(), func(t *testing.T) {
			// The first packet waits for IPv6's link-local address to settle.
			ping(t, left, probe.PingOptions{Target: to.target, Count: 1, Wait: 3 * time.Second})
			got := ping(t, left, probe.PingOptions{Target: to.target, Source: to.source, Count: 20, Interval: 5 * time.Millisecond})
			assert.Equal(t, 20, got.Received)
			assert.Zero(t, got.Loss())
			assert.Positive(t, got.Min)
			assert.LessOrEqual(t, got.Min, got.Avg)
			assert.LessOrEqual(t, got.Avg, got.Max)

			full := ping(t, left, probe.PingOptions{Target: to.target, Count: 2, Payload: probe.PayloadFor(to.target, linkMTU), DontFragment: true})
			assert.Zero(t, full.Loss(), "the full MTU")
			more := ping(t, left, probe.PingOptions{Target: to.target, Count: 2, Payload: probe.PayloadFor(to.target, linkMTU) + 1, DontFragment: true})
			require.ErrorIs(t, more.SendErr, unix.EMSGSIZE, "a byte more")
			assert.InDelta(t, 100, more.Loss(), 0)

			lost := ping(t, left, probe.PingOptions{Target: to.nobody, Count: 3, Wait: 50 * time.Millisecond})
			assert.InDelta(t, 100, lost.Loss(), 0)
			assert.Zero(t, lost.Avg)
		})
	}
}

func TestPingStopsWithItsContext(t *testing.T) {
	left, _ := pair(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	start := time.Now()
	err := left(func() error {
		_, err := probe.Ping(ctx, probe.PingOptions{Target: right4, Count: 10_000})
		return err
	})
	require.ErrorContains(t, err, "enough")
	assert.Less(t, time.Since(start), 5*time.Second)
}

func TestPingReportsAllFaults(t *testing.T) {
	_, err := probe.Ping(t.Context(), probe.PingOptions{Count: -1, Payload: 10, Source: left4})
	for _, part := range []string{"no target", "count -1", "payload 10"} {
		require.ErrorContains(t, err, part)
	}
	_, err = probe.Ping(t.Context(), probe.PingOptions{Target: right6, Source: left4})
	require.ErrorContains(t, err, "different families")
}

func TestStreamIsCounted(t *testing.T) {
	left, right := pair(t)
	const bytes = 5<<20 + 7
	before := counters(t, left)
	result, err := probe.Stream(t.Context(), probe.StreamOptions{Bytes: bytes, Sender: left, Receiver: right, To: right4})
	require.NoError(t, err)
	assert.EqualValues(t, bytes, result.Bytes)
	assert.Positive(t, result.BitsPerSecond())
	after := counters(t, left)
	assert.Greater(t, after["left"].Tx-before["left"].Tx, uint64(bytes))
	assert.Less(t, after["left"].Tx-before["left"].Tx, uint64(bytes+bytes/5), "headers and no more")
	assert.Positive(t, after["left"].Rx-before["left"].Rx, "acknowledgements")

	_, err = probe.Stream(t.Context(), probe.StreamOptions{Bytes: 1, Sender: left, Receiver: left, To: right4})
	require.ErrorContains(t, err, "listen on "+right4.String())
}

func TestStreamStopsWithItsContext(t *testing.T) {
	left, right := pair(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	_, err := probe.Stream(ctx, probe.StreamOptions{Bytes: 1 << 50, Sender: left, Receiver: right, To: right4})
	require.ErrorContains(t, err, "enough")
}

func counters(t *testing.T, from probe.In) map[string]probe.LinkBytes {
	t.Helper()
	var got map[string]probe.LinkBytes
	require.NoError(t, from(func() (err error) {
		got, err = probe.Counters()
		return err
	}))
	return got
}

// TestISCSIRead reads from the small target of iscsi_target_test.go, which is
// strict about what it is sent. The demo's test reads from a real tgtd.
func TestISCSIRead(t *testing.T) {
	disk := make([]byte, 1000*512)
	for i := range disk {
		disk[i] = byte(i * 7)
	}
	target := startTarget(t, disk)
	read, err := probe.ISCSIRead(t.Context(), target, 300*512-100)
	require.NoError(t, err)
	assert.EqualValues(t, 300*512, read.Bytes, "rounded up to whole blocks")
	assert.EqualValues(t, len(disk), read.Capacity)
	assert.Equal(t, sha256.Sum256(disk[:300*512]), read.SHA256)

	read, err = probe.ISCSIRead(t.Context(), target, 1<<40)
	require.NoError(t, err)
	assert.EqualValues(t, len(disk), read.Bytes, "the whole disk at most")

	target.Name = "iqn.nobody"
	_, err = probe.ISCSIRead(t.Context(), target, 1)
	require.ErrorContains(t, err, "refused with status 0x0203")
}

func TestISCSIReadStopsWithItsContext(t *testing.T) {
	target := startTarget(t, bytes.Repeat([]byte{1}, 512))
	target.LUN = silentLUN
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	_, err := probe.ISCSIRead(ctx, target, 512)
	require.ErrorContains(t, err, "enough")
}
