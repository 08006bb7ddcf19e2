package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestArchive(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("#!"), 0o600))
	i := Image{
		Name: "example.test/image:1", Entrypoint: []string{"/a/b/program"},
		Files: map[string]string{"a/b/program": program}, Content: map[string][]byte{"etc/note": []byte("x")},
		Links: map[string]string{"bin/p": "../a/b/program"},
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, i.WriteArchive(file))
	all := unpack(t, file)
	for name, content := range all {
		if sum, found := strings.CutPrefix(name, "blobs/sha256/"); found {
			assert.Equal(t, sum, fmt.Sprintf("%x", sha256.Sum256(content)))
		}
	}
	var index struct{ Manifests []descriptor }
	require.NoError(t, json.Unmarshal(all["index.json"], &index))
	require.Len(t, index.Manifests, 1)
	assert.Equal(t, i.Name, index.Manifests[0].Annotations["io.containerd.image.name"])
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	require.NoError(t, json.Unmarshal(all.blob(index.Manifests[0]), &manifest))
	require.Len(t, manifest.Layers, 1)
	layer := filepath.Join(t.TempDir(), "layer.tar")
	require.NoError(t, os.WriteFile(layer, all.blob(manifest.Layers[0]), 0o600))
	assert.Equal(t, content{"a/": nil, "a/b/": nil, "a/b/program": []byte("#!"), "bin/": nil, "bin/p": nil, "etc/": nil, "etc/note": []byte("x"), "run/": nil, "tmp/": nil}, unpack(t, layer))
	assert.Contains(t, string(all.blob(manifest.Config)), manifest.Layers[0].Digest)
	assert.Contains(t, string(all.blob(manifest.Config)), i.Entrypoint[0])
}

func TestArchiveNamesWhatItCanNotRead(t *testing.T) {
	i := Image{Name: "example.test/image:1", Files: map[string]string{"x": "/no/such/file"}}
	file := filepath.Join(t.TempDir(), "image.tar")
	err := i.WriteArchive(file)
	require.ErrorContains(t, err, i.Name)
	require.ErrorContains(t, err, "/no/such/file")
	require.NoFileExists(t, file)
}

// content is what is in an archive, by name; directories and links have none.
type content map[string][]byte

func (c content) blob(d descriptor) []byte {
	return c["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
}

func unpack(t *testing.T, file string) content {
	t.Helper()
	in, err := os.Open(file)
	require.NoError(t, err)
	defer in.Close() //nolint:errcheck // read only
	all := content{}
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all[header.Name] = nil
		if header.Size > 0 {
			all[header.Name], err = io.ReadAll(r)
			require.NoError(t, err)
		}
	}
}
