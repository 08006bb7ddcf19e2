package cluster

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// Images that pods can name. There is no registry: each node has them from its
// first boot on. Multus' is called as its own manifest calls it.
const (
	ImageBusybox         = "lhstorage.test/busybox:1"
	ImageInstanceManager = "lhstorage.test/instance-manager:1" // tgtd with one disk, see [InstanceManager]

	imagePause  = "lhstorage.test/pause:1" // of sandboxes
	imageMultus = "ghcr.io/k8snetworkplumbingwg/multus-cni:snapshot-thick"
)

const (
	busybox = "/bin/busybox"
	forever = "2147483647" // seconds
)

// writeImages writes the archives of all images into dir.
func writeImages(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	base, err := busyboxImage(ctx)
	if err != nil {
		return err
	}
	multus, err := base.multus(ctx)
	if err != nil {
		return err
	}
	manager, err := base.instanceManager(ctx)
	if err != nil {
		return err
	}
	pause := base
	pause.name, pause.entrypoint = imagePause, []string{"/bin/sleep", forever}
	for i, image := range []image{pause, base, manager, multus} {
		if err := image.writeArchive(filepath.Join(dir, fmt.Sprintf("%d.tar", i))); err != nil {
			return fmt.Errorf("write image %s: %w", image.name, err)
		}
	}
	return nil
}

// busyboxImage has busybox under the names of all its programs.
func busyboxImage(ctx context.Context) (image, error) {
	if err := isStatic(busybox); err != nil {
		return image{}, fmt.Errorf("%w: `make deps` installs busybox-static", err)
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return image{}, fmt.Errorf("ask busybox what it is: %w", err)
	}
	i := image{
		name: ImageBusybox, entrypoint: []string{"/bin/sh", "-c", "trap 'exit 0' TERM; sleep " + forever + " & wait"},
		files: map[string]string{"bin/busybox": busybox}, links: map[string]string{"var/run": "/run"},
		content: map[string][]byte{"etc/passwd": []byte("root:x:0:0:root:/:/bin/sh\n")}, // Go programs ask it who they are
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			i.links["bin/"+name] = "busybox"
		}
	}
	return i, nil
}

// isStatic fails for a program that needs libraries.
func isStatic(path string) error {
	program, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer program.Close() //nolint:errcheck // read only
	libraries, err := program.ImportedLibraries()
	if err == nil && len(libraries) > 0 {
		err = fmt.Errorf("%s isn't static: it needs %s", path, strings.Join(libraries, ", "))
	}
	return err
}

// multus adds what Multus' own image has.
func (i image) multus(ctx context.Context) (image, error) {
	built, err := tools.Module(ctx, "multus")
	if err != nil {
		return image{}, err
	}
	i.name, i.files = imageMultus, maps.Clone(i.files)
	for _, name := range []string{"multus-daemon", "multus-shim", "install_multus", "passthru"} {
		i.files["usr/src/multus-cni/bin/"+name] = filepath.Join(built, name)
	}
	return i, nil
}

// instanceManager adds tgtd, its libraries and a disk.
func (i image) instanceManager(ctx context.Context) (image, error) {
	i.name, i.entrypoint = ImageInstanceManager, []string{"/bin/sh", "/serve"}
	i.files, i.content = maps.Clone(i.files), maps.Clone(i.content)
	i.content["serve"], i.content["disk"] = []byte(serveScript), disk()
	for _, name := range []string{"tgtd", "tgtadm"} {
		path, err := findProgram(name)
		if err != nil {
			return i, err
		}
		i.files["usr/sbin/"+name] = path
		libraries, err := librariesOf(ctx, path)
		if err != nil {
			return i, err
		}
		for _, library := range libraries {
			i.files[strings.TrimPrefix(library, "/")] = library
		}
	}
	return i, nil
}

// librariesOf are the paths of the shared libraries that a program loads, and of
// its loader.
func librariesOf(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: %w", program, err)
	}
	var paths []string
	for line := range strings.Lines(string(out)) {
		for word := range strings.FieldsSeq(line) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
			}
		}
	}
	return paths, nil
}

// findProgram finds a program of Debian's; those for administrators are often not
// in PATH.
func findProgram(name string) (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s on this machine: `make deps` installs what the cluster needs", name)
}

// checkPrograms looks for what is taken from the distribution.
func checkPrograms() error {
	var faults []error
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "tgtd", "tgtadm", "iscsi-inq"} {
		_, err := findProgram(name)
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// disk is what is on the disk of each instance manager: bytes that no other disk
// begins with, always the same.
func disk() []byte {
	source := rand.NewChaCha8([32]byte{'l', 'h', 's', 't', 'o', 'r', 'a', 'g', 'e'})
	data := make([]byte, diskBytes)
	_, _ = source.Read(data) // never fails
	return data
}
