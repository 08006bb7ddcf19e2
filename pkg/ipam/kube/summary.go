package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// A pool of thousands of entries takes an ADD longer to read than all else that it does. Where a recorder writes the pool it says in an
// annotation what the pool holds, in few words: an ADD that goes by its pod's name needs no more, and the API server answers with
// the metadata alone. The summary counts as long as the pool's generation is the one that it names: whoever else changes the
// entries changes that.

const (
	takenMark = v1alpha1.Group + "/taken" // annotation: "GENERATION FIRST-ADDRESS RUNS", such as "17 10.0.0.0 1-3685,3690"
	mostRuns  = 1000                      // what is scattered more than this isn't put in a few words any more
)

// summary puts into words which keys a pool with this generation holds; empty where there are no few words for it.
func summary(generation int64, base netip.Addr, keys []uint64) string {
	slices.Sort(keys)
	var runs []string
	for i := 0; i < len(keys); {
		last := i
		for last+1 < len(keys) && keys[last+1] == keys[last]+1 {
			last++
		}
		run := strconv.FormatUint(keys[i], 10)
		if last > i {
			run += "-" + strconv.FormatUint(keys[last], 10)
		}
		runs = append(runs, run)
		i = last + 1
	}
	if len(runs) > mostRuns {
		return ""
	}
	return fmt.Sprintf("%d %s %s", generation, base, strings.Join(runs, ","))
}

// summarised reads a summary; false where it doesn't count, or there is none.
func summarised(text string, generation int64, base netip.Addr) (taken []netip.Addr, ok bool) {
	words := strings.Split(text, " ")
	if len(words) != 3 || words[0] != strconv.FormatInt(generation, 10) || words[1] != base.String() {
		return nil, false
	}
	if words[2] == "" {
		return nil, true
	}
	for _, run := range strings.Split(words[2], ",") {
		from, to, isRun := strings.Cut(run, "-")
		if !isRun {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 64)
		last, err2 := strconv.ParseUint(to, 10, 64)
		if err != nil || err2 != nil || last < first || last-first >= uint64(mostEntries-len(taken)) {
			return nil, false
		}
		for i := range last - first + 1 {
			addr, ok := addressAt(base, strconv.FormatUint(first+i, 10))
			if !ok {
				return nil, false
			}
			taken = append(taken, addr)
		}
	}
	return taken, true
}

// keysAfter are the keys that a pool holds after a patch; false where one of them isn't a number of 64 bits.
func keysAfter(v *view, ops []kubeapi.Op) (keys []uint64, ok bool) {
	held := map[string]bool{}
	for key := range v.object.Spec.Allocations {
		held[key] = true
	}
	for _, op := range ops {
		key, isEntry := strings.CutPrefix(op.Path, "/spec/allocations/")
		if isEntry && !strings.Contains(key, "/") && op.Op != "test" {
			held[key] = op.Op == "add"
		}
	}
	for key, is := range held {
		n, err := strconv.ParseUint(key, 10, 64)
		switch {
		case !is:
		case err != nil:
			return nil, false
		default:
			keys = append(keys, n)
		}
	}
	return keys, true
}

// summarise is what a patch of a pool's entries notes of them, or, with no such operations, what is missing there.
func summarise(v *view, ops []kubeapi.Op) map[string]string {
	generation := v.object.Generation
	if len(ops) > 0 {
		generation++ // of one that nobody else's change comes between
	}
	keys, ok := keysAfter(v, ops)
	text := ""
	if ok {
		text = summary(generation, v.base, keys)
	}
	if text == v.object.Annotations[takenMark] {
		return map[string]string{}
	}
	return map[string]string{takenMark: text}
}

// readSummary reads what a pool holds as its summary says it; false where it must be read in whole. A pool that there
// isn't yet holds nothing.
func (s *Store) readSummary(ctx context.Context, pool ipam.Pool) (taken []netip.Addr, ok bool, err error) {
	var object metav1.PartialObjectMetadata
	err = s.API.Get(ctx, Pools(s.Namespace), pool.Name, kubeapi.Meta(&object), kubeapi.Cached())
	if apierrors.IsNotFound(err) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("IPPool %s/%s: %w", s.Namespace, pool.Name, s.API.Explain(err))
	}
	taken, ok = summarised(object.Annotations[takenMark], object.Generation, pool.Kept().Addr())
	return taken, ok, nil
}
