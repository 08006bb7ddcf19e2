package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
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
	if err := atomicfile.Sweep(path); err != nil {
		return err
	}
	draft, err := atomicfile.Begin(path, 0o600)
	if err != nil {
		return err
	}
	_, err = draft.Write(append(data, '\n'))
	if err = errors.Join(err, fault.At(point)); err != nil {
		return errors.Join(err, draft.Discard())
	}
	return draft.Commit()
}
