package recorder

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
)

// errOther says that another recorder holds the Lease.
var errOther = errors.New("another recorder holds the Lease")

// hold takes the Lease if nobody has it, or renews it. The error is errOther when somebody else has it; any other one
// may pass.
func (r *Recorder) hold(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := r.tryHold(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errOther) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		r.Log.Warn("the recorder's Lease can't be had", "error", err)
	}
	return err
}

func (r *Recorder) tryHold(ctx context.Context) error {
	leases := kube.Leases(r.Namespace)
	var lease kube.Lease
	err := r.API.Get(ctx, leases, kube.RecorderLease, &lease)
	now := metav1.NewMicroTime(time.Now())
	switch {
	case apierrors.IsNotFound(err):
		lease = kube.Lease{
			TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Name: kube.RecorderLease, Namespace: r.Namespace},
		}
		r.take(&lease, now)
		return r.API.Create(ctx, leases, lease, nil)
	case err != nil:
		return err
	case lease.Spec.HolderIdentity != r.Identity && lease.Fresh(r.API.Now()):
		return fmt.Errorf("%w: %s", errOther, lease.Spec.HolderIdentity)
	case lease.Spec.HolderIdentity != r.Identity:
		r.take(&lease, now)
	}
	lease.Spec.RenewTime = &now
	return r.API.Update(ctx, leases, kube.RecorderLease, lease, nil)
}

func (r *Recorder) take(lease *kube.Lease, now metav1.MicroTime) {
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds = r.Identity, int(kube.LeaseFresh.Seconds())
	lease.Spec.AcquireTime, lease.Spec.RenewTime = &now, &now
	lease.Spec.LeaseTransitions++
}

// giveUp gives the Lease back, if it is ours.
func (r *Recorder) giveUp(ctx context.Context) error {
	var lease kube.Lease
	err := r.API.Get(ctx, kube.Leases(r.Namespace), kube.RecorderLease, &lease)
	if err != nil || lease.Spec.HolderIdentity != r.Identity {
		return nil //nolint:nilerr // it ends by itself
	}
	lease.Spec.HolderIdentity = ""
	if err := r.API.Update(ctx, kube.Leases(r.Namespace), kube.RecorderLease, lease, nil); err != nil {
		return fmt.Errorf("give the recorder's Lease back: %w", r.API.Explain(err))
	}
	return nil
}
