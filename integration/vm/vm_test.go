package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/stocksuite"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/integration/vm/wire"
)

const (
	// wanted is set by `make test-vm`: a VM takes two processors for minutes.
	wanted = "LHSTORAGE_TEST_VM"
	// only is a regular expression of tests; all others are left out.
	only = "LHSTORAGE_TEST_VM_RUN"
	// verbose has what the tests log printed, also of those that pass.
	verbose = "LHSTORAGE_TEST_VM_VERBOSE"

	limit = 10 * time.Minute
)

// suites are the tests that run in the VM: of a package those whose names match.
var suites = []struct{ folder, tests string }{
	{"pkg/iscsipath", "Kernel"},
	{"pkg/kernel", "."},
	{"integration/plugin", "^Test(Kernel|VLAN|VXLAN|LossAndDelay|ISCSIPath|Families|LegsOverVXLAN|Reboot)"},
	{"integration/stocksuite", "OurPlugin"},
}

var errTooLong = fmt.Errorf("%s are over", limit)

func TestInVM(t *testing.T) {
	if os.Getenv(wanted) == "" {
		t.Skipf("%s isn't set: `make test-vm` sets it", wanted)
	}
	testnode.RequireRoot(t)
	kernel, err := DebianKernel(t.Context())
	require.NoError(t, err)
	built := t.TempDir()
	env := []string{
		"CI=true", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", tools.BuiltEnv + "=" + built,
	}
	plan := plan(t, built)
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errTooLong)
	defer cancel()
	outcomes, err := Boot(ctx, kernel, plan, env, os.Stdout)
	for _, o := range outcomes {
		t.Run(o.Name, func(t *testing.T) { assert.Empty(t, o.Error, "see its output above") })
	}
	require.NoError(t, err)
	assert.Len(t, outcomes, len(plan))
}

// plan builds everything that the tests need, under built, and says how they are
// run.
func plan(t *testing.T, built string) []wire.Run {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	for name, dir := range map[string]string{"own": tools.Ours(t), "stock": tools.Build(t, "stock")} {
		require.NoError(t, os.Symlink(dir, filepath.Join(built, name)))
	}
	require.NoError(t, os.Mkdir(filepath.Join(built, "suite"), 0o750))
	t.Chdir(filepath.Join(root, "integration", "stocksuite"))
	require.NoError(t, stocksuite.Compile(t.Context(), t.TempDir(), filepath.Join(built, "suite", "lhstorage.test"), "lhstorage", true))
	args := []string{"test", "-c", "-o", built + "/"}
	for _, s := range suites {
		args = append(args, "./"+s.folder)
	}
	goTool(t, root, args...)
	var runs []wire.Run
	for _, s := range suites {
		tests := s.tests
		if o := os.Getenv(only); o != "" {
			tests = o
		}
		argv := []string{filepath.Join(built, filepath.Base(s.folder)+".test"), "-test.timeout=8m", "-test.run=" + tests}
		if os.Getenv(verbose) != "" {
			argv = append(argv, "-test.v")
		}
		runs = append(runs, wire.Run{Name: s.folder, Dir: filepath.Join(root, s.folder), Argv: argv})
	}
	return runs
}

func goTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), out)
}
