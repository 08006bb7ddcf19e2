package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/lhstorage/lhstorage/pkg/fault"
)

// replace writes a value as JSON so that a reader sees the old file or the new one,
// after a power loss too. The caller has the node's lock: whatever an earlier
// writer left beside the file belongs to one that was killed, and goes.
func replace(path, point string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp := "." + filepath.Base(path) // and a number
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temp) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	// In the same directory: the library would try others first, and leave what it tries with there.
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	_, err = pending.Write(append(data, '\n'))
	if err = errors.Join(err, fault.At(point)); err == nil {
		err = pending.CloseAtomicallyReplace()
	}
	if err != nil {
		return errors.Join(err, pending.Cleanup())
	}
	return nil
}
