package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

func owner(container string) ipam.Owner {
	return ipam.Owner{PodRef: "ns/" + container, ContainerID: container, IfName: "net1"}
}

func TestReplay(t *testing.T) {
	q := Open(filepath.Join(t.TempDir(), "queue"))
	done, err := q.Replay(t.Context(), nil)
	require.NoError(t, err)
	assert.Zero(t, done)
	require.NoError(t, q.Forget(owner("c1")))
	require.NoError(t, q.Put(Release{Owner: owner("c1"), Claims: []string{"10.0.0.2"}, All: true, Why: "away"}))
	require.NoError(t, q.Put(Release{Owner: owner("c1"), Claims: []string{"10.0.0.1", "10.0.0.2"}, Why: "still away"}))
	require.NoError(t, q.Put(Release{Owner: owner("c2")}))
	n, err := q.Len()
	require.NoError(t, err)
	assert.Equal(t, 2, n)

	away, tried := cnierr.New(cnierr.TryAgain, "away"), 0
	done, err = q.Replay(t.Context(), func(context.Context, Release) error { tried++; return away })
	require.ErrorIs(t, err, away)
	assert.Zero(t, done)
	assert.Equal(t, 1, tried, "the others would fail as well")

	seen := map[string]Release{}
	done, err = q.Replay(t.Context(), func(_ context.Context, r Release) error {
		seen[r.Owner.ContainerID] = r
		if r.Owner.ContainerID == "c2" { // the pod is deleted once more meanwhile
			return q.Put(Release{Owner: owner("c2"), Why: "again"})
		}
		return nil
	})
	require.NoError(t, err)
	assert.Equal(t, 2, done)
	assert.Equal(t, []string{"10.0.0.1", "10.0.0.2"}, seen["c1"].Claims)
	assert.True(t, seen["c1"].All)
	assert.Equal(t, "still away", seen["c1"].Why)
	list, err := q.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.Equal(t, "again", list[0].Why)
	require.NoError(t, q.Forget(owner("c2")))
	n, err = q.Len()
	require.NoError(t, err)
	assert.Zero(t, n)
}

// A file that can't be read is named, and doesn't keep the others.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	q := Open(dir)
	require.NoError(t, q.Put(Release{Owner: owner("c1")}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "torn.json"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "newer.json"), []byte(`{"version": 9}`), 0o600))
	done, err := q.Replay(t.Context(), func(context.Context, Release) error { return nil })
	assert.Equal(t, 1, done)
	require.ErrorContains(t, err, filepath.Join(dir, "torn.json"))
	require.ErrorContains(t, err, "newer.json has version 9, and this program knows 1")
}

// A release that is refused for good doesn't keep the others.
func TestRefused(t *testing.T) {
	q := Open(t.TempDir())
	for _, c := range []string{"c1", "c2", "c3"} {
		require.NoError(t, q.Put(Release{Owner: owner(c)}))
	}
	refused := errors.New("refused")
	done, err := q.Replay(t.Context(), func(_ context.Context, r Release) error {
		if r.Owner.ContainerID == "c2" {
			return refused
		}
		return nil
	})
	require.ErrorIs(t, err, refused)
	assert.Equal(t, 2, done)
	list, err := q.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.Equal(t, "c2", list[0].Owner.ContainerID)
}

// Who makes an attachment anew waits until its earlier release is carried out: what it claims then must stay. One that was dropped in
// time isn't carried out.
func TestForgetDuringReplay(t *testing.T) {
	q := Open(t.TempDir())
	require.NoError(t, q.Put(Release{Owner: owner("c1")}))
	began, forgotten := make(chan struct{}), make(chan error, 1)
	go func() {
		<-began
		forgotten <- q.Forget(owner("c1"))
	}()
	done, err := q.Replay(t.Context(), func(context.Context, Release) error {
		close(began)
		select {
		case err := <-forgotten:
			return errors.Join(errors.New("it didn't wait"), err)
		case <-time.After(200 * time.Millisecond):
			return nil
		}
	})
	require.NoError(t, err)
	assert.Equal(t, 1, done)
	require.NoError(t, <-forgotten)

	for _, c := range []string{"c1", "c2"} {
		require.NoError(t, q.Put(Release{Owner: owner(c)}))
	}
	var released []string
	done, err = q.Replay(t.Context(), func(_ context.Context, r Release) error {
		released = append(released, r.Owner.ContainerID)
		for _, c := range []string{"c1", "c2"} { // another process, before the lock was taken
			_ = os.Remove(q.path(owner(c)))
		}
		return nil
	})
	require.NoError(t, err)
	assert.Len(t, released, 1)
	assert.Equal(t, 1, done)
}

// One process replays; another that comes at the same time has nothing to do.
func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	q := Open(dir)
	require.NoError(t, q.Put(Release{Owner: owner("c1")}))
	held := flock.New(filepath.Join(dir, "lock"))
	require.NoError(t, held.Lock())
	done, err := q.Replay(t.Context(), func(context.Context, Release) error { return errors.New("called") })
	require.NoError(t, err)
	assert.Zero(t, done)
	require.NoError(t, held.Close())
}

func TestManyAtOnce(t *testing.T) {
	q := Open(t.TempDir())
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() { assert.NoError(t, q.Put(Release{Owner: owner(fmt.Sprint("c", i%25))})) })
	}
	group.Wait()
	list, err := q.List()
	require.NoError(t, err)
	assert.Len(t, list, 25)
	left, err := filepath.Glob(filepath.Join(q.dir, ".draft-*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestFull(t *testing.T) {
	dir := t.TempDir()
	for i := range Most {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i, suffix)), nil, 0o600))
	}
	require.ErrorContains(t, Open(dir).Put(Release{Owner: owner("c1")}), "the most there may be")
}

// A file that somebody else wrote is named as long as it is there, harms no other and is never carried out.
func FuzzForeignFile(f *testing.F) {
	for _, seed := range []string{"", "{}", "null", "[]", `{"version": 99}`, `{"owner": {"containerID": "c1", "ifName": "net1"}, "all": true}`, "{\"owner\": {"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(t.TempDir(), "queue")
		q := Open(dir)
		require.NoError(t, q.Put(Release{Owner: owner("c1")}))
		foreign := filepath.Join(dir, "foreign"+suffix)
		require.NoError(t, os.WriteFile(foreign, data, 0o600))
		var released []string
		for range 2 {
			_, err := q.Replay(t.Context(), func(_ context.Context, r Release) error {
				released = append(released, r.Owner.ContainerID)
				return nil
			})
			require.ErrorContains(t, err, foreign)
		}
		assert.Equal(t, []string{"c1"}, released)
	})
}
