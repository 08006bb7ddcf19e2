package leak

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the collector's. A nil one counts nothing.
type Metrics struct {
	gaveBack *prometheus.CounterVec
	leaked   prometheus.Gauge
	passes   *prometheus.CounterVec
}

// NewMetrics registers the collector's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		gaveBack: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lhstorage_leaked_claims_collected_total", Help: "Claims that no attachment held and that were given back, by reason.",
		}, []string{"reason"}),
		leaked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lhstorage_leaked_claims", Help: "Claims that the last pass found leaked, whether or not they are due.",
		}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lhstorage_leak_passes_total", Help: "Passes of the collector of leaked claims, by result (ok, error).",
		}, []string{"result"}),
	}
	for _, r := range Reasons {
		m.gaveBack.WithLabelValues(string(r))
	}
	for _, result := range []string{"ok", "error"} {
		m.passes.WithLabelValues(result)
	}
	reg.MustRegister(m.gaveBack, m.leaked, m.passes)
	return m
}

func (m *Metrics) collected(r Reason) {
	if m != nil {
		m.gaveBack.WithLabelValues(string(r)).Inc()
	}
}

func (m *Metrics) found(n int) {
	if m != nil {
		m.leaked.Set(float64(n))
	}
}

func (m *Metrics) passed(err error) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.passes.WithLabelValues(result).Inc()
}
