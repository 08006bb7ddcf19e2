package probereport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	// DefaultInterval is between the beginnings of two rounds.
	DefaultInterval = time.Minute

	// Stale is how old a report may be that something is judged by.
	Stale = 15 * time.Minute

	heartbeat    = 10 * time.Minute // between writes of a report that stays as it is
	listAge      = 10 * time.Minute // of what is known of another node's pods
	listedAtOnce = 4                // other nodes whose pods are asked for in a round
)

// Reports keeps a node's report.
type Reports interface {
	// Read gives the report that is there; the zero value where there is none.
	Read(ctx context.Context, node string) (v1alpha1.ProbeReportStatus, error)
	Write(ctx context.Context, node string, status v1alpha1.ProbeReportStatus) error
}

// Prober measures for one node.
type Prober struct {
	Node     string // its name
	Sources  Sources
	Reports  Reports // nil: metrics only
	Log      *slog.Logger
	Metrics  *Metrics
	FromPods bool          // pods' network namespaces may be entered
	Interval time.Duration // 0: DefaultInterval
	Host     probe.In      // runs in the host's network namespace; nil: the process's

	round   int
	remote  map[string]listing
	sent    traffic
	results map[key]result
	written v1alpha1.ProbeReportStatus
	read    bool // whether written is what the object has
}

// listing is what another node's pods were when they were asked for.
type listing struct {
	pods []Pod
	at   time.Time
}

// result is a leg as it was measured last.
type result struct {
	leg   v1alpha1.ProbeLeg
	round int
}

