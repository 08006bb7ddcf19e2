// Package tools builds the programs that the integration tests and benchmarks
// run: other projects' from the tools modules beside this file, and lhstorage's
// own from the checkout.
//
// A folder beside this file is a Go module of its own, because the versions that
// those programs depend on clash with ours and with each other's. Its `tool`
// directives name what is built from it.
//
// What is built is kept outside the checkout in [CacheDir], in a directory that
// never changes once it is there: a test that is under way can't have its
// binaries swapped by another that starts.
package tools

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// modulePath is the first line of the main module's go.mod.
const modulePath = "module github.com/lhstorage/lhstorage\n"

// ownMains are lhstorage's programs, those that a node or a person runs.
var ownMains = []string{"plugins/lhstorage", "ipam/lhstorage-ipam", "installer/install-cni", "cmd/lhstorage-agent", "cmd/lhstoragectl"}

// recipe is what is special about the programs of a tools module.
type recipe struct {
	names   map[string]string // of those that go build would not call what everyone calls them: their package, then their name
	libqcow bool              // C library that they are linked to
	ldflags string            // of those that are told their version when they are linked
}

var recipes = map[string]recipe{
	"kubernetes":  {names: map[string]string{"server": "etcd"}},
	"longhorn":    {names: map[string]string{"longhorn-engine": "longhorn"}, libqcow: true, ldflags: "-X github.com/longhorn/longhorn-manager/meta.Version=v1.10.0"},
	"multus":      {names: map[string]string{"passthru-cni": "passthru"}},
	"whereabouts": {names: map[string]string{"cmd": "whereabouts", "controlloop": "ip-control-loop", "nodeslicecontroller": "node-slice-controller"}},
}

// BuiltEnv names a directory in the environment that has what was built elsewhere,
// for where nothing can be built, as inside a VM: a folder for each tools module,
// and "own".
const BuiltEnv = "LHSTORAGE_BUILT"

// keepOwn is how long a build of our own binaries outlives its last use. It is
// longer than any test run.
const keepOwn = 24 * time.Hour

// TB is what this package needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Build is [Module] for tests: it fails the test where that returns an error.
func Build(tb TB, module string) string {
	tb.Helper()
	dir, err := Module(context.Background(), module)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return dir
}

// Ours is [Own] for tests: it fails the test where that returns an error.
func Ours(tb TB, tags ...string) string {
	tb.Helper()
	dir, err := Own(context.Background(), tags...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return dir
}

// Module builds the tools of one of the modules beside this file ("stock": the
// stock CNI plugins and cnitool; "kubernetes": etcd, kubectl and what runs in and
// on a cluster; "longhorn"; "multus"; "whereabouts"; "helm") unless they are in the cache, and returns the
// directory that holds them. Any number of processes may ask at once: one builds.
func Module(ctx context.Context, name string) (string, error) {
	if dir, ok := Built(name); ok {
		return dir, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "integration", "tools", name)
	how := recipes[name]
	key, err := moduleKey(module, how)
	if err != nil {
		return "", fmt.Errorf("tools module %s: %w", name, err)
	}
	return Cached(ctx, name, key, func(dir string) error {
		if err := goBuild(ctx, module, dir, how, nil, []string{"tool"}); err != nil {
			return err
		}
		return rename(dir, how.names)
	})
}

// rename gives the programs in dir the names that they are known by.
func rename(dir string, names map[string]string) error {
	var faults []error
	for from, to := range names {
		faults = append(faults, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
	}
	return errors.Join(faults...)
}

// Own builds lhstorage's programs from the checkout, with the given build tags,
// and returns the directory that holds them. Equal sources give the same
// directory; changed ones another, and the old one stays until it has not been
// asked for in a day.
func Own(ctx context.Context, tags ...string) (string, error) {
	if dir, ok := Built("own"); ok && len(tags) == 0 {
		return dir, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	mains := existing(root, ownMains)
	if len(mains) == 0 {
		return "", fmt.Errorf("build lhstorage's programs: none of %s is in %s", strings.Join(ownMains, ", "), root)
	}
	return buildOwn(ctx, root, tags, mains)
}

// Built is the directory of what was built elsewhere under a name, if anything was.
func Built(name string) (dir string, ok bool) {
	all := os.Getenv(BuiltEnv)
	dir = filepath.Join(all, name)
	return dir, all != "" && isDir(dir)
}

// Programs builds programs of the checkout that only tests run, each named by its
// folder, and returns the directory that holds them, as [Own] does.
func Programs(ctx context.Context, folders ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return buildOwn(ctx, root, nil, folders)
}

func buildOwn(ctx context.Context, root string, tags, mains []string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	work := filepath.Join(cache, "own", digest([]byte(root), []byte(strings.Join(tags, ",")))+".work")
	unlock, err := lock(ctx, work+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	// The work directory is kept: go build leaves a program alone that is up to date.
	if err := goBuild(ctx, root, work, recipe{}, tags, mains); err != nil {
		return "", err
	}
	return publishOwn(ctx, work, mains)
}

// publishOwn copies the programs of a build to a directory named after their
// content.
func publishOwn(ctx context.Context, work string, mains []string) (string, error) {
	sum := sha256.New()
	programs := map[string][]byte{}
	for _, main := range mains {
		name := filepath.Base(main)
		data, err := os.ReadFile(filepath.Join(work, name))
		if err != nil {
			return "", fmt.Errorf("read a program that was just built: %w", err)
		}
		programs[name] = data
		fmt.Fprintf(sum, "%s %d\n", name, len(data))
		sum.Write(data)
	}
	dir, err := Cached(ctx, "own", hex.EncodeToString(sum.Sum(nil))[:16], func(dir string) error {
		for name, data := range programs {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
				return fmt.Errorf("keep a program that was just built: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	sweepOwn(filepath.Dir(dir), dir)
	return dir, nil
}

// sweepOwn marks current as used and removes builds (not locks and directories
// under work, which have an extension) that were not asked for in a day. A
// failure costs disk space only.
func sweepOwn(parent, current string) {
	now := time.Now()
	_ = os.Chtimes(current, now, now)
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && filepath.Ext(e.Name()) == "" && now.Sub(info.ModTime()) > keepOwn {
			_ = os.RemoveAll(filepath.Join(parent, e.Name()))
		}
	}
}

// CacheDir is where everything that is built is kept: lhstorage in the user's
// cache directory ($XDG_CACHE_HOME, else ~/.cache).
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory for built tools: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	return filepath.Join(base, "lhstorage"), nil
}

// Root is the checkout that the working directory lies in.
func Root() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(data, []byte(modulePath)) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the checkout: no directory from %s upwards has lhstorage's go.mod", wd)
		}
	}
}

// Cached returns the directory name/key of the cache, made by build if it isn't
// there yet.
func Cached(ctx context.Context, name, key string, build func(dir string) error) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name, key)
	if isDir(dir) {
		return dir, nil
	}
	unlock, err := lock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(dir) { // another process has built it meanwhile
		return dir, nil
	}
	return dir, fill(dir, build)
}

// fill lets build write into a temporary directory and renames that to dir when
// all went well, so that a dir that exists is complete.
func fill(dir string, build func(dir string) error) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil { // of a builder that was killed
		return fmt.Errorf("clear the way for a build: %w", err)
	}
	if err := os.MkdirAll(part, 0o750); err != nil {
		return fmt.Errorf("make room for a build: %w", err)
	}
	if err := build(part); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	if err := os.Rename(part, dir); err != nil {
		return fmt.Errorf("keep a build: %w", err)
	}
	return nil
}

