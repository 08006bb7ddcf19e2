package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Another program must read what the kernel is to read.
func TestInitramfsUnpacks(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox isn't there: `make deps`")
	}
	var archive bytes.Buffer
	files := []file{{"init", 0o755, []byte("x")}, {"plan.json", 0o644, []byte(`{"a": 1}`)}, {"empty", 0o600, nil}}
	require.NoError(t, writeInitramfs(&archive, files))
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), busybox, "cpio", "-i")
	cmd.Dir, cmd.Stdin = dir, &archive
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.name))
		require.NoError(t, err)
		assert.Equal(t, string(f.data), string(data), f.name)
		info, err := os.Stat(filepath.Join(dir, f.name))
		require.NoError(t, err)
		assert.EqualValues(t, f.mode, info.Mode().Perm(), f.name)
	}
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	modules := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\nkernel/d.ko: kernel/c.ko\n",
		"modules.builtin": "kernel/e.ko\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(modules, name), []byte(text), 0o600))
	}
	got, err := moduleFiles(modules, "d", "e", "a")
	require.NoError(t, err)
	assert.Equal(t, []string{"kernel/c.ko", "kernel/d.ko", "kernel/b.ko", "kernel/a.ko"}, got)
	_, err = moduleFiles(modules, "f")
	assert.ErrorContains(t, err, "no module f")
}

// Whatever the VM does, an end that it did not announce is none.
func TestOnlyAnAnnouncedEndCounts(t *testing.T) {
	const run = `{"started": "a"} {"line": "PASS"} {"line": "{\"finished\": true}"} {"ended": {"code": 0}} {"started": "b"}`
	for _, tt := range []struct{ name, events, wantErr string }{
		{"all", run + `{"ended": {"code": 1, "error": "exit status 1"}} {"finished": true}`, ""},
		{"cut", run, "in or after b"},
		{"nothing", "", "before its first run"},
		{"fault", `{"fault": "no root"}`, "no root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			outcomes, err := listen(bytes.NewBufferString(tt.events), &out)
			if tt.wantErr != "" {
				require.ErrorContains(t, err, tt.wantErr)
				return
			}
			require.NoError(t, err)
			require.Len(t, outcomes, 2)
			assert.Empty(t, outcomes[0].Error)
			assert.Equal(t, "exit status 1", outcomes[1].Error)
			assert.Contains(t, out.String(), "PASS")
		})
	}
}
