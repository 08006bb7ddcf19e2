package kube

import (
	"context"
	"errors"
	"fmt"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Release gives up one claim, if it is still the attachment's.
func (s *Store) Release(ctx context.Context, claim ipam.Claim) error {
	if err := s.release(ctx, claim.Name, claim.Owner); err != nil {
		return err
	}
	return s.journal.forget(claim.Owner, claim.Name)
}

// ReleaseAll gives up what an attachment holds. What can't be had from the API server now is queued on
// disk: the pod is gone, and nobody must wait for it.
func (s *Store) ReleaseAll(ctx context.Context, owner ipam.Owner) error {
	names, err := s.releaseAll(ctx, owner)
	err = s.late(ctx, err)
	if err == nil || s.Queue == nil || cnierr.CodeOf(err) != cnierr.TryAgain {
		return err
	}
	if putErr := s.Queue.Put(queue.Release{Owner: owner, Claims: names, All: true, Why: err.Error()}); putErr != nil {
		return errors.Join(err, putErr)
	}
	s.Warn(fmt.Sprintf("the addresses of %s can't be given up now and are queued on disk: %v", owner, err))
	return nil
}

// late gives an error that came of the call's time bound the code for "try again".
func (s *Store) late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && cnierr.CodeOf(err) == cnierr.Unclassified {
		return cnierr.New(cnierr.TryAgain, "the time for this call is over: %w", err)
	}
	return err
}

