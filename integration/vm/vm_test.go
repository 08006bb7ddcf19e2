package vm

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
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
	// verbose has all that the tests say printed as it comes, also of those that pass.
	verbose = "LHSTORAGE_TEST_VM_VERBOSE"
	// limitEnv is how long all VMs together may take, as time.ParseDuration reads it.
	limitEnv = "LHSTORAGE_TEST_VM_LIMIT"

	usualLimit = 10 * time.Minute
)

// suites are the tests that run in the VM: of a package those whose names match.
var suites = []suite{
	{"pkg/iscsipath", "Kernel"},
	{"pkg/kernel", "."},
	{"integration/plugin", "^Test(Kernel|VLAN|VXLAN|LossAndDelay|ISCSIPath|Families|LegsOverVXLAN|Reboot)"},
	{"integration/stocksuite", "OurPlugin"},
}

type suite struct{ folder, tests string }

func TestInVM(t *testing.T) {
	ctx, kernel := begin(t)
	plan := prepare(ctx, t, asked(suites)...)
	carryOut(ctx, t, Machine{Kernel: kernel}, plan)
}

// asked has those tests run only that somebody asked for, in all suites.
func asked(suites []suite) []suite {
	list := slices.Clone(suites)
	for i := range list {
		list[i].tests = cmp.Or(os.Getenv(only), list[i].tests)
	}
	return list
}

// begin is the beginning of a test with a VM, which ends with the context: at the
// time limit of all VMs, or when somebody wants no more of it.
func begin(t *testing.T) (context.Context, Kernel) {
	t.Helper()
	if os.Getenv(wanted) == "" {
		t.Skipf("%s isn't set: `make test-vm` sets it", wanted)
	}
	testnode.RequireRoot(t)
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	kernel, err := DebianKernel(ctx)
	require.NoError(t, err)
	return ctx, kernel
}

// unlessOthersAreAsked skips a test that is not among those asked for.
func unlessOthersAreAsked(t *testing.T) {
	t.Helper()
	asked, err := regexp.Compile(os.Getenv(only))
	require.NoError(t, err, "RUN")
	if !asked.MatchString(t.Name()) {
		t.Skipf("RUN=%s", asked)
	}
}

// limit is how long all VMs together may take.
func limit(t *testing.T) time.Duration {
	t.Helper()
	limit, err := time.ParseDuration(cmp.Or(os.Getenv(limitEnv), usualLimit.String()))
	require.NoError(t, err, "LIMIT")
	return limit
}

// used is how long VMs have taken so far. What is built before them doesn't count.
var used time.Duration

// carryOut boots a machine, has it do the plan, and wants each run to succeed.
func carryOut(ctx context.Context, t *testing.T, machine Machine, plan plan) {
	t.Helper()
	limit := limit(t)
	ctx, cancel := context.WithTimeoutCause(ctx, limit-used, fmt.Errorf("the %s that VMs may take are over", limit))
	defer cancel()
	began := time.Now()
	out := &digest{to: os.Stdout, all: os.Getenv(verbose) != ""}
	outcomes, err := Boot(ctx, machine, plan.runs, plan.env, out)
	took := time.Since(began)
	used += took
	t.Logf("the VM took %s; all so far %s of %s", took.Round(time.Second), used.Round(time.Second), limit)
	if err != nil || slices.ContainsFunc(outcomes, func(o Outcome) bool { return o.Error != "" }) {
		out.tell()
	}
	for _, o := range outcomes {
		t.Run(o.Name, func(t *testing.T) { assert.Empty(t, o.Error, "see its output above") })
	}
	require.NoError(t, err)
	assert.Len(t, outcomes, len(plan.runs))
	if os.Getenv(only) == "" {
		assert.Empty(t, out.skipped, "in the VM everything can be seen")
		assert.Empty(t, out.empty, "each package has the tests that it is named for")
	}
}

// plan is what a VM does, and in what environment.
type plan struct {
	runs []wire.Run
	env  []string
}

// prepare builds everything that tests need, and says how they are run.
func prepare(ctx context.Context, t *testing.T, suites ...suite) plan {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	built := t.TempDir()
	for name, dir := range map[string]string{"own": tools.Ours(t), "stock": tools.Build(t, "stock")} {
		require.NoError(t, os.Symlink(dir, filepath.Join(built, name)))
	}
	args := []string{"test", "-c", "-o", built + "/"}
	for _, s := range suites {
		args = append(args, "./"+s.folder)
		if s.folder == "integration/stocksuite" {
			compileStockSuite(ctx, t, root, filepath.Join(built, "suite"))
		}
	}
	goTool(ctx, t, root, args...)
	p := plan{env: []string{
		"CI=true", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", tools.BuiltEnv + "=" + built,
	}}
	// A test that hangs is to say where before its VM is ended.
	timeout := limit(t) * 8 / 10
	for _, s := range suites {
		argv := []string{filepath.Join(built, filepath.Base(s.folder)+".test"), "-test.timeout=" + timeout.String(), "-test.v", "-test.run=" + s.tests}
		p.runs = append(p.runs, wire.Run{Name: s.folder, Dir: filepath.Join(root, s.folder), Argv: argv})
	}
	return p
}

func compileStockSuite(ctx context.Context, t *testing.T, root, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o750))
	t.Chdir(filepath.Join(root, "integration", "stocksuite"))
	require.NoError(t, stocksuite.Compile(ctx, t.TempDir(), filepath.Join(dir, "lhstorage.test"), "lhstorage", true))
}

func goTool(ctx context.Context, t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), out)
}
