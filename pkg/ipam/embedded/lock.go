package embedded

import (
	"context"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// locked runs do with the store's lock, which it waits for as long as ctx allows. It blocks in
// flock(2) instead of polling, so that a queue of hundreds moves on at once.
func (s *Store) locked(ctx context.Context, do func() error) error {
	path, began := filepath.Join(s.dir, "lock"), time.Now()
	lock := flock.New(path)
	got := make(chan error, 1)
	go func() { got <- lock.Lock() }()
	select {
	case err := <-got:
		if err != nil {
			return ioError("lock the store of claims", err)
		}
	case <-ctx.Done():
		go func() { // got too late: give it back
			if <-got == nil {
				_ = lock.Close()
			}
		}()
		return cnierr.New(cnierr.TryAgain, "waited %s for the lock %s and didn't get it: %w; nothing was changed, the runtime may try again. `fuser -v %s` shows the process that holds it",
			time.Since(began).Round(time.Millisecond), path, ctx.Err(), path)
	}
	defer func() { _ = lock.Close() }()
	return do()
}
