package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/fault"
)

// Programs are what a host needs.
var Programs = []string{"lhstorage", "lhstorage-ipam"}

const programMode fs.FileMode = 0o755

// readProgram reads what a program is: a regular file's digest and size.
func readProgram(path string) (Program, error) {
	p := Program{Name: filepath.Base(path)}
	file, err := openRegular(path)
	if err != nil {
		return p, err
	}
	defer file.Close() //nolint:errcheck // read only
	sum := sha256.New()
	p.Size, err = io.Copy(sum, file)
	p.SHA256 = text(sum)
	return p, err
}

func text(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

// same says whether a program is at path, as it would be installed.
func (p Program) same(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != programMode || info.Size() != p.Size {
		return false
	}
	there, err := readProgram(path)
	return err == nil && there.SHA256 == p.SHA256
}

// install copies a program from a file to path, and reads it back.
func (p Program) install(from, path string) error {
	if err := p.copy(from, path); err != nil {
		return explain(err)
	}
	if !p.same(path) {
		return fmt.Errorf("%s isn't what was written a moment ago: does something else install there?", path)
	}
	return nil
}

func (p Program) copy(from, path string) error {
	source, err := openRegular(from)
	if err != nil {
		return err
	}
	defer source.Close() //nolint:errcheck // read only
	draft, err := atomicfile.Begin(path, programMode)
	if err != nil {
		return err
	}
	if err := errors.Join(fault.At("install.program.drafted"), p.pour(draft, source), fault.At("install.program.copied")); err != nil {
		return errors.Join(err, draft.Discard())
	}
	return errors.Join(draft.Commit(), fault.At("install.program.placed"))
}

// pour copies the content, which must still be what was planned.
func (p Program) pour(to io.Writer, from io.Reader) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, sum), from); err != nil {
		return err
	}
	if text(sum) != p.SHA256 {
		return fmt.Errorf("%s changed while it was copied", p.Name)
	}
	return nil
}

// openRegular opens a regular file, and no other: a pipe would hang.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file (%s)", path, info.Mode())
	}
	return os.Open(path) //nolint:gosec // the caller's own path
}

func readRegular(path string) ([]byte, error) {
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	return io.ReadAll(file)
}
