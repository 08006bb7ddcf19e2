package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	fillers     = 16 // objects under way at once
	fillNetName = "elsewhere"

	// fillPatience is after how much time a case takes no further turn on a pool: on a
	// full one a call takes a second.
	fillPatience = 12 * time.Second
)

// byFill measures single calls of the IPAM plugins on pools of several sizes, of
// which other pods hold more and more.
func (b *bench) byFill(ctx context.Context) error {
	pools := map[int]*filledPool{}
	for _, st := range b.stages {
		if pools[st.network] == nil {
			pools[st.network] = &filledPool{cluster: b.cluster, testCase: st.cases[0]}
		}
		b.progress.say("making %d entries of the pool for %s", st.entries, st.label)
		if err := pools[st.network].fill(ctx, st.entries); err != nil {
			return fmt.Errorf("make %d entries of pool %s: %w", st.entries, st.cases[0].pool(), err)
		}
		subjects, err := b.newSubjects(st.cases)
		if err != nil {
			return err
		}
		if err := b.compare(ctx, subjects, 1, effort{turns: b.repeats / 2, patience: fillPatience, weigh: true}); err != nil {
			return err
		}
	}
	return nil
}

// filledPool is a pool with the addresses of pods elsewhere, the lowest ones.
type filledPool struct {
	*cluster
	testCase
	filled int // addresses
}

// fill makes the objects that lhstorage-ipam makes, up to a number of addresses:
// with them it is a pool that has been in use, for whereabouts too.
func (p *filledPool) fill(ctx context.Context, entries int) error {
	pool := whereabouts.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: p.poolName()},
		Spec:       whereabouts.IPPoolSpec{Range: p.pool().String(), Allocations: map[string]whereabouts.IPAllocation{}},
	}
	var missing []v1alpha1.AddressClaimSpec
	addr := p.pool().Addr()
	for key := 1; key <= entries; key++ {
		addr = addr.Next()
		spec := v1alpha1.AddressClaimSpec{
			Address: addr.String(), Pool: p.poolName(), Range: p.pool().String(), Network: fillNetName, Node: fillNetName,
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
	p.filled = entries
	err := p.api.Create(ctx, kube.Pools(namespace), pool, nil)
	if apierrors.IsAlreadyExists(err) {
		return p.api.Patch(ctx, kube.Pools(namespace), p.poolName(), []kubeapi.Op{kubeapi.Add("/spec/allocations", pool.Spec.Allocations)}, nil)
	}
	return err
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
