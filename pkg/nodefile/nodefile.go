// Package nodefile reads the one file that says who and where this node is:
// /etc/lhstorage/node.json, written by the installer.
package nodefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// DefaultPath is where the installer writes the file, SecondPath where it does so on a host whose /etc can't be written (Talos). The
// environment variable [PathEnv] names another one (tests and the lab run many nodes on one machine).
const (
	DefaultPath = "/etc/lhstorage/node.json"
	SecondPath  = "/var/lib/lhstorage/node.json"
	PathEnv     = "LHSTORAGE_NODE_FILE"
)

// Record modes: who mirrors claims into Whereabouts' objects.
const (
	RecordSync  = "sync"
	RecordAgent = "agent"
)

// File is the node file. All fields are optional.
type File struct {
	NodeName   string `json:"nodeName,omitempty"`   // default: the host name
	Index      int    `json:"index,omitempty"`      // this node's place on every parent, from 1; 0: not said
	Kubeconfig string `json:"kubeconfig,omitempty"` // empty: no cluster, the embedded store is used
	StateDir   string `json:"stateDir,omitempty"`   // survives a reboot; default /var/lib/lhstorage
	RunDir     string `json:"runDir,omitempty"`     // gone after a reboot; default /run/lhstorage
	Record     string `json:"record,omitempty"`     // sync (default) or agent
}

// Path is the path of this process's node file.
func Path() string {
	if p := os.Getenv(PathEnv); p != "" {
		return p
	}
	if !exists(DefaultPath) && exists(SecondPath) {
		return SecondPath
	}
	return DefaultPath
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Load reads this process's node file and fills in the defaults. A missing file
// at the default path is a node without a cluster; a missing file that was named
// by the environment is an error.
func Load() (File, error) {
	path := Path()
	data, err := os.ReadFile(path) //nolint:gosec // the path is the operator's own choice
	switch {
	case err == nil:
		return Parse(path, data)
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
		return Parse(path, []byte("{}"))
	default:
		return File{}, fmt.Errorf("read the node file: %w", err)
	}
}

// Parse reads the content of a node file and fills in the defaults; path is used in messages only. All
// faults are reported at once.
func Parse(path string, data []byte) (File, error) {
	f, err := ParseRaw(path, data)
	if err != nil {
		return File{}, err
	}
	return f.withDefaults(), nil
}

// ParseRaw is [Parse] without the defaults: what somebody wrote, for whoever writes the file anew.
func ParseRaw(path string, data []byte) (File, error) {
	var f File
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return File{}, fmt.Errorf("node file %s: %w", path, explain(err))
	}
	var faults []error
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		faults = append(faults, errors.New("there is something after the closing brace"))
	}
	if f.Index < 0 {
		faults = append(faults, fmt.Errorf("index %d: must be 1 or more (0 or absent: not said)", f.Index))
	}
	if !slices.Contains([]string{"", RecordSync, RecordAgent}, f.Record) {
		faults = append(faults, fmt.Errorf("record %q: must be %q or %q", f.Record, RecordSync, RecordAgent))
	}
	for _, p := range []struct{ key, value string }{
		{"kubeconfig", f.Kubeconfig}, {"stateDir", f.StateDir}, {"runDir", f.RunDir},
	} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			faults = append(faults, fmt.Errorf("%s %q: must be an absolute path", p.key, p.value))
		}
	}
	if len(faults) > 0 {
		return File{}, fmt.Errorf("node file %s: %w", path, errors.Join(faults...))
	}
	return f, nil
}

// explain says in other words what encoding/json says of a file without content.
func explain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it is empty: write {} for a node without settings, or remove it")
	}
	return err
}

func (f File) withDefaults() File {
	if f.NodeName == "" {
		f.NodeName, _ = os.Hostname()
	}
	if f.StateDir == "" {
		f.StateDir = "/var/lib/lhstorage"
	}
	if f.RunDir == "" {
		f.RunDir = "/run/lhstorage"
	}
	if f.Record == "" {
		f.Record = RecordSync
	}
	return f
}
