package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// What the chart renders, on a real API server: every object of every site is accepted, and the policies let nodes write what is theirs.
func TestOnAnAPIServer(t *testing.T) {
	chart := newChart(t)
	c := controlplane.Up(t, controlplane.Options{Lab: lab.Options{Nodes: 2, Plugin: lab.PluginMacvlan}, Bare: true, UnsafeNoFsync: true})
	for _, name := range []string{Namespace, "longhorn-system", "harvester-system"} {
		require.NoError(t, c.CreateNamespace(t.Context(), name))
	}
	for _, name := range []string{"node-a", "node-b"} {
		_, err := c.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	t.Run("dry run", func(t *testing.T) { dryRun(t, chart, c) })
	base, err := os.ReadFile(filepath.Join(chart.root, "deploy/kustomize/base/lhstorage.yaml"))
	require.NoError(t, err)
	require.NoError(t, c.Apply(t.Context(), nil, base))
	w := newWriters(t, c)
	t.Run("policies", func(t *testing.T) { policies(t, w) })
	t.Run("tokens", func(t *testing.T) { tokens(t, w) })
	t.Run("install", func(t *testing.T) { installOn(t, c, w) })
}

// dryRun applies all that is rendered for each site, and its network.
func dryRun(t *testing.T, chart *Chart, c *controlplane.Cluster) {
	renderings := map[string][]string{"repair": {"--set", "agent.repair=longhorn,agent.nodeSlices=true,imagePullSecrets[0].name=registry,namespace.create=true"}}
	for _, dir := range examples(t, chart) {
		renderings[filepath.Base(dir)] = []string{"--values", filepath.Join(dir, "values.yaml")}
		nad, err := os.ReadFile(filepath.Join(dir, "nad.yaml"))
		require.NoError(t, err)
		assert.NoError(t, c.DryRun(t.Context(), nad), dir)
	}
	for name, args := range renderings {
		objects, err := chart.Template(t.Context(), args...)
		require.NoError(t, err)
		assert.NoError(t, c.DryRun(t.Context(), objects), name)
	}
}

// writers are those who write to the API, by the tokens that they have.
type writers struct {
	admin                *kubeapi.Client
	nodeA, nodeB         *kubeapi.Client // plugins, by tokens that are bound to their Node
	agentA               *kubeapi.Client // an agent, by a token that is bound to its Pod
	loose, looseAgent    *kubeapi.Client // the same accounts, by tokens that are bound to nothing
	agentToken           string
	shims, claims, nodes kubeapi.Resource
	questions            kubeapi.Resource // Verifications
}

func newWriters(t *testing.T, c *controlplane.Cluster) *writers {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "lhstorage-a"},
		Spec:       corev1.PodSpec{NodeName: "node-a", ServiceAccountName: "lhstorage-agent", Containers: []corev1.Container{{Name: "agent", Image: "none"}}},
	}
	pod, err := c.Kube.CoreV1().Pods(Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	client := func(token string) *kubeapi.Client {
		cfg := rest.CopyConfig(c.Config)
		if token != "" {
			cfg.CertData, cfg.KeyData, cfg.BearerToken = nil, nil, token
		}
		client, err := kubeapi.New(cfg)
		require.NoError(t, err)
		return client
	}
	token := func(namespace, account, kind, name string) string {
		var bound *authenticationv1.BoundObjectReference
		if kind != "" {
			bound = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name}
		}
		token, err := c.Token(t.Context(), namespace, account, bound)
		require.NoError(t, err)
		return token
	}
	group := func(plural string) kubeapi.Resource {
		return kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: plural}
	}
	w := &writers{
		admin: client(""),
		nodeA: client(token("kube-system", "lhstorage-node", "Node", "node-a")), nodeB: client(token("kube-system", "lhstorage-node", "Node", "node-b")),
		agentToken: token(Namespace, "lhstorage-agent", "Pod", pod.Name),
		loose:      client(token("kube-system", "lhstorage-node", "", "")), looseAgent: client(token(Namespace, "lhstorage-agent", "", "")),
		shims: group(v1alpha1.HostShimResource), claims: group("addressclaims"), questions: group(v1alpha1.VerificationResource), nodes: kubeapi.Resource{Version: "v1", Plural: "nodes"},
	}
	w.agentA = client(w.agentToken)
	return w
}

func shim(node string, index int) v1alpha1.HostShim {
	return v1alpha1.HostShim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("vxlan-storage-%d", index), Labels: map[string]string{v1alpha1.LabelParent: "vxlan-storage"}},
		Spec:       v1alpha1.HostShimSpec{Parent: "vxlan-storage", Index: index, Node: node, MachineID: "machine-of-" + node},
	}
}

