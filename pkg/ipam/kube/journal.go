package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// journal is this node's own note of what its sandboxes may hold: a file per attachment,
//
//	<dir>/<pod>.<sandbox>.json
//
// written before a claim is made. The DEL of a sandbox finds its claims there whatever was killed in between, by name,
// without a list that the API server might serve from an old copy; and the networks of one pod see
// each other's addresses. It is gone after a reboot, as are the sandboxes; then the claims' labels tell.
//
// Beside the pages there is a symbolic link to its page for each claim,
//
//	<dir>/held/<claim>
//
// by which the processes of this node share the addresses out among them: hundreds that start at once would ask the
// API server for the same ones else. It is a hint: where addresses are short nobody heeds it.
type journal struct {
	dir       string
	lingering bool // claims that were given up are there until a recorder removes them
}

// page is what an attachment may hold.
type page struct {
	Owner  ipam.Owner `json:"owner"`
	Claims []noted    `json:"claims"`
}

// noted is a claim that was asked for.
type noted struct {
	Name        string     `json:"name"`
	Pool        string     `json:"pool"`
	Address     netip.Addr `json:"address"`
	Recorded    string     `json:"recorded,omitempty"`    // version of the IPPool that has the entry
	Reservation string     `json:"reservation,omitempty"` // UID
	Former      string     `json:"former,omitempty"`      // container that entry and reservation may name as yet
}

// names says whether a record that names this container is the claim's.
func (n noted) names(recorded, own string) bool {
	return recorded == own || n.Former != "" && recorded == n.Former
}

func (j journal) path(o ipam.Owner) string {
	return filepath.Join(j.dir, digest(o.Pod())+"."+sandboxDigest(o)+".json")
}

func sandboxDigest(o ipam.Owner) string { return digest(o.ContainerID + "\x00" + o.IfName) }

func digest(text string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return fmt.Sprintf("%016x", h.Sum64())
}

// note adds a claim to its owner's page, or replaces what is noted of it.
func (j journal) note(owner ipam.Owner, n noted) error {
	p, err := j.read(j.path(owner))
	if err != nil {
		return err
	}
	p.Owner = owner
	p.drop(n.Name)
	p.Claims = append(p.Claims, n)
	return j.write(p)
}

const (
	heldDir     = "held"     // where this node's processes share addresses out
	releasedDir = "released" // what a link begins with whose claim the recorder has yet to remove
	lingerTime  = 5 * time.Second
)

// held lists the claims that other attachments of this node have, or are about to ask for, or gave up a moment ago.
func (j journal) held(owner ipam.Owner) map[string]bool {
	entries, err := os.ReadDir(filepath.Join(j.dir, heldDir))
	if err != nil {
		return nil // not made yet
	}
	own := filepath.Base(j.path(owner))
	ofPod, _, _ := strings.Cut(own, ".")
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		link := filepath.Join(j.dir, heldDir, e.Name())
		page, err := os.Readlink(link)
		dir, name := filepath.Split(page)
		switch {
		case err != nil || page == own:
		case dir == "":
			names[e.Name()] = true
		case lingers(link):
			names[e.Name()] = !strings.HasPrefix(name, ofPod+".") // a pod that comes back may have it
		default:
			_ = os.Remove(link)
		}
	}
	return names
}

// takeOver says that an attachment has the claim that an older sandbox of its pod had.
func (j journal) takeOver(owner ipam.Owner, name string) error {
	link := filepath.Join(j.dir, heldDir, name)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return journalError("take the note of an address over", err)
	}
	_, err := j.hold(owner, name)
	return err
}

func lingers(link string) bool {
	info, err := os.Lstat(link)
	return err == nil && time.Since(info.ModTime()) < lingerTime
}

// hold says that a claim is about to be made for owner, unless another attachment of this node was quicker.
func (j journal) hold(owner ipam.Owner, name string) (bool, error) {
	link, page := filepath.Join(j.dir, heldDir, name), filepath.Base(j.path(owner))
	err := os.Symlink(page, link)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			return false, journalError("make room for the notes of addresses", err)
		}
		err = os.Symlink(page, link)
	}
	if errors.Is(err, fs.ErrExist) {
		whose, _ := os.Readlink(link)
		if !strings.Contains(whose, "/") {
			return whose == page, nil
		}
		_ = os.Remove(link) // the pod's own of a moment ago
		err = os.Symlink(page, link)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil // another process was quicker just now
	}
	if err != nil {
		return false, journalError("note that an address is asked for", err)
	}
	return true, nil
}

// letGo takes away the notes that a sandbox's attachment holds claims. Where a recorder is to remove the claims that
// is noted instead.
func (j journal) letGo(owner ipam.Owner, names ...string) error {
	var errs []error
	for _, name := range names {
		link := filepath.Join(j.dir, heldDir, name)
		page, err := os.Readlink(link)
		if err != nil || strings.Contains(page, "/") || !strings.HasSuffix(page, "."+sandboxDigest(owner)+".json") {
			continue // somebody else's
		}
		err = os.Remove(link)
		if err == nil && j.lingering {
			err = os.Symlink(filepath.Join(releasedDir, page), link)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, journalError("take the note of an address away", err))
		}
	}
	return errors.Join(errs...)
}

