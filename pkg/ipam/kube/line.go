package kube

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// lineWait bounds how long a process waits for those before it on its node: one that is stopped must not hold up all others. It is long,
// for where a server is slow nothing makes it slower than all at once.
const lineWait = 10 * time.Second

// line is where the processes of a node that want the same pool written wait for each other: for a lock on
// a file, which the kernel gives in the order of asking, and takes from who is killed. Whoever has it writes for all,
// and notes in the file for which claims that was; those behind find their work done, and the API server hears nothing of them.
type line struct{ file *os.File }

// notice is what the head of a line leaves to those behind it.
type notice struct {
	At      time.Time `json:"at"`
	Version string    `json:"version"`          // of the pool, as it was written
	AsOf    uint64    `json:"asOf"`             // claims of this version and older ones were written for
	Except  []string  `json:"except,omitempty"` // but not these: the address is recorded for another
}

// covers says whether the pool is as a claim of this version wants it, by a notice that was left after began: an
// older one might tell of another cluster.
func (n notice) covers(c v1alpha1.AddressClaim, began time.Time) bool {
	return n.At.After(began) && n.AsOf >= version(c.ResourceVersion) && !slices.Contains(n.Except, c.Name)
}

// stand waits for the head of a line, and says whether it had to. Nobody at the head for long gives the
// way free: then the line that is returned is none.
func (j journal) stand(ctx context.Context, name string) (l line, waited bool, err error) {
	if j.dir == "" {
		return line{}, false, nil
	}
	path := filepath.Join(j.dir, "line", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return line{}, false, journalError("make room for those who wait for a pool", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // a name of our own
	if err != nil {
		return line{}, false, journalError("wait for a pool", err)
	}
	err = lock(file, unix.LOCK_NB)
	if err == nil {
		return line{file}, false, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return line{}, false, errors.Join(journalError("wait for a pool", err), file.Close())
	}
	got, left := make(chan error), make(chan struct{})
	go func() { // a lock on a file can't be waited for with a time limit
		select {
		case got <- lock(file, 0):
		case <-left:
			_ = file.Close()
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			return line{}, true, errors.Join(journalError("wait for a pool", err), file.Close())
		}
		return line{file}, true, nil
	case <-ctx.Done():
		close(left)
		return line{}, true, cnierr.New(cnierr.TryAgain, "waiting for other processes on this node to write the same IPPool: %w; the runtime may try again", ctx.Err())
	case <-time.After(lineWait):
		close(left)
		return line{}, true, nil
	}
}

func lock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// leave lets the next one to the head.
func (l line) leave() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// read is what the last heads left, by the mark that they wrote for; nothing where one was killed over it.
func (l line) read() map[string]notice {
	left := map[string]notice{}
	if l.file == nil {
		return left
	}
	data, err := os.ReadFile(l.file.Name())
	if err != nil || json.Unmarshal(data, &left) != nil {
		return map[string]notice{}
	}
	return left
}

// write leaves a notice. Where that fails those behind do the work again.
func (l line) write(mark string, n notice) {
	if l.file == nil || n.AsOf == 0 {
		return
	}
	left := l.read()
	n.At = time.Now()
	left[mark] = n
	if data, err := json.Marshal(left); err == nil && l.file.Truncate(0) == nil {
		_, _ = l.file.WriteAt(data, 0)
	}
}
