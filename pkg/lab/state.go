package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
)

const (
	stateVersion = 1
	lockWait     = 10 * time.Second
)

// errNoState means that there is no such lab, or that it never got to its first
// namespace.
var errNoState = errors.New("no state")

// State is what a lab has made or is about to make.
type State struct {
	Version    int       `json:"version"`
	Options    Options   `json:"options"`
	Created    time.Time `json:"created"`
	Closing    bool      `json:"closing,omitempty"` // Down has begun: no more pods
	Namespaces []string  `json:"namespaces"`        // nodes and LAN
	Pods       []Pod     `json:"pods"`
}

// pod is the place of a pod in Pods, or -1.
func (s State) pod(node, name string) int {
	return slices.IndexFunc(s.Pods, func(p Pod) bool { return p.Node == node && p.Name == name })
}

// store keeps a lab's state file, which many processes use at once.
type store struct {
	dir string
}

func (s store) file() string { return filepath.Join(s.dir, "state.json") }
func (s store) name() string { return filepath.Base(s.dir) }

// create takes the lab's name: only one of many callers succeeds.
func (s store) create(state State) error {
	if err := os.MkdirAll(filepath.Dir(s.dir), 0o755); err != nil { //nolint:gosec // users look in
		return fmt.Errorf("lab %s: %w", s.name(), err)
	}
	if err := os.Mkdir(s.dir, 0o755); errors.Is(err, fs.ErrExist) { //nolint:gosec // the same
		return fmt.Errorf("lab %s is there already (%s): `lhstoragectl lab down --name %s` removes it", s.name(), s.dir, s.name())
	} else if err != nil {
		return fmt.Errorf("lab %s: %w", s.name(), err)
	}
	return s.write(state)
}

// load reads the state; it wraps errNoState if there is none.
func (s store) load() (State, error) {
	var state State
	data, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return state, fmt.Errorf("lab %s isn't up (%w in %s): `lhstoragectl lab up --name %s` makes it", s.name(), errNoState, s.dir, s.name())
	}
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err == nil && state.Version != stateVersion {
		err = fmt.Errorf("version %d: this program knows version %d", state.Version, stateVersion)
	}
	if err != nil {
		return state, fmt.Errorf("lab %s: state file %s: %w", s.name(), s.file(), err)
	}
	return state, nil
}

// change loads the state, lets f change it and writes it back, alone.
func (s store) change(f func(*State) error) (State, error) {
	if _, err := s.load(); err != nil { // the lock file would make the directory's absence an unclear error
		return State{}, err
	}
	lock := flock.New(filepath.Join(s.dir, "lock"))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 5*time.Millisecond); err != nil {
		return State{}, fmt.Errorf("lab %s: lock %s: %w", s.name(), lock.Path(), err)
	}
	defer lock.Unlock() //nolint:errcheck // closing the file unlocks
	state, err := s.load()
	if err != nil {
		return state, err
	}
	if err := f(&state); err != nil {
		return state, err
	}
	return state, s.write(state)
}

// close marks the lab as going down and returns what there is to remove.
func (s store) close() (State, error) {
	return s.change(func(state *State) error {
		state.Closing = true
		return nil
	})
}

func (s store) write(state State) error {
	data, err := json.MarshalIndent(state, "", "  ")
	if err == nil {
		err = atomicfile.Write(s.file(), append(data, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("lab %s: write the state: %w", s.name(), err)
	}
	return nil
}

// remove deletes the lab's directory, and its parent if that is now empty.
func (s store) remove() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("lab %s: %w", s.name(), err)
	}
	_ = os.Remove(filepath.Dir(s.dir)) // refused while other labs are there
	return nil
}
