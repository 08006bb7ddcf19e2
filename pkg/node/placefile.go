package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// loadPlace reads the last answer and when it was written; none is a zero place.
// A torn file is none too: the answer is found anew from what the node holds.
func loadPlace(path string) (p place.Place, written time.Time, err error) {
	data, err := os.ReadFile(path) //nolint:gosec // below the node's state directory
	if errors.Is(err, fs.ErrNotExist) {
		return place.Place{}, written, nil
	}
	if err != nil {
		return place.Place{}, written, cnierr.New(cnierr.IO, "read this node's place on the storage network: %w", err)
	}
	if json.Unmarshal(data, &p) != nil {
		return place.Place{}, written, nil //nolint:nilerr // a torn file is no answer
	}
	if info, err := os.Stat(path); err == nil {
		written = info.ModTime()
	}
	return p, written, nil
}

// savePlace writes the answer so that it survives a power loss: it is what a
// node that boots with the API away goes by.
func savePlace(path string, p place.Place) error {
	if err := replace(path, "ensure.place.written", p); err != nil {
		return cnierr.New(cnierr.IO, "write this node's place on the storage network: %w", err)
	}
	return nil
}
