package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Hundreds of processes want the same pool changed at once. If each tried, all but one would fail
// at each moment, and the API server would do nothing but compute patches that come too late (measured: 100 at once
// took longer than 10 s). So those of a node stand in line, see line.go, and whoever is at the head of it writes for all claims
// of all nodes that want the same, an entry or its removal. Among the heads there is an order, that of the claims' versions: first the node with the oldest claim whose entry
// isn't right yet. The others wait, each so much longer as there are more nodes before its own, in case those fail. They look at
// the pool's metadata alone: whoever has written for all claims as of a version says so in an annotation there.

const (
	recordedMark = v1alpha1.Group + "/recorded" // annotation: all claims as of this version have their entries
	removedMark  = v1alpha1.Group + "/removed"  // and all that were given up as of this one have none

	slot    = 150 * time.Millisecond // what each node before one's own makes one wait longer: a patch of a server that has much to do
	longest = 3 * time.Second        // nobody waits longer than this for those before it
	poll    = 30 * time.Millisecond  // between two looks
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
	if t.own.ResourceVersion == "" { // a record without a claim has no place in the order
		after, err := t.write(ctx, true)
		return after.Version, err
	}
	began := time.Now()
	line, waited, err := t.journal.stand(ctx, digest(t.Namespace+"/"+t.own.Spec.Pool))
	if err != nil {
		return "", err
	}
	defer line.leave()
	if left := line.read()[t.mark]; left.covers(t.own, began) {
		return left.Version, nil
	}
	after, err := t.write(ctx, !waited && !t.crowd)
	if err != nil {
		return "", err
	}
	line.write(t.mark, after)
	return after.Version, nil
}

// write brings the pool in line with all claims; alone with one's own first, which is cheaper where nobody else
// is at it.
func (t turn) write(ctx context.Context, alone bool) (notice, error) {
	var seen *view
	if alone && t.mark == recordedMark {
		seen = t.views[t.own.Spec.Pool] // what was read before the claim was made is good enough for one's own entry
	}
	for waits := (patience{began: time.Now()}); ; seen = nil {
		v, written, err := t.toDo(ctx, seen)
		if err != nil || written {
			return notice{Version: v.version()}, err
		}
		p := t.forOwn(v)
		if !alone && t.own.ResourceVersion != "" {
			if p, err = t.forAll(ctx, v); err != nil {
				return notice{}, err
			}
		}
		if left := waits.left(p.ahead, t.API.Slowest()); left > 0 {
			after, err := t.await(ctx, v.version(), left)
			if err != nil || after.AsOf >= version(t.own.ResourceVersion) {
				return after, err
			}
			continue
		}
		after, err := t.patchPool(ctx, v.object.Name, p.ops)
		if err == nil {
			return notice{Version: after, AsOf: p.asOf, Except: p.except}, nil
		}
		if !contended(err) {
			return notice{}, t.explainPool(t.own, err)
		}
		alone = !alone && t.mark == recordedMark // an entry of one's own can be added whatever others remove meanwhile
		if err := wait(ctx, rand.N(poll)); err != nil {
			return notice{}, err
		}
	}
}

// toDo reads the pool unless it is given, and says whether it already is as the claim wants it. What is held by another in a copy from the
// server's memory is looked at again.
func (t turn) toDo(ctx context.Context, v *view) (*view, bool, error) {
	for _, sure := range []bool{t.since == "" && t.mark == removedMark, true} {
		var err error
		if v == nil {
			if v, err = t.look(ctx, sure); err != nil {
				return nil, false, err
			}
		}
		switch how, err := t.state(v); {
		case err != nil || how == missing:
			return v, false, err
		case how == done:
			return v, true, nil
		}
		v = nil
	}
	return nil, false, errStranger
}

// patience is how long a process waits for those before it. It begins anew when there are fewer.
type patience struct {
	began  time.Time
	before int
}

// left is what is left of it, behind so many nodes, each of which needs a write of the server.
func (p *patience) left(ahead int, slowest time.Duration) time.Duration {
	if ahead < p.before {
		p.began = time.Now()
	}
	p.before = ahead
	return min(time.Duration(ahead)*max(slot, 2*slowest), longest) - time.Since(p.began)
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

// plan is a patch of a pool, and what is known of those that it is for.
type plan struct {
	ops    []kubeapi.Op
	ahead  int      // nodes that have an older claim which waits
	asOf   uint64   // it is for all claims as of this version,
	except []string // but not for these
}

// forOwn makes the patch that is for one's own claim alone.
func (t turn) forOwn(v *view) plan {
	ops := change(v, t.own)
	if !removes(ops) {
		return plan{ops: append(prepare(v), ops...)}
	}
	return plan{ops: patchOf(v, ops, version(t.own.ResourceVersion), map[string]string{})}
}

// forAll makes the patch that is for all.
func (t turn) forAll(ctx context.Context, v *view) (plan, error) {
	own := version(t.own.ResourceVersion)
	list, err := t.claims(ctx, max(own, v.removedAsOf()))
	if err != nil {
		return plan{}, err
	}
	p := plan{asOf: version(list.ResourceVersion)}
	ops, newest, waiting, before := change(v, t.own), own, 0, map[string]bool{}
	for _, c := range list.Items {
		if c.Name == t.own.Name || c.Spec.Pool != t.own.Spec.Pool {
			continue
		}
		more := difference(v, c)
		if waiting += min(len(more), 1); waiting >= mostAtOnce || len(more) == 0 && !settled(v, c) {
			p.except = append(p.except, c.Name)
			continue
		}
		if len(more) > 0 && version(c.ResourceVersion) < own && c.Spec.Node != t.own.Spec.Node {
			before[c.Spec.Node] = true
		}
		ops, newest = append(ops, more...), max(newest, version(c.ResourceVersion))
	}
	notes := map[string]string{}
	if len(p.except) == 0 {
		notes[t.mark] = list.ResourceVersion
	}
	p.ahead, p.ops = len(before), patchOf(v, ops, newest, notes)
	return p, nil
}

// claims lists those that are written for, as of a version or later.
func (t turn) claims(ctx context.Context, atLeast uint64) (v1alpha1.AddressClaimList, error) {
	var list v1alpha1.AddressClaimList
	if err := t.API.List(ctx, Claims, &list, kubeapi.NotOlderThan(fmt.Sprint(atLeast)), kubeapi.Selected(t.selector)); err != nil {
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

// marked looks at the pool's metadata.
func (t turn) marked(ctx context.Context) (notice, error) {
	var pool metav1.PartialObjectMetadata
	err := t.API.Get(ctx, Pools(t.Namespace), t.own.Spec.Pool, kubeapi.Meta(&pool), kubeapi.Cached())
	if apierrors.IsNotFound(err) {
		return notice{}, nil
	}
	if err != nil {
		return notice{}, t.explainPool(t.own, err)
	}
	return notice{Version: pool.ResourceVersion, AsOf: version(pool.Annotations[t.mark])}, nil
}

// await waits until somebody has written the pool, later than seen or as one's own claim wants it, for as long
// as patience.
func (t turn) await(ctx context.Context, seen string, patience time.Duration) (notice, error) {
	until := time.Now().Add(patience)
	for {
		if err := wait(ctx, min(poll/2+rand.N(poll), max(time.Until(until), time.Millisecond))); err != nil {
			return notice{}, err
		}
		now, err := t.marked(ctx)
		if err != nil || now.AsOf >= version(t.own.ResourceVersion) || version(now.Version) > version(seen) || time.Now().After(until) {
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
