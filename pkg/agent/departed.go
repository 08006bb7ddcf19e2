package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	lookEvery = time.Minute            // at what changes would tell of, and at what only time brings about
	gather    = 100 * time.Millisecond // nodes come and go in numbers
	sweepTime = time.Minute            // bounds one look at all places
)

// placeMetrics are about the places of nodes that have left.
type placeMetrics struct {
	departed prometheus.Gauge
	removed  prometheus.Counter
}

func newPlaceMetrics(reg prometheus.Registerer) *placeMetrics {
	m := &placeMetrics{
		departed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "lhstorage_departed_places", Help: "HostShims whose Node is gone; by the leader."}),
		removed:  prometheus.NewCounter(prometheus.CounterOpts{Name: "lhstorage_departed_places_removed_total", Help: "HostShims that were removed because their Node is gone."}),
	}
	reg.MustRegister(m.departed, m.removed)
	return m
}

// changes lets wake be called when objects change, until stop is. It waits for the first lists.
func (a *Agent) changes(ctx context.Context, wake func(), objects ...client.Object) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	for _, object := range objects {
		informer, err := a.watches.cache.GetInformer(ctx, object)
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", object, err)
		}
		registration, err := informer.AddEventHandler(notifier(wake))
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch %T: %w", object, err)
		}
		stops = append(stops, func() { forget(informer, registration) })
	}
	return stop, nil
}

func forget(informer cache.Informer, registration toolscache.ResourceEventHandlerRegistration) {
	_ = informer.RemoveEventHandler(registration) // fails for an informer that has ended
}

// onChanges does something at once, when objects change, and every now and then, until ctx ends.
func (a *Agent) onChanges(ctx context.Context, every time.Duration, do func(context.Context), objects ...client.Object) error {
	wake := make(chan struct{}, 1)
	stop, err := a.changes(ctx, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}, objects...)
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		do(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			pause(ctx, gather)
		case <-tick.C:
		}
	}
}

// departed looks after the places of nodes that have left.
type departed struct {
	*Agent
	claimer *hostclaim.Claimer
	grace   time.Duration
	told    map[string]hostclaim.Fate // by HostShim
}

// clearPlaces does so while this agent leads.
func (a *Agent) clearPlaces(ctx context.Context) error {
	d := &departed{
		Agent: a, claimer: &hostclaim.Claimer{API: a.api, Answers: probe.Answers}, grace: a.options.Elected.PlaceGrace, told: map[string]hostclaim.Fate{},
	}
	if d.grace == 0 {
		d.grace = hostclaim.Grace
	}
	defer a.shared.places.departed.Set(0) // who leads now says so
	return a.onChanges(ctx, min(lookEvery, d.grace), d.sweep, &v1alpha1.HostShim{}, &corev1.Node{})
}

// gone are the places that may be of nodes which have left, or that were, as watches tell, and on which parents this node is.
func gone(shims []*v1alpha1.HostShim, nodes []*corev1.Node, node string) (places []*v1alpha1.HostShim, here map[string]bool) {
	live := map[string]bool{}
	for _, n := range nodes {
		live[n.Name] = true
	}
	here = map[string]bool{}
	for _, h := range shims {
		if h.Spec.Node == node {
			here[h.Spec.Parent] = true
		}
		if !live[h.Spec.Node] || hostclaim.Marks(h) {
			places = append(places, h)
		}
	}
	return places, here
}

func (d *departed) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	places, here := gone(stored[v1alpha1.HostShim](d.watches.hostShims), stored[corev1.Node](d.watches.nodes), d.node.NodeName)
	left, told := 0, map[string]hostclaim.Fate{}
	for _, h := range places {
		fate, err := d.claimer.Sweep(ctx, h, d.grace, here[h.Spec.Parent])
		if err != nil {
			d.log.Warn("the place of a node that seems to be gone can't be looked after now", "hostshim", h.Name, "node", h.Spec.Node, "error", err)
		}
		if fate == hostclaim.Marked || fate == hostclaim.Kept || fate == hostclaim.Answers {
			left++
			told[h.Name] = fate
		}
		d.tell(h, fate)
	}
	d.told = told
	d.shared.places.departed.Set(float64(left))
}

// tell says what has become of a place, once.
func (d *departed) tell(h *v1alpha1.HostShim, fate hostclaim.Fate) {
	log := d.log.With("hostshim", h.Name, "node", h.Spec.Node, "index", h.Spec.Index)
	switch {
	case fate == hostclaim.Removed:
		d.shared.places.removed.Inc()
		log.Info("the place of a node that is gone was removed")
	case d.told[h.Name] == fate:
	case fate == hostclaim.Marked:
		log.Info("a node is gone; its place is kept for it for a while", "grace", d.grace)
	case fate == hostclaim.Returned:
		log.Info("a node that was gone is there again")
	case fate == hostclaim.Answers:
		log.Warn("a node is gone, but its place stays: something has its addresses; if the machine is to be used no more, switch it off")
	}
}
