package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// How recording stays right though lists of claims come from the API server's memory:
//
// A patch for all tests the pool's version p that was read, and is built from a list of claims as of a version
// L ≥ p. Suppose it brought the entry of a claim X back that is gone. X was in the list, so it
// was given up after L, and its entry, if it had one, was removed after that: the pool's version isn't p any
// more, and the patch fails. If X never had an entry, whoever gave it up found none, and changed the pool's annotations in
// its stead (see touch), to the same effect. The other way round, a claim that the list shows
// as given up stays so for ever, and the entry that p shows is older than the list: it is that claim's.
//
// A patch for one's own claim alone needs no version: it tests the one key. Who patches when is in turn.go.

// errStranger says that an address is recorded for somebody who has no claim of ours.
var errStranger = errors.New("the address is recorded for another")

const (
	mostAtOnce = 500 // claims in one patch; the API server takes 10 000 operations

	touched = v1alpha1.Group + "/given-up" // annotation of an IPPool, see touch
)

// record mirrors a claim in Whereabouts' objects, unless a recorder does; old is who the entry may name
// as yet. The error is errStranger when the address is someone's who has no claim.
func (s *Store) record(ctx context.Context, object v1alpha1.AddressClaim, old ipam.Owner) error {
	if s.agent(ctx) {
		return nil
	}
	recorded, err := s.addEntry(ctx, object, old)
	if err != nil {
		return err
	}
	if err := fault.At("ipam.add.recorded"); err != nil {
		return err
	}
	uid := ""
	if !object.Spec.Isolated {
		if uid, err = s.reserve(ctx, object.Spec); err != nil {
			return err
		}
	}
	claim := claimOf(object)
	return s.journal.note(claim.Owner, noted{Name: object.Name, Pool: claim.Pool, Address: claim.Address, Recorded: recorded, Reservation: uid})
}

// addEntry sees to it that the pool has the claim's entry, and returns a version of the pool that has. old is who
// the entry may name as yet.
func (s *Store) addEntry(ctx context.Context, object v1alpha1.AddressClaim, old ipam.Owner) (recorded string, err error) {
	if v := s.views[object.Spec.Pool]; v != nil && !s.crowd && s.Order != ipam.Sticky { // who goes by its name meets nobody
		if _, held := v.entry(addressOf(object)); !held {
			recorded, err := s.patchPool(ctx, v.object.Name, forOne(v, object))
			if err == nil || !contended(err) {
				return recorded, s.explainPool(object, err)
			}
		}
	}
	t := turn{Store: s, own: object, selector: inPool(object.Spec.Pool), mark: recordedMark}
	t.state = func(v *view) (state, error) {
		entry, held := v.entry(addressOf(object))
		switch {
		case held && entry == entryOf(object.Spec) && version(v.object.ResourceVersion) > version(object.ResourceVersion):
			return done, nil
		case held && entry.ContainerID != old.ContainerID && entry.ContainerID != object.Spec.ContainerID:
			return foreignEntry, nil
		}
		return missing, nil
	}
	return t.take(ctx)
}

// readFor reads the pool of a claim, and makes it if need be.
func (s *Store) readFor(ctx context.Context, object v1alpha1.AddressClaim, fresh bool) (*view, error) {
	pool := poolOf(object.Spec)
	if fresh {
		return s.read(ctx, object.Spec.Pool, pool)
	}
	return s.read(ctx, object.Spec.Pool, pool, kubeapi.Cached())
}

// poolOf is the pool of a claim, as far as making its object needs it; nil where the claim doesn't say its range.
func poolOf(spec v1alpha1.AddressClaimSpec) *ipam.Pool {
	whole, err := netip.ParsePrefix(spec.Range)
	if err != nil {
		return nil
	}
	return &ipam.Pool{Name: spec.Pool, Range: whole}
}

// forOne adds a claim's entry, or replaces that of an older sandbox.
func forOne(v *view, object v1alpha1.AddressClaim) []kubeapi.Op {
	path := entryPath(v, addressOf(object))
	entry, held := v.entry(addressOf(object))
	test := kubeapi.Test(path, nil)
	if held {
		test = kubeapi.Test(path+"/id", entry.ContainerID)
	}
	return append(prepare(v), test, kubeapi.Add(path, entryOf(object.Spec)))
}

// difference is what one claim's entry lacks: nothing when it is as it must be, or somebody
// else's. An entry of another sandbox is left to who took the claim over.
func difference(v *view, c v1alpha1.AddressClaim) []kubeapi.Op {
	addr := addressOf(c)
	if !addr.IsValid() {
		return nil
	}
	entry, held := v.entry(addr)
	path := entryPath(v, addr)
	switch {
	case live(c) && !held:
		return []kubeapi.Op{kubeapi.Test(path, nil), kubeapi.Add(path, entryOf(c.Spec))}
	case !live(c) && held && entry.ContainerID == c.Spec.ContainerID && entry.IfName == c.Spec.IfName:
		return []kubeapi.Op{kubeapi.Test(path+"/id", entry.ContainerID), kubeapi.Remove(path)}
	default:
		return nil
	}
}

func entryPath(v *view, addr netip.Addr) string { return "/spec/allocations/" + keyOf(v.base, addr) }

// guarded makes a patch fail when the pool was changed meanwhile.
func guarded(v *view) []kubeapi.Op {
	return []kubeapi.Op{kubeapi.Test("/metadata/resourceVersion", v.object.ResourceVersion)}
}

