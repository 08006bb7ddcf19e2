package hostclaim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Fate is what became of a place in [Claimer.Sweep].
type Fate string

// The fates.
const (
	Lives    Fate = "lives"    // its Node is there
	Returned Fate = "returned" // its Node is there again
	Marked   Fate = "marked"   // its Node is gone, which nobody had noticed
	Kept     Fate = "kept"     // its Node is gone, but may come back, or the place can't be judged from here
	Answers  Fate = "answers"  // its Node is gone for good, but something has its addresses
	Removed  Fate = "removed"
)

// Marks says whether a place is marked as that of a node that has left.
func Marks(h *v1alpha1.HostShim) bool { return h.Annotations[goneAnnotation] != "" }

// Sweep looks after the place of a node that seems to have left: it is marked at once, and removed when the node has been gone
// for the grace time and nothing answers at its addresses. A Node that isn't Ready is there. Where here is false this
// node isn't on the place's parent: what answers there can't be told from here, and the place stays.
func (c *Claimer) Sweep(ctx context.Context, h *v1alpha1.HostShim, grace time.Duration, here bool) (Fate, error) {
	lives, err := c.lives(ctx, h.Spec.Node)
	if err != nil {
		return Kept, err
	}
	fate, err := c.sweep(ctx, h, lives, grace, here)
	switch {
	case errors.Is(err, errAgain): // somebody changed it: the next time tells
		return Kept, nil
	case err != nil:
		return Kept, err
	}
	return fate, nil
}

func (c *Claimer) sweep(ctx context.Context, h *v1alpha1.HostShim, lives bool, grace time.Duration, here bool) (Fate, error) {
	switch {
	case lives && Marks(h):
		return Returned, c.returned(ctx, h)
	case lives:
		return Lives, nil
	}
	marked := Marks(h)
	since, err := c.missed(ctx, h)
	switch {
	case err != nil:
		return Kept, err
	case !marked:
		return Marked, nil
	case c.API.Now().Sub(since) < grace || !here:
		return Kept, nil
	case c.answerer(ctx, h).IsValid():
		return Answers, nil
	}
	return Removed, c.removeGone(ctx, h)
}

// returned forgets that the node of an object was missed: should it leave again, its grace begins anew.
func (c *Claimer) returned(ctx context.Context, h *v1alpha1.HostShim) error {
	if !Marks(h) {
		return nil
	}
	return c.patch(ctx, h, []kubeapi.Op{kubeapi.Remove("/metadata/annotations/" + kubeapi.Escape(goneAnnotation))})
}

// missed is since when the node of an object has been missed. Where nobody has noted that it is from now on.
func (c *Claimer) missed(ctx context.Context, h *v1alpha1.HostShim) (time.Time, error) {
	since, err := time.Parse(time.RFC3339, h.Annotations[goneAnnotation])
	if err == nil {
		return since, nil
	}
	since = c.API.Now()
	return since, c.patch(ctx, h, annotate(h, goneAnnotation, since.UTC().Format(time.RFC3339)))
}

// answerer is one of an object's addresses at which something answers; invalid if nothing does.
func (c *Claimer) answerer(ctx context.Context, h *v1alpha1.HostShim) netip.Addr {
	for _, addr := range addresses(h) {
		if c.Answers(ctx, addr) {
			return addr
		}
	}
	return netip.Addr{}
}

// removeGone removes the object of a node that has left, as it was read; errAgain when it isn't any more.
func (c *Claimer) removeGone(ctx context.Context, h *v1alpha1.HostShim) error {
	err := c.API.Delete(ctx, Shims, h.Name, string(h.UID), h.ResourceVersion)
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return errAgain
	}
	return fmt.Errorf("remove HostShim %s of a node that is gone: %w", h.Name, c.API.Explain(err))
}
