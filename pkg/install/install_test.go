package install

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// installer installs programs with content onto a fresh host.
func installer(t *testing.T, content string) *Installer {
	t.Helper()
	h := host(t, "/run", "/opt/cni/bin")
	layout, err := FindLayout(h, Layout{})
	require.NoError(t, err)
	return &Installer{Host: h, Layout: layout, From: programs(t, content), Release: "v1", Node: nodefile.File{NodeName: "worker-1"}, Log: slog.New(slog.DiscardHandler)}
}

func programs(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range Programs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content+" "+name), 0o600))
	}
	return dir
}

func (i *Installer) at(path string) string { return i.Host.Root + path }

func (i *Installer) node(t *testing.T) nodefile.File {
	t.Helper()
	data, err := os.ReadFile(i.at("/etc/lhstorage/node.json"))
	require.NoError(t, err)
	f, err := nodefile.ParseRaw("node.json", data)
	require.NoError(t, err)
	return f
}

func TestInstall(t *testing.T) {
	i := installer(t, "one")
	require.NoError(t, os.WriteFile(i.at("/opt/cni/bin/bridge"), []byte("theirs"), 0o600))
	require.NoError(t, i.Install(t.Context()))
	for _, name := range Programs {
		info, err := os.Lstat(i.at("/opt/cni/bin/" + name))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o755), info.Mode())
	}
	release, err := i.Check(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "v1", release)
	assert.Equal(t, nodefile.File{NodeName: "worker-1"}, i.node(t))

	before := stats(t, i)
	require.NoError(t, i.Install(t.Context()), "again: nothing is touched")
	assert.Equal(t, before, stats(t, i))

	i.From, i.Release = programs(t, "two"), "v2"
	require.NoError(t, i.Install(t.Context()))
	release, err = i.Check(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "v2", release)
	theirs, err := os.ReadFile(i.at("/opt/cni/bin/bridge"))
	require.NoError(t, err)
	assert.Equal(t, "theirs", string(theirs))
}

// stats are the inode and the time of each file on the host.
func stats(t *testing.T, i *Installer) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.Walk(i.Host.Root, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			var s unix.Stat_t
			err = unix.Stat(path, &s)
			all[path] = fmt.Sprint(s.Ino, s.Mtim)
		}
		return err
	}))
	return all
}

func TestWhatAnAdminSetStays(t *testing.T) {
	i := installer(t, "one")
	i.Node.Record = nodefile.RecordAgent
	require.NoError(t, i.Install(t.Context()))
	assert.Equal(t, nodefile.RecordAgent, i.node(t).Record)

	i.Node.Record = ""
	require.NoError(t, i.Install(t.Context()))
	assert.Empty(t, i.node(t).Record, "the installer's own goes when it isn't asked for any more")

	write(t, i, nodefile.File{NodeName: "old name", Index: 7, Record: nodefile.RecordSync, RunDir: "/run/elsewhere"})
	i.Node.Record = nodefile.RecordAgent
	require.NoError(t, i.Install(t.Context()))
	want := nodefile.File{NodeName: "worker-1", Index: 7, Record: nodefile.RecordSync, RunDir: "/run/elsewhere"}
	assert.Equal(t, want, i.node(t))
	require.NoError(t, i.Install(t.Context()))
	assert.Equal(t, want, i.node(t), "the second time, too")
}

func write(t *testing.T, i *Installer, f nodefile.File) {
	t.Helper()
	data, err := json.Marshal(f)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(i.at("/etc/lhstorage/node.json"), data, 0o600))
}

func TestAllFaultsAtOnce(t *testing.T) {
	i := installer(t, "one")
	require.NoError(t, os.MkdirAll(i.at("/etc/lhstorage"), 0o755))
	require.NoError(t, os.WriteFile(i.at("/etc/lhstorage/node.json"), []byte(`{"indx": 3}`), 0o600))
	require.NoError(t, os.RemoveAll(i.at("/opt/cni/bin")))
	require.NoError(t, os.WriteFile(i.at("/opt/cni/bin"), nil, 0o600))
	require.NoError(t, os.Remove(filepath.Join(i.From, "lhstorage")))
	err := i.Install(t.Context())
	for _, says := range []string{"make the directory /opt/cni/bin", "indx", "correct it, or remove it", "read the program to install", "/lhstorage: no such file"} {
		require.ErrorContains(t, err, says)
	}
	require.NoFileExists(t, i.at("/etc/lhstorage/manifest.json"))
}