// Run measures until ctx ends. What stands in the way is logged and tried again
// in the next round.
func (p *Prober) Run(ctx context.Context) error {
	interval := cmp.Or(p.Interval, DefaultInterval)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	// Less than the interval, so that the last answers come in time; the first round
	// is quick, because somebody who has just installed this is waiting for it.
	for spread := interval / 8; ; spread = interval * 3 / 4 {
		if err := p.Round(ctx, spread); err != nil && ctx.Err() == nil {
			p.Log.Warn("the storage network's legs could not all be measured and reported; the next round tries again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Round measures once, with the beginnings spread over a time, and reports.
func (p *Prober) Round(ctx context.Context, spread time.Duration) error {
	p.defaults()
	known, err := p.know(ctx)
	if err != nil {
		return err
	}
	legs, err := p.measure(ctx, Choose(known, p.round, p.FromPods), spread)
	if err != nil {
		return err
	}
	legs = p.confirm(ctx, legs)
	p.addTraffic(known.Local)
	_, nodes := Nodes(known.Peers, p.Node, p.round)
	p.remember(legs, known, max(Rotation(nodes, MaxNodes), Rotation(len(known.Local), maxLocal)))
	p.round++
	status := p.status(nodes > MaxNodes)
	status.ISCSI = p.dials(known.Local)
	p.Metrics.set(p.legs(), nodes > MaxNodes)
	return p.report(ctx, status)
}

func (p *Prober) defaults() {
	if p.remote == nil {
		p.remote, p.results = map[string]listing{}, map[key]result{}
	}
	if p.Host == nil {
		p.Host = probe.Here
	}
}

// know asks the sources: for other nodes' pods a few nodes in a round, those
// first that were asked for longest ago.
func (p *Prober) know(ctx context.Context) (Known, error) {
	k := Known{Node: p.Node, Remote: map[string][]Pod{}}
	var faults [2]error
	k.Peers, faults[0] = p.Sources.Peers(ctx)
	k.Local, faults[1] = p.Sources.Local(ctx)
	if err := errors.Join(faults[:]...); err != nil {
		return k, err
	}
	due, _ := Nodes(k.Peers, p.Node, p.round)
	stale := slices.DeleteFunc(slices.Clone(due), func(node string) bool {
		return len(p.remote[node].pods) > 0 && time.Since(p.remote[node].at) < listAge // one without pods may have its first by now
	})
	slices.SortStableFunc(stale, func(a, b string) int { return p.remote[a].at.Compare(p.remote[b].at) })
	stale = stale[:min(len(stale), listedAtOnce)]
	if err := p.list(ctx, stale...); err != nil {
		p.Log.Warn("which pods other nodes have can't be told; those known are measured", "nodes", stale, "error", err)
	}
	for node := range p.remote {
		if !slices.ContainsFunc(k.Peers, func(peer Peer) bool { return peer.Node == node }) {
			delete(p.remote, node)
		}
	}
	for node, l := range p.remote {
		k.Remote[node] = l.pods
	}
	return k, nil
}

func (p *Prober) list(ctx context.Context, nodes ...string) error {
	if len(nodes) == 0 {
		return nil
	}
	pods, err := p.Sources.Remote(ctx, nodes...)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		p.remote[node] = listing{pods: pods[node], at: time.Now()}
	}
	return nil
}

// confirm leaves out the legs to and from pods that are gone: what didn't answer
// is looked up again. What can't be looked up now, because too many don't answer
// or the API server doesn't, stays: that much silence is no pod's deletion.
func (p *Prober) confirm(ctx context.Context, legs []v1alpha1.ProbeLeg) []v1alpha1.ProbeLeg {
	there := map[string]bool{}
	asked := map[string]bool{}
	add := func(pods []Pod) {
		for _, pod := range pods {
			for _, a := range pod.Addresses {
				there[pod.Ref+" "+a.String()] = true
			}
		}
	}
	local, err := p.Sources.Local(ctx)
	if err == nil {
		add(local)
		asked[p.Node] = true
	}
	var doubtful []string
	for _, l := range legs {
		if l.Pod != "" && l.Lost > 0 && !asked[l.Node] && !slices.Contains(doubtful, l.Node) && len(doubtful) < listedAtOnce {
			doubtful = append(doubtful, l.Node)
		}
	}
	if err := p.list(ctx, doubtful...); err == nil {
		for _, node := range doubtful {
			add(p.remote[node].pods)
			asked[node] = true
		}
	}
	gone := func(l v1alpha1.ProbeLeg) bool {
		from := l.From != "" && asked[p.Node] && !slices.ContainsFunc(local, func(pod Pod) bool { return pod.Ref == l.From })
		return l.Lost > 0 && (from || l.Pod != "" && asked[l.Node] && !there[l.Pod+" "+l.Address])
	}
	return slices.DeleteFunc(legs, gone)
}

// remember keeps each leg's last result for as many rounds as it takes to ask
// all.
func (p *Prober) remember(legs []v1alpha1.ProbeLeg, known Known, rotation int) {
	for k, l := range byKey(legs) {
		p.results[k] = result{leg: l, round: p.round}
	}
	for k, r := range p.results {
		if p.round-r.round >= rotation || !p.stillThere(k, known) {
			delete(p.results, k)
		}
	}
}

func (p *Prober) stillThere(k key, known Known) bool {
	if k.kind != v1alpha1.LegHostLocal {
		return slices.ContainsFunc(known.Peers, func(peer Peer) bool { return peer.Node == k.node })
	}
	return slices.ContainsFunc(known.Local, func(pod Pod) bool {
		return slices.ContainsFunc(pod.Addresses, func(a netip.Addr) bool { return a.String() == k.to })
	})
}

// legs are the last results in order: those that lost most first.
func (p *Prober) legs() []v1alpha1.ProbeLeg {
	list := make([]v1alpha1.ProbeLeg, 0, len(p.results))
	for _, r := range p.results {
		list = append(list, r.leg)
	}
	slices.SortFunc(list, func(a, b v1alpha1.ProbeLeg) int {
		return cmp.Or(cmp.Compare(b.Lost*a.Sent, a.Lost*b.Sent), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Network, b.Network),
			cmp.Compare(a.Node, b.Node), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Address, b.Address))
	})
	return list
}

func (p *Prober) status(sampled bool) v1alpha1.ProbeReportStatus {
	s := v1alpha1.ProbeReportStatus{Time: metav1.Now(), Sampled: sampled}
	for i, l := range p.legs() {
		s.Measured++
		if l.Lost > 0 {
			s.Failing++
		}
		if i == 0 && l.Lost > 0 {
			s.Worst = describe(l)
		}
		if len(s.Legs) < maxLegs && (l.Lost > 0 || !sampled) {
			s.Legs = append(s.Legs, l)
		}
	}
	return s
}

// describe says what a leg lost, for people.
func describe(l v1alpha1.ProbeLeg) string {
	to := l.Node
	if l.Pod != "" {
		to = l.Pod + " on " + l.Node
	}
	from := ""
	if l.From != "" {
		from = " from " + l.From
	}
	text := fmt.Sprintf("%s%s to %s (%s): %d of %d lost", l.Kind, from, to, l.Address, l.Lost, l.Sent)
	if l.Error != "" {
		text += ", " + l.Error
	}
	return text[:min(len(text), 1024)]
}

// report writes the object when it must be written.
func (p *Prober) report(ctx context.Context, now v1alpha1.ProbeReportStatus) error {
	if p.Reports == nil {
		return nil
	}
	if !p.read { // an agent that was restarted goes on from what is there
		written, err := p.Reports.Read(ctx, p.Node)
		if err != nil {
			return fmt.Errorf("read this node's ProbeReport: %w", err)
		}
		p.written, p.read = written, true
	}
	if !Changed(p.written, now) && now.Time.Sub(p.written.Time.Time) < heartbeat {
		return nil
	}
	if err := p.Reports.Write(ctx, p.Node, now); err != nil {
		p.read = false // it may have been carried out
		return fmt.Errorf("write this node's ProbeReport: %w", err)
	}
	p.written = now
	p.Metrics.writes.Inc()
	if now.Failing > 0 {
		p.Log.Warn("legs of the storage network lose packets", "failing", now.Failing, "measured", now.Measured, "worst", now.Worst)
	}
	return nil
}
