package faults

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// mount puts a small file system of its own at dir.
func mount(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// spoilers make a directory useless; mend makes it good again.
var spoilers = []struct {
	name  string
	says  string
	spoil func(t *testing.T, dir string) (mend func())
}{
	{"read-only", "read-only file system", func(t *testing.T, dir string) func() {
		t.Helper()
		require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		return func() { require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "")) }
	}},
	{"full", "no space left on device", func(t *testing.T, dir string) func() {
		t.Helper()
		filler := filepath.Join(dir, "filler")
		require.ErrorIs(t, os.WriteFile(filler, make([]byte, 1<<20), 0o600), unix.ENOSPC)
		return func() { require.NoError(t, os.Remove(filler)) }
	}},
}

func TestRunDirectoryThatCannotBeWritten(t *testing.T) {
	for _, s := range spoilers {
		for _, ready := range []bool{false, true} {
			t.Run(map[bool]string{false: s.name + ", fresh node", true: s.name + ", ready node"}[ready], func(t *testing.T) {
				t.Parallel()
				b := newBed(t, plain, vxlan)
				mount(t, b.Run)
				nodeWithVTEPDevice(t, b)
				if ready {
					b.add(t, b.pod(t, "neighbour"))
				}
				p := b.pod(t, "a")
				mend := s.spoil(t, b.Run)
				requireRefused(t, b.tryAdd(t, p), cnierr.IO, b.Run, s.says)
				b.requireNothing(t)
				b.del(t, p) // of what was never attached: no error
				mend()
				b.requireClean(t)
				b.add(t, p)
				b.requireTraffic(t, p)
				b.del(t, p)
				b.requireClean(t)
			})
		}
	}
}

// DEL needs no space. On a read-only file system it takes back all but the record,
// and says which file that is.
func TestDELWhereTheRunDirectoryCannotBeWritten(t *testing.T) {
	for _, s := range spoilers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			mount(t, b.Run)
			nodeWithVTEPDevice(t, b)
			p := b.pod(t, "a")
			b.add(t, p)
			mend := s.spoil(t, b.Run)
			if s.name == "read-only" {
				requireRefused(t, b.tryDel(t, p), cnierr.IO, "attachments/c-a@lhnet1.json", s.says)
				mend()
				b.del(t, p)
			} else {
				b.del(t, p)
				mend()
			}
			b.requireClean(t)
		})
	}
}

func TestStateDirectoryThatCannotBeWritten(t *testing.T) {
	for _, s := range spoilers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			mount(t, b.StateDir())
			nodeWithVTEPDevice(t, b)
			p := b.pod(t, "a")
			mend := s.spoil(t, b.StateDir())
			requireRefused(t, b.tryAdd(t, p), cnierr.IO, b.StateDir(), s.says)
			b.requireNothing(t)
			mend()
			b.add(t, p)
			b.del(t, p)
			mend = s.spoil(t, b.StateDir())
			b.add(t, p) // nothing about the node changes
			b.requireTraffic(t, p)
			b.del(t, p)
			mend()
			b.requireClean(t)
		})
		t.Run(s.name+", claims", func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, ours)
			mount(t, b.StateDir())
			readyNode(t, b)
			p := b.pod(t, "a")
			mend := s.spoil(t, b.StateDir())
			requireRefused(t, b.tryAdd(t, p), cnierr.IO, "lhstorage-ipam", s.says)
			mend()
			b.del(t, p)
			b.requireClean(t)
			b.add(t, p)
			mend = s.spoil(t, b.StateDir())
			if s.name == "read-only" {
				requireRefused(t, b.tryDel(t, p), cnierr.IO, b.StateDir(), s.says)
				mend()
				b.del(t, p)
			} else {
				b.del(t, p)
				mend()
			}
			b.requireClean(t)
		})
	}
}

// Something else stands where a directory or a lock of the node belongs.
func TestFileInTheWay(t *testing.T) {
	for _, c := range []struct {
		name string
		put  func(t *testing.T, b *bed) (path string)
	}{
		{"run directory", func(t *testing.T, b *bed) string {
			require.NoError(t, os.Remove(b.Run))
			require.NoError(t, os.WriteFile(b.Run, nil, 0o600))
			return b.Run
		}},
		{"records", func(t *testing.T, b *bed) string {
			path := filepath.Join(b.Run, "attachments")
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			return path
		}},
		{"lock", func(t *testing.T, b *bed) string {
			path := filepath.Join(b.Run, "lock")
			require.NoError(t, os.Mkdir(path, 0o700))
			return path
		}},
		{"state directory", func(t *testing.T, b *bed) string {
			require.NoError(t, os.WriteFile(b.StateDir(), nil, 0o600))
			return b.StateDir()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			nodeWithVTEPDevice(t, b)
			path := c.put(t, b)
			p := b.pod(t, "a")
			requireRefused(t, b.tryAdd(t, p), cnierr.IO, path)
			b.del(t, p)
			require.NoError(t, os.Remove(path))
			b.requireClean(t)
			b.add(t, p)
			b.requireTraffic(t, p)
			b.del(t, p)
			b.requireClean(t)
		})
	}
}

var bad = map[string]string{
	"torn":    `{"version":1,"state":"attached","containerID":"c-a","ifn`,
	"garbage": "\x00\xff not JSON",
	"empty":   "",
	"newer":   `{"version":99,"addresses":{"v4":"10.100.1.16"}}`,
	"foreign": `{"version":1,"state":"attached","containerID":"c-b","ifname":"lhnet1"}`,
}

// A record that can't be used keeps ADD from guessing, with an error that names it;
// DEL goes by the configuration and removes it.
func TestBadRecord(t *testing.T) {
	for name, text := range bad {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			readyNode(t, b)
			p := b.pod(t, "a")
			path := filepath.Join(b.Run, "attachments", "c-a@lhnet1.json")
			b.add(t, p)
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			requireRefused(t, b.tryAdd(t, p), cnierr.Decode, path)
			b.requireTraffic(t, p)

			out, err := b.call(t.Context(), "DEL", p)
			require.NoError(t, err)
			assert.Contains(t, string(out.Stderr), path)
			p.attached = false
			b.requireClean(t)
			b.add(t, p)
			b.del(t, p)
			b.requireClean(t)
		})
	}
}

// What is known of the node is found again.
func TestBadNodeFiles(t *testing.T) {
	for name, text := range bad {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			readyNode(t, b)
			want := b.state(t)
			for _, pattern := range []string{b.StateDir() + "/place/*", b.Run + "/parents/*"} {
				files, err := filepath.Glob(pattern)
				require.NoError(t, err)
				require.NotEmpty(t, files)
				for _, f := range files {
					require.NoError(t, os.WriteFile(f, []byte(text), 0o600))
				}
			}
			p := b.pod(t, "a")
			b.add(t, p)
			assert.Equal(t, want, b.state(t))
			b.requireTraffic(t, p)
			b.del(t, p)
			b.requireClean(t)
		})
	}
}
