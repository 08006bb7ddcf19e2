package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

const (
	staleAfter = 5 * time.Minute  // a draft without a claim belongs to no running process after this: each call ends long before
	sweepEvery = 10 * time.Minute // at most
)

// file is a claim as it is written.
type file struct {
	ipam.Claim
	Draft string `json:"draft"` // name of the file's other link
}

// draft is what the name of a file in the drafts directory says.
type draft struct {
	pod     string // podKey of the owner; "declined" for a quarantine
	sandbox string // sandboxKey of the owner; for a quarantine its end in Unix seconds
	name    string // of the claim
}

const declined = "declined"

// podKey and sandboxKey shorten what may be too long for a file name. Two pods with one key
// cost a look into the claim, which has the last word.
func podKey(o ipam.Owner) string     { return hash(o.Pod()) }
func sandboxKey(o ipam.Owner) string { return hash(o.ContainerID + "\x00" + o.IfName) }

func hash(s string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return fmt.Sprintf("%016x", h.Sum64())
}

func draftOf(c ipam.Claim) draft {
	if c.Declined != nil {
		return draft{declined, strconv.FormatInt(c.Declined.Until.Unix(), 10), c.Name}
	}
	return draft{podKey(c.Owner), sandboxKey(c.Owner), c.Name}
}

// fileName is a name of a draft that no other draft has.
func (d draft) fileName() string {
	return fmt.Sprintf("%s.%s.%s.%016x", d.pod, d.sandbox, d.name, rand.Uint64())
}

// parseDraft reads a file name; false for a file that isn't a draft.
func parseDraft(file string) (draft, bool) {
	pod, rest, ok1 := strings.Cut(file, ".")
	sandbox, rest, ok2 := strings.Cut(rest, ".")
	end := strings.LastIndexByte(rest, '.')
	if !ok1 || !ok2 || end <= 0 {
		return draft{}, false
	}
	return draft{pod, sandbox, rest[:end]}, true
}

// expired says whether a quarantine is over.
func (d draft) expired(now time.Time) bool {
	until, err := strconv.ParseInt(d.sandbox, 10, 64)
	return d.pod == declined && err == nil && now.Unix() >= until
}

func (s *Store) draftPath(file string) string { return filepath.Join(s.drafts(), file) }

// writeDraft writes a claim in full under a name of its own and returns the path.
func (s *Store) writeDraft(c ipam.Claim) (path string, err error) {
	out := file{c, draftOf(c).fileName()}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return "", ioError("write a claim", err)
	}
	path = s.draftPath(out.Draft)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // a name of the store
	if err != nil {
		return "", ioError("write a claim", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(ioError("write a claim", err), remove(path))
	}
	return path, nil
}

// replace puts c in the place of the claim old. The caller has the lock. point begins the
// names of the fault points on the way.
func (s *Store) replace(old file, c ipam.Claim, point string) error {
	path, err := s.writeDraft(c)
	if err != nil {
		return err
	}
	if err := s.swap(path, c.Name, point); err != nil {
		return errors.Join(err, remove(path))
	}
	if err := fault.At(point + ".renamed"); err != nil {
		return err
	}
	return remove(s.draftPath(old.Draft))
}

// swap makes the draft at path the claim of that name. rename(2) would take the draft's name
// away, so a third link is what is renamed.
func (s *Store) swap(path, name, point string) error {
	if err := fault.At(point + ".drafted"); err != nil {
		return err
	}
	stage := s.stage()
	if err := remove(stage); err != nil {
		return err
	}
	if err := os.Link(path, stage); err != nil {
		return ioError("change a claim", err)
	}
	if err := fault.At(point + ".staged"); err != nil {
		return errors.Join(err, remove(stage))
	}
	if err := os.Rename(stage, s.claimPath(name)); err != nil {
		return errors.Join(ioError("change a claim", err), remove(stage))
	}
	return nil
}

// stage is the link that a changed claim is renamed from. One is enough: there is one lock.
func (s *Store) stage() string { return filepath.Join(s.boot, "stage") }

// remove removes the claim name if doomed says so, and its draft after it. The
// caller has the lock. A claim that is gone is no error.
func (s *Store) remove(name string, doomed func(ipam.Claim) bool) error {
	claim, err := s.read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !doomed(claim.Claim):
		return nil
	}
	if err := remove(s.claimPath(name)); err != nil {
		return err
	}
	if err := fault.At("ipam.del.unlinked"); err != nil {
		return err
	}
	return remove(s.draftPath(claim.Draft))
}

// sweep removes, from time to time, the drafts of killed processes and the
// quarantines that are over. The caller has the lock.
func (s *Store) sweep() error {
	mark := filepath.Join(s.boot, "swept")
	if info, err := os.Stat(mark); err == nil && s.now().Sub(info.ModTime()) < sweepEvery {
		return nil
	}
	files, err := list(s.drafts())
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		d, ok := parseDraft(name)
		if ok && d.expired(s.now()) {
			errs = append(errs, s.remove(d.name, s.over))
		}
		if !ok || s.abandoned(name, d) {
			errs = append(errs, remove(s.draftPath(name)))
		}
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		errs = append(errs, ioError("note that the store of claims was swept", err))
	}
	return errors.Join(errs...)
}

// abandoned says whether a draft is old and no claim.
func (s *Store) abandoned(name string, d draft) bool {
	info, err := os.Lstat(s.draftPath(name))
	if err != nil || s.now().Sub(info.ModTime()) < staleAfter {
		return false
	}
	claim, err := os.Lstat(s.claimPath(d.name))
	return err != nil && errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, claim)
}

func list(dir string) ([]string, error) {
	d, err := os.Open(dir) //nolint:gosec // a directory of the store
	if err != nil {
		return nil, ioError("list the store of claims", err)
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, ioError("list the store of claims", err)
	}
	return names, nil
}

// remove removes a file; one that is gone is no error.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError("remove a file of the store of claims", err)
	}
	return nil
}