// prepare makes a pool fit for entries. The list of managed fields names each entry once more for each program that wrote
// one; nobody needs it, and without it a write of a big pool takes half the time.
func prepare(v *view) []kubeapi.Op {
	var ops []kubeapi.Op
	if len(v.object.ManagedFields) > 0 {
		ops = append(ops, kubeapi.Add("/metadata/managedFields", []struct{}{{}}))
	}
	if v.object.Spec.Allocations == nil {
		ops = append(ops, kubeapi.Test("/spec/allocations", nil), kubeapi.Add("/spec/allocations", struct{}{}))
	}
	return ops
}

// patchPool changes a pool and returns its version then. It waits for nobody.
func (s *Store) patchPool(ctx context.Context, name string, ops []kubeapi.Op) (string, error) {
	var after struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	err := s.API.Patch(ctx, Pools(s.Namespace), name, ops, kubeapi.Meta(&after))
	return after.Metadata.ResourceVersion, err
}

// reserve sees to it that the address's reservation is this pod's, and returns its UID.
func (s *Store) reserve(ctx context.Context, spec v1alpha1.AddressClaimSpec) (uid string, err error) {
	want := reservationOf(spec, s.Namespace)
	for {
		var made whereabouts.OverlappingRangeIPReservation
		err := s.API.Create(ctx, Reservations(s.Namespace), want, &made)
		if err == nil {
			return string(made.UID), nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return "", fmt.Errorf("reserve %s: %w", want.Name, s.API.Explain(err))
		}
		uid, err := s.keepReservation(ctx, want)
		if !apierrors.IsNotFound(err) {
			return uid, err
		}
	}
}

// keepReservation takes over a reservation of the same pod and interface.
func (s *Store) keepReservation(ctx context.Context, want whereabouts.OverlappingRangeIPReservation) (uid string, err error) {
	var r whereabouts.OverlappingRangeIPReservation
	if err := s.API.Get(ctx, Reservations(s.Namespace), want.Name, &r); err != nil {
		return "", s.explainReservation(want.Name, err)
	}
	if r.Spec.PodRef != want.Spec.PodRef || r.Spec.IfName != "" && r.Spec.IfName != want.Spec.IfName {
		return "", errStranger
	}
	if r.Spec == want.Spec {
		return string(r.UID), nil
	}
	ops := []kubeapi.Op{kubeapi.Test("/metadata/uid", string(r.UID)), kubeapi.Test("/spec/podref", r.Spec.PodRef), kubeapi.Add("/spec", want.Spec)}
	err = s.API.Patch(ctx, Reservations(s.Namespace), want.Name, ops, nil)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) { // it has changed hands: look again
		return "", apierrors.NewNotFound(schema.GroupResource{Group: whereaboutsGroup, Resource: "overlappingrangeipreservations"}, want.Name)
	}
	return string(r.UID), s.explainReservation(want.Name, err)
}

func (s *Store) explainReservation(name string, err error) error {
	if err == nil || apierrors.IsNotFound(err) {
		return err
	}
	return fmt.Errorf("reservation %s/%s: %w", s.Namespace, name, s.API.Explain(err))
}

// avoidReserved notes which addresses others have reserved, when one was met: with overlapping ranges
// there may be many, and each would be claimed in vain.
func (s *Store) avoidReserved(ctx context.Context, pool ipam.Pool) {
	var list whereabouts.OverlappingRangeIPReservationList
	if pool.Isolated || s.API.List(ctx, Reservations(s.Namespace), &list, kubeapi.Cached()) != nil {
		return // then they are met one by one
	}
	for _, r := range list.Items {
		s.strangers[r.Name] = true
	}
}

// removeEntry removes a claim's entry, if it has one that is its own. n is what the journal knows.
func (s *Store) removeEntry(ctx context.Context, object v1alpha1.AddressClaim, n noted) error {
	var last *view
	t := turn{
		Store: s, own: object, mark: removedMark, since: n.Recorded,
		selector: inPool(object.Spec.Pool) + "," + v1alpha1.LabelState, // those that have one: given up, or in quarantine
	}
	t.state = func(v *view) (state, error) {
		last = v
		entry, held := v.entry(addressOf(object))
		if !held || !n.names(entry.ContainerID, object.Spec.ContainerID) || entry.IfName != "" && entry.IfName != object.Spec.IfName {
			if !held && n.Recorded == "" && object.ResourceVersion != "" {
				return done, s.touch(ctx, v, object.Name)
			}
			return done, nil
		}
		return missing, nil
	}
	_, err := t.take(ctx)
	if apierrors.IsNotFound(err) && last == nil {
		return nil // there is no such pool
	}
	return err
}

// inPool selects the claims of a pool.
func inPool(pool string) string { return v1alpha1.LabelPool + "=" + v1alpha1.LabelValue(pool) }

// contended says that a patch of a pool came too late.
func contended(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err)
}

func (s *Store) explainPool(object v1alpha1.AddressClaim, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write %s of IPPool %s/%s: %w", object.Spec.Address, s.Namespace, object.Spec.Pool, s.API.Explain(err))
}

// touch changes a pool that has no entry of a claim that is being given up: see the top of this file.
func (s *Store) touch(ctx context.Context, v *view, claim string) error {
	op := kubeapi.Add("/metadata/annotations", map[string]string{touched: claim})
	if v.object.Annotations != nil {
		op = kubeapi.Add("/metadata/annotations/"+kubeapi.Escape(touched), fmt.Sprintf("%s %08x", claim, rand.Uint32()))
	}
	for {
		_, err := s.patchPool(ctx, v.object.Name, append(prepare(v), op))
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return fmt.Errorf("touch IPPool %s/%s: %w", s.Namespace, v.object.Name, s.API.Explain(err))
		}
		if err := wait(ctx, rand.N(poll)); err != nil {
			return err
		}
	}
}

func addressOf(o v1alpha1.AddressClaim) netip.Addr { return claimOf(o).Address }
