package probereport

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Others is the peer of the series that stands for all nodes that are probed,
// where there are too many for a series each.
const Others = "*"

// Metrics of a prober. The gauges are those of the last round, all at once.
type Metrics struct {
	loss, rtt *prometheus.Desc
	writes    prometheus.Counter
	parents   *prometheus.CounterVec
	children  *prometheus.CounterVec
	last      atomic.Pointer[[]series]
}

// series is what one leg kind to one peer shows.
type series struct {
	leg, peer string
	loss      float64
	rtt       float64 // seconds, 0: nothing came back
}

// NewMetrics registers a prober's metrics. Labels are the kind of leg and the
// node at the other end: at most 4 × 64 series of each.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"leg", "peer"}
	m := &Metrics{
		loss: prometheus.NewDesc("lhstorage_probe_loss_ratio", "Part of the probe's packets that were lost on a leg to a peer, 0 to 1; the worst of its addresses. Above 64 nodes: peers that lose, and * for all.", labels, nil),
		rtt:  prometheus.NewDesc("lhstorage_probe_rtt_seconds", "Median round-trip time of the probe's packets on a leg to a peer; the longest of its addresses.", labels, nil),
		writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lhstorage_probe_report_writes_total", Help: "Writes of this node's ProbeReport object.",
		}),
		parents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lhstorage_parent_transmit_bytes_total", Help: "Bytes that a parent sent to other nodes, each copy of a frame counted; added up once a round.",
		}, []string{"parent"}),
		children: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lhstorage_children_transmit_bytes_total", Help: "Bytes that the host shim and the pods' interfaces on a parent sent, to wherever; added up once a round.",
		}, []string{"parent"}),
	}
	reg.MustRegister(m, m.writes, m.parents, m.children)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.loss; ch <- m.rtt }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	last := m.last.Load()
	if last == nil {
		return
	}
	for _, s := range *last {
		ch <- prometheus.MustNewConstMetric(m.loss, prometheus.GaugeValue, s.loss, s.leg, s.peer)
		if s.rtt > 0 {
			ch <- prometheus.MustNewConstMetric(m.rtt, prometheus.GaugeValue, s.rtt, s.leg, s.peer)
		}
	}
}

func (m *Metrics) set(legs []v1alpha1.ProbeLeg, sampled bool) {
	list := perPeer(legs)
	if sampled {
		list = summed(list)
	}
	m.last.Store(&list)
}

// perPeer joins the legs of a kind to a peer to the worst of them.
func perPeer(legs []v1alpha1.ProbeLeg) []series {
	var list []series
	for _, l := range legs {
		i := slices.IndexFunc(list, func(s series) bool { return s.leg == string(l.Kind) && s.peer == l.Node })
		if i < 0 {
			list = append(list, series{leg: string(l.Kind), peer: l.Node})
			i = len(list) - 1
		}
		if l.Sent > 0 {
			list[i].loss = max(list[i].loss, float64(l.Lost)/float64(l.Sent))
		}
		if l.RTT != nil {
			list[i].rtt = max(list[i].rtt, float64(l.RTT.Median)/1e6)
		}
	}
	return list
}

// summed keeps the peers that lose, the worst MaxNodes of a kind, and adds a
// series for all.
func summed(list []series) []series {
	kinds := map[string][]series{}
	for _, s := range list {
		kinds[s.leg] = append(kinds[s.leg], s)
	}
	var kept []series
	for kind, of := range kinds {
		slices.SortFunc(of, func(a, b series) int { return cmp.Compare(b.loss, a.loss) })
		everyone := series{leg: kind, peer: Others}
		var rtts []float64
		for i, s := range of {
			everyone.loss += s.loss / float64(len(of))
			if s.rtt > 0 {
				rtts = append(rtts, s.rtt)
			}
			if s.loss > 0 && i < MaxNodes-1 {
				kept = append(kept, s)
			}
		}
		if slices.Sort(rtts); len(rtts) > 0 {
			everyone.rtt = rtts[len(rtts)/2]
		}
		kept = append(kept, everyone)
	}
	return kept
}
