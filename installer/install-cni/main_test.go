package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/install"
)

const binDir = "/opt/cni/bin"

// machine is a host and two releases to install on it: the real programs, with a few bytes at their end, which the kernel doesn't load.
type machine struct {
	installer string
	root      string
	releases  [2]string
}

func newMachine(t *testing.T, tags ...string) *machine {
	t.Helper()
	own := tools.Ours(t, tags...)
	m := &machine{installer: filepath.Join(own, "install-cni"), root: t.TempDir()}
	for _, dir := range []string{"etc", "run", binDir} {
		require.NoError(t, os.MkdirAll(filepath.Join(m.root, dir), 0o755))
	}
	for r := range m.releases {
		m.releases[r] = t.TempDir()
		for _, name := range install.Programs {
			program, err := os.ReadFile(filepath.Join(own, name))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(m.releases[r], name), append(program, byte(r)), 0o700))
		}
	}
	return m
}

func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, m.installer, append([]string{"--host-root", m.root}, args...)...)
}

// run runs the installer and returns what it said and how it ended.
func (m *machine) run(t *testing.T, args ...string) (said string, code int) {
	t.Helper()
	return output(t, m.command(t.Context(), args...))
}

func output(t *testing.T, cmd *exec.Cmd) (said string, code int) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (m *machine) install(release int, args ...string) []string {
	return append([]string{"--no-cluster", "--from", m.releases[release]}, args...)
}

func (m *machine) mustInstall(t *testing.T, release int) {
	t.Helper()
	said, code := m.run(t, m.install(release)...)
	require.Zero(t, code, said)
}

func (m *machine) path(name string) string { return filepath.Join(m.root, binDir, name) }

// release is which release's program is there; it fails the test if it is none's, or half of one.
func (m *machine) release(t *testing.T, name string) int {
	t.Helper()
	there, err := os.ReadFile(m.path(name))
	require.NoError(t, err)
	for r, dir := range m.releases {
		want, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		if sha256.Sum256(there) == sha256.Sum256(want) {
			return r
		}
	}
	require.Fail(t, "half a program", "%s has %d bytes and is no release's", name, len(there))
	return 0
}

// wantClean fails unless a release and nothing else is installed.
func (m *machine) wantClean(t *testing.T, release int) {
	t.Helper()
	said, code := m.run(t, "--check")
	require.Zero(t, code, said)
	for _, name := range install.Programs {
		require.Equal(t, release, m.release(t, name), name)
	}
	files, err := testnode.Files(m.root)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"etc/lhstorage/manifest.json", "etc/lhstorage/node.json", "opt/cni/bin/lhstorage", "opt/cni/bin/lhstorage-ipam"}, files)
}

func TestUsage(t *testing.T) {
	m := newMachine(t)
	for _, args := range [][]string{{"--nonsense"}, {"--check", "--uninstall"}, {"file"}} {
		said, code := m.run(t, args...)
		assert.Equal(t, exitUsage, code, said)
	}
	said, code := m.run(t, "--record", "never")
	assert.Equal(t, exitFailed, code)
	for _, says := range []string{"NODE_NAME", "find the API server", `--record "never"`} {
		assert.Contains(t, said, says, "all at once")
	}
	said, code = m.run(t, "--check")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, said, "nothing is installed")
}

// Programs are replaced while others start them, again and again: each start is served by one whole release.
func TestUpgradeWhileProgramsStart(t *testing.T) {
	m := newMachine(t)
	m.mustInstall(t, 0)
	ctx, stop := context.WithCancel(t.Context())
	var started atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, name := range install.Programs {
					cmd := exec.Command(m.path(name))
					cmd.Env = []string{"CNI_COMMAND=VERSION"}
					cmd.Stdin = strings.NewReader(`{"cniVersion": "1.1.0"}`)
					out, err := cmd.CombinedOutput()
					if !assert.NoError(t, err, "%s: %s", name, out) || !assert.Contains(t, string(out), "supportedVersions") {
						return
					}
					started.Add(1)
				}
			}
		})
	}
	for n := 1; n <= 20 || started.Load() < 200 && !t.Failed(); n++ {
		m.mustInstall(t, n%2)
	}
	stop()
	wg.Wait()
	t.Logf("%d starts", started.Load())
}

// Killed at any moment, it leaves whole programs, and the next one finishes and clears up.
func TestKilledAgainAndAgain(t *testing.T) {
	m := newMachine(t)
	m.mustInstall(t, 0)
	begin := time.Now()
	m.mustInstall(t, 1)
	whole := time.Since(begin)
	const kills = 40
	killed := 0
	for n := range kills {
		cmd := m.command(t.Context(), m.install(n%2)...)
		require.NoError(t, cmd.Start())
		time.Sleep(whole * time.Duration(n) / kills)
		require.NoError(t, cmd.Process.Kill())
		if cmd.Wait() != nil {
			killed++
		}
		for _, name := range install.Programs {
			m.release(t, name)
		}
	}
	t.Logf("%d of %d were killed before they were done (%s)", killed, kills, whole)
	require.NotZero(t, killed)
	m.mustInstall(t, 1)
	m.wantClean(t, 1)
}

