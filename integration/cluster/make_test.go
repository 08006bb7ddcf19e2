package cluster

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

const upTime = 2 * time.Minute // 20 s where nothing else runs

// A cluster as `make cluster` starts it: kubectl reaches it by the kubeconfig that is named, and after its process was killed `make cluster-down`
// leaves nothing of it.
func TestMakeClusterAndDown(t *testing.T) {
	if os.Getenv(wanted) == "" {
		t.Skipf("%s isn't set: `make test-cluster` sets it", wanted)
	}
	testnode.RequireRoot(t)
	dir, err := tools.Programs(t.Context(), "integration/cluster/lhcluster")
	require.NoError(t, err)
	program := filepath.Join(dir, "lhcluster")
	var said bytes.Buffer
	cmd := exec.Command(program, "up", "--nodes", "1")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, log.Close()) })
	cmd.Stdout, cmd.Stderr = log, &said
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		out, err := exec.Command(program, "down").CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})

	var name string
	var environment []string
	require.Eventually(t, func() bool {
		select {
		case err := <-ended:
			t.Fatalf("lhcluster up: %v: %s", err, &said)
		default:
		}
		text, err := os.ReadFile(log.Name())
		require.NoError(t, err)
		_, line, found := strings.Cut(string(text), "export ")
		line, _, _ = strings.Cut(line, "\n")
		environment = strings.Fields(os.ExpandEnv(line))
		name, _, _ = strings.Cut(string(text), " ")
		return found
	}, upTime, 200*time.Millisecond)
	kubectl := exec.Command("sh", "-c", "kubectl get nodes --no-headers")
	kubectl.Env = append(environment, "HOME="+t.TempDir()) // for what it caches
	out, err := kubectl.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Regexp(t, `^node1 +Ready `, string(out))
	require.NotEmpty(t, remains(t, name), "the test shows nothing: no trace of a cluster was found")

	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	require.Error(t, <-ended, "it was killed")
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	out, err = exec.CommandContext(ctx, program, "down").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "nothing is left of one")
	assert.Empty(t, remains(t, name))
}

// remains are the traces of a cluster on this machine: network namespaces, cgroups, mounts and processes.
func remains(t *testing.T, name string) (list []string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/" + name + "*", "/sys/fs/cgroup/" + name + "*", "/sys/fs/cgroup/*/" + name + "*"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		list = append(list, found...)
	}
	texts, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range append(texts, "/proc/self/mounts") {
		content, _ := os.ReadFile(path) // of a process that has just ended there is none
		for line := range strings.Lines(string(content)) {
			if strings.Contains(line, name) {
				list = append(list, path+": "+strings.ReplaceAll(line, "\x00", " "))
			}
		}
	}
	return list
}
