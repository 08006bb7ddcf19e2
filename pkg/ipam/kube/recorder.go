package kube

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// RecorderLease is the Lease, in the namespace of Whereabouts' objects, that the recorder holds; an ADD leaves recording to
// the recorder only while the Lease was renewed within LeaseFresh.
const (
	RecorderLease = "lhstorage-recorder"
	LeaseFresh    = 30 * time.Second
	LeaseSeen     = 2 * time.Second // a node's processes ask once in this time: hundreds may start at once
)

// Lease is a coordination.k8s.io/v1 Lease, as far as it is needed.
type Lease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              LeaseSpec `json:"spec"`
}

// LeaseSpec says who holds a lease since when.
type LeaseSpec struct {
	HolderIdentity       string            `json:"holderIdentity"`
	LeaseDurationSeconds int               `json:"leaseDurationSeconds,omitempty"`
	AcquireTime          *metav1.MicroTime `json:"acquireTime,omitempty"`
	RenewTime            *metav1.MicroTime `json:"renewTime,omitempty"`
	LeaseTransitions     int               `json:"leaseTransitions,omitempty"`
}

// Leases are the leases of a namespace.
func Leases(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: "coordination.k8s.io", Version: "v1", Plural: "leases", Namespace: namespace}
}

// Fresh says whether somebody holds the lease and renewed it a short while before now.
func (l Lease) Fresh(now time.Time) bool {
	return l.Spec.HolderIdentity != "" && l.Spec.RenewTime != nil && now.Sub(l.Spec.RenewTime.Time) < LeaseFresh
}

// recorderRuns says whether a recorder mirrors claims now. Where that can't be told it doesn't:
// then this call records for itself.
func (s *Store) recorderRuns(ctx context.Context) bool {
	if s.journal.recorderSeen() {
		return true
	}
	var lease Lease
	err := s.API.Get(ctx, Leases(s.Namespace), RecorderLease, &lease, kubeapi.Cached())
	if err != nil || !lease.Fresh(s.API.Now()) {
		return false
	}
	s.journal.noteRecorder(min(LeaseSeen, LeaseFresh-s.API.Now().Sub(lease.Spec.RenewTime.Time)))
	return true
}
