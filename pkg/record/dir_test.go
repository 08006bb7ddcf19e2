package record

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

func sample(container, ifName string) Attachment {
	return Attachment{
		Version: Version, State: StateAttached, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Node: "n1", Network: "longhorn-storage", PodRef: "longhorn-system/im-1",
		ContainerID: container, IfName: ifName, Netns: "/run/netns/x",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.100.1.16/24"), netip.MustParsePrefix("fd00::16/64")},
		MAC:       "02:00:00:00:00:16", IfIndex: 2, Parent: "vxlan-storage",
		IPAM: "host-local", Delegate: json.RawMessage(`{"type":"host-local"}`),
	}
}

func TestSaveLoadDelete(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "run", "attachments"))

	_, found, err := dir.Load("c1", "lhnet1")
	require.NoError(t, err, "a directory that doesn't exist yet holds no record")
	assert.False(t, found)
	require.NoError(t, dir.Delete("c1", "lhnet1"))

	a := sample("c1", "lhnet1")
	a.State = StatePending
	require.NoError(t, dir.Save(a))
	a.State = StateAttached
	require.NoError(t, dir.Save(a), "a second save replaces the first")
	require.NoError(t, dir.Save(sample("c1", "lhnet2")))

	got, found, err := dir.Load("c1", "lhnet1")
	require.NoError(t, err)
	assert.True(t, found)
	assert.Equal(t, a, got)

	info, err := os.Stat(string(dir))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	info, err = os.Stat(filepath.Join(string(dir), "c1@lhnet1.json"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, dir.Delete("c1", "lhnet1"))
	require.NoError(t, dir.Delete("c1", "lhnet1"), "a repeated DEL succeeds")
	all, err := dir.List()
	require.NoError(t, err)
	assert.Equal(t, []Attachment{sample("c1", "lhnet2")}, all)
	assert.Len(t, names(t, dir), 1, "no temp file stays")
}

func TestSaveWritesThePresentVersion(t *testing.T) {
	dir := Dir(t.TempDir())
	a := sample("c1", "lhnet1")
	a.Version = 0
	require.NoError(t, dir.Save(a))
	got, _, err := dir.Load("c1", "lhnet1")
	require.NoError(t, err)
	assert.Equal(t, Version, got.Version)
}

func TestNamesThatCannotBeFiles(t *testing.T) {
	for _, c := range []struct{ container, ifName, variable string }{
		{"", "lhnet1", "CNI_CONTAINERID"},
		{"c1", "", "CNI_IFNAME"},
		{"../c1", "lhnet1", "CNI_CONTAINERID"},
		{"c1", "a/b", "CNI_IFNAME"},
		{"c1", "..", "CNI_IFNAME"},
		{".tmp-c1", "lhnet1", "CNI_CONTAINERID"},
		{"c\x001", "lhnet1", "CNI_CONTAINERID"},
		{"c1@x", "lhnet1", "CNI_CONTAINERID"},
		{strings.Repeat("c", 244), "lhnet1", "CNI_CONTAINERID"},
	} {
		t.Run(c.container+"@"+c.ifName, func(t *testing.T) {
			dir := Dir(t.TempDir())
			_, _, loadErr := dir.Load(c.container, c.ifName)
			for _, err := range []error{dir.Save(sample(c.container, c.ifName)), dir.Delete(c.container, c.ifName), loadErr} {
				require.Error(t, err)
				assert.Equal(t, cnierr.InvalidEnvironment, cnierr.CodeOf(err))
				assert.Contains(t, err.Error(), c.variable)
			}
			assert.Empty(t, names(t, dir))
		})
	}
}

func TestTheLongestName(t *testing.T) {
	dir := Dir(t.TempDir())
	id := strings.Repeat("c", 255-len("@lhnet1.json"))
	require.NoError(t, dir.Save(sample(id, "lhnet1")))
	_, found, err := dir.Load(id, "lhnet1")
	require.NoError(t, err)
	assert.True(t, found)
}

