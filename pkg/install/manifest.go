package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// ManifestVersion is that of the manifest's format.
const ManifestVersion = 1

const manifestFile = "manifest.json"

// Manifest says what the installer put onto a host.
type Manifest struct {
	Version  int           `json:"version"`
	Release  string        `json:"release"` // of lhstorage
	BinDir   string        `json:"binDir"`
	Programs []Program     `json:"programs"`
	Node     nodefile.File `json:"node"` // what it wrote to the node file, so that what an admin set is known from it
}

// Program is an installed program.
type Program struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// readManifest reads the manifest in a directory; false without an error: there is none.
func readManifest(h Host, dir string) (Manifest, bool, error) {
	var m Manifest
	path := dir + "/" + manifestFile
	data, err := h.read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, false, nil
	case err != nil:
		return m, false, fmt.Errorf("read what was installed: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, false, fmt.Errorf("read what was installed: %s isn't a manifest: %w; remove it and install again", path, err)
	}
	if m.Version != ManifestVersion {
		return m, false, fmt.Errorf("read what was installed: %s has version %d, and this program knows %d: use the install-cni of release %s", path, m.Version, ManifestVersion, m.Release)
	}
	return m, true, nil
}

// writeJSON replaces a file unless it has this content already; changed says which.
func writeJSON(path string, value any) (changed bool, err error) {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return false, err
	}
	content = append(content, '\n')
	if old, err := readRegular(path); err == nil && bytes.Equal(old, content) {
		return false, nil
	}
	return true, explain(atomicfile.Write(path, content, 0o644))
}
