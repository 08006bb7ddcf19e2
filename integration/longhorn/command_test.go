package longhorn

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// command is lhstoragectl as people start it.
func (w *world) command(t *testing.T, program string, args ...string) (*exec.Cmd, *printed, *printed) {
	var out, errs printed
	cmd := exec.Command(program, append(args, "--kubeconfig", w.AdminKubeconfig(), "-n", w.ns)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, w.Within(cmd.Start))
	return cmd, &out, &errs
}

// printed is what a running program has printed so far.
type printed struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *printed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(data)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// TestCommand walks docs/longhorn.md: look, do, interrupt, go on, go back.
func TestCommand(t *testing.T) {
	b := newBed(t)
	dir, err := tools.Own(t.Context())
	require.NoError(t, err)
	program := filepath.Join(dir, "lhstoragectl")
	b.kubeNodes(t)
	agents := b.agents(t)
	w := b.newWorld(t, "")
	before := w.state(t)
	file := filepath.Join(t.TempDir(), "network.json")
	require.NoError(t, os.WriteFile(file, []byte(networkConfig), 0o600))
	network := w.ns + "/storage"
	run := func(code int, args ...string) (string, string) {
		t.Helper()
		cmd, out, errs := w.command(t, program, args...)
		_ = cmd.Wait()
		require.Equal(t, code, cmd.ProcessState.ExitCode(), "%v\n%s%s", args, out, errs)
		return out.String(), errs.String()
	}

	out, _ := run(0, "enable", "--network", network, "--config", file, "--dry-run")
	assert.Contains(t, out, "network: see that "+network+" is there (it is made)")
	assert.Contains(t, out, "Deployment "+w.app+"/web (3)")
	assert.Contains(t, out, `from "" to "`+network+`"`)
	_, errs := run(1, "enable", "--network", network, "--dry-run")
	assert.Contains(t, errs, "[no-network]")
	_, errs = run(3, "resume")
	assert.Contains(t, errs, "nothing to go on with")
	assert.Equal(t, before, w.state(t), "so far nothing was changed")

	w.hold("web", true)
	cmd, _, told := w.command(t, program, "enable", "--network", network, "--config", file)
	w.reaches(t, detaching)
	require.Eventually(t, func() bool {
		return strings.Contains(told.String(), "waiting so that all volumes are detached:\n    - volume pvc-web is attached to node1")
	}, time.Minute, beat, "it says what it waits for")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait()
	assert.Equal(t, 3, cmd.ProcessState.ExitCode())
	assert.Contains(t, told.String(), `step "detach": interrupted while waiting`)
	assert.Contains(t, told.String(), "`lhstoragectl resume` goes on from here")

	_, errs = run(1, "disable")
	assert.Contains(t, errs, "[journal-open]")
	out, _ = run(0, "rollback", "--dry-run", "-o", "json")
	assert.NotContains(t, out, "setting", "it wasn't touched")
	w.hold("web", false)
	agents.is("node2", "")
	_, errs = run(3, "resume", "--wait-verify", "1s")
	assert.Contains(t, errs, "packet-loss: node1 → node2, leg host-remote, 10.100.1.17: ")
	assert.Contains(t, errs, "`lhstoragectl resume --skip-verify`")
	out, _ = run(0, "resume", "--skip-verify", "--dry-run")
	assert.Contains(t, out, "verify: left out, as asked")
	agents.is("", "")
	_, errs = run(0, "resume")
	assert.Contains(t, errs, "ok: 2 of 2 nodes answered")
	w.enabled(t)
	out, _ = run(0, "rollback", "--dry-run")
	assert.Contains(t, out, `from "`+network+`" to ""`)
	run(0, "rollback")
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t))
	j, err := (&longhorn.Cluster{API: w.api, Namespace: w.ns}).Journal(t.Context())
	require.NoError(t, err)
	assert.True(t, j.Finished)
}
