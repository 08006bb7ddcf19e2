package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// Host is a host's file system: below Root, where its paths lie. In a container that is a mount of the host's
// root, or of some of its directories.
type Host struct{ Root string }

// path is where a path of the host is found from here. Symbolic links are followed as the host would: k3s' `current` is an
// absolute one, which from a container would lead into the container's own files.
func (h Host) path(path string) (string, error) {
	found, err := securejoin.SecureJoin(h.Root, path)
	if err != nil {
		return "", fmt.Errorf("find %s of the host below %s: %w", path, h.Root, err)
	}
	return found, nil
}

// file is where a file of the host is found from here. A link in its place isn't followed: the file takes that place.
func (h Host) file(path string) (string, error) {
	dir, err := h.path(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// isDir says whether the host has a directory there.
func (h Host) isDir(path string) bool {
	found, err := h.path(path)
	if err != nil {
		return false
	}
	info, err := os.Stat(found)
	return err == nil && info.IsDir()
}

// read reads a file of the host.
func (h Host) read(path string) ([]byte, error) {
	found, err := h.path(path)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(found) //nolint:gosec // below the host's root
}

// makeDir makes a directory of the host unless it is there, and says what would keep us from writing to it. It returns where it is found.
func (h Host) makeDir(path string) (string, error) {
	found, err := h.path(path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(found, 0o755); err != nil { //nolint:gosec // runtimes look in
		return "", explain(fmt.Errorf("make the directory %s on the host: %w", path, err))
	}
	if err := unix.Access(found, unix.W_OK|unix.X_OK); err != nil {
		return "", explain(fmt.Errorf("write to %s on the host: %w", path, err))
	}
	return found, nil
}

// executable fails for a directory whose programs the kernel won't start.
func executable(found, path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(found, &stat); err != nil {
		return fmt.Errorf("look at the file system of %s on the host: %w", path, err)
	}
	if stat.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("programs in %s on the host can't be started: its file system is mounted with noexec; name the runtime's real directory with --cni-bin-dir, or mount it with exec", path)
	}
	return nil
}

// explain says what to do about what a file system refused.
func explain(err error) error {
	var hint string
	switch {
	case errors.Is(err, unix.EROFS):
		hint = "the file system is read-only, as most of Talos and other immutable hosts is: name a directory that can be written with --cni-bin-dir (the one that the runtime is configured with) or --conf-dir, and look that the pod doesn't mount it read-only"
	case errors.Is(err, fs.ErrPermission):
		hint = "the installer must be root and see the host's own directory (hostPath, not read-only); where SELinux confines containers, its type must allow it"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = "the disk is full: make room; what was installed before is unchanged"
	case errors.Is(err, unix.ETXTBSY):
		hint = "something writes to the file in place: is another installer at work there?"
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// clean is an absolute path of the host, or what is wrong with it.
func clean(flag, path string) (string, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%s %q: must be an absolute path of the host", flag, path)
	}
	return filepath.Clean(path), nil
}
