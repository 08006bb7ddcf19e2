package v1alpha1_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// What is generated from the types is what is in the checkout.
func TestGeneratedFilesAreFresh(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	generator := filepath.Join(tools.Build(t, "generate"), "controller-gen")
	out := t.TempDir()
	cmd := exec.Command(generator, "object", "crd", "paths=./pkg/api/...", "output:object:dir="+out, "output:crd:dir="+filepath.Join(out, "crds"))
	cmd.Dir = root
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)
	compare(t, filepath.Join(out, "zz_generated.deepcopy.go"), filepath.Join(root, "pkg/api/v1alpha1/zz_generated.deepcopy.go"))
	for _, dir := range [][2]string{{filepath.Join(out, "crds"), filepath.Join(root, "deploy/crds")}, {filepath.Join(root, "deploy/crds"), filepath.Join(out, "crds")}} {
		files, err := os.ReadDir(dir[0])
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, f := range files {
			compare(t, filepath.Join(dir[0], f.Name()), filepath.Join(dir[1], f.Name()))
		}
	}
}

func compare(t *testing.T, a, b string) {
	want, err := os.ReadFile(a)
	require.NoError(t, err, "run make generate")
	got, err := os.ReadFile(b)
	require.NoError(t, err, "run make generate")
	assert.Equal(t, string(want), string(got), "%s: run make generate", filepath.Base(b))
}
