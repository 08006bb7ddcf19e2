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

	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/integration/image"
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
	base, err := BusyboxImage(ctx)
	if err != nil {
		return err
	}
	multus, err := multusImage(ctx, base)
	if err != nil {
		return err
	}
	manager, err := instanceManagerImage(ctx, base)
	if err != nil {
		return err
	}
	pause := base
	pause.Name, pause.Entrypoint = imagePause, []string{"/bin/sleep", forever}
	for i, each := range []image.Image{pause, base, manager, multus} {
		if err := each.WriteArchive(filepath.Join(dir, fmt.Sprintf("%d.tar", i))); err != nil {
			return fmt.Errorf("write image %s: %w", each.Name, err)
		}
	}
	return nil
}

// BusyboxImage has busybox under the names of all its programs.
func BusyboxImage(ctx context.Context) (image.Image, error) {
	if err := isStatic(busybox); err != nil {
		return image.Image{}, fmt.Errorf("%w: `make deps` installs busybox-static", err)
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return image.Image{}, fmt.Errorf("ask busybox what it is: %w", err)
	}
	i := image.Image{
		Name: ImageBusybox, Entrypoint: []string{"/bin/sh", "-c", "trap 'exit 0' TERM; sleep " + forever + " & wait"},
		Files: map[string]string{"bin/busybox": busybox}, Links: map[string]string{"var/run": "/run"},
		Content: map[string][]byte{"etc/passwd": []byte("root:x:0:0:root:/:/bin/sh\n")}, // Go programs ask it who they are
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			i.Links["bin/"+name] = "busybox"
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

// multusImage adds what Multus' own image has.
func multusImage(ctx context.Context, i image.Image) (image.Image, error) {
	built, err := tools.Module(ctx, "multus")
	if err != nil {
		return image.Image{}, err
	}
	i.Name, i.Files = imageMultus, maps.Clone(i.Files)
	for _, name := range []string{"multus-daemon", "multus-shim", "install_multus", "passthru"} {
		i.Files["usr/src/multus-cni/bin/"+name] = filepath.Join(built, name)
	}
	return i, nil
}

// instanceManagerImage adds tgtd, its libraries and a disk.
func instanceManagerImage(ctx context.Context, i image.Image) (image.Image, error) {
	i.Name, i.Entrypoint = ImageInstanceManager, []string{"/bin/sh", "/serve"}
	i.Files, i.Content = maps.Clone(i.Files), maps.Clone(i.Content)
	i.Content["serve"], i.Content["disk"] = []byte(serveScript), disk()
	for _, name := range []string{"tgtd", "tgtadm"} {
		path, err := image.FindProgram(name)
		if err != nil {
			return i, err
		}
		if err := i.AddProgram(ctx, "usr/sbin/"+name, path); err != nil {
			return i, err
		}
	}
	return i, nil
}

// ImportImage gives an image to each node that is on.
func (c *Cluster) ImportImage(ctx context.Context, i image.Image) error {
	archive := filepath.Join(c.Dir, "import.tar")
	if err := i.WriteArchive(archive); err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	if err := c.importArchive(ctx, archive); err != nil {
		return err
	}
	return os.Remove(archive)
}

// importArchive gives each node that is on the image of an archive.
func (c *Cluster) importArchive(ctx context.Context, archive string) error {
	ctr, err := image.FindProgram("ctr")
	if err != nil {
		return err
	}
	importing, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		if n.Off() {
			continue
		}
		importing.Go(func() error {
			_, err := n.Run(ctx, ctr, "--namespace", "k8s.io", "images", "import", archive)
			return err
		})
	}
	return importing.Wait()
}

// checkPrograms looks for what is taken from the distribution.
func checkPrograms() error {
	var faults []error
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "tgtd", "tgtadm", "iscsi-inq"} {
		_, err := image.FindProgram(name)
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
