package kube

import (
	"context"
	"errors"
	"fmt"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Mirror brings Whereabouts' objects of one pool in line with its claims: it is what a recorder does for
// nodes with `record: agent`. claims are all claims of the pool as of a version. An error leaves a state from which the next
// call goes on; it returns whether there was something to do.
func (s *Store) Mirror(ctx context.Context, pool string, claims []v1alpha1.AddressClaim, asOf string) (changed bool, err error) {
	for len(claims) > 0 {
		v, err := s.readFor(ctx, claims[0], true)
		if err != nil {
			return changed, err
		}
		if version(asOf) < v.removedAsOf() { // somebody else removes entries of this pool, too
			if claims, asOf, err = s.claimsOf(ctx, pool); err != nil {
				return changed, err
			}
		}
		ops, rest := batch(v, claims)
		notes := summarise(v, ops)
		if len(ops) == 0 && len(notes) == 0 {
			return changed, nil
		}
		if _, err := s.patchPool(ctx, pool, patchOf(v, ops, newest(claims), notes)); err != nil {
			return changed, fmt.Errorf("record claims in IPPool %s/%s: %w", s.Namespace, pool, s.API.Explain(err))
		}
		changed, claims = true, rest
	}
	return changed, nil
}

// newest is the newest version of some claims.
func newest(claims []v1alpha1.AddressClaim) (v uint64) {
	for _, c := range claims {
		v = max(v, version(c.ResourceVersion))
	}
	return v
}

// batch is the operations for the first claims that need one, and the claims after these.
func batch(v *view, claims []v1alpha1.AddressClaim) (ops []kubeapi.Op, rest []v1alpha1.AddressClaim) {
	n := 0
	for i, c := range claims {
		if n == mostAtOnce {
			return ops, claims[i:]
		}
		more := append(difference(v, c), takenOver(v, c)...)
		if len(more) > 0 {
			n++
		}
		ops = append(ops, more...)
	}
	return ops, nil
}

// takenOver is what a claim's entry lacks that names an older sandbox of the same pod's interface: the new one's id, or its
// removal when that was given up before it was recorded.
func takenOver(v *view, c v1alpha1.AddressClaim) []kubeapi.Op {
	addr := addressOf(c)
	entry, held := v.entry(addr)
	if !addr.IsValid() || !held || entry.ContainerID == c.Spec.ContainerID || !ofPod(c.Spec, entry.PodRef, entry.IfName) {
		return nil
	}
	path := entryPath(v, addr)
	test := kubeapi.Test(path+"/id", entry.ContainerID)
	if live(c) {
		return []kubeapi.Op{test, kubeapi.Add(path, entryOf(c.Spec))}
	}
	return []kubeapi.Op{test, kubeapi.Remove(path)}
}

// ofPod says whether a record is of the pod and the interface that a claim is for. Records of an older Whereabouts don't name the interface.
func ofPod(spec v1alpha1.AddressClaimSpec, podRef, ifName string) bool {
	return podRef == spec.PodRef && (ifName == "" || ifName == spec.IfName)
}

// claimsOf lists the claims of a pool as they are, and says as of which version.
func (s *Store) claimsOf(ctx context.Context, pool string) (claims []v1alpha1.AddressClaim, asOf string, err error) {
	var list v1alpha1.AddressClaimList
	if err := s.API.List(ctx, Claims, &list, kubeapi.Labelled(v1alpha1.LabelPool, v1alpha1.LabelValue(pool))); err != nil {
		return nil, "", fmt.Errorf("list the claims of pool %s: %w", pool, s.API.Explain(err))
	}
	for _, c := range list.Items {
		if c.Spec.Pool == pool {
			claims = append(claims, c)
		}
	}
	return claims, list.ResourceVersion, nil
}

// settleLive reserves a claim's address. The claim may have gone since it was listed: then the reservation goes, too.
func (s *Store) settleLive(ctx context.Context, object v1alpha1.AddressClaim) error {
	uid, err := s.reserve(ctx, object.Spec)
	switch {
	case errors.Is(err, errStranger):
		return fmt.Errorf("%s is claimed by %s, but its reservation is another pod's: does a real Whereabouts use overlapping ranges? Then set record: sync in the node files",
			object.Spec.Address, claimOf(object).Owner)
	case err != nil:
		return err
	}
	var now v1alpha1.AddressClaim
	err = s.API.Get(ctx, Claims, object.Name, &now)
	switch {
	case err == nil && now.UID == object.UID && live(now):
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("read claim %s again: %w", object.Name, s.API.Explain(err))
	}
	return s.removeReservation(ctx, object.Spec, noted{Reservation: uid})
}

// Reserved names those of some claims that are live and whose reservation is as it must be.
func (s *Store) Reserved(ctx context.Context, claims []v1alpha1.AddressClaim) (map[string]bool, error) {
	var list whereabouts.OverlappingRangeIPReservationList
	if err := s.API.List(ctx, Reservations(s.Namespace), &list); err != nil {
		return nil, fmt.Errorf("list the reservations of namespace %s: %w", s.Namespace, s.API.Explain(err))
	}
	specs := map[string]whereabouts.OverlappingRangeIPReservationSpec{}
	for _, r := range list.Items {
		specs[r.Name] = r.Spec
	}
	reserved := map[string]bool{}
	for _, c := range claims {
		if want := reservationOf(c.Spec, s.Namespace); live(c) && !c.Spec.Isolated && specs[want.Name] == want.Spec {
			reserved[c.Name] = true
		}
	}
	return reserved, nil
}

// Settle does for one claim what comes after the pool: a live one is reserved, one that was given
// up, or whose quarantine is over, loses its reservation and then goes itself.
func (s *Store) Settle(ctx context.Context, object v1alpha1.AddressClaim) error {
	if live(object) {
		if object.Spec.Isolated {
			return nil
		}
		return s.settleLive(ctx, object)
	}
	if !object.Spec.Isolated {
		// Of another sandbox of the pod, too: one that was taken over and given up before the recorder came to it.
		if err := s.removeReservationIf(ctx, object.Spec, func(r whereabouts.OverlappingRangeIPReservationSpec) bool {
			return ofPod(object.Spec, r.PodRef, r.IfName)
		}); err != nil {
			return err
		}
	}
	if !object.Spec.Released && !over(object, s.API.Now()) {
		return nil
	}
	return s.remove(ctx, Claims, object.Name, string(object.UID))
}
