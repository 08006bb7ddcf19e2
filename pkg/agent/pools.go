package agent

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
)

// poolMetrics say how full pools are. Only the leader has any: all agents would say the same.
type poolMetrics struct{ addresses, allocated *prometheus.GaugeVec }

func newPoolMetrics(reg prometheus.Registerer) *poolMetrics {
	m := &poolMetrics{
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "lhstorage_pool_addresses", Help: "Addresses that a pool can give; by the leader."}, []string{"pool"}),
		allocated: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "lhstorage_pool_allocated", Help: "Addresses of a pool that are taken; by the leader."}, []string{"pool"}),
	}
	reg.MustRegister(m.addresses, m.allocated)
	return m
}

func (m *poolMetrics) set(usages map[string]ipam.Usage) {
	m.forget()
	for pool, u := range usages {
		m.addresses.WithLabelValues(pool).Set(u.Addresses)
		m.allocated.WithLabelValues(pool).Set(u.Allocated)
	}
}

func (m *poolMetrics) forget() {
	m.addresses.Reset()
	m.allocated.Reset()
}

// measurePools tells how full the pools of all networks are, given all claims. What can't be measured now keeps its last measure.
func (a *Agent) measurePools(ctx context.Context, store *kube.Store, claims []v1alpha1.AddressClaim) {
	var pools []ipam.Pool
	for _, n := range a.networks() {
		cfg, err := ipam.Parse(ipam.Input{NetConf: n.Plan.IPAM.Delegate, Cluster: true})
		if err != nil || n.Plan.IPAM.Type != "lhstorage-ipam" {
			continue
		}
		of := cfg.Pools
		if cfg.NodeSlice != 0 {
			if of, err = store.AllSliced(ctx, cfg.Pools, cfg.Network); err != nil {
				a.log.Warn("how full pools are isn't known now", "network", cfg.Network, "error", err)
				return
			}
		}
		pools = append(pools, of...)
	}
	usages, err := store.Usages(ctx, pools, claims)
	if err != nil {
		a.log.Warn("how full pools are isn't known now", "error", err)
		return
	}
	a.shared.pools.set(usages)
}
