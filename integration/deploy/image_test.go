package deploy

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// What is in the image runs with nothing but what is in the image.
func TestImage(t *testing.T) {
	testnode.RequireRoot(t)
	i, err := Image(t.Context(), "lhstorage.test/lhstorage:1", tools.Ours(t))
	require.NoError(t, err)
	archive := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, i.WriteArchive(archive))
	again := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, i.WriteArchive(again))
	same(t, archive, again)
	root := unpack(t, archive)
	inside := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%q: %s", args, out)
		return string(out)
	}
	for program, says := range map[string]string{
		"iptables": "(nf_tables)", "ip6tables": "(nf_tables)", "iptables-nft": "(nf_tables)", "ip6tables-nft": "(nf_tables)",
		"iptables-legacy": "(legacy)", "ip6tables-legacy": "(legacy)",
	} {
		assert.Contains(t, inside("/usr/sbin/"+program, "-V"), says)
	}
	// Extensions are loaded for a rule that names them.
	inside("/usr/sbin/iptables", "-A", "INPUT", "-p", "udp", "--dport", "4789", "-m", "addrtype", "--dst-type", "LOCAL", "-m", "comment", "--comment", "lhstorage", "-j", "DROP")
	inside("/usr/sbin/ip6tables", "-A", "INPUT", "-p", "ipv6-icmp", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
	assert.Contains(t, inside("/opt/lhstorage/install-cni", "--version"), "install-cni version")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "host/etc"), 0o755))
	inside("/opt/lhstorage/install-cni", "--no-cluster", "--from", "/opt/lhstorage") // /proc, by which it finds itself, is a runtime's to mount
	assert.FileExists(t, filepath.Join(root, "host/opt/cni/bin/lhstorage"))
	assert.NoFileExists(t, filepath.Join(root, "bin/sh"))
	t.Run("the chart's flags", func(t *testing.T) { chartFlags(t, root) })
}

// chartFlags calls the programs as the chart does: what they miss is a cluster, and no flag is strange to them.
func chartFlags(t *testing.T, root string) {
	c := newChart(t)
	rendered, err := c.Template(t.Context(), "--set", "distribution=k3s,apiServer=https://10.0.0.1:6443,agent.repair=longhorn", "--show-only", "templates/daemonset.yaml")
	require.NoError(t, err)
	var set appsv1.DaemonSet
	require.NoError(t, yaml.UnmarshalStrict(rendered, &set))
	pod := set.Spec.Template.Spec
	for _, container := range append(pod.InitContainers, pod.Containers...) {
		argv := append(container.Command, container.Args...)
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env, cmd.Dir = []string{"NODE_NAME=worker-1"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		assert.Contains(t, string(out), "KUBERNETES_SERVICE_HOST", container.Name)
		assert.NotContains(t, string(out), "flag", container.Name)
	}
}

// same compares by digests: the files are too big to be shown.
func same(t *testing.T, a, b string) {
	t.Helper()
	var sums [2][sha256.Size]byte
	for i, path := range []string{a, b} {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		sums[i] = sha256.Sum256(data)
	}
	require.Equal(t, sums[0], sums[1], "the same content, other bytes")
}

// unpack does what a runtime does with an image: it follows index and manifest to the layers.
func unpack(t *testing.T, archive string) (root string) {
	t.Helper()
	layout := t.TempDir()
	untar(t, archive, layout)
	type descriptor struct{ Digest string }
	read := func(path string, into any) {
		data, err := os.ReadFile(filepath.Join(layout, path))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, into))
	}
	blob := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }
	var index struct{ Manifests []descriptor }
	read("index.json", &index)
	require.Len(t, index.Manifests, 1)
	var manifest struct{ Layers []descriptor }
	read(blob(index.Manifests[0]), &manifest)
	root = t.TempDir()
	for _, layer := range manifest.Layers {
		untar(t, filepath.Join(layout, blob(layer)), root)
	}
	return root
}

func untar(t *testing.T, archive, dir string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
