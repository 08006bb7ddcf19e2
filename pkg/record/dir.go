package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
)

const (
	suffix     = ".json"
	tempPrefix = ".tmp-"
	staleAfter = time.Minute // a writer holds its temp file for well under a second
	maxName    = 255         // NAME_MAX of every file system that /run lies on
)

// Dir is the directory <runDir>/attachments. Any number of processes may use
// it at once: a reader sees a whole record or none, and of two writers of one
// record the later wins.
//
// Errors carry a CNI code: 4 for a container ID or interface name that can't be
// part of a file name, 5 for what the file system refused, 6 for a file that
// isn't a record that this version can read.
type Dir string

// Path returns the file of one attachment.
func (d Dir) Path(containerID, ifName string) (string, error) {
	if err := check("CNI_CONTAINERID", containerID); err != nil {
		return "", err
	}
	if err := check("CNI_IFNAME", ifName); err != nil {
		return "", err
	}
	// The first @ ends the container ID, so that two attachments can't meet in one file.
	if strings.Contains(containerID, "@") {
		return "", cnierr.New(cnierr.InvalidEnvironment, "CNI_CONTAINERID %q contains @, which separates it from the interface in the record's file name", containerID)
	}
	name := containerID + "@" + ifName + suffix
	if len(name) > maxName {
		return "", cnierr.New(cnierr.InvalidEnvironment, "CNI_CONTAINERID (%d bytes) and CNI_IFNAME (%d bytes) make a file name of %d bytes; a file system takes %d",
			len(containerID), len(ifName), len(name), maxName)
	}
	return filepath.Join(string(d), name), nil
}

func check(variable, value string) error {
	switch {
	case value == "":
		return cnierr.New(cnierr.InvalidEnvironment, "%s is empty", variable)
	case strings.ContainsAny(value, "/\\\x00"):
		return cnierr.New(cnierr.InvalidEnvironment, "%s %q contains a path separator or a zero byte", variable, value)
	case value[0] == '.':
		return cnierr.New(cnierr.InvalidEnvironment, "%s %q begins with a dot, which is kept for hidden files", variable, value)
	}
	return nil
}

// Save writes a record as the present [Version], replacing an older one of the
// same attachment. The directory is made (0700) if missing. Nothing is synced:
// records describe interfaces, and neither outlives a reboot.
func (d Dir) Save(a Attachment) error {
	path, err := d.Path(a.ContainerID, a.IfName)
	if err != nil {
		return err
	}
	a.Version = Version
	text, err := json.Marshal(a)
	if err != nil {
		return cnierr.New(cnierr.Decode, "write the attachment record %s: %w", path, err)
	}
	if err := d.replace(path, append(text, '\n')); err != nil {
		return cnierr.New(cnierr.IO, "write the attachment record %s: %w; without it DEL can't know what to take back, so the directory must be writable and have space", path, err)
	}
	return nil
}

// replace puts text at path in one step.
func (d Dir) replace(path string, text []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(string(d), tempFor(path)+"*") // O_EXCL, 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Close(), fault.At("record.written"))
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// tempFor begins the names of the temp files for path; hashed, as a file name can't
// hold a longest name and more.
func tempFor(path string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(filepath.Base(path)))
	return fmt.Sprintf("%s%016x-", tempPrefix, h.Sum64())
}

// Load reads the record of one attachment; false without an error: there is
// none.
func (d Dir) Load(containerID, ifName string) (Attachment, bool, error) {
	path, err := d.Path(containerID, ifName)
	if err != nil {
		return Attachment{}, false, err
	}
	return d.read(path)
}

// Delete removes the record of one attachment. A missing one is no error, on a
// read-only file system neither.
func (d Dir) Delete(containerID, ifName string) error {
	path, err := d.Path(containerID, ifName)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && exists(path) {
		return cnierr.New(cnierr.IO, "delete the attachment record: %w", err)
	}
	return nil
}

// Forget is Delete for a caller that keeps other writers of this record away: it
// also removes at once what a killed one left.
func (d Dir) Forget(containerID, ifName string) error {
	path, err := d.Path(containerID, ifName)
	if err != nil {
		return err
	}
	entries, _ := os.ReadDir(string(d)) // what matters of a failure shows in Delete
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempFor(path)) {
			_ = os.Remove(filepath.Join(string(d), e.Name()))
		}
	}
	return d.Delete(containerID, ifName)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !isMissing(err)
}

// isMissing says that a file isn't there. Below something that is no directory
// there can't be one.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// List reads all records, in the order of their file names. Unreadable ones
// are left out and named in the error; the others are returned beside it. What
// writers killed in mid-write left behind is swept.
func (d Dir) List() ([]Attachment, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var faults []error
	if err != nil { // the entries read before it still count
		faults = append(faults, cnierr.New(cnierr.IO, "list the attachment records: %w", err))
	}
	var records []Attachment
	for _, entry := range entries {
		path := filepath.Join(string(d), entry.Name())
		if strings.HasPrefix(entry.Name(), tempPrefix) {
			faults = append(faults, sweep(path, entry))
			continue
		}
		if strings.HasPrefix(entry.Name(), ".") || !strings.HasSuffix(entry.Name(), suffix) {
			continue // not ours
		}
		a, found, err := d.read(path)
		faults = append(faults, err)
		if found { // else it was deleted since ReadDir, or is bad
			records = append(records, a)
		}
	}
	return records, errors.Join(faults...)
}

// sweep removes a temp file that no living writer can still want.
func sweep(path string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return nil //nolint:nilerr // renamed meanwhile
	}
	if time.Since(info.ModTime()) < staleAfter {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cnierr.New(cnierr.IO, "sweep what a killed writer left: %w", err)
	}
	return nil
}

func (d Dir) read(path string) (Attachment, bool, error) {
	text, err := os.ReadFile(path) //nolint:gosec // below the node's run directory
	if isMissing(err) {
		return Attachment{}, false, nil
	}
	if err != nil {
		return Attachment{}, false, cnierr.New(cnierr.IO, "read the attachment record: %w", err)
	}
	a, err := decode(text)
	if err == nil {
		err = d.belongs(a, path)
	}
	if err != nil {
		return Attachment{}, false, cnierr.New(cnierr.Decode, "the attachment record %s can't be used: %w", path, err)
	}
	return a, true, nil
}

// decode reads the version first: a newer format may have given any other
// field another shape.
func decode(text []byte) (Attachment, error) {
	const remedy = "delete the file once the pod is gone"
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return Attachment{}, fmt.Errorf("%w; it is torn or not ours: %s", err, remedy)
	}
	if head.Version > Version {
		return Attachment{}, fmt.Errorf("it has version %d, this program reads versions up to %d: install the newer lhstorage again, or %s", head.Version, Version, remedy)
	}
	if head.Version < 1 {
		return Attachment{}, fmt.Errorf("it has version %d, and the first was 1; it is not ours: %s", head.Version, remedy)
	}
	var a Attachment
	// Unknown fields are let pass: within a version fields are only added.
	if err := json.Unmarshal(text, &a); err != nil {
		return Attachment{}, fmt.Errorf("%w; it is torn or not ours: %s", err, remedy)
	}
	return a, nil
}

// belongs refuses a record under another attachment's name: DEL of one pod
// must not take down another.
func (d Dir) belongs(a Attachment, path string) error {
	if own, err := d.Path(a.ContainerID, a.IfName); err != nil || own != path {
		return fmt.Errorf("it describes container %q, interface %q, which is another attachment: delete the copy", a.ContainerID, a.IfName)
	}
	return nil
}
