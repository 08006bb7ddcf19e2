package record

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestForgetRemovesWhatAKilledWriterLeft(t *testing.T) {
	dir := Dir(t.TempDir())
	require.NoError(t, dir.Save(sample("c1", "lhnet1")))
	mine, err := dir.Path("c1", "lhnet1")
	require.NoError(t, err)
	for _, name := range []string{tempFor(mine) + "1", tempPrefix + "2"} {
		require.NoError(t, os.WriteFile(filepath.Join(string(dir), name), []byte("{"), 0o600))
	}
	require.NoError(t, dir.Forget("c1", "lhnet1"))
	assert.Equal(t, []string{tempPrefix + "2"}, names(t, dir), "another attachment's writer may be alive")
}

func TestBelowAFileThereIsNoRecord(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	dir := Dir(filepath.Join(file, "attachments"))
	_, found, err := dir.Load("c1", "lhnet1")
	require.NoError(t, err)
	assert.False(t, found)
	require.NoError(t, dir.Delete("c1", "lhnet1"))
}