// forget takes a claim off its owner's page, and the page away with the last one.
func (j journal) forget(owner ipam.Owner, name string) error {
	p, err := j.read(j.path(owner))
	if err != nil {
		return err
	}
	p.drop(name)
	if err := j.letGo(owner, name); err != nil {
		return err
	}
	if len(p.Claims) == 0 {
		return j.close(owner)
	}
	return j.write(p)
}

// close takes a page away, and what else an attachment has. One that was killed before it wrote its page may have the
// note of an address.
func (j journal) close(owner ipam.Owner) error {
	p, err := j.sandbox(owner)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range p.Claims {
		names = append(names, c.Name)
	}
	if len(names) == 0 {
		names = slices.Collect(maps.Keys(j.held(ipam.Owner{})))
	}
	if err := j.letGo(owner, names...); err != nil {
		return err
	}
	for _, path := range j.find(func(_, sandbox string) bool { return sandbox == sandboxDigest(owner) }) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return journalError("take a note of an attachment's addresses away", err)
		}
	}
	return nil
}

// sandbox is the page of an attachment, of whatever pod the runtime says it is by now.
func (j journal) sandbox(o ipam.Owner) (page, error) {
	for _, path := range j.find(func(_, sandbox string) bool { return sandbox == sandboxDigest(o) }) {
		p, err := j.read(path)
		if err != nil || p.Owner.SameAttachment(o) {
			return p, err
		}
	}
	return page{}, nil
}

// noted is what is known of a claim of an attachment.
func (j journal) noted(o ipam.Owner, name string) (noted, error) {
	p, err := j.sandbox(o)
	for _, c := range p.Claims {
		if c.Name == name {
			return c, err
		}
	}
	return noted{}, err
}

// pod is the pages of a pod's attachments on this node.
func (j journal) pod(o ipam.Owner) ([]page, error) {
	var pages []page
	for _, path := range j.find(func(pod, _ string) bool { return pod == digest(o.Pod()) }) {
		p, err := j.read(path)
		if err != nil {
			return nil, err
		}
		if p.Owner.Pod() == o.Pod() {
			pages = append(pages, p)
		}
	}
	return pages, nil
}

func (j journal) find(match func(pod, sandbox string) bool) []string {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil // not made yet
	}
	var paths []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		pod, sandbox, cut := strings.Cut(name, ".")
		if ok && cut && match(pod, sandbox) {
			paths = append(paths, filepath.Join(j.dir, e.Name()))
		}
	}
	return paths
}

// read reads a page; none, or one that was torn, is an empty one.
func (j journal) read(path string) (page, error) {
	var p page
	data, err := os.ReadFile(path) //nolint:gosec // a name of our own
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return page{}, nil
	case err != nil:
		return page{}, journalError("read a note of an attachment's addresses", err)
	}
	if torn := json.Unmarshal(data, &p) != nil; torn {
		p = page{}
	}
	return p, nil
}

// write replaces a page. Only one process at a time works for an attachment; what it writes need
// not survive the boot.
func (j journal) write(p page) error {
	data, err := json.Marshal(p)
	if err != nil {
		return journalError("note an attachment's addresses", err)
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return journalError("note an attachment's addresses", err)
	}
	path := j.path(p.Owner)
	draft := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(draft, data, 0o600); err != nil {
		return journalError("note an attachment's addresses", err)
	}
	if err := os.Rename(draft, path); err != nil {
		return journalError("note an attachment's addresses", errors.Join(err, os.Remove(draft)))
	}
	return nil
}

func (p *page) drop(name string) {
	kept := p.Claims[:0]
	for _, c := range p.Claims {
		if c.Name != name {
			kept = append(kept, c)
		}
	}
	p.Claims = kept
}

func journalError(what string, err error) error {
	return &cnierr.Error{Code: cnierr.IO, Err: fmt.Errorf("%s: %w", what, err)}
}

// recorderNote is a file whose modification time says until when the Lease that was last seen is fresh enough, so that not
// each of many calls must ask.
const recorderNote = "recorder"

func (j journal) recorderSeen() bool {
	info, err := os.Stat(filepath.Join(j.dir, recorderNote))
	left := time.Duration(0)
	if err == nil {
		left = time.Until(info.ModTime())
	}
	return left > 0 && left <= LeaseSeen // the clock may have been set
}

// noteRecorder notes that no one need ask for a while. Where that fails they ask.
func (j journal) noteRecorder(while time.Duration) {
	path := filepath.Join(j.dir, recorderNote)
	if while <= 0 || j.dir == "" || os.MkdirAll(j.dir, 0o700) != nil {
		return
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // a name of our own
	if err != nil {
		return
	}
	_ = file.Close()
	until := time.Now().Add(while)
	_ = os.Chtimes(path, until, until)
}
