package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	fillers     = 16 // objects under way at once
	fillNetName = "elsewhere"
)

// byFill measures single calls of the IPAM plugins on a pool that is filled more
// and more.
func (b *bench) byFill(ctx context.Context, s size, p programs, r *report) error {
	calls, err := b.fillCalls(p)
	if err != nil || len(s.fill) == 0 {
		return err
	}
	pool := filledPool{cluster: b.cluster, testCase: testCase{network: fillNetwork}}
	for _, percent := range s.fill {
		progress("filling a pool to %d %%", percent)
		if err := pool.fill(ctx, percent); err != nil {
			return fmt.Errorf("fill a pool to %d %%: %w", percent, err)
		}
		for _, agent := range []bool{false, true} {
			if err := b.atFill(ctx, s, r, calls, percent, agent); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillCalls are by fillCases.
func (b *bench) fillCalls(p programs) ([]*storm.Storm, error) {
	var calls []*storm.Storm
	for i := range fillCases {
		fillCases[i].network = fillNetwork
		call, err := b.newCall(fillCases[i], directories{}, p, 0)
		if err != nil {
			return nil, err
		}
		calls = append(calls, call)
	}
	return calls, nil
}

// atFill measures the cases that need a recorder, or those that need none.
func (b *bench) atFill(ctx context.Context, s size, r *report, calls []*storm.Storm, percent int, agent bool) error {
	at := func(name string) string { return fmt.Sprintf("%s/fill=%d", name, percent) }
	adds, dels := make([]sample, len(fillCases)), make([]sample, len(fillCases))
	turns := func() error {
		for turn := range s.repeats / 2 {
			for i, c := range fillCases {
				if c.byAgent() != agent {
					continue
				}
				progress("%s: turn %d", at(c.name), turn+1)
				add, del, err := b.attachDetachBy(ctx, *calls[i], c, 1)
				if err != nil {
					return err
				}
				adds[i].add(add)
				dels[i].add(del)
			}
		}
		return nil
	}
	if agent {
		measured := turns
		turns = func() error { return b.cluster.recordingQuietly(ctx, measured) }
	}
	if err := turns(); err != nil {
		return err
	}
	for i, c := range fillCases {
		if c.byAgent() == agent {
			baseline := c.baseline
			if baseline != "" {
				baseline = at(baseline)
			}
			r.add(at(c.name), baseline, "ADD", 1, adds[i])
			r.add(at(c.name), baseline, "DEL", 1, dels[i])
		}
	}
	return nil
}

// recordingQuietly calls f while a recorder runs that has seen all claims there are.
func (c *cluster) recordingQuietly(ctx context.Context, f func() error) error {
	r, err := c.startRecorder(ctx)
	if err != nil {
		return err
	}
	defer r.cancel()
	if err := r.quiet(ctx); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return r.stop()
}

// filledPool is a pool with the addresses of pods elsewhere, the lowest ones.
type filledPool struct {
	*cluster
	testCase
	filled int // addresses
}

// fill makes the objects that lhstorage-ipam makes: with them it is a pool that
// has been in use, for whereabouts too.
func (p *filledPool) fill(ctx context.Context, percent int) error {
	const usable = 1<<12 - 2 // of a /20
	want := usable * percent / 100
	name := strings.ReplaceAll(p.pool().String(), "/", "-")
	pool := whereabouts.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       whereabouts.IPPoolSpec{Range: p.pool().String(), Allocations: map[string]whereabouts.IPAllocation{}},
	}
	var missing []v1alpha1.AddressClaimSpec
	addr := p.pool().Addr()
	for key := 1; key <= want; key++ {
		addr = addr.Next()
		spec := v1alpha1.AddressClaimSpec{
			Address: addr.String(), Pool: name, Range: p.pool().String(), Network: fillNetName, Node: fillNetName,
			PodRef: fmt.Sprint("elsewhere/pod-", key), ContainerID: fmt.Sprint("elsewhere-", key), IfName: storm.IfName,
		}
		pool.Spec.Allocations[strconv.Itoa(key)] = whereabouts.IPAllocation{ContainerID: spec.ContainerID, PodRef: spec.PodRef, IfName: spec.IfName}
		if key > p.filled {
			missing = append(missing, spec)
		}
	}
	if err := p.holdAll(ctx, missing); err != nil {
		return err
	}
	p.filled = want
	if percent == 0 {
		return p.api.Create(ctx, kube.Pools(namespace), pool, nil)
	}
	return p.api.Patch(ctx, kube.Pools(namespace), name, []kubeapi.Op{kubeapi.Add("/spec/allocations", pool.Spec.Allocations)}, nil)
}

func (p *filledPool) holdAll(ctx context.Context, specs []v1alpha1.AddressClaimSpec) error {
	faults := make([]error, fillers)
	var wg sync.WaitGroup
	for i := range fillers {
		wg.Go(func() {
			for at := i; at < len(specs) && faults[i] == nil; at += fillers {
				faults[i] = p.hold(ctx, specs[at])
			}
		})
	}
	wg.Wait()
	return errors.Join(faults...)
}

// hold makes an address's claim and reservation.
func (p *filledPool) hold(ctx context.Context, spec v1alpha1.AddressClaimSpec) error {
	claim := v1alpha1.AddressClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.AddressClaimKind},
		ObjectMeta: metav1.ObjectMeta{Name: spec.Address, Labels: map[string]string{
			v1alpha1.LabelNode: spec.Node, v1alpha1.LabelNetwork: spec.Network, v1alpha1.LabelPool: spec.Pool, v1alpha1.LabelContainer: spec.ContainerID,
		}},
		Spec: spec,
	}
	if err := p.api.Create(ctx, kube.Claims, claim, nil); err != nil {
		return err
	}
	reservation := whereabouts.OverlappingRangeIPReservation{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "OverlappingRangeIPReservation"},
		ObjectMeta: metav1.ObjectMeta{Name: spec.Address},
		Spec:       whereabouts.OverlappingRangeIPReservationSpec{ContainerID: spec.ContainerID, PodRef: spec.PodRef, IfName: spec.IfName},
	}
	return p.api.Create(ctx, kube.Reservations(namespace), reservation, nil)
}
