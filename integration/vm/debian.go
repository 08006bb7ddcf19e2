package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

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
		return Kernel{}, err
	}
	dir, err := tools.Cached(ctx, "debian", name, func(dir string) error { return unpack(ctx, name, dir) })
	if err != nil {
		return Kernel{}, err
	}
	return kernelIn(dir)
}

// currentPackage is the package that the meta package depends on.
func currentPackage(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", metaPackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("apt knows no kernel that %s depends on: run `apt-get update`, on Debian for amd64", metaPackage)
}

// unpack downloads a package and unpacks it. A download fails where the list of
// packages is older than the mirror's files; that is got anew then.
func unpack(ctx context.Context, name, dir string) error {
	if _, err := run(ctx, dir, "apt-get", "-q", "download", name); err != nil {
		_, updateErr := run(ctx, dir, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")
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
