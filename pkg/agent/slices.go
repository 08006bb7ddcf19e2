package agent

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nodeslice"
)

const sliceTime = 30 * time.Second // bounds one look at all node slices

func newSliceMetric(reg prometheus.Registerer) *prometheus.GaugeVec {
	m := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "lhstorage_nodes_without_slice", Help: "Nodes for which a NodeSlicePool has no slice left; by the leader, with --node-slices.",
	}, []string{"nodeslicepool"})
	reg.MustRegister(m)
	return m
}

// divideRanges keeps the NodeSlicePools while this agent leads.
func (a *Agent) divideRanges(ctx context.Context) error {
	c := &nodeslice.Controller{API: a.api, Namespace: kubeapi.NamespaceOf(a.node.Kubeconfig), Log: a.log.With("part", "node slices")}
	defer a.shared.withoutSlice.Reset() // who leads now says so
	told := map[string]string{}
	return a.onChanges(ctx, lookEvery, func(ctx context.Context) { told = a.divide(ctx, c, told) }, definitionObjects(), &corev1.Node{})
}

// divide does so once. It returns what it told of, so as to tell of it once.
func (a *Agent) divide(ctx context.Context, c *nodeslice.Controller, told map[string]string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, sliceTime)
	defer cancel()
	definitions, err := a.watches.listDefinitions(ctx)
	if err != nil {
		return told
	}
	members, live, err := a.watches.nodeNames(ctx)
	if err != nil {
		return told
	}
	var list []nodeslice.Definition
	for _, d := range definitions {
		list = append(list, nodeslice.Definition{Namespace: d.Namespace, Name: d.Name, UID: d.UID, Created: d.Created, Config: d.Config})
	}
	report, err := c.Sync(ctx, list, members, live)
	if err != nil {
		c.Log.Warn("not all nodes have their slices now", "error", err)
	}
	now := map[string]string{}
	for _, f := range report.Faults {
		if now[f.Ref()] = f.Err.Error(); told[f.Ref()] != now[f.Ref()] {
			c.Log.Warn("a network has no node slices", "definition", f.Ref(), "error", f.Err)
		}
	}
	a.shared.withoutSlice.Reset()
	for pool, without := range report.Without {
		a.shared.withoutSlice.WithLabelValues(pool).Set(float64(len(without)))
	}
	return now
}

// nodeNames are the Nodes that take part, sorted, and all that there are.
func (w *watches) nodeNames(ctx context.Context) (members []string, live map[string]bool, err error) {
	var nodes corev1.NodeList
	if err := w.cache.List(ctx, &nodes); err != nil {
		return nil, nil, err
	}
	live = map[string]bool{}
	for _, n := range nodes.Items {
		live[n.Name] = true
		if w.members.Matches(labels.Set(n.Labels)) {
			members = append(members, n.Name)
		}
	}
	slices.Sort(members)
	return members, live, nil
}
