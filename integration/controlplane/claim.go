package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

const (
	// root holds the clusters of all processes. It is on a disk, as /tmp often isn't:
	// etcd's fsync has to cost what it costs.
	root = "/var/tmp/lhstorage-controlplane"
	// namePrefix begins the name of each cluster, and so of each of its namespaces.
	namePrefix = "lhcp-"
	netnsDir   = "/run/netns"

	lockWait = time.Minute
)

var clusters atomic.Int32

// claim is the right to a cluster's name: what is called so belongs to its
// holder. The kernel takes it back when the process ends, however it does.
type claim struct {
	name string
	dir  string
	lock *flock.Flock
}

// newClaim removes what crashed processes left behind and claims a name.
func newClaim(ctx context.Context) (*claim, error) {
	if err := os.MkdirAll(root, 0o750); err != nil {
		return nil, err
	}
	unlock, err := lockRoot(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove what a crashed process left behind: %w", err)
	}
	name := fmt.Sprintf("%s%d-%d", namePrefix, os.Getpid(), clusters.Add(1))
	c := &claim{name: name, dir: filepath.Join(root, name)}
	if err := os.Mkdir(c.dir, 0o750); err != nil {
		return nil, err
	}
	c.lock = flock.New(filepath.Join(c.dir, "lock"))
	if _, err := c.lock.TryLock(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	return c, nil
}

// release removes all that has the claim's name, and the claim.
func (c *claim) release() error {
	return errors.Join(removeCluster(c.name), c.lock.Close())
}

// lockRoot keeps others from claiming and sweeping.
func lockRoot(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock := flock.New(filepath.Join(root, "lock"))
	if _, err := lock.TryLockContext(ctx, 10*time.Millisecond); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Path(), err)
	}
	return func() { _ = lock.Close() }, nil
}

// Sweep removes what crashed processes left behind.
func Sweep(ctx context.Context) error {
	c, err := newClaim(ctx)
	if err != nil {
		return err
	}
	return c.release()
}

// sweep removes the clusters whose process is gone. Their programs are gone too:
// they are killed with the process that started them.
func sweep() error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var faults []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), namePrefix) {
			continue
		}
		known[e.Name()] = true
		if abandoned(e.Name()) {
			faults = append(faults, removeCluster(e.Name()))
		}
	}
	names, err := namespaces(namePrefix)
	faults = append(faults, err)
	for _, name := range names {
		if cluster, _, _ := strings.Cut(name, "."); !known[cluster] {
			faults = append(faults, removeNetns(name))
		}
	}
	return errors.Join(faults...)
}

// abandoned says whether nobody holds a cluster's claim.
func abandoned(name string) bool {
	lock := flock.New(filepath.Join(root, name, "lock"))
	free, err := lock.TryLock()
	_ = lock.Close()
	return err == nil && free
}

// removeCluster removes a cluster's namespaces and cgroups and then its directory.
func removeCluster(name string) error {
	names, err := namespaces(name + ".")
	faults := []error{err, removeCgroups(name + ".*")}
	for _, n := range names {
		faults = append(faults, removeNetns(n))
	}
	return errors.Join(append(faults, os.RemoveAll(filepath.Join(root, name)))...)
}

// namespaces are the names of the named network namespaces that begin so.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// removeNetns removes a named network namespace and, once no process is in it any
// more, all that is in it. One that isn't there is no error.
func removeNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}
