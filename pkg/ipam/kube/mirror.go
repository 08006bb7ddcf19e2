package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Mirror brings Whereabouts' objects of one pool in line with its claims: it is what a recorder does for
// nodes with `record: agent`. claims are all claims of the pool as of a version. An error leaves a state from which the next
// call goes on; it returns whether there was something to do.
func (s *Store) Mirror(ctx context.Context, pool string, claims []v1alpha1.AddressClaim, asOf string) (changed bool, err error) {
	if len(claims) == 0 {
		return false, nil
	}
	v, err := s.readFor(ctx, claims[0], true)
	if err != nil {
		return false, err
	}
	if version(asOf) < version(v.object.ResourceVersion) && v.object.ResourceVersion != s.written[pool] {
		if claims, err = s.claimsOf(ctx, pool); err != nil { // somebody else writes this pool, too
			return false, err
		}
	}
	for len(claims) > 0 {
		ops, rest := batch(v, claims)
		if len(ops) == 0 {
			return changed, nil
		}
		after, err := s.patchPool(ctx, pool, append(append(guarded(v), prepare(v)...), ops...))
		if err != nil {
			return changed, fmt.Errorf("record claims in IPPool %s/%s: %w", s.Namespace, pool, s.API.Explain(err))
		}
		s.written[pool], v.object.ResourceVersion, v.object.ManagedFields = after, after, nil
		changed, claims = true, rest
	}
	return changed, nil
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

// takenOver is what a claim's entry lacks that names an older sandbox.
func takenOver(v *view, c v1alpha1.AddressClaim) []kubeapi.Op {
	addr := addressOf(c)
	entry, held := v.entry(addr)
	if !addr.IsValid() || !live(c) || !held || entry == entryOf(c.Spec) || entry.PodRef != c.Spec.PodRef || entry.IfName != "" && entry.IfName != c.Spec.IfName {
		return nil
	}
	path := entryPath(v, addr)
	return []kubeapi.Op{kubeapi.Test(path+"/id", entry.ContainerID), kubeapi.Add(path, entryOf(c.Spec))}
}

// claimsOf lists the claims of a pool as they are.
func (s *Store) claimsOf(ctx context.Context, pool string) ([]v1alpha1.AddressClaim, error) {
	var list v1alpha1.AddressClaimList
	if err := s.API.List(ctx, Claims, &list, kubeapi.Labelled(v1alpha1.LabelPool, v1alpha1.LabelValue(pool))); err != nil {
		return nil, fmt.Errorf("list the claims of pool %s: %w", pool, s.API.Explain(err))
	}
	var claims []v1alpha1.AddressClaim
	for _, c := range list.Items {
		if c.Spec.Pool == pool {
			claims = append(claims, c)
		}
	}
	return claims, nil
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
		if err := s.removeReservation(ctx, object.Spec, noted{}); err != nil {
			return err
		}
	}
	if !object.Spec.Released && !over(object, s.API.Now()) {
		return nil
	}
	return s.remove(ctx, Claims, object.Name, string(object.UID))
}
