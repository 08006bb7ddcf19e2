package examine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Resource of the requests.
var Resource = kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: v1alpha1.VerificationResource}

const (
	tooOld = 3 * time.Minute // requests that nobody waits for any more
	rest   = 3 * time.Second // between two examinations
	again  = 5 * time.Second // after a fault
)

// Desk watches for requests to its node, and answers them one after the other.
type Desk struct {
	Client   *kubeapi.Client
	Examiner *Examiner
	Log      *slog.Logger

	answered string
}

// Run answers until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	defer d.Examiner.Close()
	for ctx.Err() == nil {
		err := d.watch(ctx)
		if err != nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) && ctx.Err() == nil {
			d.Log.Debug("requests to verify can't be watched; tried again", "error", err)
			pause(ctx, again)
		}
	}
	return nil
}

func (d *Desk) watch(ctx context.Context) error {
	var list v1alpha1.VerificationList
	own := func(q url.Values) { q.Set("fieldSelector", "metadata.name="+d.Examiner.Node) }
	if err := d.Client.List(ctx, Resource, &list, own); err != nil {
		return err
	}
	for _, v := range list.Items {
		d.handle(ctx, v)
	}
	return d.Client.Watch(ctx, Resource, list.ResourceVersion, func(e kubeapi.Event) error {
		var v v1alpha1.Verification
		if e.Type != "ADDED" && e.Type != "MODIFIED" {
			return nil
		}
		if err := json.Unmarshal(e.Object, &v); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		d.handle(ctx, v)
		return nil
	}, own)
}

// handle answers a request unless it was answered or is too old.
func (d *Desk) handle(ctx context.Context, v v1alpha1.Verification) {
	id := v.Spec.ID
	if v.Spec.Node != d.Examiner.Node || id == v.Status.ID || id == d.answered || d.Client.Now().Sub(v.Spec.Time.Time) > tooOld {
		return
	}
	d.answered = id
	d.Log.Info("asked to verify", "id", id)
	status := d.Examiner.Examine(ctx, id)
	ops := []kubeapi.Op{kubeapi.Test("/spec/node", v.Spec.Node), kubeapi.Test("/spec/id", id), kubeapi.Add("/status", status)}
	if err := d.Client.Patch(ctx, Resource, v.Name, ops, kubeapi.Meta(nil)); err != nil && ctx.Err() == nil {
		d.Log.Warn("what was verified could not be reported", "id", id, "error", err)
	}
	pause(ctx, rest)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
