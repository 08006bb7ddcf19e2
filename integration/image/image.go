// Package image makes container images without a daemon: an OCI image layout in a tar file, which `ctr images import` and `docker load` take. The same content
// gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is a container image with one layer.
type Image struct {
	Name       string            // with registry and tag, as a pod names it
	Entrypoint []string          // that of pods that name none
	Files      map[string]string // by path in the image: a file of this machine
	Content    map[string][]byte // the same, for what is in no file; not executable
	Links      map[string]string // symbolic ones, by path: what they point to
}

// descriptor is how an OCI object points to another.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// WriteArchive writes the image as an archive that a runtime can import: the OCI
// image layout in a tar file.
func (i Image) WriteArchive(file string) (err error) {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	a := &archive{w: tar.NewWriter(out)}
	layerDescriptor := a.blob(mediaLayer, layer)
	config := a.object(mediaConfig, map[string]any{
		"architecture": runtime.GOARCH, "os": runtime.GOOS,
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDescriptor.Digest}},
	})
	manifest := a.object(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": []descriptor{layerDescriptor},
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": i.Name}
	a.json("index.json", map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	a.json("oci-layout", map[string]any{"imageLayoutVersion": "1.0.0"})
	return errors.Join(a.err, a.w.Close())
}

// archive is a tar file that is being written. After a first error nothing more
// is.
type archive struct {
	w   *tar.Writer
	err error
}

func (a *archive) file(name string, mode int64, data []byte) {
	if a.err == nil {
		a.err = a.w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg})
	}
	if a.err == nil {
		_, a.err = a.w.Write(data)
	}
}

func (a *archive) dir(name string, mode int64) {
	if a.err == nil {
		a.err = a.w.WriteHeader(&tar.Header{Name: name + "/", Mode: mode, Typeflag: tar.TypeDir})
	}
}

func (a *archive) json(name string, value any) {
	data, err := json.Marshal(value)
	a.err = cmp.Or(a.err, err)
	a.file(name, 0o644, data)
}

func (a *archive) blob(media string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	a.file("blobs/sha256/"+sum, 0o644, data)
	return descriptor{MediaType: media, Digest: "sha256:" + sum, Size: int64(len(data))}
}

func (a *archive) object(media string, value any) descriptor {
	data, err := json.Marshal(value)
	a.err = cmp.Or(a.err, err)
	return a.blob(media, data)
}

// layer is the image's file system.
func (i Image) layer() ([]byte, error) {
	var out bytes.Buffer
	a := &archive{w: tar.NewWriter(&out)}
	for _, dir := range i.dirs() {
		a.dir(dir, 0o755)
	}
	a.dir("run", 0o755)
	a.dir("tmp", 0o1777)
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		data, err := os.ReadFile(i.Files[name])
		a.err = cmp.Or(a.err, err)
		a.file(name, 0o755, data)
	}
	for _, name := range slices.Sorted(maps.Keys(i.Content)) {
		a.file(name, 0o644, i.Content[name])
	}
	for _, name := range slices.Sorted(maps.Keys(i.Links)) {
		if a.err == nil {
			a.err = a.w.WriteHeader(&tar.Header{Name: name, Linkname: i.Links[name], Mode: 0o777, Typeflag: tar.TypeSymlink})
		}
	}
	err := errors.Join(a.err, a.w.Close())
	return out.Bytes(), err
}

// dirs are all directories above the image's files, parents first.
func (i Image) dirs() []string {
	all := map[string]bool{}
	for _, names := range [][]string{slices.Collect(maps.Keys(i.Files)), slices.Collect(maps.Keys(i.Content)), slices.Collect(maps.Keys(i.Links))} {
		for _, name := range names {
			for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
				all[dir] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// AddProgram adds a program of this machine, and the libraries that it loads.
func (i Image) AddProgram(ctx context.Context, name, path string) error {
	needed, err := libraries(ctx, path)
	if err != nil {
		return err
	}
	i.Files[name] = path
	for _, library := range needed {
		i.Files[strings.TrimPrefix(library, "/")] = library
	}
	return nil
}

// libraries are the paths of the shared libraries that a program loads, and of
// its loader.
func libraries(ctx context.Context, program string) ([]string, error) {
	if static, err := isStatic(program); static || err != nil {
		return nil, err // ldd takes it for no program
	}
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

// isStatic says whether a program loads nothing.
func isStatic(path string) (bool, error) {
	program, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer program.Close() //nolint:errcheck // read only
	return !slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

// FindProgram finds a program of Debian's; those for administrators are often not
// in PATH.
func FindProgram(name string) (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s on this machine: `make deps` installs what images are made of", name)
}