// lock takes the lock file at path and returns what gives it back. The file
// stays: removing it would let two holders in.
func lock(ctx context.Context, path string) (func(), error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the cache directory: %w", err)
	}
	l := flock.New(path)
	if _, err := l.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return nil, fmt.Errorf("wait for another build (lock %s): %w", path, err)
	}
	return func() { _ = l.Close() }, nil
}

// goBuild builds packages of the module at dir into out: without symbols, and static where no C library is asked for, as they are shipped.
func goBuild(ctx context.Context, dir, out string, how recipe, tags, packages []string) error {
	cgo := "CGO_ENABLED=0"
	if how.libqcow {
		if _, err := os.Stat("/usr/include/libqcow.h"); err != nil {
			return fmt.Errorf("build the programs of %s: %w: `hack/deps longhorn` installs libqcow-dev", dir, err)
		}
		cgo, tags = "CGO_ENABLED=1", append(slices.Clone(tags), "netgo", "osusergo")
	}
	args := []string{"build", "-trimpath", "-ldflags", strings.TrimSpace("-s -w " + how.ldflags), "-tags", strings.Join(tags, ","), "-o", out + string(filepath.Separator)}
	for _, p := range packages {
		if p != "tool" {
			p = "./" + p
		}
		args = append(args, p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=-mod=readonly", "GOWORK=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), dir, err, output)
	}
	return nil
}

// Version is the version of a module that the tools module called name is built
// from.
func Version(name, path string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	file := filepath.Join(root, "integration", "tools", name, "go.mod")
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("tools module %s: %w", name, err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) >= 2 && fields[0] == path && strings.HasPrefix(fields[1], "v") {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("tools module %s: %s doesn't require %s", name, file, path)
}

// Source is the directory with the source of a module that the tools module
// called name is built from: for what is shipped beside the programs, as
// CustomResourceDefinitions are. It is downloaded if it isn't there any more.
func Source(ctx context.Context, name, path string) (string, error) {
	version, err := Version(name, path)
	if err != nil {
		return "", err
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", path+"@"+version)
	cmd.Dir = filepath.Join(root, "integration", "tools", name) // its go.sum vouches for the content
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	output, err := cmd.Output()
	var module struct{ Dir, Error string }
	if err := errors.Join(err, json.Unmarshal(output, &module)); err != nil {
		return "", fmt.Errorf("find the source of %s@%s: %w: %s", path, version, err, module.Error)
	}
	return module.Dir, nil
}

// moduleKey is a digest of all that decides what a tools module builds.
func moduleKey(dir string, how recipe) (string, error) {
	parts := [][]byte{[]byte(runtime.Version())}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		parts = append(parts, data)
	}
	for _, from := range slices.Sorted(maps.Keys(how.names)) {
		parts = append(parts, []byte(from+"="+how.names[from]))
	}
	if how.ldflags != "" {
		parts = append(parts, []byte(how.ldflags))
	}
	sources, err := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*.go")) // of modules that stand in for what can't be had
	if err != nil {
		return "", err
	}
	for _, file := range sources {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		parts = append(parts, data)
	}
	return digest(parts...), nil
}

func digest(parts ...[]byte) string {
	sum := sha256.Sum256(bytes.Join(parts, []byte{0}))
	return hex.EncodeToString(sum[:])[:16]
}

func existing(root string, folders []string) []string {
	return slices.DeleteFunc(slices.Clone(folders), func(f string) bool { return !isDir(filepath.Join(root, f)) })
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDir != 0
}
