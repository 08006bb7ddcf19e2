// Package atomicfile replaces files on a node's disk in one step: whoever reads one, starts it as a program, or boots after a power
// loss finds the old file or the new one, whole.
//
// What is new is written to a draft, a hidden file in the same directory (a rename works within a file system only), which no other writer
// opens. Mode, content, and then the directory are synced, for ext4 and XFS may otherwise have the name before the content, or not have it at all after
// a power loss that came later than the answer. A program that is being executed isn't written to (ETXTBSY): its file keeps
// its content without a name until the last process has ended.
package atomicfile

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const mark = ".lhstorage-draft-" // in the names of drafts, before a number

// Draft is what will be a file's content.
type Draft struct {
	file *os.File
	path string // of the file
}

// Begin makes an empty draft for path. Its directory must be there.
func Begin(path string, mode fs.FileMode) (*Draft, error) {
	name := filepath.Join(filepath.Dir(path), prefix(path)+strconv.FormatUint(rand.Uint64(), 36))
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_TRUNC, mode) //nolint:gosec // the caller's own path
	if err != nil {
		return nil, err
	}
	d := &Draft{file: file, path: path}
	// The mode that a file is made with is narrowed by the umask.
	if err := file.Chmod(mode); err != nil {
		return nil, errors.Join(err, d.Discard())
	}
	return d, nil
}

func (d *Draft) Write(p []byte) (int, error) { return d.file.Write(p) }

// Commit puts the draft in the file's place. Without an error that is on disk; with one, the old file is in its place, or, where only the
// directory couldn't be synced, the new one.
func (d *Draft) Commit() error {
	err := d.file.Sync()
	if err == nil {
		err = d.file.Close()
	}
	if err == nil {
		err = os.Rename(d.file.Name(), d.path)
	}
	if err != nil {
		return errors.Join(err, d.Discard())
	}
	return syncDir(filepath.Dir(d.path))
}

// Discard removes a draft that isn't wanted.
func (d *Draft) Discard() error {
	_ = d.file.Close() // it may be closed, and its content doesn't matter
	return os.Remove(d.file.Name())
}

// Write replaces a file, or makes it.
func Write(path string, content []byte, mode fs.FileMode) error {
	d, err := Begin(path, mode)
	if err != nil {
		return err
	}
	if _, err := d.Write(content); err != nil {
		return errors.Join(err, d.Discard())
	}
	return d.Commit()
}

// Remove removes a file for good. One that isn't there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Sweep removes drafts of path that killed writers left. The caller has made sure that no other is at work.
func Sweep(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var faults []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix(path)) {
			faults = append(faults, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(faults...)
}

// prefix begins the names of path's drafts.
func prefix(path string) string { return "." + filepath.Base(path) + mark }

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the directory of the caller's own path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
