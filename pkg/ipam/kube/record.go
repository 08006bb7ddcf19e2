package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// How recording stays right though lists of claims come from the API server's memory:
//
// Each removal of an entry notes in the pool's annotation [givenUp], in the same patch, the newest version of the claims
// that it was for (that is their mark's: they were given up as of it), and a random number. The version there never gets less. A patch for all
// tests that the annotation is as it was read, and is built from a list of claims as of a version L that is that version or later.
// Suppose it brought the entry of a claim X back that is gone. X was in the list as a live one, so it was given up at a version r > L. Whoever
// gave it up removed its entry after that, or found none and wrote the annotation in its stead (see touch): in either case the annotation says r or more
// before X's name is free. Were that so when the pool was read, L would be r or later; since it came later the test fails. The other way round, a claim that the list shows
// as given up stays so for ever, and an entry of its container that is there while the annotation is unchanged is its own.
//
// What a real Whereabouts writes meanwhile doesn't matter: it changes no annotation, and each key is tested besides.
// A patch that adds one's own claim's entry alone needs no more than that test of the key. Who patches when is in turn.go.

// errStranger says that an address is recorded for somebody who has no claim of ours.
var errStranger = errors.New("the address is recorded for another")

const (
	mostAtOnce = 500 // claims in one patch; the API server takes 10 000 operations

	givenUp = v1alpha1.Group + "/given-up" // annotation: claims were given up as of this version at the latest, and removed
)

// record mirrors a claim in Whereabouts' objects, unless a recorder does; old is who the entry may name
// as yet. The error is errStranger when the address is someone's who has no claim.
func (s *Store) record(ctx context.Context, object v1alpha1.AddressClaim, old ipam.Owner) error {
	if s.agent(ctx) {
		return nil
	}
	var recorded, uid string
	err := both(func() (err error) {
		recorded, err = s.addEntry(ctx, object, old)
		return err
	}, func() (err error) {
		if !object.Spec.Isolated {
			uid, err = s.reserve(ctx, object.Spec)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := fault.At("ipam.add.recorded"); err != nil {
		return err
	}
	claim := claimOf(object)
	return s.journal.note(claim.Owner, noted{Name: object.Name, Pool: claim.Pool, Address: claim.Address, Recorded: recorded, Reservation: uid})
}

// both does two things at once that don't depend on each other: each is a call that waits for the disk of etcd.
func both(one, other func() error) error {
	var first error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		first = one()
	}()
	second := other()
	<-ended
	return errors.Join(first, second)
}

// addEntry sees to it that the pool has the claim's entry, and returns a version of the pool that has. old is who
// the entry may name as yet.
func (s *Store) addEntry(ctx context.Context, object v1alpha1.AddressClaim, old ipam.Owner) (recorded string, err error) {
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

// removedAsOf is the version as of which claims were given up whose entries were removed; 0 if none was.
func (v *view) removedAsOf() uint64 {
	asOf, _, _ := strings.Cut(v.object.Annotations[givenUp], ".")
	return version(asOf)
}

// removal is what a removal notes.
func removal(asOf uint64) string { return fmt.Sprintf("%d.%08x", asOf, rand.Uint32()) }

func removes(ops []kubeapi.Op) bool {
	return slices.ContainsFunc(ops, func(op kubeapi.Op) bool { return op.Op == "remove" })
}

// guarded makes a patch fail when an entry was removed meanwhile.
func guarded(v *view) []kubeapi.Op {
	if v.object.Annotations == nil {
		return []kubeapi.Op{kubeapi.Test("/metadata/annotations", nil)}
	}
	if now, ok := v.object.Annotations[givenUp]; ok {
		return []kubeapi.Op{kubeapi.Test(annotationPath(givenUp), now)}
	}
	return []kubeapi.Op{kubeapi.Test(annotationPath(givenUp), nil)}
}

// patchOf is a patch that is guarded, with what it is to note; asOf is the newest version of the claims that it is for, which
// a removal notes.
func patchOf(v *view, ops []kubeapi.Op, asOf uint64, notes map[string]string) []kubeapi.Op {
	if removes(ops) {
		notes[givenUp] = removal(max(asOf, v.removedAsOf()))
	}
	return slices.Concat(guarded(v), prepare(v), ops, annotate(v, notes))
}

// annotate notes something in a pool's annotations, in a patch that is guarded.
func annotate(v *view, notes map[string]string) []kubeapi.Op {
	if v.object.Annotations == nil && len(notes) > 0 {
		return []kubeapi.Op{kubeapi.Add("/metadata/annotations", notes)}
	}
	var ops []kubeapi.Op
	for key, text := range notes {
		ops = append(ops, kubeapi.Add(annotationPath(key), text))
	}
	return ops
}

func annotationPath(key string) string { return "/metadata/annotations/" + kubeapi.Escape(key) }

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
	var after metav1.PartialObjectMetadata
	err := s.API.Patch(ctx, Pools(s.Namespace), name, ops, kubeapi.Meta(&after))
	return after.ResourceVersion, err
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
			if !held && object.ResourceVersion != "" {
				return done, s.touch(ctx, v, object)
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

// touch notes that a claim was given up of which a pool has no entry: see the top of this file.
func (s *Store) touch(ctx context.Context, v *view, claim v1alpha1.AddressClaim) error {
	for asOf := version(claim.ResourceVersion); v.removedAsOf() < asOf; {
		_, err := s.patchPool(ctx, v.object.Name, patchOf(v, nil, asOf, map[string]string{givenUp: removal(asOf)}))
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if !contended(err) {
			return fmt.Errorf("note in IPPool %s/%s that a claim was given up: %w", s.Namespace, v.object.Name, s.API.Explain(err))
		}
		if err := wait(ctx, rand.N(poll)); err != nil {
			return err
		}
		if v, err = s.read(ctx, v.object.Name, nil); err != nil {
			return err
		}
	}
	return nil
}

func addressOf(o v1alpha1.AddressClaim) netip.Addr { return claimOf(o).Address }
