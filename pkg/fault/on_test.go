//go:build faultpoints

package fault

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func reset(t *testing.T, spec string) {
	mu.Lock()
	clear(passes)
	mu.Unlock()
	t.Setenv("LHSTORAGE_FAULT", spec)
}

func TestErrors(t *testing.T) {
	assert.True(t, Enabled)
	for _, c := range []struct {
		spec string
		fail []bool // whether the passes of add.child fail, in order
	}{
		{"", []bool{false, false}},
		{"add.child=error", []bool{true, true}},
		{"add.chil=error,add.children=error", []bool{false, false}},
		{"add.child#2=error", []bool{false, true, false}},
		{"add.child#1=error,add.child#3=error", []bool{true, false, true}},
		{"other=error,add.child=error", []bool{true}},
		{"add.child#x=error", []bool{false, false}},
		{"add.child", []bool{false}},
		{"add.child=unheard-of", []bool{false}},
		{"add.child=sleep:soon", []bool{false}},
	} {
		reset(t, c.spec)
		for i, want := range c.fail {
			err := At("add.child")
			assert.Equal(t, want, err != nil, "%q, pass %d", c.spec, i+1)
			if err != nil {
				assert.ErrorContains(t, err, "add.child")
			}
			assert.NoError(t, At("add.up"), c.spec)
		}
	}
}

func TestSleep(t *testing.T) {
	reset(t, "add.child=sleep:30ms")
	begun := time.Now()
	require.NoError(t, At("add.child"))
	assert.GreaterOrEqual(t, time.Since(begun), 30*time.Millisecond)
}

func TestTrace(t *testing.T) {
	reset(t, "add.child=error")
	file := filepath.Join(t.TempDir(), "trace")
	t.Setenv("LHSTORAGE_FAULT_TRACE", file)
	_ = At("add.child")
	_ = At("add.up")
	_ = At("add.child")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "add.child\nadd.up\nadd.child\n", string(data))
	t.Setenv("LHSTORAGE_FAULT_TRACE", filepath.Join(file, "below", "a file"))
	assert.NoError(t, At("add.up"), "a trace that can't be written is no fault of the program's")
}

// Kill ends the process at the point, as kill -9 would.
func TestKill(t *testing.T) {
	if os.Getenv("FAULT_TEST_CHILD") != "" {
		_ = At("add.up")
		_ = At("add.child")
		os.Exit(0)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), "FAULT_TEST_CHILD=1", "LHSTORAGE_FAULT=add.child=kill", "LHSTORAGE_FAULT_TRACE="+trace)
	err := cmd.Run()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	assert.Equal(t, syscall.SIGKILL, status.Signal())
	data, err := os.ReadFile(trace)
	require.NoError(t, err)
	assert.Equal(t, "add.up\nadd.child\n", string(data))
}
