// Package recorder mirrors claims in Whereabouts' objects for nodes with `record: agent`: there an ADD returns as soon as
// it has its claim, and one recorder in the cluster writes the pools, for all claims at once.
//
// Who it is a Lease says, which also is what an ADD looks at: while it was renewed a short while ago the ADD leaves recording
// to the recorder, else it records for itself. So the Lease is renewed only as long as recording works. Two recorders at
// once, after a pause of one of them, do no harm: all that they write is conditional.
package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	defaultInterval = 200 * time.Millisecond
	renewEvery      = 5 * time.Second
	worksWithin     = 15 * time.Second // recording that has not succeeded for so long doesn't work; with renewEvery well below kube.LeaseFresh
	callTime        = 5 * time.Second
	roundTime       = 10 * time.Second // hundreds of reservations; what is left comes with the next round
	restFor         = 2                // times what a round took comes before the next one
	settlers        = 4                // reservations and removals under way at once
	manyClaims      = 50               // to settle: from here on the reservations are listed first
	sweepEvery      = time.Minute      // how often claims whose quarantine is over are looked for
)

// Recorder mirrors claims while it holds the Lease.
type Recorder struct {
	API       *kubeapi.Client
	Namespace string        // of Whereabouts' objects; empty: kube-system
	Identity  string        // of this process, different from all others'
	Interval  time.Duration // between two batches; 0: 200 ms
	Log       *slog.Logger
}

// Run waits for the Lease, mirrors while it holds it, and so on until ctx ends. Then it gives the
// Lease back, so that ADDs don't rely on it any longer.
func (r *Recorder) Run(ctx context.Context) error {
	if r.Interval == 0 {
		r.Interval = defaultInterval
	}
	if r.Namespace == "" {
		r.Namespace = metav1.NamespaceSystem
	}
	for ctx.Err() == nil {
		if r.hold(ctx) != nil {
			sleep(ctx, renewEvery/2)
			continue
		}
		if err := r.lead(ctx); err != nil && ctx.Err() == nil {
			r.Log.Warn("recording is interrupted", "error", err)
			sleep(ctx, time.Second)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return r.giveUp(ctx)
}

// lead mirrors until the Lease is lost, ctx ends, or something fails for good.
func (r *Recorder) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &mirror{Recorder: r, store: kube.New(kube.Options{API: r.API, Namespace: r.Namespace}),
		claims: map[string]v1alpha1.AddressClaim{}, dirty: map[string]bool{}, settled: map[string]string{}, wake: make(chan struct{}, 1), worked: time.Now()}
	ended := make(chan error, 1)
	go func() { ended <- m.follow(ctx) }()
	renew, sweep := time.NewTicker(renewEvery), time.NewTicker(sweepEvery)
	defer renew.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			<-ended //nolint:errcheck // it says the same
			return ctx.Err()
		case err := <-ended:
			return err
		case <-renew.C:
			if !m.works() {
				r.Log.Error("recording doesn't work: ADDs will record for themselves", "since", m.worked)
				continue
			}
			if err := r.hold(ctx); errors.Is(err, errOther) { // a server that is slow or away is no reason to begin anew
				cancel()
				<-ended //nolint:errcheck // that it was cancelled
				return err
			}
		case <-sweep.C:
			m.all()
		case <-m.wake:
			began := time.Now()
			m.round(ctx)
			sleep(ctx, max(r.Interval, restFor*time.Since(began))) // a pool of thousands takes the server's time from ADDs
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// mirror is what a recorder knows while it leads.
type mirror struct {
	*Recorder
	store   *kube.Store
	settled map[string]string // version of each claim that is wholly mirrored, by name; of the rounds alone
	worked  time.Time         // when something was recorded, or there was nothing to do

	mu     sync.Mutex
	claims map[string]v1alpha1.AddressClaim
	asOf   string
	dirty  map[string]bool // pools
	wake   chan struct{}
}

// follow keeps claims as the API server has them.
func (m *mirror) follow(ctx context.Context) error {
	var list v1alpha1.AddressClaimList
	if err := m.API.List(ctx, kube.Claims, &list); err != nil {
		return fmt.Errorf("list claims: %w", m.API.Explain(err))
	}
	m.mu.Lock()
	for _, c := range list.Items {
		m.claims[c.Name] = c
	}
	m.asOf = list.ResourceVersion
	m.mu.Unlock()
	m.all()
	for ctx.Err() == nil {
		m.mu.Lock()
		from := m.asOf
		m.mu.Unlock()
		err := m.API.Watch(ctx, kube.Claims, from, m.change)
		if err != nil && !kubeapi.IsUnreachable(err) {
			return fmt.Errorf("watch claims: %w", err)
		}
		sleep(ctx, 100*time.Millisecond)
	}
	return ctx.Err()
}

func (m *mirror) change(e kubeapi.Event) error {
	var c v1alpha1.AddressClaim
	if err := json.Unmarshal(e.Object, &c); err != nil {
		return fmt.Errorf("read a claim: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asOf = c.ResourceVersion
	switch e.Type {
	case "BOOKMARK":
		return nil
	case "DELETED":
		delete(m.claims, c.Name)
		return nil
	}
	m.claims[c.Name] = c
	m.dirty[c.Spec.Pool] = true
	m.call()
	return nil
}

// all makes the next round look at all pools.
func (m *mirror) all() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.claims {
		m.dirty[c.Spec.Pool] = true
	}
	m.call()
}

// call wakes the rounds up. The caller holds mu.
func (m *mirror) call() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mirror) works() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.dirty) == 0 || time.Since(m.worked) < worksWithin
}

