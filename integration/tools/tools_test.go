package tools

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCachedBuildsOnceForManyCallers(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var builds atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := Cached(t.Context(), "thing", "v1", func(dir string) error {
				builds.Add(1)
				time.Sleep(20 * time.Millisecond)
				return os.WriteFile(filepath.Join(dir, "program"), nil, 0o600)
			})
			if err != nil {
				t.Errorf("cached: %v", err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "program")); err != nil {
				t.Errorf("the directory was handed out before it was complete: %v", err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, builds.Load(), "builds")
}

// The programs that are started for each pod are copied to each node, and their size is a good part of what a start costs. In MB.
func TestProgramsStaySmall(t *testing.T) {
	dir := Ours(t)
	for program, most := range map[string]float64{"lhstorage": 8, "lhstorage-ipam": 14} {
		info, err := os.Stat(filepath.Join(dir, program))
		require.NoError(t, err)
		assert.LessOrEqual(t, float64(info.Size())/1e6, most, program)
	}
}

func TestCachedKeepsNothingOfAFailedOrKilledBuild(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	dir := filepath.Join(cache, "lhstorage", "thing", "v1")
	_, err := Cached(t.Context(), "thing", "v1", func(part string) error {
		require.NoError(t, os.WriteFile(filepath.Join(part, "half"), nil, 0o600))
		return errors.New("compiler on fire")
	})
	require.ErrorContains(t, err, "compiler on fire")
	require.NoDirExists(t, dir)
	require.NoDirExists(t, dir+".part")

	require.NoError(t, os.MkdirAll(dir+".part", 0o750)) // of a builder that was killed
	require.NoError(t, os.WriteFile(filepath.Join(dir+".part", "stale"), nil, 0o600))
	got, err := Cached(t.Context(), "thing", "v1", func(string) error { return nil })
	require.NoError(t, err)
	require.Equal(t, dir, got)
	require.NoFileExists(t, filepath.Join(dir, "stale"))
}

func TestCachedGivesUpWaitingForALock(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	unlock, err := lock(t.Context(), filepath.Join(cache, "lhstorage", "thing", "v1.lock"))
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	_, err = Cached(ctx, "thing", "v1", func(string) error { return nil })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "v1.lock")
}

func TestSweepKeepsWhatIsInUse(t *testing.T) {
	parent := t.TempDir()
	old := time.Now().Add(-2 * keepOwn)
	for _, name := range []string{"current", "recent", "unused", "key.work"} {
		dir := filepath.Join(parent, name)
		require.NoError(t, os.Mkdir(dir, 0o750))
		if name != "recent" {
			require.NoError(t, os.Chtimes(dir, old, old))
		}
	}
	sweepOwn(parent, filepath.Join(parent, "current"))
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	require.Equal(t, []string{"current", "key.work", "recent"}, left)
}

func TestStockModule(t *testing.T) {
	dir := Build(t, "stock")
	require.Equal(t, dir, Build(t, "stock"), "the second call finds the first one's directory")
	for _, name := range []string{"macvlan", "bridge", "host-local", "static", "tuning", "sbr", "bandwidth", "cnitool"} {
		require.FileExists(t, filepath.Join(dir, name))
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "macvlan"))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Contains(t, string(out), `"1.1.0"`)
}

func TestVersionIsWhatTheModuleAsksFor(t *testing.T) {
	for _, c := range []struct{ module, path, want string }{
		{"kubernetes", "k8s.io/kubernetes", "v1.36.3"},
		{"kubernetes", "go.etcd.io/etcd/server/v3", "v3.6.8"},
		{"longhorn", "github.com/longhorn/longhorn-manager", "v1.10.0"},
		{"multus", "gopkg.in/k8snetworkplumbingwg/multus-cni.v4", "v4.2.3"},
		{"whereabouts", "github.com/k8snetworkplumbingwg/whereabouts", "v0.9.2"},
	} {
		got, err := Version(c.module, c.path)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	_, err := Version("multus", "example.org/none")
	require.ErrorContains(t, err, "example.org/none")
}

func TestSourceHasWhatIsShippedBesideThePrograms(t *testing.T) {
	dir, err := Source(t.Context(), "multus", "gopkg.in/k8snetworkplumbingwg/multus-cni.v4")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "deployments", "multus-daemonset-thick.yml"))
}

func TestRenameGivesProgramsTheirNames(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "server"), []byte("etcd"), 0o600))
	require.NoError(t, rename(dir, map[string]string{"server": "etcd"}))
	require.NoFileExists(t, filepath.Join(dir, "server"))
	require.FileExists(t, filepath.Join(dir, "etcd"))
	require.ErrorContains(t, rename(dir, map[string]string{"gone": "x"}), "gone")
}

func TestUnknownModuleIsNamed(t *testing.T) {
	_, err := Module(t.Context(), "no-such-module")
	require.ErrorContains(t, err, "no-such-module")
}
