package agent

import (
	"context"
	"sync"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	statusRetry = 5 * time.Second
	statusTime  = 5 * time.Second
	maxReason   = 1024 // characters, of the object's schema
)

// status writes how this node's parents are into their HostShims, when that has changed. It isn't done by the keeper: an API server
// that is away must not keep the kernel from being put right.
type status struct {
	mu      sync.Mutex
	reasons map[string]string // by parent; "" means ready
	wake    chan struct{}
}

func (s *status) set(reasons map[string]string) {
	s.mu.Lock()
	s.reasons = reasons
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// writeStatus runs until ctx ends.
func (a *Agent) writeStatus(ctx context.Context) error {
	again := make(<-chan time.Time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.status.wake:
		case <-again:
		}
		again = nil
		if err := a.writeStatuses(ctx); err != nil {
			a.log.Debug("the HostShims' status isn't written yet", "error", err)
			again = time.After(statusRetry)
		}
	}
}

func (a *Agent) writeStatuses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(kubeapi.Impatient(ctx), statusTime)
	defer cancel()
	if !synced(a.watches.hostShims) {
		return errNotYet
	}
	a.status.mu.Lock()
	reasons := a.status.reasons
	a.status.mu.Unlock()
	for parent, reason := range reasons {
		want := v1alpha1.HostShimStatus{Ready: metav1.ConditionTrue}
		if reason != "" {
			want = v1alpha1.HostShimStatus{Ready: metav1.ConditionFalse, Reason: shorten(reason)}
		}
		for _, h := range a.watches.shims(parent) {
			if h.Spec.Node != a.node.NodeName || h.Status == want {
				continue
			}
			if err := a.api.Patch(ctx, hostclaim.Shims, h.Name+"/status", []kubeapi.Op{kubeapi.Add("/status", want)}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// shorten cuts a reason to what the object takes.
func shorten(text string) string {
	if utf8.RuneCountInString(text) <= maxReason {
		return text
	}
	return string([]rune(text)[:maxReason-1]) + "…"
}
