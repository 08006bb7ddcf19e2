package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWriteReplacesContentAndMode(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, Write(path, []byte("one"), 0o600))
	requireFile(t, path, "one", 0o600)
	require.NoError(t, Write(path, []byte("two"), 0o755))
	requireFile(t, path, "two", 0o755)
	requireAlone(t, path)
}

// A reader that has opened the old file reads on in it.
func TestWriteLeavesTheOldFileToItsReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, Write(path, []byte("one"), 0o600))
	reader, err := os.Open(path)
	require.NoError(t, err)
	defer reader.Close() //nolint:errcheck // read only
	require.NoError(t, Write(path, []byte("two"), 0o600))
	content := make([]byte, 8)
	n, err := reader.Read(content)
	require.NoError(t, err)
	require.Equal(t, "one", string(content[:n]))
}

// What a symbolic link points to is somebody else's (k3s has one program behind many links).
func TestWriteReplacesALinkAndNotWhatItPointsTo(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "theirs")
	require.NoError(t, os.WriteFile(theirs, []byte("theirs"), 0o600))
	path := filepath.Join(dir, "file")
	require.NoError(t, os.Symlink("theirs", path))
	require.NoError(t, Write(path, []byte("ours"), 0o640))
	requireFile(t, path, "ours", 0o640)
	requireFile(t, theirs, "theirs", 0o600)
}

func TestWriteThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	require.ErrorIs(t, Write(filepath.Join(dir, "missing", "file"), nil, 0o600), os.ErrNotExist)
	taken := filepath.Join(dir, "taken")
	require.NoError(t, os.Mkdir(taken, 0o700))
	require.Error(t, Write(taken, []byte("x"), 0o600), "a directory is in its place")
	requireAlone(t, taken)
}

func TestDiscard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, Write(path, []byte("one"), 0o600))
	d, err := Begin(path, 0o600)
	require.NoError(t, err)
	_, err = d.Write([]byte("two"))
	require.NoError(t, errors.Join(err, d.Discard()))
	requireFile(t, path, "one", 0o600)
	requireAlone(t, path)
}

func TestSweepRemovesOwnDraftsOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	require.NoError(t, Write(path, []byte("one"), 0o600))
	d, err := Begin(path, 0o600)
	require.NoError(t, err) // of a writer that was killed
	theirs := filepath.Join(dir, ".file.swp")
	other, err := Begin(filepath.Join(dir, "other"), 0o600)
	require.NoError(t, errors.Join(err, os.WriteFile(theirs, nil, 0o600)))
	require.NoError(t, Sweep(path))
	assert.NoFileExists(t, d.file.Name())
	assert.FileExists(t, path)
	assert.FileExists(t, theirs)
	assert.FileExists(t, other.file.Name())
	require.NoError(t, Sweep(filepath.Join(dir, "missing", "file")))
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, Write(path, nil, 0o600))
	require.NoError(t, Remove(path))
	require.NoFileExists(t, path)
	require.NoError(t, Remove(path))
}

func requireFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, mode, info.Mode())
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, content, string(data))
}

// requireAlone fails when there is anything beside path.
func requireAlone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "%v", entries)
	require.Equal(t, filepath.Base(path), entries[0].Name())
}
