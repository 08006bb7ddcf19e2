package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// metaPackage depends on Debian's current kernel.
const metaPackage = "linux-image-amd64"

// Kernel is an unpacked kernel.
type Kernel struct {
	Image   string // what a boot loader would load
	Modules string // a directory named after the release
}

// DebianKernel unpacks Debian's current kernel into the cache, unless it is there,
// and never anywhere else: this machine's own boot is not touched. Where apt can't
// be asked, the cache's newest serves.
func DebianKernel(ctx context.Context) (Kernel, error) {
	name, err := currentPackage(ctx)
	if err != nil {
		return newestCached(err)
	}
	dir, err := tools.Cached(ctx, "debian", name, func(dir string) error { return unpack(ctx, name, dir) })
	if err != nil {
		return Kernel{}, err
	}
	return kernelIn(dir)
}

// newestCached is the kernel that was unpacked last, for where apt can't be asked;
// why is the error where there is none.
func newestCached(why error) (Kernel, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return Kernel{}, errors.Join(why, err)
	}
	dirs, _ := filepath.Glob(filepath.Join(cache, "debian", "linux-image-*"))
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { _, err := kernelIn(dir); return err != nil }) // locks, and what was cut short
	if len(dirs) == 0 {
		return Kernel{}, why
	}
	return kernelIn(slices.MaxFunc(dirs, func(a, b string) int { return modified(a).Compare(modified(b)) }))
}

func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// currentPackage is the package that the meta package depends on. apt knows none
// before it has its lists.
func currentPackage(ctx context.Context) (string, error) {
	if name, err := dependency(ctx); err == nil {
		return name, nil
	}
	updateErr := update(ctx)
	name, err := dependency(ctx)
	if err != nil {
		return "", errors.Join(err, updateErr)
	}
	return name, nil
}

func dependency(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", metaPackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("apt knows no kernel that %s depends on: it takes Debian for amd64", metaPackage)
}

func update(ctx context.Context) error {
	_, err := run(ctx, "", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")
	return err
}

// unpack downloads a package and unpacks it. A download fails where the list of
// packages is older than the mirror's files; that is got anew then.
func unpack(ctx context.Context, name, dir string) error {
	if _, err := run(ctx, dir, "apt-get", "-q", "download", name); err != nil {
		updateErr := update(ctx)
		if _, again := run(ctx, dir, "apt-get", "-q", "download", name); again != nil {
			return errors.Join(again, updateErr)
		}
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download %s left %q (%w)", name, packages, err)
	}
	if _, err := run(ctx, dir, "dpkg-deb", "-x", packages[0], "."); err != nil {
		return err
	}
	kernel, err := kernelIn(dir)
	if err != nil {
		return err
	}
	// As the package's postinst would.
	if _, err := run(ctx, dir, "depmod", "-b", dir, filepath.Base(kernel.Modules)); err != nil {
		return err
	}
	return os.Remove(packages[0])
}

func kernelIn(dir string) (Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	modules, _ := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if len(images) != 1 || len(modules) != 1 {
		return Kernel{}, fmt.Errorf("%s is no unpacked kernel: it has %d images and %d sets of modules; remove it and try again", dir, len(images), len(modules))
	}
	return Kernel{images[0], modules[0]}, nil
}

// run runs a program in a directory and returns its output.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
