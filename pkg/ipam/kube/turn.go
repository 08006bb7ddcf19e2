package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Hundreds of processes want the same pool changed at once. If each tried, all but one would fail
// at each moment, and the API server would do nothing but compute patches that come too late (measured: 100 at once
// took longer than 10 s). So there is an order, that of the claims' versions: the oldest claim whose entry isn't right
// yet is whose process writes, for all. The others wait, each so much longer as it stands further back, in case
// those before it were killed. They look at the pool's metadata alone: whoever has written for all claims as
// of a version says so in an annotation there, and that a claim of an older version has what it wants.

const (
	recordedMark = v1alpha1.Group + "/recorded" // annotation: all claims as of this version have their entries
	removedMark  = v1alpha1.Group + "/removed"  // and all that were given up as of this one have none

	busy      = 40 * time.Millisecond  // a server that takes longer for an answer has a crowd before it
	firstWait = 100 * time.Millisecond // in a crowd, for another that writes for all: to list all claims is dear
	slot      = 150 * time.Millisecond // what each place further back in the order waits longer: a patch of a server that has much to do
	slowest   = 200 * time.Millisecond // a server that takes longer isn't given more time than one that takes this
	longest   = 3 * time.Second        // nobody waits longer than this for those before it
	mostLooks = 8                      // how often somebody waits because others are writing
	poll      = 30 * time.Millisecond  // between two looks, and half a millisecond more for each who waits
)

// state is how a pool stands to a claim.
type state int

const (
	missing      state = iota // the claim's entry isn't as it must be
	done                      // it is
	foreignEntry              // the address is somebody else's
)

// turn is one process's wish to have a pool brought in line with its claim.
type turn struct {
	*Store
	own      v1alpha1.AddressClaim
	selector string // of the claims that are written for, beside one's own
	mark     string // annotation
	since    string // a copy of the pool that is older than this version is of no use
	state    func(*view) (state, error)
}

// take sees to it that the pool is as the claim wants it, and returns a version of it that is.
func (t turn) take(ctx context.Context) (string, error) {
	began, before, sure := time.Now(), 0, t.since == "" && t.mark == removedMark
	seen := t.since
	if v := t.views[t.own.Spec.Pool]; v != nil {
		seen = v.object.ResourceVersion
	}
	for looks := 0; ; {
		if (t.crowd || t.API.Slowest() > busy) && t.own.ResourceVersion != "" {
			after, err := t.await(ctx, "", t.paced(firstWait)/8+rand.N(t.paced(firstWait)), 0)
			if err != nil || after.done {
				return after.version, err
			}
			others := after.version != seen
			seen = after.version
			if looks++; others && looks < mostLooks { // somebody is writing, and soon for this one, too
				continue
			}
		}
		v, err := t.look(ctx, sure)
		if err != nil {
			return "", err
		}
		switch how, err := t.state(v); {
		case err != nil:
			return "", err
		case how == done:
			return v.object.ResourceVersion, nil
		case how == foreignEntry && sure:
			return "", errStranger
		case how == foreignEntry: // by an old copy perhaps
			sure = true
			continue
		}
		ops, ahead, waiting, err := t.plan(ctx, v)
		if err != nil {
			return "", err
		}
		if ahead < before { // it moves on
			began = time.Now()
		}
		before = ahead
		if patience := min(time.Duration(ahead)*t.paced(slot), longest) - time.Since(began); patience > 0 {
			after, err := t.await(ctx, v.object.ResourceVersion, patience, waiting)
			if err != nil || after.done {
				return after.version, err
			}
			continue
		}
		after, err := t.patchPool(ctx, v.object.Name, ops)
		if err == nil {
			return after, nil
		}
		if !contended(err) {
			return "", t.explainPool(t.own, err)
		}
		sure = false
		if err := wait(ctx, rand.N(poll)); err != nil {
			return "", err
		}
	}
}

// look reads the pool.
func (t turn) look(ctx context.Context, fresh bool) (*view, error) {
	if t.since != "" && !fresh {
		return t.read(ctx, t.own.Spec.Pool, nil, kubeapi.Since(t.since))
	}
	if t.mark == removedMark {
		return t.read(ctx, t.own.Spec.Pool, nil) // who gives up makes no pool
	}
	return t.readFor(ctx, t.own, fresh)
}