// faults are the fault points of pkg/install, each pass by which something can be interrupted.
var faults = []string{
	"install.program.drafted#1", "install.program.drafted#2", "install.program.copied#1", "install.program.copied#2", "install.program.placed#1", "install.program.placed#2",
	"install.kubeconfig", "install.node", "install.manifest",
}

// Interrupted at each step, by an error or at once: no file is half, and the next one finishes.
func TestInterruptedAtEachStep(t *testing.T) {
	m := newMachine(t, "faultpoints")
	m.mustInstall(t, 0)
	for n, point := range faults {
		for _, action := range []string{"error", "kill"} {
			old, release := n%2, 1-n%2
			m.mustInstall(t, old)
			cmd := m.command(t.Context(), m.install(release)...)
			cmd.Env = []string{"LHSTORAGE_FAULT=" + point + "=" + action}
			said, code := output(t, cmd)
			require.NotZero(t, code, "%s %s: %s", point, action, said)
			for _, name := range install.Programs {
				m.release(t, name)
			}
			if point == "install.program.copied#1" && action == "error" {
				require.Equal(t, old, m.release(t, "lhstorage"))
				require.Equal(t, release, m.release(t, "lhstorage-ipam"), "one that fails doesn't keep the others")
			}
			m.mustInstall(t, release)
			m.wantClean(t, release)
		}
	}
}

// The table above has every fault point.
func TestFaultsAreComplete(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	paths, err := filepath.Glob(filepath.Join(root, "pkg/install", "*.go"))
	require.NoError(t, err)
	found := 0
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "At" {
				found++
				point, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
				require.NoError(t, err)
				known := slices.ContainsFunc(faults, func(f string) bool { return f == point || strings.HasPrefix(f, point+"#") })
				assert.True(t, known, "%s in %s isn't in the table", point, path)
			}
			return true
		})
	}
	require.NotZero(t, found)
}

// Directories that can't be written, each with what is said, and what was there stays.
func TestDirectoriesThatCannotBeWritten(t *testing.T) {
	testnode.RequireRoot(t)
	for _, c := range []struct {
		name, dir string
		spoil     func(dir string) error
		says      []string
	}{
		{"read-only", binDir, remount(unix.MS_RDONLY), []string{"write to /opt/cni/bin on the host: read-only file system", "Talos", "--cni-bin-dir"}},
		{"read-only configuration", "/etc/lhstorage", remount(unix.MS_RDONLY), []string{"write to /etc/lhstorage on the host: read-only file system", "--conf-dir"}},
		{"noexec", binDir, remount(unix.MS_NOEXEC), []string{"/opt/cni/bin", "noexec"}},
		{"full", binDir, fill, []string{"install lhstorage into /opt/cni/bin", "no space left on device", "make room", "install lhstorage-ipam into"}},
		{"full configuration", "/etc/lhstorage", fill, []string{"write the node file", "no space left on device"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			dir := filepath.Join(m.root, c.dir)
			mount(t, dir)
			m.mustInstall(t, 0)
			require.NoError(t, os.Remove(filepath.Join(m.root, "etc/lhstorage/node.json"))) // so that there is something to write
			require.NoError(t, c.spoil(dir))
			said, code := m.run(t, m.install(1)...)
			require.Equal(t, exitFailed, code, said)
			for _, says := range c.says {
				require.Contains(t, said, says)
			}
			for _, name := range install.Programs {
				release := m.release(t, name)
				require.True(t, c.dir != binDir || release == 0, "what was there stays")
			}
			require.NoError(t, remount(0)(dir))
			_ = os.Remove(filepath.Join(dir, "filler"))
			m.mustInstall(t, 1)
			m.wantClean(t, 1)
		})
	}
}

// mount puts a file system at dir that two releases fit into.
func mount(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=80m,mode=755"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

func remount(flags uintptr) func(string) error {
	return func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "") }
}

// fill leaves no room.
func fill(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "filler"), bytes.Repeat([]byte{1}, 80<<20), 0o600)
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return errors.Join(err, errors.New("the file system isn't full"))
}

// One that isn't root says so.
func TestWithoutRights(t *testing.T) {
	testnode.RequireRoot(t)
	m := newMachine(t)
	for dir := m.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	// The capabilities of root are what writes to others' directories: without them root is anybody.
	cmd := exec.CommandContext(t.Context(), "setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups", "--",
		m.installer, "--host-root", m.root}, m.install(0)...)...)
	said, code := output(t, cmd)
	require.Equal(t, exitFailed, code, said)
	for _, says := range []string{"make the directory /etc/lhstorage on the host", "write to /opt/cni/bin on the host: permission denied", "must be root"} {
		require.Contains(t, said, says)
	}
}

// In its container it is root without a capability.
func TestWithoutCapabilities(t *testing.T) {
	testnode.RequireRoot(t)
	m := newMachine(t)
	for dir := m.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	cmd := exec.CommandContext(t.Context(), "setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--",
		m.installer, "--host-root", m.root}, m.install(0)...)...)
	said, code := output(t, cmd)
	require.Zero(t, code, said)
	m.wantClean(t, 0)
}
