package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

// verify runs the command as its user does, and expects an exit code.
func (b *bed) verify(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	return b.ctl(t, code, "verify", args...)
}

func (b *bed) ctl(t *testing.T, code int, command string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(tools.Ours(t), "lhstoragectl"), append([]string{command, "--kubeconfig", b.AdminKubeconfig()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := b.Within(cmd.Run)
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	require.Equal(t, code, cmd.ProcessState.ExitCode(), "%s%s", &out, &errs)
	return out.String(), errs.String()
}

// The agents of a cluster are asked through the API server, with the rights that deploy/rbac gives them.
func TestVerify(t *testing.T) {
	b := newBed(t)
	for _, n := range b.Nodes {
		b.start(t, n)
		require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 20*time.Millisecond, "%s", n.Name)
		require.Eventually(t, func() bool { _, err := n.ReadFile(kubeconfig); return err == nil }, settle, 20*time.Millisecond)
	}
	for _, n := range b.Nodes {
		b.run(t, n, "instance-manager-"+n.Name)
	}
	var r verify.Result
	out, _ := b.verify(t, 0, "-o", "json", "--wait", "1m")
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	assert.True(t, r.OK)
	assert.Equal(t, verify.Needed, r.Shim.Verdict, r.Shim.Why)
	assert.Contains(t, r.Shim.Why, "of 3 instance managers at the storage address")
	assert.Len(t, r.Matrix, 4*6+3)
	for _, c := range r.Matrix {
		assert.True(t, c.OK(), "%+v", c)
		if c.Kind == v1alpha1.WayPodRemote {
			assert.Equal(t, 1, c.HTTP, "%+v", c)
		}
	}
	for _, w := range r.Waste {
		assert.Equal(t, "eth0", w.Management)
		assert.Less(t, w.ManagementSent, w.Sent/2, "storage goes its own way: %+v", w)
	}
	t.Run("again, as a table", func(t *testing.T) {
		out, progress := b.verify(t, 0)
		t.Logf("\n%s", out)
		assert.Contains(t, out, "ok: 3 of 3 nodes answered; 27 legs, 0 of 27 cells")
		assert.Contains(t, progress, "3 of 3 nodes have answered")
	})
	t.Run("as a page", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "report.html")
		_, said := b.ctl(t, 0, "report", "-f", file, "--cluster-name", "test-bed")
		assert.Contains(t, said, "wrote "+file)
		page, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, text := range []string{"Storage network of test-bed", "All is well", "10.100.100.3", "longhorn-system/instance-manager-node2", "3 of 254 taken by pods"} {
			assert.Contains(t, string(page), text)
		}
	})
	t.Run("a link cut", func(t *testing.T) { b.cut(t, b.Nodes[0]) })
	t.Run("an agent that is gone", func(t *testing.T) {
		require.NoError(t, b.agents["node3"].Kill())
		out, _ := b.verify(t, 1, "--timeout", "15s")
		assert.Contains(t, out, "FAULT no-answer: node3")
		assert.Contains(t, out, "FAILS: 2 of 3 nodes answered")
		b.start(t, b.Nodes[2])
		b.verify(t, 0, "--wait", "1m")
	})
	t.Run("nobody may answer for another node", func(t *testing.T) {
		_, err := b.Kubectl(t.Context(), "patch", "verification", "node1", "--type=merge", "-p", `{"spec":{"node":"node2"}}`)
		assert.ErrorContains(t, err, "it is its name")
	})
}

func (b *bed) cut(t *testing.T, n *controlplane.Node) {
	sh(t, n, "ip link set to-node3 down")
	out, _ := b.verify(t, 1, "-o", "json")
	var r verify.Result
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	var links []string
	for _, f := range r.Findings {
		assert.Contains(t, []verify.Kind{verify.LinkCut, verify.FDBMissing, verify.MTUTooSmall}, f.Kind, "%+v", f)
		if f.Kind == verify.LinkCut {
			links = append(links, f.Node+" "+f.Peer+" "+string(f.Leg))
		}
	}
	assert.Equal(t, []string{"node1 node3 underlay"}, links)
	sh(t, n, "ip link set to-node3 up")
	b.verify(t, 0, "--wait", "1m")
}
