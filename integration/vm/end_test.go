package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/vm/wire"
)

// A VM that would go on for ever is ended, what it said by then is shown, and
// nothing is left of it.
func TestAVMThatTakesTooLongIsEnded(t *testing.T) {
	unlessOthersAreAsked(t)
	ctx, kernel := begin(t)
	work := t.TempDir()
	t.Setenv("TMPDIR", work)
	tooLong := errors.New("the time is over")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var out bytes.Buffer
	const said = "and so it begins"
	endless := wire.Run{Name: "endless", Dir: "/", Argv: []string{"/bin/sh", "-c", "echo " + said + "; sleep 100000"}}
	outcomes, err := Boot(ctx, Machine{Kernel: kernel}, []wire.Run{endless}, nil, writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), said) {
			assert.Len(t, processesOf(t, work), 1, "QEMU")
			cancel(tooLong)
		}
		return out.Write(p)
	}))
	require.ErrorIs(t, err, tooLong)
	require.ErrorContains(t, err, "in or after endless", "where it was")
	require.ErrorContains(t, err, "the VM's console:")
	assert.Contains(t, out.String(), said)
	assert.Empty(t, outcomes)
	assert.Empty(t, processesOf(t, work))
	left, err := os.ReadDir(work)
	require.NoError(t, err)
	assert.Empty(t, left)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// processesOf are the command lines of processes that have a word in them.
func processesOf(t *testing.T, word string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var list []string
	for _, file := range files {
		line, _ := os.ReadFile(file) // the process may have ended
		if strings.Contains(string(line), word) {
			list = append(list, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return list
}
