package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// commandsPromised is how many commands it takes from zero to a verified network, at most.
const commandsPromised = 10

// triedImage is the one that deploy/examples/try names.
const triedImage = "registry.k8s.io/pause:3.10"

// skopeo stands in for the program of that name: what is pushed is kept for the nodes, as a registry would.
const skopeo = `#!/bin/sh
set -eu
[ "$1" = copy ]
case "$3" in docker://$IMAGE:$TAG) ;; *) exit 1 ;; esac
cp "${2#oci-archive:}" "$PUSHED"
`

var block = regexp.MustCompile("(?s)\n```sh\n(.*?)\n```\n")

// readmeCommands are the lines of README's block.
func readmeCommands(t *testing.T, root string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## From zero to a verified network\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	found := block.FindAllStringSubmatch(section, -1)
	require.Len(t, found, 1, "the commands are in one block")
	return slices.DeleteFunc(strings.Split(found[0][1], "\n"), func(line string) bool { return line == "" || strings.HasPrefix(line, "#") })
}

// readme runs README's commands one after the other, as they stand there, in a copy of the checkout and on nodes that know nothing of lhstorage. There is
// no registry: what the commands push, or expect to be there, the test gives to the nodes.
func readme(t *testing.T, b bed) {
	root, err := tools.Root()
	require.NoError(t, err)
	commands := readmeCommands(t, root)
	require.LessOrEqual(t, len(commands), commandsPromised)
	b.forget(t)
	b.haveTried(t)

	dir := b.clone(t, root)
	pushed := filepath.Join(b.Dir, "pushed.tar")
	env := b.readmeEnv(t, pushed)
	began := time.Now()
	var said string
	for i, command := range commands {
		begin := time.Now()
		said = b.typed(t, dir, env, command)
		t.Logf("%d. %s: %s", i+1, command, time.Since(begin).Round(100*time.Millisecond))
		if _, err := os.Stat(pushed); err == nil {
			require.NoError(t, b.importArchive(t.Context(), pushed))
			require.NoError(t, os.Remove(pushed))
		}
	}
	t.Logf("from zero to a verified network: %s\n%s", time.Since(began).Round(time.Second), said)
	assert.Contains(t, commands[len(commands)-1], "lhstoragectl verify")
	assert.Contains(t, said, "ok: 2 of 2 nodes answered")
	assert.Contains(t, said, "Host shim: needed.")
	for _, leg := range []string{"underlay", "host-shim", "host-local", "host-remote", "pod-remote"} {
		assert.Regexp(t, `(?m)^`+leg+` +node1 +node[12] .* ok$`, said)
	}
	assert.Regexp(t, `(?m)^pod-remote +node1 +node2 .* 1/1 `, said, "the HTTP exchange")

	shims, err := b.Kubectl(t.Context(), "get", "hostshims", "-o", `jsonpath={range .items[*]}{.spec.vtep} {end}`)
	require.NoError(t, err)
	for _, n := range b.on() {
		assert.Contains(t, shims, n.Address.String()+" ", "the tunnel runs over the nodes' own network")
	}
}

// forget leaves nothing of what the steps before made, if they were taken.
func (b bed) forget(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"delete", "namespace", deploy.Namespace, "--ignore-not-found"},
		{"--namespace", namespace, "delete", "network-attachment-definition", example.Name, "--ignore-not-found"},
		{"delete", "crd", "--ignore-not-found", "addressclaims.lhstorage.io", "hostshims.lhstorage.io", "probereports.lhstorage.io", "verifications.lhstorage.io"},
		{"annotate", "node", "--all", "lhstorage.io/index-"},
	} {
		_, err := b.Kubectl(t.Context(), args...)
		require.NoError(t, err)
	}
	b.until(t, "the namespace is gone", func(ctx context.Context) error {
		_, err := b.Kube.CoreV1().Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	for _, n := range b.on() {
		_, err := n.Run(t.Context(), "/bin/sh", "-euc", "ip link del vxlan-storage 2>/dev/null || true; rm -rf /var/lib/lhstorage/* /run/lhstorage/*")
		require.NoError(t, err)
	}
}

// haveTried gives the nodes the image of deploy/examples/try.
func (b bed) haveTried(t *testing.T) {
	t.Helper()
	pause, err := BusyboxImage(t.Context())
	require.NoError(t, err)
	pause.Name, pause.Entrypoint = triedImage, []string{"/bin/sleep", forever}
	require.NoError(t, b.ImportImage(t.Context(), pause))
}

// clone copies the checkout, but for what isn't in the repository; the chart doesn't say which Kubernetes it is for, see [Cluster.HelmChart].
func (b bed) clone(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	for _, e := range entries {
		if slices.Contains([]string{".git", "bin", ".cache"}, e.Name()) {
			continue
		}
		out, err := exec.Command("cp", "-a", filepath.Join(root, e.Name()), dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	chart, err := b.HelmChart(t.Context())
	require.NoError(t, err)
	about, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "deploy/chart/lhstorage/Chart.yaml"), about, 0o644))
	return dir
}

// readmeEnv is what README's reader has: the programs, the kubeconfig, and the three things that README asks for.
func (b bed) readmeEnv(t *testing.T, pushed string) []string {
	t.Helper()
	helm, err := tools.Module(t.Context(), "helm")
	require.NoError(t, err)
	programs := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(programs, "skopeo"), []byte(skopeo), 0o755))
	lan, err := b.Nodes[0].Address.Prefix(24)
	require.NoError(t, err)
	require.True(t, lan.Contains(b.Nodes[1].Address))
	return append(os.Environ(),
		"PATH="+strings.Join([]string{programs, filepath.Dir(b.Program("kubectl")), helm, os.Getenv("PATH")}, ":"),
		"KUBECONFIG="+b.AdminKubeconfig(), "KUBECACHEDIR="+filepath.Join(b.Dir, "kubectl"), "HELM_CACHE_HOME="+b.Dir, "HELM_CONFIG_HOME="+b.Dir, "HELM_DATA_HOME="+b.Dir,
		"IMAGE="+ImageLhstorage, "TAG=readme", "LAN="+lan.String(), "PUSHED="+pushed)
}

// typed runs a command as README has it, and returns what it printed.
func (b bed) typed(t *testing.T, dir string, env []string, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var out []byte
	err := b.Within(func() (err error) {
		cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", command)
		cmd.Dir, cmd.Env = dir, env
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		describe, _ := b.Kubectl(t.Context(), "describe", "pods", "--all-namespaces", "--selector=app in (storage-try)")
		logs, _ := b.Kubectl(t.Context(), "--namespace", deploy.Namespace, "logs", "--prefix", "--all-containers", "--selector=app.kubernetes.io/name=lhstorage")
		t.Log(describe, logs)
	}
	require.NoError(t, err, "%s: %s", command, out)
	return string(out)
}