// plan makes the patch that is for all, and counts who is before this process in the order, and who waits at all.
func (t turn) plan(ctx context.Context, v *view) (ops []kubeapi.Op, ahead, waiting int, err error) {
	mine := change(v, t.own)
	if t.own.ResourceVersion == "" {
		return append(prepare(v), mine...), 0, 0, nil // a record without a claim has no place in the order
	}
	list, err := t.claims(ctx, t.own.ResourceVersion)
	if err == nil && version(list.ResourceVersion) < version(v.object.ResourceVersion) {
		list, err = t.claims(ctx, v.object.ResourceVersion) // waits for a moment, and is rare: see record.go
	}
	if err != nil {
		return nil, 0, 0, err
	}
	ops, complete := mine, true
	for _, c := range list.Items {
		if c.Name == t.own.Name || c.Spec.Pool != t.own.Spec.Pool {
			continue
		}
		more := difference(v, c)
		complete = complete && (len(more) > 0 || settled(v, c))
		if len(more) == 0 {
			continue
		}
		waiting++
		if version(c.ResourceVersion) < version(t.own.ResourceVersion) {
			ahead++
		}
		if waiting < mostAtOnce {
			ops = append(ops, more...)
		}
	}
	ops = append(append(guarded(v), prepare(v)...), ops...)
	if complete && waiting < mostAtOnce {
		ops = append(ops, annotate(v, t.mark, list.ResourceVersion))
	}
	return ops, ahead, waiting, nil
}

func (t turn) claims(ctx context.Context, asOf string) (v1alpha1.AddressClaimList, error) {
	var list v1alpha1.AddressClaimList
	if err := t.API.List(ctx, Claims, &list, kubeapi.NotOlderThan(asOf), kubeapi.Selected(t.selector)); err != nil {
		return list, fmt.Errorf("list the claims of pool %s: %w", t.own.Spec.Pool, t.API.Explain(err))
	}
	return list, nil
}

// change is what one's own claim wants.
func change(v *view, own v1alpha1.AddressClaim) []kubeapi.Op {
	path := entryPath(v, addressOf(own))
	entry, held := v.entry(addressOf(own))
	test := kubeapi.Test(path, nil)
	if held {
		test = kubeapi.Test(path+"/id", entry.ContainerID)
	}
	if live(own) && own.ResourceVersion != "" {
		return []kubeapi.Op{test, kubeapi.Add(path, entryOf(own.Spec))}
	}
	return []kubeapi.Op{test, kubeapi.Remove(path)}
}

// settled says that a claim has what it wants.
func settled(v *view, c v1alpha1.AddressClaim) bool {
	entry, held := v.entry(addressOf(c))
	if live(c) {
		return held && entry == entryOf(c.Spec)
	}
	return !held || entry.ContainerID != c.Spec.ContainerID
}

// annotate notes a version in a pool's annotation.
func annotate(v *view, key, value string) kubeapi.Op {
	if v.object.Annotations == nil {
		return kubeapi.Add("/metadata/annotations", map[string]string{key: value})
	}
	return kubeapi.Add("/metadata/annotations/"+kubeapi.Escape(key), value)
}

// after is what a pool's metadata tell.
type after struct {
	version string
	done    bool // somebody has written for all claims as of this one's version, or later
}

// marked looks at the pool's metadata.
func (t turn) marked(ctx context.Context) (after, error) {
	var pool struct {
		Metadata struct {
			ResourceVersion string            `json:"resourceVersion"`
			Annotations     map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	err := t.API.Get(ctx, Pools(t.Namespace), t.own.Spec.Pool, kubeapi.Meta(&pool), kubeapi.Cached())
	if apierrors.IsNotFound(err) {
		return after{}, nil
	}
	if err != nil {
		return after{}, t.explainPool(t.own, err)
	}
	as := version(pool.Metadata.Annotations[t.mark])
	return after{pool.Metadata.ResourceVersion, as >= version(t.own.ResourceVersion)}, nil
}

// paced makes a time as much longer as the server is slower than one that has nothing to do.
func (t turn) paced(d time.Duration) time.Duration {
	times := max(1, int(min(t.API.Slowest(), slowest)/busy))
	return time.Duration(times) * d
}

// await waits until somebody has written the pool, later than seen or as one's own claim wants it, for as long
// as patience.
func (t turn) await(ctx context.Context, seen string, patience time.Duration, waiting int) (after, error) {
	until := time.Now().Add(patience)
	for {
		pace := t.paced(poll) + time.Duration(waiting)*time.Millisecond/2
		if err := wait(ctx, min(pace/2+rand.N(pace), max(time.Until(until), time.Millisecond))); err != nil {
			return after{}, err
		}
		now, err := t.marked(ctx)
		if err != nil || now.done || seen != "" && version(now.version) > version(seen) || time.Now().After(until) {
			return now, err
		}
	}
}

// wait waits; the error says that the time of the call is over.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return cnierr.New(cnierr.TryAgain, "waiting for others to write the same IPPool: %w; the runtime may try again", ctx.Err())
	case <-time.After(d):
		return nil
	}
}
