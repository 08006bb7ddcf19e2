// Package queue keeps, on this node's disk, releases of addresses that couldn't be carried out because
// the API server was away. A DEL must succeed then, or the pod would hang, and
// the address must come free one day all the same, though the node loses power in between.
//
// Each release is a file that comes into its place whole and synced (package atomicfile). It is named after the attachment: a DEL that is repeated is one release.
package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// Version of the files.
const Version = 1

// Most is how many releases are kept. A node has a few hundred pods: more than this is a
// fault somewhere, and a DEL that fails shows it.
const Most = 10000

// DirName is the queue's directory in a node's state directory.
const DirName = "release-queue"

const suffix = ".json"

const (
	patience = 5 * time.Second // with another process's replay: it has the time of its call, and in a crowd may need it
	lockPoll = 10 * time.Millisecond
)

// Release is an attachment whose addresses are to be given up.
type Release struct {
	Version    int        `json:"version"`
	Queued     time.Time  `json:"queued"`
	Kubeconfig string     `json:"kubeconfig,omitempty"` // by which it was tried
	Owner      ipam.Owner `json:"owner"`
	Claims     []string   `json:"claims,omitempty"` // names of claims that it may hold
	All        bool       `json:"all,omitempty"`    // whatever else it holds, too
	Why        string     `json:"why"`              // it wasn't carried out at once
}

// Queue is a directory of releases.
type Queue struct{ dir string }

// Open names the directory, which is made with the first release.
func Open(dir string) *Queue { return &Queue{dir} }

// Put adds a release, together with one of the same attachment that is waiting already. It has been synced
// when Put returns.
func (q *Queue) Put(r Release) error {
	if old, err := q.read(q.path(r.Owner)); err == nil {
		r.Claims = slices.Compact(slices.Sorted(slices.Values(slices.Concat(old.Claims, r.Claims))))
		r.All = r.All || old.All
	}
	if n, err := q.Len(); err != nil || n >= Most {
		if err == nil {
			err = cnierr.New(cnierr.TryAgain, "%d releases are waiting in %s, the most there may be: the API server has been away for long, or refuses them; each file says why", n, q.dir)
		}
		return err
	}
	r.Version, r.Queued = Version, time.Now().UTC()
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return ioError("queue a release", err)
	}
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return ioError("queue a release", err)
	}
	if err := fault.At("queue.put"); err != nil {
		return err
	}
	return q.write(q.path(r.Owner), append(data, '\n'))
}

func (q *Queue) write(path string, data []byte) error {
	draft, err := atomicfile.Begin(path, 0o600)
	if err != nil {
		return ioError("queue a release", err)
	}
	if _, err := draft.Write(data); err != nil {
		return ioError("queue a release", errors.Join(err, draft.Discard()))
	}
	if err := fault.At("queue.written"); err != nil {
		return errors.Join(err, draft.Discard())
	}
	if err := draft.Commit(); err != nil {
		return ioError("queue a release", err)
	}
	return nil
}

// path is named after the attachment.
func (q *Queue) path(o ipam.Owner) string {
	sum := sha256.Sum256([]byte(o.ContainerID + "\x00" + o.IfName))
	return filepath.Join(q.dir, hex.EncodeToString(sum[:16])+suffix)
}

// Len is how many releases are waiting.
func (q *Queue) Len() (int, error) {
	names, err := q.names()
	return len(names), err
}

func (q *Queue) names() ([]string, error) {
	entries, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, ioError("list the queue of releases", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// List reads the releases that are waiting. A file that can't be read is an error that names it,
// beside the others.
func (q *Queue) List() ([]Release, error) {
	names, err := q.names()
	if err != nil {
		return nil, err
	}
	var list []Release
	var faults []error
	for _, name := range names {
		r, err := q.read(filepath.Join(q.dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // another process has done it
		case err != nil:
			faults = append(faults, err)
		default:
			list = append(list, r)
		}
	}
	return list, errors.Join(faults...)
}

func (q *Queue) read(path string) (Release, error) {
	var r Release
	data, err := os.ReadFile(path) //nolint:gosec // a file of the queue
	if err != nil {
		return r, ioError("read a queued release", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, cnierr.New(cnierr.IO, "queued release %s can't be read: %w; something else wrote it: remove the file, and release by hand what it was for", path, err)
	}
	if r.Version > Version {
		return r, cnierr.New(cnierr.IO, "queued release %s has version %d, and this program knows %d: use the newer lhstorage that wrote it", path, r.Version, Version)
	}
	if q.path(r.Owner) != path {
		return r, cnierr.New(cnierr.IO, "queued release %s isn't of the attachment that its name stands for (it says %s): something else wrote it; remove the file, and release by hand what it was for", path, r.Owner)
	}
	return r, nil
}

// Replay carries releases out, in no order, and drops those that succeed. An error with code 11 ends it: the API
// server is still away. With another one it goes on, so that a release that is refused for good doesn't hold the rest up. One process
// does it at a time: where another does already there is nothing to do. done counts those carried out.
func (q *Queue) Replay(ctx context.Context, release func(context.Context, Release) error) (done int, err error) {
	if n, err := q.Len(); err != nil || n == 0 {
		return 0, err
	}
	lock := q.lock()
	got, err := lock.TryLock()
	if err != nil {
		return 0, ioError("lock the queue of releases", err)
	}
	if !got {
		return 0, nil
	}
	defer func() { _ = lock.Close() }()
	list, unread := q.List()
	faults := []error{unread}
	for _, r := range list {
		carried, err := q.carryOut(ctx, r, release)
		if carried {
			done++
		}
		faults = append(faults, err)
		if cnierr.CodeOf(err) == cnierr.TryAgain || ctx.Err() != nil {
			break
		}
	}
	return done, errors.Join(faults...)
}

// carryOut carries one release out, unless it has been dropped since it was listed.
func (q *Queue) carryOut(ctx context.Context, r Release, release func(context.Context, Release) error) (carried bool, err error) {
	if _, err := os.Stat(q.path(r.Owner)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := release(ctx, r); err != nil {
		return false, err
	}
	if err := fault.At("queue.released"); err != nil {
		return false, err
	}
	err = q.drop(r)
	return err == nil, err
}

// Forget drops the release of an attachment that is being made anew. Where one waits that another process may just be carrying out it
// waits for that process: what is claimed afterwards must not be given up. The error has code 11 if that takes longer than patience.
func (q *Queue) Forget(o ipam.Owner) error {
	path := q.path(o)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // it is dropped only after it was carried out
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	lock := q.lock()
	if got, err := lock.TryLockContext(ctx, lockPoll); !got {
		return cnierr.New(cnierr.TryAgain, "an earlier release of %s is being carried out by another process, by the queue in %s: %w", o, q.dir, err)
	}
	defer func() { _ = lock.Close() }()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError("remove a queued release", err)
	}
	return nil
}

// lock is held by the process that carries releases out.
func (q *Queue) lock() *flock.Flock { return flock.New(filepath.Join(q.dir, "lock")) }

// drop removes a release, unless another DEL has put it anew. A release that comes back after a power
// loss is carried out once more, which changes nothing.
func (q *Queue) drop(r Release) error {
	path := q.path(r.Owner)
	now, err := q.read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !now.Queued.Equal(r.Queued) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError("remove a queued release", err)
	}
	return nil
}

func ioError(what string, err error) error {
	return &cnierr.Error{Code: cnierr.IO, Err: fmt.Errorf("%s: %w", what, err)}
}
