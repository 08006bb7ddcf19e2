package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/leak"
)

// Elected are the options of what one agent of the cluster does.
type Elected struct {
	Leaks      leak.Settings
	PlaceGrace time.Duration // for which a node that has left keeps its place; 0: an hour
	NodeSlices bool          // divide ranges among nodes, as Whereabouts' node slice controller does, which mustn't run then
}

// shared is what the elected parts keep from one term to the next.
type shared struct {
	leaks        *leak.Metrics
	pools        *poolMetrics
	places       *placeMetrics
	withoutSlice *prometheus.GaugeVec
}

func newShared(reg prometheus.Registerer) *shared {
	return &shared{leaks: leak.NewMetrics(reg), pools: newPoolMetrics(reg), places: newPlaceMetrics(reg), withoutSlice: newSliceMetric(reg)}
}

// upkeep are the elected parts that go by what pods and nodes come and go.
func (a *Agent) upkeep() []part {
	parts := []part{{"leaked claims", a.collectLeaks}, {"departed nodes", a.clearPlaces}}
	if a.options.Elected.NodeSlices {
		parts = append(parts, part{"node slices", a.divideRanges})
	}
	return parts
}

// collectLeaks gives leaked claims back while this agent leads. How full pools are follows from the same list of claims.
func (a *Agent) collectLeaks(ctx context.Context) error {
	defer a.shared.pools.forget() // who leads now says so
	namespace := kubeapi.NamespaceOf(a.node.Kubeconfig)
	store := kube.New(kube.Options{API: a.api, Namespace: namespace})
	c := &leak.Collector{
		Settings: a.options.Elected.Leaks, API: a.api, Namespace: namespace, Metrics: a.shared.leaks, Log: a.log.With("part", "leaked claims"),
		Seen: func(ctx context.Context, claims []v1alpha1.AddressClaim) { a.measurePools(ctx, store, claims) },
	}
	return c.Run(ctx)
}
