package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A machine that can't ask apt now has what it unpacked last, and no half of it.
func TestTheCacheServesWhereAptCantBeAsked(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("PATH", t.TempDir())
	_, err := DebianKernel(t.Context())
	require.ErrorContains(t, err, "apt-cache")

	kernels := filepath.Join(cache, "lhstorage", "debian")
	for name, age := range map[string]time.Duration{"linux-image-6.1.0-9": 2 * time.Hour, "linux-image-6.1.0-10": time.Hour} {
		dir := filepath.Join(kernels, name)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "lib", "modules", name), 0o750))
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "boot"), 0o750))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "boot", "vmlinuz-"+name), nil, 0o600))
		then := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(dir, then, then))
	}
	require.NoError(t, os.Mkdir(filepath.Join(kernels, "linux-image-6.1.0-11.part"), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(kernels, "linux-image-6.1.0-11.lock"), nil, 0o600))
	kernel, err := DebianKernel(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "vmlinuz-linux-image-6.1.0-10", filepath.Base(kernel.Image))
}
