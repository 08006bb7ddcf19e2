package cluster

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
)

// image is a container image with one layer.
type image struct {
	name       string            // with registry and tag, as a pod names it
	entrypoint []string          // that of pods that name none
	files      map[string]string // by path in the image: a file of this machine
	content    map[string][]byte // the same, for what is in no file; not executable
	links      map[string]string // symbolic ones, by path: what they point to
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

// writeArchive writes the image as an archive that a runtime can import: the OCI
// image layout in a tar file.
func (i image) writeArchive(file string) (err error) {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
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
		"config": map[string]any{"Entrypoint": i.entrypoint, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDescriptor.Digest}},
	})
	manifest := a.object(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": []descriptor{layerDescriptor},
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": i.name}
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
func (i image) layer() ([]byte, error) {
	var out bytes.Buffer
	a := &archive{w: tar.NewWriter(&out)}
	for _, dir := range i.dirs() {
		a.dir(dir, 0o755)
	}
	a.dir("run", 0o755)
	a.dir("tmp", 0o1777)
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		data, err := os.ReadFile(i.files[name])
		a.err = cmp.Or(a.err, err)
		a.file(name, 0o755, data)
	}
	for _, name := range slices.Sorted(maps.Keys(i.content)) {
		a.file(name, 0o644, i.content[name])
	}
	for _, name := range slices.Sorted(maps.Keys(i.links)) {
		if a.err == nil {
			a.err = a.w.WriteHeader(&tar.Header{Name: name, Linkname: i.links[name], Mode: 0o777, Typeflag: tar.TypeSymlink})
		}
	}
	err := errors.Join(a.err, a.w.Close())
	return out.Bytes(), err
}

// dirs are all directories above the image's files, parents first.
func (i image) dirs() []string {
	all := map[string]bool{}
	for _, names := range [][]string{slices.Collect(maps.Keys(i.files)), slices.Collect(maps.Keys(i.content)), slices.Collect(maps.Keys(i.links))} {
		for _, name := range names {
			for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
				all[dir] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}