func claim(node, address, podRef string) v1alpha1.AddressClaim {
	return v1alpha1.AddressClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.AddressClaimKind},
		ObjectMeta: metav1.ObjectMeta{Name: address},
		Spec:       v1alpha1.AddressClaimSpec{Address: address, Pool: "10.100.1.0-24", Node: node, PodRef: podRef, ContainerID: "c", IfName: "lhnet1"},
	}
}

func question(node string) v1alpha1.Verification {
	return v1alpha1.Verification{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.VerificationKind},
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       v1alpha1.VerificationSpec{Node: node, ID: "1", Time: metav1.Now()},
	}
}

// attempt is a write, and whether it is let.
type attempt struct {
	what  string
	who   *kubeapi.Client
	write func(context.Context, *kubeapi.Client) error
	let   bool
}

func policies(t *testing.T, w *writers) {
	ctx := t.Context()
	require.NoError(t, w.admin.Create(ctx, w.shims, shim("node-b", 2), nil), "somebody else's objects aren't looked at")
	for _, c := range []v1alpha1.AddressClaim{claim("node-b", "10.100.1.20", "default/b"), claim("node-b", "10.100.1.21", "default/moves"), claim("node-b", "10.100.1.22", "default/leaked")} {
		require.NoError(t, w.admin.Create(ctx, w.claims, c, nil))
	}
	for _, node := range []string{"node-a", "node-b"} {
		require.NoError(t, w.admin.Create(ctx, w.questions, question(node), nil))
	}
	// The API server needs a moment to take policies up.
	require.NoError(t, controlplane.Until(ctx, nil, "the policies are in force", func(ctx context.Context) error {
		if err := w.loose.Create(ctx, w.shims, shim("node-a", 9), nil); !apierrors.IsForbidden(err) {
			_ = w.admin.Delete(ctx, w.shims, "vxlan-storage-9", "", "")
			return fmt.Errorf("a token that is bound to nothing: %w", err)
		}
		return nil
	}))

	create := func(r kubeapi.Resource, object any) func(context.Context, *kubeapi.Client) error {
		return func(ctx context.Context, c *kubeapi.Client) error { return c.Create(ctx, r, object, nil) }
	}
	patch := func(r kubeapi.Resource, name string, ops ...kubeapi.Op) func(context.Context, *kubeapi.Client) error {
		return func(ctx context.Context, c *kubeapi.Client) error { return c.Patch(ctx, r, name, ops, nil) }
	}
	remove := func(r kubeapi.Resource, name string) func(context.Context, *kubeapi.Client) error {
		return func(ctx context.Context, c *kubeapi.Client) error { return c.Delete(ctx, r, name, "", "") }
	}
	gone := kubeapi.Add("/metadata/annotations", map[string]string{"lhstorage.io/node-gone": "2026-01-01T00:00:00Z"})
	released := kubeapi.Add("/spec/released", true)
	shimStatus := func(name string) func(context.Context, *kubeapi.Client) error {
		return func(ctx context.Context, c *kubeapi.Client) error {
			return c.Patch(ctx, w.shims, name+"/status", []kubeapi.Op{kubeapi.Add("/status", v1alpha1.HostShimStatus{Ready: metav1.ConditionTrue})}, nil)
		}
	}
	answer := func(node string) func(context.Context, *kubeapi.Client) error {
		return patch(w.questions, node, kubeapi.Add("/status", v1alpha1.VerificationStatus{ID: "1"}))
	}
	for _, a := range []attempt{
		{"a plugin makes its node's place", w.nodeA, create(w.shims, shim("node-a", 1)), true},
		{"a plugin makes another node's place", w.nodeA, create(w.shims, shim("node-b", 3)), false},
		{"an agent makes another node's place", w.agentA, create(w.shims, shim("node-b", 3)), false},
		{"an agent without a node makes a place", w.looseAgent, create(w.shims, shim("node-a", 3)), false},
		{"a plugin changes its node's place", w.nodeA, patch(w.shims, "vxlan-storage-1", kubeapi.Add("/spec/vtep", "10.100.100.1")), true},
		{"an agent changes its node's place", w.agentA, patch(w.shims, "vxlan-storage-1", kubeapi.Add("/spec/vtep", "10.100.100.9")), true},
		{"a plugin changes another node's place", w.nodeA, patch(w.shims, "vxlan-storage-2", kubeapi.Add("/spec/vtep", "10.100.100.9")), false},
		{"an agent changes another node's place", w.agentA, patch(w.shims, "vxlan-storage-2", kubeapi.Add("/spec/vtep", "10.100.100.9")), false},
		{"a plugin takes another node's place", w.nodeA, patch(w.shims, "vxlan-storage-2", kubeapi.Add("/spec/node", "node-a"), kubeapi.Add("/spec/machineID", "machine-of-node-a")), false},
		{"a plugin gives its place to another node", w.nodeA, patch(w.shims, "vxlan-storage-1", kubeapi.Add("/spec/node", "node-b")), false},
		{"an agent reports on its node", w.agentA, shimStatus("vxlan-storage-1"), true},
		{"an agent reports on another node", w.agentA, shimStatus("vxlan-storage-2"), false},
		{"an agent relabels another node's place", w.agentA, patch(w.shims, "vxlan-storage-2", kubeapi.Remove("/metadata/labels")), false},
		{"an agent removes another node's place", w.agentA, remove(w.shims, "vxlan-storage-2"), false},
		{"a plugin marks another node as gone", w.nodeA, patch(w.shims, "vxlan-storage-2", gone), false},
		{"an agent marks another node as gone", w.agentA, patch(w.shims, "vxlan-storage-2", gone), true},
		{"a plugin removes a gone node's place", w.nodeA, remove(w.shims, "vxlan-storage-2"), false},
		{"an agent removes a gone node's place", w.agentA, remove(w.shims, "vxlan-storage-2"), true},

		{"a plugin claims for its node", w.nodeA, create(w.claims, claim("node-a", "10.100.1.16", "default/a")), true},
		{"a plugin claims for another node", w.nodeA, create(w.claims, claim("node-b", "10.100.1.17", "default/a")), false},
		{"a plugin claims for no node", w.nodeA, create(w.claims, claim("", "10.100.1.17", "default/a")), false},
		{"a plugin without a node claims", w.loose, create(w.claims, claim("node-a", "10.100.1.17", "default/a")), false},
		{"a plugin gives up another node's claim", w.nodeA, patch(w.claims, "10.100.1.20", released), false},
		{"a plugin removes another node's claim", w.nodeA, remove(w.claims, "10.100.1.20"), false},
		{"a plugin takes another pod's claim from another node", w.nodeA, patch(w.claims, "10.100.1.20", kubeapi.Add("/spec/node", "node-a"), kubeapi.Add("/spec/podRef", "default/a")), false},
		{"a pod moves and takes its claim along", w.nodeA, patch(w.claims, "10.100.1.21", kubeapi.Add("/spec/node", "node-a"), kubeapi.Add("/spec/containerID", "d")), true},
		{"a plugin gives its claim to another node", w.nodeA, patch(w.claims, "10.100.1.21", kubeapi.Add("/spec/node", "node-b")), false},
		{"an agent changes another node's claim", w.agentA, patch(w.claims, "10.100.1.22", kubeapi.Add("/spec/containerID", "d")), false},
		{"an agent removes another node's claim", w.agentA, remove(w.claims, "10.100.1.22"), false},
		{"an agent gives up another node's claim and changes its pod", w.agentA, patch(w.claims, "10.100.1.22", released, kubeapi.Add("/spec/podRef", "default/a")), false},
		{"an agent gives up another node's claim", w.agentA, patch(w.claims, "10.100.1.22", released, kubeapi.Add("/metadata/labels", map[string]string{v1alpha1.LabelState: v1alpha1.StateReleased})), true},
		{"an agent removes a claim that was given up", w.agentA, remove(w.claims, "10.100.1.22"), true},
		{"a plugin gives up its claim", w.nodeA, patch(w.claims, "10.100.1.16", released), true},
		{"another node's plugin removes a claim that was given up", w.nodeB, remove(w.claims, "10.100.1.16"), true},
		{"an agent answers for its node", w.agentA, answer("node-a"), true},
		{"an agent answers for another node", w.agentA, answer("node-b"), false},
		{"an agent without a node answers", w.looseAgent, answer("node-a"), false},
		{"an agent asks another node", w.agentA, patch(w.questions, "node-b", kubeapi.Add("/spec/id", "2")), false},
		{"a plugin removes its claim", w.nodeA, remove(w.claims, "10.100.1.21"), true},
		{"a plugin removes its place", w.nodeA, remove(w.shims, "vxlan-storage-1"), true},
	} {
		err := a.write(ctx, a.who)
		if a.let {
			assert.NoError(t, err, a.what)
			continue
		}
		assert.True(t, apierrors.IsForbidden(err), "%s: %v", a.what, err)
		assert.ErrorContains(t, err, "lhstorage: ", a.what)
	}
	renamed(t, w)
}