// Replay carries out the releases that were queued while the API server was away. It doesn't
// insist: when the server is still away they wait for the next time.
func (s *Store) Replay(ctx context.Context) error {
	if s.Queue == nil {
		return nil
	}
	_, err := s.Queue.Replay(kubeapi.Impatient(ctx), func(ctx context.Context, r queue.Release) error {
		var errs []error
		for _, name := range r.Claims {
			errs = append(errs, s.release(ctx, name, r.Owner))
		}
		if r.All {
			_, err := s.releaseAll(ctx, r.Owner)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return err
}

// releaseAll finds an attachment's claims in the journal, else by label, and gives them up. It
// returns the names that were found, for another try.
func (s *Store) releaseAll(ctx context.Context, owner ipam.Owner) (names []string, err error) {
	p, err := s.journal.sandbox(owner)
	if err != nil {
		return nil, err
	}
	if len(p.Claims) == 0 {
		return nil, errors.Join(s.releaseLabelled(ctx, owner), s.releaseForeign(ctx, owner))
	}
	var errs []error
	for _, c := range p.Claims {
		names = append(names, c.Name)
		errs = append(errs, s.release(ctx, c.Name, owner))
	}
	if err := errors.Join(errs...); err != nil {
		return names, err
	}
	return names, s.journal.close(owner)
}

// releaseLabelled is for claims that the journal has no note of: those of an earlier boot, so that the
// list may come from the server's memory.
func (s *Store) releaseLabelled(ctx context.Context, owner ipam.Owner) error {
	var list v1alpha1.AddressClaimList
	if err := s.API.List(ctx, Claims, &list, kubeapi.Cached(), kubeapi.Labelled(v1alpha1.LabelContainer, v1alpha1.LabelValue(owner.ContainerID))); err != nil {
		return fmt.Errorf("list the claims of container %s: %w", owner.ContainerID, s.API.Explain(err))
	}
	var errs []error
	for _, object := range list.Items {
		if claim := claimOf(object); claim.SameAttachment(owner) && claim.Declined == nil {
			errs = append(errs, s.release(ctx, object.Name, owner))
		}
	}
	return errors.Join(errs...)
}

// releaseForeign gives up what a real Whereabouts recorded for this attachment before the network's
// type was changed: an entry with our container id in a pool of the configuration, without a claim.
func (s *Store) releaseForeign(ctx context.Context, owner ipam.Owner) error {
	var errs []error
	for _, pool := range s.Pools {
		v, err := s.read(ctx, pool.Name, nil, kubeapi.Cached())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for key, e := range v.object.Spec.Allocations {
			addr, ok := addressAt(v.base, key)
			if !ok || e.ContainerID != owner.ContainerID || e.IfName != owner.IfName && e.IfName != "" {
				continue
			}
			who := owner
			who.PodRef = e.PodRef
			object := objectOf(pool, pool.NewClaim(addr, who))
			errs = append(errs, s.unrecord(ctx, object, noted{Recorded: v.object.ResourceVersion}))
		}
	}
	return errors.Join(errs...)
}

// release gives up a claim if it is owner's: a claim that is gone, or another's by now, is no error.
func (s *Store) release(ctx context.Context, name string, owner ipam.Owner) error {
	n, err := s.journal.noted(owner, name)
	if err != nil {
		return err
	}
	object, err := s.markReleased(ctx, name, owner)
	if err != nil || object == nil {
		return err
	}
	if err := fault.At("ipam.del.marked"); err != nil {
		return err
	}
	if object.Spec.Declined != nil { // the quarantine stays; what it was interrupted at is completed
		return s.unrecord(ctx, *object, n)
	}
	if s.agent(ctx) {
		return nil // the recorder does the rest
	}
	return s.finishWith(ctx, *object, n)
}

// markReleased marks a claim as given up, by a patch that tests whose it is; nil when it isn't owner's. A
// quarantine is returned as it is.
func (s *Store) markReleased(ctx context.Context, name string, owner ipam.Owner) (*v1alpha1.AddressClaim, error) {
	ops := []kubeapi.Op{
		kubeapi.Test("/spec/containerID", owner.ContainerID), kubeapi.Test("/spec/ifName", owner.IfName), kubeapi.Test("/spec/declined", nil),
		kubeapi.Add("/spec/released", true), kubeapi.Add("/metadata/labels/"+kubeapi.Escape(v1alpha1.LabelState), v1alpha1.StateReleased),
	}
	var object v1alpha1.AddressClaim
	for {
		err := s.API.Patch(ctx, Claims, name, ops, &object)
		switch {
		case err == nil:
			return &object, nil
		case apierrors.IsNotFound(err):
			return nil, nil
		case apierrors.IsInvalid(err): // another's, or in quarantine: look, for a patch may be invalid for other reasons
			err := s.API.Get(ctx, Claims, name, &object)
			switch {
			case apierrors.IsNotFound(err):
				return nil, nil
			case err == nil && !claimOf(object).SameAttachment(owner):
				return nil, nil
			case err == nil && object.Spec.Declined != nil:
				return &object, nil
			case err == nil:
				err = fmt.Errorf("the API server refuses the change of claim %s, which is %s's", name, owner)
			}
			return nil, fmt.Errorf("give up claim %s: %w", name, s.API.Explain(err))
		case !apierrors.IsConflict(err) || ctx.Err() != nil:
			return nil, fmt.Errorf("give up claim %s: %w", name, s.API.Explain(err))
		}
	}
}

// finish removes what a claim that was given up, or a quarantine that is over, still holds, and then the claim.
func (s *Store) finish(ctx context.Context, object v1alpha1.AddressClaim) error {
	return s.finishWith(ctx, object, noted{})
}

func (s *Store) finishWith(ctx context.Context, object v1alpha1.AddressClaim, n noted) error {
	if err := s.unrecord(ctx, object, n); err != nil {
		return err
	}
	if err := fault.At("ipam.del.unrecorded"); err != nil {
		return err
	}
	return s.remove(ctx, Claims, object.Name, string(object.UID))
}

// remove removes an object. One that is gone, or another object of its name by now, is no error.
func (s *Store) remove(ctx context.Context, r kubeapi.Resource, name, uid string) error {
	for {
		err := s.API.Delete(ctx, r, name, uid, "")
		if apierrors.IsConflict(err) {
			var now metav1.PartialObjectMetadata
			if getErr := s.API.Get(ctx, r, name, kubeapi.Meta(&now)); getErr == nil && string(now.UID) == uid {
				if err := wait(ctx, poll); err != nil {
					return err
				}
				continue
			} else if getErr == nil || apierrors.IsNotFound(getErr) {
				return nil
			}
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove %s %s: %w", r.Plural, name, s.API.Explain(err))
		}
		return nil
	}
}

// unrecord removes a claim's entry and its reservation.
func (s *Store) unrecord(ctx context.Context, object v1alpha1.AddressClaim, n noted) error {
	return both(func() error { return s.removeEntry(ctx, object, n) }, func() error {
		if object.Spec.Isolated {
			return nil
		}
		if err := fault.At("ipam.del.entry"); err != nil {
			return err
		}
		return s.removeReservation(ctx, object.Spec, n)
	})
}

// removeReservation removes the reservation that mirrors a claim, whoever wrote it: one without a container
// id is a real Whereabouts', for the same pod. Somebody else's stays.
func (s *Store) removeReservation(ctx context.Context, spec v1alpha1.AddressClaimSpec, n noted) error {
	if n.Reservation != "" {
		return s.remove(ctx, Reservations(s.Namespace), reservationName(spec), n.Reservation)
	}
	return s.removeReservationIf(ctx, spec, func(r whereabouts.OverlappingRangeIPReservationSpec) bool {
		return r.PodRef == spec.PodRef && (r.ContainerID == "" || n.names(r.ContainerID, spec.ContainerID))
	})
}

// removeReservationIf removes the reservation of a claim's address if that is mine.
func (s *Store) removeReservationIf(ctx context.Context, spec v1alpha1.AddressClaimSpec, mine func(whereabouts.OverlappingRangeIPReservationSpec) bool) error {
	name := reservationName(spec)
	var r whereabouts.OverlappingRangeIPReservation
	err := s.API.Get(ctx, Reservations(s.Namespace), name, &r)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read reservation %s/%s: %w", s.Namespace, name, s.API.Explain(err))
	case !mine(r.Spec):
		return nil
	}
	return s.remove(ctx, Reservations(s.Namespace), name, string(r.UID))
}

// giveBack undoes a claim of this call that turned out to be another's address.
func (s *Store) giveBack(ctx context.Context, object v1alpha1.AddressClaim) error {
	if ctx.Err() != nil { // an ordinary step of an ADD, else, with all the time that the call has
		var cancel func()
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
	}
	claim := claimOf(object)
	marked, err := s.markReleased(ctx, object.Name, claim.Owner)
	if err != nil || marked == nil {
		return err
	}
	return s.finish(ctx, *marked)
}

// abandon gives up a claim of an ADD that failed, or queues that: its caller only learns that the
// ADD failed. Whether the claim was made may not be known.
func (s *Store) abandon(ctx context.Context, claim ipam.Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	err := s.late(ctx, s.Release(ctx, claim))
	if err != nil && s.Queue != nil && cnierr.CodeOf(err) == cnierr.TryAgain {
		return s.Queue.Put(queue.Release{Owner: claim.Owner, Claims: []string{claim.Name}, Why: err.Error()})
	}
	return err
}

// ReleaseAsRead gives up a claim that no attachment holds, as a DEL does, if it is as it was read; false when it isn't:
// then somebody has taken it over, or given it up. It completes what a killed DEL began.
func (s *Store) ReleaseAsRead(ctx context.Context, object v1alpha1.AddressClaim) (bool, error) {
	ops := []kubeapi.Op{
		kubeapi.Test("/metadata/uid", string(object.UID)), kubeapi.Test("/metadata/resourceVersion", object.ResourceVersion),
		kubeapi.Add("/spec/released", true), kubeapi.Add("/metadata/labels/"+kubeapi.Escape(v1alpha1.LabelState), v1alpha1.StateReleased),
	}
	var marked v1alpha1.AddressClaim
	err := s.API.Patch(ctx, Claims, object.Name, ops, &marked)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) { // a failed test, or a refusal
		getErr := s.API.Get(ctx, Claims, object.Name, &marked)
		if apierrors.IsNotFound(getErr) || getErr == nil && marked.ResourceVersion != object.ResourceVersion {
			return false, nil
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("give up claim %s, which nobody holds: %w", object.Name, s.API.Explain(err))
	}
	return true, s.finish(ctx, marked)
}
