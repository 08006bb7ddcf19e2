package plugin

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// prober is the probing that the agent does, on a node with one pod and one peer,
// which has a pod too.
type prober struct {
	*probereport.Prober
	peer          probereport.Peer
	local, remote probereport.Pod
	report        v1alpha1.ProbeReportStatus
}

func (n *node) prober(local, remote *pod, shim netip.Addr) *prober {
	const peer, network = "node2", "storage"
	p := &prober{
		peer:   probereport.Peer{Node: peer, Network: network, Addresses: []netip.Addr{shim}},
		local:  probereport.Pod{Ref: "default/local", Node: n.file.NodeName, Network: network, Addresses: local.addrs, Netns: local.netns.Path()},
		remote: probereport.Pod{Ref: "default/remote", Node: peer, Network: network, Addresses: remote.addrs},
	}
	p.Prober = &probereport.Prober{
		Node: n.file.NodeName, Sources: p, Reports: p, FromPods: true, Log: slog.New(slog.DiscardHandler),
		Metrics: probereport.NewMetrics(prometheus.NewRegistry()),
		Host:    func(f func() error) error { return n.netns.Do(func(ns.NetNS) error { return f() }) },
	}
	return p
}

func (p *prober) Peers(context.Context) ([]probereport.Peer, error) {
	return []probereport.Peer{p.peer}, nil
}
func (p *prober) Local(context.Context) ([]probereport.Pod, error) {
	return []probereport.Pod{p.local}, nil
}
func (p *prober) Remote(context.Context, ...string) (map[string][]probereport.Pod, error) {
	return map[string][]probereport.Pod{p.remote.Node: {p.remote}}, nil
}
func (p *prober) Read(context.Context, string) (v1alpha1.ProbeReportStatus, error) {
	return p.report, nil
}
func (p *prober) Write(_ context.Context, _ string, s v1alpha1.ProbeReportStatus) error {
	p.report = s
	return nil
}

// until repeats rounds until the report that is written says what is wanted: of few
// packets a lossy link may lose none, and a busy machine may take its time.
func (p *prober) until(t *testing.T, what string, done func(v1alpha1.ProbeReportStatus) bool) v1alpha1.ProbeReportStatus {
	t.Helper()
	for range 30 {
		require.NoError(t, p.Round(t.Context(), 0))
		if p.report.Measured == 4 && done(p.report) {
			return p.report
		}
	}
	require.Failf(t, what, "never reported; the last report: %+v", p.report)
	return p.report
}

// remoteLegs are the kinds of legs that use the link to the other node.
var remoteLegs = []v1alpha1.LegKind{v1alpha1.LegHostRemote, v1alpha1.LegHostShim, v1alpha1.LegPodRemote}

func isLossy(l v1alpha1.ProbeLeg) bool { return l.Lost > 0 }

func isSlow(delay time.Duration) func(v1alpha1.ProbeLeg) bool {
	return func(l v1alpha1.ProbeLeg) bool { return l.RTT != nil && l.RTT.Min >= delay.Microseconds() }
}

// kinds are the kinds of those legs of a report that are as said.
func kinds(s v1alpha1.ProbeReportStatus, as func(v1alpha1.ProbeLeg) bool) []v1alpha1.LegKind {
	var list []v1alpha1.LegKind
	for _, l := range s.Legs {
		if as(l) {
			list = append(list, l.Kind)
		}
	}
	slices.Sort(list)
	return list
}

// What a bad link does is what the pings and the agent's probing say of it.
func TestLossAndDelayAreSeen(t *testing.T) {
	t.Parallel()
	testnode.RequireKernel(t, "netem")
	n1, n2 := twoNodes(t)
	a, b := n1.pod(t, "a"), n2.pod(t, "b")
	n1.add(t, a, n1.vxlan())
	n2.add(t, b, n2.vxlan())
	p := n1.prober(a, b, shimAddr(2))
	p.until(t, "nothing is lost", func(s v1alpha1.ProbeReportStatus) bool { return s.Failing == 0 })

	const delay = 100 * time.Millisecond
	n1.sh(t, "tc qdisc add dev to-node2 root netem delay 100ms")
	report := p.until(t, "nothing is lost, but it is slow", func(s v1alpha1.ProbeReportStatus) bool {
		return s.Failing == 0 && slices.ContainsFunc(s.Legs, isSlow(delay))
	})
	assert.Equal(t, remoteLegs, kinds(report, isSlow(delay)))

	n1.sh(t, "tc qdisc replace dev to-node2 root netem delay 100ms loss 25%%")
	report = p.until(t, "something is lost", func(s v1alpha1.ProbeReportStatus) bool { return s.Failing > 0 })
	assert.Subset(t, remoteLegs, kinds(report, isLossy))
	assert.Contains(t, report.Worst, "node2", "where it is lost")

	remote, err := n1.ping(t.Context(), b.addr(), 200, 5*time.Millisecond)
	require.NoError(t, err)
	assert.InDelta(t, 25, remote.Loss(), 15, "per cent lost")
	assert.GreaterOrEqual(t, remote.Min, delay)
	local, err := n1.ping(t.Context(), a.addr(), 20, 10*time.Millisecond)
	require.NoError(t, err)
	assert.Zero(t, local.Loss(), "the local leg doesn't use the link")
	assert.Less(t, local.Min, delay)

	n1.sh(t, "tc qdisc del dev to-node2 root")
	p.until(t, "all is well again", func(s v1alpha1.ProbeReportStatus) bool {
		return s.Failing == 0 && !slices.ContainsFunc(s.Legs, isSlow(delay))
	})
	requireLegs(t, leg{"host-remote", n1.space, b.addr()})
}
