package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// metrics are the agent's own; docs/agent.md lists them.
type metrics struct {
	pass                       prometheus.Histogram
	repairs, changes           *prometheus.CounterVec
	contests                   prometheus.Counter
	ready, peers, complete     *prometheus.GaugeVec
	found                      *prometheus.GaugeVec
	queued, tokenExpires, lead prometheus.Gauge
	replayed, tokenFailures    prometheus.Counter
	missing                    *prometheus.GaugeVec
	attachmentRepairs          prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		pass: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lhstorage_pass_duration_seconds", Help: "How long it took to look at, and mend, all networks of the node.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		repairs:           counters("lhstorage_repairs_total", "What was put right although nothing else was wanted than before, by step.", "step"),
		changes:           counters("lhstorage_changes_total", "What was done because something else was wanted, or for the first time, by step.", "step"),
		contests:          counter("lhstorage_contests_total", "How often repairs were paused because something else changed them back."),
		ready:             gauges("lhstorage_network_ready", "Whether the node is ready for a network: 1 or 0.", "network", "parent"),
		peers:             gauges("lhstorage_peers", "Other nodes on a parent.", "parent"),
		complete:          gauges("lhstorage_peers_complete", "Whether every Node that takes part has its place on a parent, so that stale flood entries are removed: 1 or 0.", "parent"),
		found:             gauges("lhstorage_network_definitions", "NetworkAttachmentDefinitions of type lhstorage: accepted, InvalidNetwork or ContradictoryNetwork.", "state"),
		queued:            gauge("lhstorage_release_queue_length", "Releases of addresses that wait for the API server."),
		replayed:          counter("lhstorage_releases_replayed_total", "Queued releases that were carried out."),
		tokenExpires:      gauge("lhstorage_token_expiry_timestamp_seconds", "When the token in the plugins' kubeconfig expires."),
		tokenFailures:     counter("lhstorage_token_renewal_failures_total", "Tries to renew that token that failed."),
		missing:           gauges("lhstorage_attachments_missing", "Attachments that pods of this node ask for and don't have, by network definition.", "definition"),
		attachmentRepairs: counter("lhstorage_attachment_repairs_total", "Pods deleted because they ran without their network (--repair)."),
		lead:              gauge("lhstorage_leader", "Whether this agent runs the elected parts: 1 or 0."),
	}
	reg.MustRegister(m.pass, m.repairs, m.changes, m.contests, m.ready, m.peers, m.complete, m.found, m.queued, m.replayed,
		m.tokenExpires, m.tokenFailures, m.missing, m.attachmentRepairs, m.lead)
	return m
}

func (m *metrics) network(plan *netconf.Plan, state *netState) {
	m.ready.WithLabelValues(plan.Name, plan.Parent.Name).Set(number(state.trouble == ""))
	if plan.Parent.Type == netconf.ParentVXLAN && state.done {
		m.peers.WithLabelValues(plan.Parent.Name).Set(float64(len(state.place.Peers)))
		m.complete.WithLabelValues(plan.Parent.Name).Set(number(state.place.Complete))
	}
}

func (m *metrics) forget(plan *netconf.Plan) {
	m.ready.DeleteLabelValues(plan.Name, plan.Parent.Name)
	m.peers.DeleteLabelValues(plan.Parent.Name)
	m.complete.DeleteLabelValues(plan.Parent.Name)
}

func (m *metrics) definitions(c Compiled) {
	states := map[string]int{"accepted": len(c.Ours) - len(c.Faults), ReasonInvalidNetwork: 0, ReasonContradiction: 0}
	for _, f := range c.Faults {
		states[f.Reason]++
	}
	for state, n := range states {
		m.found.WithLabelValues(state).Set(float64(n))
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
