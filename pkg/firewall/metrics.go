package firewall

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a firewall.
type Metrics struct {
	changes prometheus.Counter
	errors  prometheus.Counter
	healthy prometheus.Gauge
}

// NewMetrics registers the firewall's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lhstorage_firewall_changes_total",
			Help: "Chains filled or removed and jumps put in first place; more than a node's changes explain means that something else removes them.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lhstorage_firewall_errors_total",
			Help: "Attempts to make the firewall as it must be that failed.",
		}),
		healthy: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lhstorage_firewall_ready",
			Help: "1 if the firewall was as it must be when it was last looked at.",
		}),
	}
	reg.MustRegister(m.changes, m.errors, m.healthy)
	return m
}

func (m *Metrics) count(changes []string, err error) {
	m.changes.Add(float64(len(changes)))
	if err != nil {
		m.errors.Inc()
		m.healthy.Set(0)
		return
	}
	m.healthy.Set(1)
}
