// Package labtest gives tests the CNI binaries and labs that leave nothing
// behind.
package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

const module = "github.com/lhstorage/lhstorage"

// packages are what Binaries builds: ours and the stock plugins beside them.
var packages = []string{
	module + "/plugins/lhstorage",
	module + "/ipam/lhstorage-ipam",
	"github.com/containernetworking/plugins/plugins/main/macvlan",
	"github.com/containernetworking/plugins/plugins/ipam/host-local",
	"github.com/containernetworking/plugins/plugins/ipam/static",
}

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

// Binaries is a directory with all CNI plugins: $LHSTORAGE_BIN_DIR, or the
// plugins of this checkout, built once per test process into the user's cache
// directory.
func Binaries(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(BinDirEnv); dir != "" {
		return dir
	}
	dir, err := build()
	require.NoError(t, err)
	return dir
}

var build = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "lhstorage", "test-bin")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs
		return "", err
	}
	temp, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp) //nolint:errcheck // in the cache
	return dir, buildInto(temp, dir)
})

// buildInto builds in temp and renames into dir, where another test process may
// just be running the same programs.
func buildInto(temp, dir string) error {
	for _, pkg := range packages {
		cmd := exec.Command("go", "build", "-o", temp+"/", pkg) //nolint:gosec // fixed arguments
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", pkg, err, out)
		}
		name := pkg[strings.LastIndexByte(pkg, '/')+1:]
		if err := os.Rename(filepath.Join(temp, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
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
		o.BinDirs = []string{Binaries(t)}
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
