// Package embedded keeps the claims of one node in a directory, for use without a
// cluster.
//
//	<dir>/lock                           taken to change or give up a claim, never to make one
//	<dir>/boot-<boot id>/claims/<name>   a claim; its name is the lock on the address
//	<dir>/boot-<boot id>/drafts/<pod>.<sandbox>.<name>.<random>
//
// A claim is written in full as a draft and then linked to its name by link(2), which fails when the
// name exists: so of any number of processes one gets it, without a lock, and no
// reader ever sees half a claim. The draft stays: its name finds a pod's or a sandbox's
// claims among thousands without opening one. The draft is made before the claim and
// goes after it, so that each claim has one however a process ends; a draft without its
// claim holds nothing and is swept.
//
// To change or give up a claim is to read, compare and write: that takes the lock, or one
// process might remove what another has just taken over. The kernel drops the lock of a
// process that dies. A changed claim replaces the old one by rename(2).
//
// Nothing is synced to disk. A claim is of use only while its sandbox lives, no sandbox outlives
// the boot, and within one boot a write(2) that has returned is seen by all
// processes, whichever of them is killed. A power loss can tear a file, but only one of a boot that
// is over: claims lie in a directory named after the boot, and the directories of other
// boots are removed, unread, when the store is opened. Quarantines end with the boot
// too; the duplicate-address probe finds their reason again.
package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// Store is a directory of claims. It implements [ipam.Store].
type Store struct {
	dir, boot string
	now       func() time.Time
}

var _ ipam.Store = (*Store)(nil)

// BootID names the kernel's present boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", cnierr.New(cnierr.IO, "read the boot id, without which claims of an earlier boot can't be told from live ones: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Open opens the store in dir, makes it if need be, and drops the claims of earlier boots.
func Open(dir, bootID string) (*Store, error) {
	s := &Store{dir: dir, boot: filepath.Join(dir, bootPrefix+bootID), now: time.Now}
	for _, d := range []string{s.claims(), s.drafts()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, ioError("make the store of claims", err)
		}
	}
	if err := s.dropOtherBoots(); err != nil {
		return nil, err
	}
	return s, nil
}

const bootPrefix = "boot-"

func (s *Store) claims() string { return filepath.Join(s.boot, "claims") }
func (s *Store) drafts() string { return filepath.Join(s.boot, "drafts") }

func (s *Store) claimPath(name string) string { return filepath.Join(s.claims(), name) }

func (s *Store) dropOtherBoots() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return ioError("list the store of claims", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), bootPrefix) && e.Name() != filepath.Base(s.boot) {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return ioError("drop the claims of an earlier boot", err)
			}
		}
	}
	return nil
}

// Where says where the claims are.
func (s *Store) Where() string { return "the claims are the files in " + s.claims() }

// Snapshot reads names only, but for the pod's own claims.
func (s *Store) Snapshot(_ context.Context, pool ipam.Pool, owner ipam.Owner) (ipam.Snapshot, error) {
	var seen ipam.Snapshot
	names, err := list(s.claims())
	if err != nil {
		return seen, err
	}
	drafts, err := list(s.drafts())
	if err != nil {
		return seen, err
	}
	over := map[string]bool{} // quarantines that are over, by name
	mine := map[string]bool{}
	for _, text := range drafts {
		switch d, ok := parseDraft(text); {
		case !ok:
		case d.expired(s.now()):
			over[d.name] = true
		case d.pod == podKey(owner):
			mine[d.name] = true
		}
	}
	for _, name := range names {
		if addr, ok := pool.AddressOf(name); ok && !over[name] {
			seen.Taken = append(seen.Taken, addr)
		}
		if !mine[name] {
			continue
		}
		claim, err := s.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return seen, err
		case claim.Declined != nil || claim.Pod() != owner.Pod():
		case claim.Pool == pool.Name && claim.IfName == owner.IfName:
			seen.Own = append(seen.Own, claim.Claim)
		default:
			seen.Pod = append(seen.Pod, claim.Address)
		}
	}
	return seen, nil
}

// Create makes a claim without waiting for anyone.
func (s *Store) Create(ctx context.Context, _ ipam.Pool, claim ipam.Claim) error {
	claim.Created, claim.BootID = s.now().UTC(), strings.TrimPrefix(filepath.Base(s.boot), bootPrefix)
	for {
		err := s.tryCreate(claim)
		var held *ipam.TakenError
		if !errors.As(err, &held) || held.Holder != nil && !s.over(*held.Holder) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return cnierr.New(cnierr.TryAgain, "claim %s: %w", claim.Name, err)
		}
		if held.Holder == nil {
			continue // given up between our link and our look
		}
		if err := s.removeIf(ctx, claim.Name, s.over); err != nil {
			return err
		}
	}
}

// over says whether a quarantine has ended.
func (s *Store) over(c ipam.Claim) bool {
	return c.Declined != nil && !s.now().Before(c.Declined.Until)
}

// tryCreate makes a claim; the holder in a TakenError is nil when the claim is gone again.
func (s *Store) tryCreate(claim ipam.Claim) error {
	if err := s.taken(claim.Name); err != nil { // cheaper than a draft in vain
		return err
	}
	draft, err := s.writeDraft(claim)
	if err != nil {
		return err
	}
	if err := s.link(draft, claim.Name); err != nil {
		return errors.Join(err, remove(draft))
	}
	return nil
}