// renamed is a node that comes back under another name, as the same machine.
func renamed(t *testing.T, w *writers) {
	ctx := t.Context()
	old := shim("old-name", 5)
	old.Spec.MachineID = "machine"
	require.NoError(t, w.admin.Create(ctx, w.shims, old, nil))
	require.Error(t, w.nodeA.Patch(ctx, w.shims, old.Name, []kubeapi.Op{kubeapi.Add("/spec/node", "node-b")}, nil), "for another node")
	require.NoError(t, w.nodeA.Patch(ctx, w.shims, old.Name, []kubeapi.Op{kubeapi.Add("/spec/node", "node-a")}, nil))
}

// tokens: an agent gets one for its own node's plugins alone, and plugins none.
func tokens(t *testing.T, w *writers) {
	ctx := t.Context()
	token, err := kubeconfig.Request(ctx, w.agentA, kubeconfig.NodeAccount, "node-a", time.Hour)
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now().Add(time.Hour), token.Expires, time.Minute)
	for _, refused := range []struct {
		what    string
		who     *kubeapi.Client
		account kubeconfig.Account
		node    string
	}{
		{"another node's", w.agentA, kubeconfig.NodeAccount, "node-b"},
		{"by an agent without a node", w.looseAgent, kubeconfig.NodeAccount, "node-a"},
		{"the agents' own account's", w.agentA, kubeconfig.Account{Namespace: Namespace, Name: "lhstorage-agent"}, "node-a"},
		{"by a plugin", w.nodeA, kubeconfig.NodeAccount, "node-a"},
	} {
		_, err := kubeconfig.Request(ctx, refused.who, refused.account, refused.node, time.Hour)
		assert.True(t, apierrors.IsForbidden(err), "%s: %v", refused.what, err)
	}
}

