// Package labtest gives tests the CNI binaries and labs that leave nothing
// behind.
package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/lab"
)

// BinDirEnv names a directory with all plugins, so that tests needn't build
// them.
const BinDirEnv = "LHSTORAGE_BIN_DIR"

// toolsdir builds programs unless they are in the cache, and prints their
// directory.
const toolsdir = "github.com/lhstorage/lhstorage/integration/tools/toolsdir"

// RequireRoot skips a test that needs root, or fails it in CI.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root, and in CI it must run")
	}
	t.Skip("needs root")
}

// Stock is a directory with the stock CNI plugins: $LHSTORAGE_BIN_DIR, or built
// once into the user's cache directory.
func Stock(t testing.TB) string {
	t.Helper()
	return binaries(t, stock)
}

// Own is a directory with lhstorage's plugins: $LHSTORAGE_BIN_DIR, or built from
// this checkout into the user's cache directory.
func Own(t testing.TB) string {
	t.Helper()
	return binaries(t, own)
}

var (
	stock = sync.OnceValues(func() (string, error) { return build("stock") })
	own   = sync.OnceValues(func() (string, error) { return build("own") })
)

func binaries(t testing.TB, build func() (string, error)) string {
	t.Helper()
	if dir := os.Getenv(BinDirEnv); dir != "" {
		return dir
	}
	dir, err := build()
	require.NoError(t, err)
	return dir
}

// build runs the builder as a program: libraries don't import the integration
// tests' packages.
func build(what string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "go", "run", toolsdir, what) //nolint:gosec // "stock" or "own"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build the %s CNI plugins: %w: %s", what, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

var labs struct {
	sync.Mutex
	count int
}

// Name is a lab name that no other lab of this or another process has.
func Name() string {
	labs.Lock()
	defer labs.Unlock()
	labs.count++
	return fmt.Sprintf("t%d-%d", os.Getpid(), labs.count)
}

// Up brings up a lab for a test and takes it down at its end. Name, Root and
// BinDirs are filled in when they are empty.
func Up(t testing.TB, o lab.Options) *lab.Lab {
	t.Helper()
	RequireRoot(t)
	l := New(t, o)
	require.NoError(t, l.Up(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, l.Down(ctx))
	})
	return l
}

// New prepares a lab for a test without making anything.
func New(t testing.TB, o lab.Options) *lab.Lab {
	t.Helper()
	if o.Name == "" {
		o.Name = Name()
	}
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	if len(o.BinDirs) == 0 {
		o.BinDirs = []string{Stock(t)}
		if o.Plugin != lab.PluginMacvlan || o.IPAM == lab.IPAMLhstorage {
			o.BinDirs = append(o.BinDirs, Own(t))
		}
	}
	l, err := lab.New(o)
	require.NoError(t, err)
	return l
}

// AddPodPerNode adds a pod called pod1 to each node.
func AddPodPerNode(t testing.TB, l *lab.Lab) {
	t.Helper()
	for _, node := range l.Nodes() {
		_, err := l.AddPod(t.Context(), node.Name, "pod1", lab.PodOptions{})
		require.NoError(t, err)
	}
}
