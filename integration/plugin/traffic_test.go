package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

// late is how long an answer is waited for: a busy machine may take its time, and
// only an answer that never comes is a loss.
const late = 5 * time.Second

func (s space) ping(ctx context.Context, to netip.Addr, count int, every time.Duration) (result probe.PingResult, err error) {
	err = s.netns.Do(func(ns.NetNS) error {
		result, err = probe.Ping(ctx, probe.PingOptions{Target: to, Count: count, Interval: every, Wait: late})
		return err
	})
	return result, err
}

// leg is a way that must carry traffic.
type leg struct {
	name string
	from space
	to   netip.Addr
}

// requireLegs pings all legs at once, 20 packets each, and wants every answer.
func requireLegs(t testing.TB, legs ...leg) {
	t.Helper()
	losses := make([]string, len(legs))
	var wg sync.WaitGroup
	for i, l := range legs {
		wg.Go(func() {
			result, err := l.from.ping(t.Context(), l.to, 20, 10*time.Millisecond)
			losses[i] = fmt.Sprintf("%s: %v%% lost, error %v", l.name, result.Loss(), err)
		})
	}
	wg.Wait()
	for i, l := range legs {
		assert.Equal(t, l.name+": 0% lost, error <nil>", losses[i])
	}
}

// legsOf are all ways between two nodes with the given shim addresses and a pod on each,
// and another pod on the first.
func legsOf(n1, n2 *node, shim1, shim2 netip.Addr, a, beside, b *pod) []leg {
	i := 0
	if shim1.Is6() {
		i = len(a.addrs) - 1
	}
	return []leg{
		{"pod-pod", a.space, b.addrs[i]},
		{"pod-pod back", b.space, a.addrs[i]},
		{"pod-pod of one node", a.space, beside.addrs[i]},
		{"host-local", n1.space, a.addrs[i]},
		{"host-local on the other node", n2.space, b.addrs[i]},
		{"host-remote", n1.space, b.addrs[i]},
		{"host-remote back", n2.space, a.addrs[i]},
		{"pod-own host", a.space, shim1},
		{"pod-other host", b.space, shim1},
		{"host-host", n1.space, shim2},
	}
}

// flow is a ping at intervals of 5 ms that runs beside what a test does.
type flow struct {
	name       string
	stop       chan struct{}
	done       chan struct{}
	sent, lost int
	err        error
}

const burst = 40 // packets

// flow starts a flow on a way that works.
func (s space) flow(t testing.TB, name string, to netip.Addr) *flow {
	t.Helper()
	f := &flow{name: name, stop: make(chan struct{}), done: make(chan struct{})}
	ping := func() bool {
		result, err := s.ping(context.WithoutCancel(t.Context()), to, burst, 5*time.Millisecond)
		f.sent += result.Wanted
		f.lost += result.Wanted - result.Received
		f.err = err
		return err == nil
	}
	require.True(t, ping(), "%s: %v", name, f.err)
	require.Zero(t, f.lost, "%s loses packets before anything is done", name)
	go func() {
		defer close(f.done)
		for ping() {
			select {
			case <-f.stop:
				ping() // the time after the change counts too
				return
			default:
			}
		}
	}()
	return f
}

// end ends the flow; what it lost is known then.
func (f *flow) end() {
	close(f.stop)
	<-f.done
}

// requireLossless ends flows that must have lost nothing.
func requireLossless(t testing.TB, flows ...*flow) {
	t.Helper()
	for _, f := range flows {
		close(f.stop)
	}
	for _, f := range flows {
		<-f.done
		require.NoError(t, f.err, f.name)
		assert.Zero(t, f.lost, "%s: lost of %d", f.name, f.sent)
	}
}