// installOn runs the installer as the init container does, by the agent's token, and checks what it installed.
func installOn(t *testing.T, c *controlplane.Cluster, w *writers) {
	own := tools.Ours(t)
	access := filepath.Join(t.TempDir(), "agent.kubeconfig")
	require.NoError(t, kubeconfig.File{Server: c.Server(), CA: c.Config.CAData, Token: w.agentToken}.Write(access))
	root := t.TempDir()
	for _, dir := range []string{"etc", "run", "opt/cni/bin"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	run := func(args ...string) (string, error) {
		// The API server can be reached from the cluster's own network alone.
		args = append([]string{"--net=/run/netns/" + c.Name + ".cp", filepath.Join(own, "install-cni"), "--host-root", root}, args...)
		out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput()
		return string(out), err
	}
	out, err := run("--kubeconfig", access, "--node-name", "node-b")
	require.Error(t, err)
	require.Contains(t, out, "bound to node node-b")
	require.Contains(t, out, "may ask only for tokens that are bound to this Node")
	require.NoFileExists(t, filepath.Join(root, "opt/cni/bin/lhstorage"), "nothing is changed then")

	out, err = run("--kubeconfig", access, "--node-name", "node-a", "--record", "agent")
	require.NoError(t, err, out)
	out, err = run("--check", "--node-name", "node-a")
	require.NoError(t, err, out)
	data, err := os.ReadFile(filepath.Join(root, "etc/lhstorage/node.json"))
	require.NoError(t, err)
	var node map[string]any
	require.NoError(t, json.Unmarshal(data, &node))
	require.Equal(t, map[string]any{"nodeName": "node-a", "kubeconfig": "/etc/lhstorage/kubeconfig", "record": "agent"}, node)
	info, err := os.Stat(filepath.Join(root, "etc/lhstorage/kubeconfig"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	// A file that others can read, and a token that isn't good any more.
	require.NoError(t, os.Chmod(filepath.Join(root, "etc/lhstorage/kubeconfig"), 0o644))
	require.NoError(t, c.Kube.CoreV1().Nodes().Delete(t.Context(), "node-a", metav1.DeleteOptions{}))
	require.NoError(t, controlplane.Until(t.Context(), nil, "the token ended with its Node", func(context.Context) error {
		out, err := run("--check", "--node-name", "node-a")
		if err == nil || !strings.Contains(out, "mode -rw-r--r--") || !strings.Contains(out, "aren't valid (any more)") {
			return fmt.Errorf("it said %s", out)
		}
		return nil
	}))
}
