package agent

import (
	"context"
	"reflect"
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
	d := &divider{Agent: a, controller: c}
	return a.onChanges(ctx, lookEvery, d.divide, definitionObjects(), &corev1.Node{})
}

// divider divides ranges among nodes.
type divider struct {
	*Agent
	controller *nodeslice.Controller

	told  map[string]string // by definition: what was wrong with it
	of    division
	again time.Time // when the pools are looked at though the division is the same
}

// division is what the pools follow from.
type division struct {
	definitions []nodeslice.Definition
	members     []string
	live        map[string]bool
}

// divide looks at the pools when they may have to change, and every now and then: of the changes of a thousand Nodes few are of that kind.
func (d *divider) divide(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sliceTime)
	defer cancel()
	definitions, err := d.watches.listDefinitions(ctx)
	if err != nil {
		return
	}
	var now division
	if now.members, now.live, err = d.watches.nodeNames(ctx); err != nil {
		return
	}
	for _, o := range definitions {
		now.definitions = append(now.definitions, nodeslice.Definition{Namespace: o.Namespace, Name: o.Name, UID: o.UID, Created: o.Created, Config: o.Config})
	}
	if reflect.DeepEqual(now, d.of) && time.Now().Before(d.again) {
		return
	}
	report, err := d.controller.Sync(ctx, now.definitions, now.members, now.live)
	d.report(report)
	if err != nil {
		d.controller.Log.Warn("not all nodes have their slices now", "error", err)
		now = division{} // the next change of any kind is a reason to try again
	}
	d.of, d.again = now, time.Now().Add(lookEvery/2) // the timer may come a little early
}

// report tells of what is wrong with a definition once.
func (d *divider) report(report nodeslice.Report) {
	now := map[string]string{}
	for _, f := range report.Faults {
		if now[f.Ref()] = f.Err.Error(); d.told[f.Ref()] != now[f.Ref()] {
			d.controller.Log.Warn("a network has no node slices", "definition", f.Ref(), "error", f.Err)
		}
	}
	d.told = now
	d.shared.withoutSlice.Reset()
	for pool, without := range report.Without {
		d.shared.withoutSlice.WithLabelValues(pool).Set(float64(len(without)))
	}
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