// round mirrors the pools whose claims have changed.
func (m *mirror) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	m.mu.Lock()
	dirty, asOf := m.dirty, m.asOf
	m.dirty = map[string]bool{}
	pools := map[string][]v1alpha1.AddressClaim{}
	for _, c := range m.claims {
		if dirty[c.Spec.Pool] {
			pools[c.Spec.Pool] = append(pools[c.Spec.Pool], c)
		}
	}
	maps.DeleteFunc(m.settled, func(name, _ string) bool { _, there := m.claims[name]; return !there })
	m.mu.Unlock()
	failed := false
	for pool, claims := range pools {
		if err := m.pool(ctx, pool, claims, asOf); err != nil {
			failed = true
			if !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) && ctx.Err() == nil { // those are somebody else's writes
				m.Log.Warn("claims aren't recorded yet", "pool", pool, "error", err)
			}
			m.mu.Lock()
			m.dirty[pool] = true
			m.call()
			m.mu.Unlock()
		}
	}
	if !failed {
		m.advanced()
	}
}

// pool mirrors the claims of a pool: first all of them in the pool, then each in its reservation.
func (m *mirror) pool(ctx context.Context, pool string, claims []v1alpha1.AddressClaim, asOf string) error {
	if _, err := m.store.Mirror(ctx, pool, claims, asOf); err != nil {
		return err
	}
	claims = slices.DeleteFunc(claims, func(c v1alpha1.AddressClaim) bool {
		return m.settled[c.Name] == c.ResourceVersion && c.Spec.Declined == nil
	})
	if len(claims) > manyClaims {
		if err := m.skipReserved(ctx, &claims); err != nil {
			return err
		}
	}
	return m.settle(ctx, claims)
}

// skipReserved takes those off claims of whose reservations nothing is missing: a recorder that begins finds thousands of them.
func (m *mirror) skipReserved(ctx context.Context, claims *[]v1alpha1.AddressClaim) error {
	reserved, err := m.store.Reserved(ctx, *claims)
	if err != nil {
		return err
	}
	*claims = slices.DeleteFunc(*claims, func(c v1alpha1.AddressClaim) bool {
		if reserved[c.Name] {
			m.settled[c.Name] = c.ResourceVersion
		}
		return reserved[c.Name]
	})
	return nil
}

// settle does what comes after the pool for each claim. One that can't be settled doesn't mean that nothing works.
func (m *mirror) settle(ctx context.Context, claims []v1alpha1.AddressClaim) error {
	faults := make([]error, len(claims))
	var group sync.WaitGroup
	slots := make(chan struct{}, settlers)
	for i, c := range claims {
		slots <- struct{}{}
		group.Go(func() {
			faults[i] = m.store.Settle(ctx, c)
			<-slots
		})
	}
	group.Wait()
	for i, c := range claims {
		if faults[i] == nil {
			m.settled[c.Name] = c.ResourceVersion
			m.advanced()
		}
	}
	return errors.Join(faults...)
}

// advanced notes that recording works.
func (m *mirror) advanced() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked = time.Now()
}
