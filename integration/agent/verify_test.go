package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
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
	pods := map[string]*controlplane.Sandbox{}
	for _, n := range b.Nodes {
		pods[n.Name] = b.run(t, n, "instance-manager-"+n.Name)
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
		if c.Kind == v1alpha1.LegPodRemote {
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
		for _, text := range []string{"Storage network of test-bed", "All is well", "10.100.100.3", "longhorn-system/instance-manager-node2", "3 of 239 taken by pods"} {
			assert.Contains(t, string(page), text)
		}
	})
	t.Run("a target that listens", func(t *testing.T) { b.listening(t, pods["node2"]) })
	t.Run("as enable asks", func(t *testing.T) {
		told, err := b.measured(t)
		require.NoError(t, err)
		assert.Contains(t, told, "ok: 3 of 3 nodes answered; 27 legs")
		assert.NotContains(t, told, "not verified")
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
	t.Run("a request keeps its node", func(t *testing.T) {
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
	_, err := b.measured(t)
	require.ErrorContains(t, err, "of network longhorn-system/storage:\n  - ")
	require.ErrorContains(t, err, "link-cut: node1 → node3, leg underlay, 10.100.100.3: ")
	sh(t, n, "ip link set to-node3 up")
	b.verify(t, 0, "--wait", "1m")
}

// longhornNodes are the nodes that Longhorn knows, as far as it matters which they are.
const longhornNodes = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "nodes.longhorn.io"},
 "spec": {"group": "longhorn.io", "scope": "Namespaced", "names": {"kind": "Node", "plural": "nodes", "singular": "node"},
  "versions": [{"name": "v1beta2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}`

// measured is what `lhstoragectl enable` does at its step verify, and what it tells.
func (b *bed) measured(t *testing.T) (told string, err error) {
	t.Helper()
	require.NoError(t, b.Apply(t.Context(), nil, []byte(longhornNodes)))
	for _, n := range b.Nodes {
		object := fmt.Sprintf(`{"apiVersion": "longhorn.io/v1beta2", "kind": "Node", "metadata": {"name": %q, "namespace": %q}}`, n.Name, namespace)
		require.Eventually(t, func() bool { return b.Apply(t.Context(), nil, []byte(object)) == nil }, settle, 100*time.Millisecond, "the definition is served a moment after it was made")
	}
	api, err := kubeapi.New(b.Config)
	require.NoError(t, err)
	m := longhorn.Measured{Cluster: &longhorn.Cluster{API: api, Namespace: namespace}, Timeout: time.Minute, Tell: func(line string) { told += line + "\n" }}
	err = m.Verify(t.Context(), longhorn.Network{Ref: longhorn.Ref{Namespace: namespace, Name: network}, Config: nad})
	return told, err
}

// listening has an instance manager's target listen, and sees that the agents see it, and see it go.
func (b *bed) listening(t *testing.T, pod *controlplane.Sandbox) {
	var listeners []net.Listener
	require.NoError(t, pod.Netns.Do(func(ns.NetNS) error {
		for _, port := range []string{"3260", "10000"} {
			l, err := net.Listen("tcp", ":"+port) // as tgtd does, on all addresses
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
		}
		return nil
	}))
	seen := func() (open, refused int) {
		out, _ := b.verify(t, 0, "-o", "json", "--wait", "1m")
		var r verify.Result
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		for _, c := range r.Matrix {
			if c.To == "node2" {
				open, refused = open+c.Open, refused+c.Refused
			}
		}
		return open, refused
	}
	open, refused := seen()
	assert.Equal(t, 3*2, open, "from its own host, and from the two others")
	assert.Zero(t, refused)
	for _, l := range listeners {
		require.NoError(t, l.Close())
	}
	open, refused = seen()
	assert.Zero(t, open)
	assert.Equal(t, 3*2, refused)
}
