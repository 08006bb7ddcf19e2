package longhornmanager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/lhstorage/lhstorage/integration/cluster"
	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

const (
	// wanted is set by `make test-longhorn`.
	wanted = "LHSTORAGE_TEST_CLUSTER"

	network = Namespace + "/longhorn-storage" // of deploy/examples/source-design
	setting = "storage-network"

	managerPort = 9500
)

var (
	longhornGroup = schema.GroupVersion{Group: "longhorn.io", Version: "v1beta2"}

	// forPods is what pods of the network have.
	forPods  = netip.MustParsePrefix("10.100.1.0/24")
	forHosts = netip.MustParsePrefix("10.100.1.0/28")
)

// bed is a cluster with lhstorage and Longhorn, which is on the pod network at first.
type bed struct {
	*cluster.Cluster
	ctl, nad string // lhstoragectl, and the file with the network's definition
}

func newBed(t *testing.T) bed {
	t.Helper()
	if os.Getenv(wanted) == "" {
		t.Skipf("%s isn't set: `make test-longhorn` sets it", wanted)
	}
	testnode.RequireRoot(t)
	begin := time.Now()
	// Not the test's context: that ends before the clean-up. eth0 comes after lhnet1, as with Cilium, so that v1's initiator needs the shim.
	c, err := cluster.Start(context.Background(), cluster.Options{Nodes: 2, Untouched: true, Primary: cluster.Moved, UnsafeNoFsync: true})
	require.NoError(t, err)
	own, err := tools.Own(t.Context())
	require.NoError(t, err)
	root, err := tools.Root()
	require.NoError(t, err)
	b := bed{c, filepath.Join(own, "lhstoragectl"), filepath.Join(root, "deploy/examples/source-design/nad.yaml")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", c.Logs(), b.longhornLogs())
		}
		require.NoError(t, c.Stop())
	})
	t.Logf("the cluster after %s", time.Since(begin).Round(time.Second))
	for _, name := range []string{Namespace, deploy.Namespace} {
		require.NoError(t, c.CreateNamespace(t.Context(), name))
	}
	b.installLhstorage(t, root)
	require.NoError(t, Deploy(t.Context(), c))
	b.until(t, "Longhorn has an instance manager on each node", b.managersRun)
	t.Logf("Longhorn after %s", time.Since(begin).Round(time.Second))
	return b
}

// installLhstorage does what docs/install.md says.
func (b bed) installLhstorage(t *testing.T, root string) {
	t.Helper()
	ctx := t.Context()
	for _, n := range b.Nodes { // the cables decide which place is a node's
		_, err := b.Kubectl(ctx, "annotate", "node", n.Name, fmt.Sprintf("lhstorage.io/index=%d", n.Lab.Index))
		require.NoError(t, err)
	}
	require.NoError(t, b.ImportLhstorage(ctx, "v1"))
	_, err := b.Kubectl(ctx, "label", "namespace", deploy.Namespace, "pod-security.kubernetes.io/enforce=privileged")
	require.NoError(t, err)
	chart, err := b.HelmChart(ctx)
	require.NoError(t, err)
	_, err = b.Helm(ctx, "install", "lhstorage", chart, "--namespace", deploy.Namespace,
		"--values", filepath.Join(root, "deploy/examples/source-design/values.yaml"),
		"--set", "image.repository="+cluster.ImageLhstorage, "--set", "image.tag=v1", "--set", "image.pullPolicy=Never")
	require.NoError(t, err)
}

func (b bed) until(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	require.NoError(t, controlplane.Until(ctx, nil, what, f))
}

// managersRun fails until each node's InstanceManager is running.
func (b bed) managersRun(ctx context.Context) error {
	list, err := b.objects("instancemanagers").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	running := 0
	text := ""
	for i := range list.Items {
		state := textOf(&list.Items[i], "status", "currentState")
		text += fmt.Sprintf(" %s is %q", list.Items[i].GetName(), state)
		if state == "running" {
			running++
		}
	}
	if running != len(b.Nodes) {
		return fmt.Errorf("%d of %d run:%s", running, len(b.Nodes), text)
	}
	return nil
}

func textOf(object *unstructured.Unstructured, path ...string) string {
	text, _, _ := unstructured.NestedString(object.Object, path...)
	return text
}

// longhornLogs are what Longhorn's pods said last, and what Kubernetes said about them.
func (b bed) longhornLogs() string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out := ""
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"get", "events"}, {"get", "volumes.longhorn.io,engines.longhorn.io,replicas.longhorn.io,instancemanagers.longhorn.io,nodes.longhorn.io"},
		{"logs", "--prefix", "--tail=60", "-l", "app=longhorn-manager"}, {"logs", "--prefix", "--tail=60", "-l", "longhorn.io/component=instance-manager"},
	} {
		text, err := b.Kubectl(ctx, append([]string{"--namespace", Namespace}, args...)...)
		out += fmt.Sprintf("== kubectl %v %v\n%s\n", args, err, text)
	}
	return out
}

// run runs lhstoragectl, which has to end with a code, and returns all that it says.
func (b bed) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	var out bytes.Buffer
	require.NoError(t, b.Within(func() error {
		cmd := exec.CommandContext(ctx, b.ctl, append(args, "--kubeconfig", b.AdminKubeconfig())...)
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run()
		require.Equal(t, code, cmd.ProcessState.ExitCode(), "lhstoragectl %v\n%s", args, &out)
		return nil
	}))
	t.Logf("lhstoragectl %v: %s\n%s", args, time.Since(begin).Round(100*time.Millisecond), &out)
	return out.String()
}

func (b bed) value(t *testing.T) string {
	t.Helper()
	object, err := b.objects("settings").Get(t.Context(), setting, metav1.GetOptions{})
	require.NoError(t, err)
	return textOf(object, "value")
}

func (b bed) setValue(t *testing.T, value string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"value": %q}`, value)
	_, err := b.objects("settings").Patch(t.Context(), setting, types.MergePatchType, patch, metav1.PatchOptions{})
	require.NoError(t, err)
}

// dataPods are the pods of the instance managers.
func (b bed) dataPods(t *testing.T) []corev1.Pod {
	t.Helper()
	list, err := b.Kube.CoreV1().Pods(Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "longhorn.io/component=instance-manager"})
	require.NoError(t, err)
	return list.Items
}

// call asks longhorn-manager's own API, as its UI does.
func (b bed) call(ctx context.Context, path string, body any) (map[string]any, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("http://%s/v1/%s", netip.AddrPortFrom(b.Nodes[0].Address, managerPort), path)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{DialContext: b.Dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, text)
	}
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, json.Unmarshal(text, &out)
}

// objects are Longhorn's of a kind.
func (b bed) objects(plural string) dynamic.ResourceInterface {
	return b.Dynamic.Resource(longhornGroup.WithResource(plural)).Namespace(Namespace)
}
