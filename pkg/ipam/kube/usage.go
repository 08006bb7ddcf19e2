package kube

import (
	"context"
	"fmt"
	"net/netip"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Usages says how full pools are, by name. claims are all that there are; what Whereabouts' pools hold besides, by a real
// Whereabouts' hand, counts, too. That takes one list, which may be a little old.
func (s *Store) Usages(ctx context.Context, pools []ipam.Pool, claims []v1alpha1.AddressClaim) (map[string]ipam.Usage, error) {
	taken := Claimed(claims)
	wanted := map[string]ipam.Pool{}
	for _, p := range pools {
		wanted[p.Name] = p
	}
	err := kubeapi.Each(ctx, s.API, Pools(s.Namespace), func(object whereabouts.IPPool) {
		if pool, ok := wanted[object.Name]; ok {
			taken[object.Name] = append(taken[object.Name], Recorded(pool, object)...)
		}
	}, kubeapi.Cached())
	if err != nil && !apierrors.IsNotFound(err) { // where Whereabouts' kinds aren't there nobody holds any
		return nil, fmt.Errorf("list IPPools in %s: %w", s.Namespace, s.API.Explain(err))
	}
	usages := map[string]ipam.Usage{}
	for _, p := range pools {
		usages[p.Name] = p.Usage(taken[p.Name])
	}
	return usages, nil
}

// Claimed are the addresses that claims hold, by pool.
func Claimed(claims []v1alpha1.AddressClaim) map[string][]netip.Addr {
	taken := map[string][]netip.Addr{}
	for _, c := range claims {
		if addr, err := netip.ParseAddr(c.Spec.Address); err == nil {
			taken[c.Spec.Pool] = append(taken[c.Spec.Pool], addr)
		}
	}
	return taken
}

// Recorded are the addresses that a pool's object holds.
func Recorded(pool ipam.Pool, object whereabouts.IPPool) (taken []netip.Addr) {
	for key := range object.Spec.Allocations {
		if addr, ok := EntryAddress(pool, key); ok {
			taken = append(taken, addr)
		}
	}
	return taken
}

// AllSliced are the pools of all nodes that have a slice of these, as [Store.Sliced] makes one node's. A network whose
// NodeSlicePool isn't there has none.
func (s *Store) AllSliced(ctx context.Context, pools []ipam.Pool, network string) ([]ipam.Pool, error) {
	var all []ipam.Pool
	for _, pool := range pools {
		name := network
		if pool.NetworkName != "" {
			name = pool.NetworkName
		}
		object, err := s.readSlices(ctx, name, kubeapi.Cached())
		if err != nil {
			return nil, err
		}
		whole := true
		for _, a := range object.Status.Allocations {
			slice, err := netip.ParsePrefix(a.SliceRange)
			if err != nil || !pool.Range.Contains(slice.Addr()) {
				continue
			}
			whole = false
			if a.NodeName == "" {
				continue
			}
			if part, err := pool.Sliced(a.NodeName, slice); err == nil {
				all = append(all, part)
			}
		}
		if whole && object.Metadata.Name != "" { // of another family than the slices
			all = append(all, pool)
		}
	}
	return all, nil
}