func (s *Store) link(draft, name string) error {
	if err := fault.At("ipam.add.drafted"); err != nil {
		return err
	}
	err := os.Link(draft, s.claimPath(name))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		if err := s.taken(name); err != nil {
			return err
		}
		return &ipam.TakenError{Name: name}
	case errors.Is(err, fs.ErrNotExist):
		return cnierr.New(cnierr.TryAgain, "a DEL for the same container and interface came while %s was being claimed (%w)", name, err)
	default:
		return ioError("claim an address", err)
	}
}

// taken is a TakenError when name is held.
func (s *Store) taken(name string) error {
	holder, err := s.read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	default:
		return &ipam.TakenError{Name: name, Holder: &holder.Claim}
	}
}

// Reown replaces a claim by the same one for another sandbox.
func (s *Store) Reown(ctx context.Context, _ ipam.Pool, read ipam.Claim, owner ipam.Owner) error {
	if read.Owner == owner {
		return nil // a claim is whole from the beginning
	}
	return s.locked(ctx, func() error {
		now, err := s.read(read.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return ipam.ErrChanged
		case err != nil:
			return err
		case now.Declined != nil || now.Owner != read.Owner:
			return ipam.ErrChanged
		}
		next := now.Claim
		next.Owner = owner
		return s.replace(now, next, "ipam.add.reown")
	})
}

// Release removes a claim if it is held by the same attachment.
func (s *Store) Release(ctx context.Context, claim ipam.Claim) error {
	return s.removeIf(ctx, claim.Name, func(now ipam.Claim) bool {
		return now.Declined == nil && now.SameAttachment(claim.Owner)
	})
}

// ReleaseAll removes the claims of a sandbox's interface, and what a killed ADD left of it.
func (s *Store) ReleaseAll(ctx context.Context, owner ipam.Owner) error {
	return s.locked(ctx, func() error {
		drafts, err := list(s.drafts())
		if err != nil {
			return err
		}
		var errs []error
		for _, text := range drafts {
			d, ok := parseDraft(text)
			if !ok || d.sandbox != sandboxKey(owner) {
				continue
			}
			err := s.remove(d.name, func(now ipam.Claim) bool {
				return now.Declined == nil && now.SameAttachment(owner)
			})
			if err == nil { // of a killed or overtaken ADD, if it is still there
				err = remove(s.draftPath(text))
			}
			errs = append(errs, err)
		}
		errs = append(errs, remove(s.stage()), s.sweep())
		return errors.Join(errs...)
	})
}

// Decline replaces a claim by a quarantine of the same name.
func (s *Store) Decline(ctx context.Context, claim ipam.Claim, why ipam.Declined) error {
	return s.locked(ctx, func() error {
		now, err := s.read(claim.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return ipam.ErrChanged
		case err != nil:
			return err
		case !now.SameAttachment(claim.Owner):
			return ipam.ErrChanged
		case now.Declined != nil:
			return nil
		}
		next := now.Claim
		next.Declined = &why
		return s.replace(now, next, "ipam.decline")
	})
}

// Collect reads all claims; it is rare.
func (s *Store) Collect(ctx context.Context, network, node string, valid []ipam.Attachment) (gone []ipam.Claim, err error) {
	keep := map[ipam.Attachment]bool{}
	for _, a := range valid {
		keep[a] = true
	}
	leaked := func(c ipam.Claim) bool {
		return c.Declined == nil && c.Network == network && c.Node == node &&
			!keep[ipam.Attachment{ContainerID: c.ContainerID, IfName: c.IfName}]
	}
	err = s.locked(ctx, func() error {
		names, err := list(s.claims())
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range names {
			errs = append(errs, s.remove(name, func(c ipam.Claim) bool {
				if !leaked(c) {
					return false
				}
				gone = append(gone, c)
				return true
			}))
		}
		errs = append(errs, s.sweep())
		return errors.Join(errs...)
	})
	return gone, err
}

func (s *Store) removeIf(ctx context.Context, name string, doomed func(ipam.Claim) bool) error {
	return s.locked(ctx, func() error { return s.remove(name, doomed) })
}

// read reads a claim; one that isn't there is an fs.ErrNotExist.
func (s *Store) read(name string) (file, error) {
	path := s.claimPath(name)
	data, err := os.ReadFile(path) //nolint:gosec // names come from addresses or from the directory
	if err != nil {
		return file{}, ioError("read a claim", err)
	}
	claim, err := decode(name, data)
	if err != nil {
		return file{}, cnierr.New(cnierr.IO, "claim %s can't be read: %w; something else wrote it: remove the file if no pod of this node has the address", path, err)
	}
	return claim, nil
}

// decode reads the content of a claim's file. Its draft's name is a path to be removed one
// day, so it is looked at closely.
func decode(name string, data []byte) (file, error) {
	var claim file
	if err := json.Unmarshal(data, &claim); err != nil {
		return file{}, err
	}
	if _, ok := parseDraft(claim.Draft); !ok || filepath.Base(claim.Draft) != claim.Draft {
		return file{}, fmt.Errorf("draft %q isn't the name of a draft", claim.Draft)
	}
	if claim.Name != name || !claim.Address.IsValid() {
		return file{}, fmt.Errorf("it is of name %q and address %s", claim.Name, claim.Address)
	}
	return claim, nil
}

func ioError(what string, err error) error {
	return &cnierr.Error{Code: cnierr.IO, Err: fmt.Errorf("%s: %w", what, err)}
}