func TestBadFilesAreNamedAndTheGoodOnesReturned(t *testing.T) {
	dir := Dir(t.TempDir())
	require.NoError(t, dir.Save(sample("good", "lhnet1")))
	moved, err := json.Marshal(sample("elsewhere", "lhnet1"))
	require.NoError(t, err)
	bad := map[string]struct{ text, says string }{
		"torn@lhnet1.json":  {`{"version":1,"containerID":"to`, "torn"},
		"empty@lhnet1.json": {``, "torn"},
		"newer@lhnet1.json": {`{"version":2,"addresses":{"v4":1}}`, "install the newer lhstorage"},
		"zero@lhnet1.json":  {`{}`, "version 0"},
		"shape@lhnet1.json": {`{"version":1,"addresses":7}`, "torn or not ours"},
		"moved@lhnet1.json": {string(moved), `container "elsewhere"`},
	}
	for name, b := range bad {
		require.NoError(t, os.WriteFile(filepath.Join(string(dir), name), []byte(b.text), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(string(dir), "README"), []byte("not ours"), 0o600))

	all, err := dir.List()
	assert.Equal(t, []Attachment{sample("good", "lhnet1")}, all)
	require.Error(t, err)
	for name, b := range bad {
		assert.Contains(t, err.Error(), filepath.Join(string(dir), name))
		container, _, _ := strings.Cut(name, "@")
		_, found, err := dir.Load(container, "lhnet1")
		require.Error(t, err, name)
		assert.False(t, found, name)
		assert.Contains(t, err.Error(), b.says)
		assert.Contains(t, err.Error(), "delete the ", "what to do")
		assert.Equal(t, cnierr.Decode, cnierr.CodeOf(err))
	}
}

func TestListSweepsOnlyStaleTemps(t *testing.T) {
	dir := Dir(t.TempDir())
	fresh, stale := filepath.Join(string(dir), ".tmp-1"), filepath.Join(string(dir), ".tmp-2")
	for _, path := range []string{fresh, stale} {
		require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	}
	old := time.Now().Add(-2 * time.Minute)
	require.NoError(t, os.Chtimes(stale, old, old))
	all, err := dir.List()
	require.NoError(t, err)
	assert.Empty(t, all)
	assert.FileExists(t, fresh)
	assert.NoFileExists(t, stale)
}

func TestListOfAMissingDirectory(t *testing.T) {
	all, err := Dir(filepath.Join(t.TempDir(), "none")).List()
	require.NoError(t, err)
	assert.Empty(t, all)
}

func TestSaveWhereTheDirectoryIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attachments")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	err := Dir(path).Save(sample("c1", "lhnet1"))
	require.Error(t, err)
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	assert.Contains(t, err.Error(), filepath.Join(path, "c1@lhnet1.json"))
}

// The same record is written and deleted by several processes while this one
// reads: it must never see half a record, or one that nobody wrote.
func TestManyProcesses(t *testing.T) {
	if os.Getenv("RECORD_WRITER") != "" {
		t.Skip("this process is a writer")
	}
	dir := Dir(t.TempDir())
	var writers sync.WaitGroup
	stop := make(chan struct{})
	for i := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWriterProcess$")
		cmd.Env = append(os.Environ(), "RECORD_WRITER="+string(dir), fmt.Sprint("RECORD_NODE=n", i))
		require.NoError(t, cmd.Start())
		writers.Go(func() { assert.NoError(t, cmd.Wait()) })
	}
	go func() { writers.Wait(); close(stop) }()
	seen := 0
	for running := true; running; {
		select {
		case <-stop:
			running = false
		default:
		}
		all, err := dir.List()
		require.NoError(t, err)
		for _, a := range all {
			seen++
			require.Len(t, a.Warnings, 200)
			require.Contains(t, []string{"n0", "n1", "n2"}, a.Node)
		}
	}
	assert.Positive(t, seen, "the reader must have met records")
	all, err := dir.List()
	require.NoError(t, err)
	assert.Empty(t, all)
	assert.Empty(t, names(t, dir))
}

func TestWriterProcess(t *testing.T) {
	dir := Dir(os.Getenv("RECORD_WRITER"))
	if dir == "" {
		t.Skip("only run by TestManyProcesses")
	}
	a := sample("c1", "lhnet1")
	a.Node, a.Warnings = os.Getenv("RECORD_NODE"), strings.Split(strings.Repeat("warning,", 199)+"warning", ",")
	for range 300 {
		require.NoError(t, dir.Save(a))
		_, _, err := dir.Load("c1", "lhnet1")
		require.NoError(t, err)
	}
	require.NoError(t, dir.Delete("c1", "lhnet1"))
}

func FuzzLoad(f *testing.F) {
	good, err := json.Marshal(sample("c1", "lhnet1"))
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"containerID":"c1","ifname":"lhnet1","addresses":[""],"delegate":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := Dir(t.TempDir())
		path := filepath.Join(string(dir), "c1@lhnet1.json")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		a, found, err := dir.Load("c1", "lhnet1")
		if err != nil {
			require.False(t, found)
			require.Contains(t, err.Error(), path)
			return
		}
		require.True(t, found)
		require.NoError(t, dir.Save(a), "what was read can be written")
		again, _, err := dir.Load("c1", "lhnet1")
		require.NoError(t, err)
		first, err := json.Marshal(a)
		require.NoError(t, err)
		second, err := json.Marshal(again)
		require.NoError(t, err)
		require.JSONEq(t, string(first), string(second))
	})
}

func names(t *testing.T, dir Dir) []string {
	t.Helper()
	entries, err := os.ReadDir(string(dir))
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