// A link in a program's place (k3s has one program behind many) is replaced; what it points to is somebody else's.
func TestALinkIsReplaced(t *testing.T) {
	i := installer(t, "one")
	require.NoError(t, os.WriteFile(i.at("/opt/cni/bin/cni"), []byte("one lhstorage"), 0o755))
	require.NoError(t, os.Symlink("cni", i.at("/opt/cni/bin/lhstorage")))
	require.NoError(t, i.Install(t.Context()))
	info, err := os.Lstat(i.at("/opt/cni/bin/lhstorage"))
	require.NoError(t, err)
	assert.True(t, info.Mode().IsRegular())
	i.From = programs(t, "two")
	require.NoError(t, i.Install(t.Context()))
	theirs, err := os.ReadFile(i.at("/opt/cni/bin/cni"))
	require.NoError(t, err)
	assert.Equal(t, "one lhstorage", string(theirs))
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	i := installer(t, "one")
	_, err := i.Check(t.Context())
	require.ErrorContains(t, err, "nothing is installed")
	require.NoError(t, i.Install(t.Context()))
	require.NoError(t, os.Chmod(i.at("/opt/cni/bin/lhstorage"), 0o644))
	require.NoError(t, os.WriteFile(i.at("/opt/cni/bin/lhstorage-ipam"), []byte("other"), 0o755))
	write(t, i, nodefile.File{NodeName: "worker-2"})
	i.Layout.BinDir = k3sBinDir
	_, err = i.Check(t.Context())
	for _, says := range []string{"/opt/cni/bin/lhstorage of release v1: its mode is -rw-r--r--", "something else replaced it", "this is node worker-2, and it is worker-1", "the directory of CNI plugins is " + k3sBinDir + " now"} {
		require.ErrorContains(t, err, says)
	}
	require.NoError(t, os.WriteFile(i.at("/etc/lhstorage/manifest.json"), []byte(`{"version": 2, "release": "v9"}`), 0o600))
	_, err = i.Check(t.Context())
	require.ErrorContains(t, err, "install-cni of release v9")
}

func TestUninstall(t *testing.T) {
	i := installer(t, "one")
	require.NoError(t, i.Install(t.Context()))
	attached := i.at("/run/lhstorage/attachments/abc@lhnet1.json")
	require.NoError(t, os.MkdirAll(filepath.Dir(attached), 0o700))
	require.NoError(t, os.WriteFile(attached, []byte(`{"version":1,"state":"attached","network":"storage","podref":"longhorn-system/im-1","containerID":"abc","ifname":"lhnet1","addresses":["10.100.1.16/24"]}`), 0o600))
	_, err := i.Uninstall(t.Context())
	for _, says := range []string{"1 pods", "longhorn-system/im-1 has lhnet1 on network storage (10.100.1.16)", "drain the node"} {
		require.ErrorContains(t, err, says)
	}
	require.FileExists(t, i.at("/opt/cni/bin/lhstorage"))

	require.NoError(t, os.Remove(attached))
	require.NoError(t, os.WriteFile(i.at("/opt/cni/bin/lhstorage-ipam"), []byte("other"), 0o755))
	write(t, i, nodefile.File{NodeName: "worker-1", Index: 3})
	stays, err := i.Uninstall(t.Context())
	require.NoError(t, err)
	require.Len(t, stays, 4)
	assert.Contains(t, stays[0], "/opt/cni/bin/lhstorage-ipam")
	assert.Contains(t, stays[1], "/etc/lhstorage/node.json")
	assert.FileExists(t, i.at("/etc/lhstorage/node.json"))
	assert.NoFileExists(t, i.at("/opt/cni/bin/lhstorage"))
	assert.FileExists(t, i.at("/opt/cni/bin/lhstorage-ipam"))
	_, err = i.Uninstall(t.Context())
	require.ErrorContains(t, err, "nothing is installed")
}

// A pod that doesn't see the host's /run mustn't take that for a host without attachments.
func TestUninstallMustSeeAttachments(t *testing.T) {
	i := installer(t, "one")
	require.NoError(t, i.Install(t.Context()))
	require.NoError(t, os.Remove(i.at("/run")))
	_, err := i.Uninstall(t.Context())
	require.ErrorContains(t, err, "can't see whether pods are attached")
	require.FileExists(t, i.at("/opt/cni/bin/lhstorage"))
}
