package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	leftWait = 30 * time.Second // for a recorder that gives back what hundreds of pods held
	leftPoll = 50 * time.Millisecond
)

// leftover is what a case's pods still hold after the last DEL: claims, entries of
// the pool or reservations.
type leftover struct {
	looked bool
	held   []string      // in the end
	last   time.Duration // when something was still held; 0: at the first look there was nothing any more
}

// leftOf looks until the case's pods hold nothing. With a recorder that takes a
// moment, which is part of what the case costs; without one nobody does it later,
// so that one look is enough.
func (c *cluster) leftOf(ctx context.Context, t testCase) (left leftover, err error) {
	start := time.Now()
	for {
		if left.held, err = c.held(ctx, t); err != nil || len(left.held) == 0 {
			left.looked = err == nil
			return left, err
		}
		left.looked, left.last = true, time.Since(start)
		if !t.byAgent() || left.last > leftWait {
			return left, nil
		}
		select {
		case <-ctx.Done():
			return left, ctx.Err()
		case <-time.After(leftPoll):
		}
	}
}

// held names what the case's pods hold.
func (c *cluster) held(ctx context.Context, t testCase) ([]string, error) {
	var claims v1alpha1.AddressClaimList
	if err := c.api.List(ctx, kube.Claims, &claims, kubeapi.Labelled(v1alpha1.LabelNetwork, t.networkName())); err != nil {
		return nil, err
	}
	var held []string
	for _, claim := range claims.Items {
		held = append(held, "claim "+claim.Name)
	}
	entries, err := c.heldEntries(ctx, t)
	if held = append(held, entries...); err != nil || len(held) > 0 {
		return held, err // with a full pool the reservations are dear to list
	}
	return c.heldReservations(ctx, t)
}

func (c *cluster) heldEntries(ctx context.Context, t testCase) (held []string, err error) {
	var pool whereabouts.IPPool
	if err := c.api.Get(ctx, kube.Pools(namespace), t.poolName(), &pool); err != nil {
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return nil, err
	}
	for key, entry := range pool.Spec.Allocations {
		if ofStorm(entry.PodRef) {
			held = append(held, fmt.Sprintf("entry %s of pool %s", key, t.poolName()))
		}
	}
	return held, nil
}

func (c *cluster) heldReservations(ctx context.Context, t testCase) (held []string, err error) {
	var list whereabouts.OverlappingRangeIPReservationList
	if err := c.api.List(ctx, kube.Reservations(namespace), &list); err != nil {
		return nil, err
	}
	for _, reservation := range list.Items {
		addr, err := netip.ParseAddr(reservation.Name)
		if err == nil && t.pool().Contains(addr) && ofStorm(reservation.Spec.PodRef) {
			held = append(held, "reservation "+reservation.Name)
		}
	}
	return held, nil
}

// ofStorm tells the pods that the cases attach from those that fill a pool.
func ofStorm(podRef string) bool { return strings.HasPrefix(podRef, storm.Namespace+"/") }
