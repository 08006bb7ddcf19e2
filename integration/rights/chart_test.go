package rights

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
)

const (
	longhorn      = "longhorn-system"
	pluginsAccess = "/etc/lhstorage/kubeconfig"
	agentAccess   = "/etc/lhstorage/agent.kubeconfig"
	agentAccount  = "system:serviceaccount:lhstorage-system:lhstorage-agent"

	settle = 30 * time.Second

	storage = `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/27"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`
	sliced = `{"cniVersion": "1.1.0", "name": "sliced", "type": "lhstorage", "parent": {"type": "device", "name": "eth1"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.5.0.0/26", "node_slice_size": "/28"}}`
)

// unusedHere are rights that this test doesn't get used, each with who needs it.
var unusedHere = map[string]string{
	"lhstorage-system:lhstorage-agent may get verifications.lhstorage.io":   "an agent that a Verification asks to measure; nobody asks here",
	"lhstorage-system:lhstorage-agent may patch verifications.lhstorage.io": "the same",
	"lhstorage-system:lhstorage-agent may patch overlappingrangeipreservations.whereabouts.cni.cncf.io": "a recorder that meets the reservation of a pod's earlier sandbox before " +
		"that is released: which comes first is chance",
	"kube-system:lhstorage-node may list addressclaims.lhstorage.io": "whoever writes a pool for a crowd, and GC: whether pods meet here is chance",
}

// settling is for how long an API server that was started again may refuse what the rights let do: it hasn't read the rules yet, on a busy machine for a while.
const settling = 30 * time.Second

// bed is a cluster with the chart's accounts. node1 and node2 have the agent, and let it record; on node3 the plugins are alone.
type bed struct {
	*controlplane.Cluster
	agents  []*controlplane.Process
	args    []string  // of an agent
	started time.Time // when the API server was started again
}

// Each right that the chart gives is used, and none that is needed is missing.
func TestChart(t *testing.T) {
	b := newBed(t)
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"pods come and go", pods},
		{"a sandbox is made anew", again},
		{"a record on disk is lost", forgotten},
		{"somebody else's reservation", stranger},
		{"node slices", slicesOfNodes},
		{"places change", places},
		{"a place changes under the claimer", raced},
		{"something is broken twice", repaired},
		{"pods end with the API server away", away},
		{"the recorder finds its pool gone", poolGone},
		{"the agents start anew", anew},
		{"an instance manager without its network", lacking},
	} {
		if !t.Run(scenario.name, func(t *testing.T) { scenario.run(t, b) }) {
			return
		}
	}
	given, err := Of(b.manifest(t))
	require.NoError(t, err)
	var requests []Request
	assert.Eventually(t, func() bool {
		requests, err = Requests(b.AuditLog(), Users(given)...)
		require.NoError(t, err)
		return len(unused(given, requests)) == 0
	}, settle, time.Second)
	assert.Empty(t, unused(given, requests), "nobody needs these rights, or this test doesn't do what needs them")
	assert.Empty(t, Beyond(given, requests))
	assert.Empty(t, slices.DeleteFunc(Refused(requests), func(q Request) bool {
		return q.At.After(b.started) && q.At.Sub(b.started) < settling && Cover(given, q)
	}))
	for _, r := range given {
		if unusedHere[r.String()] != "" && len(Unused([]Right{r}, requests)) == 0 {
			t.Logf("%s: needs no exception any more", r)
		}
	}
	t.Logf("%d rights, %d requests", len(given), len(requests))
}

// unused are the rights that nobody took and that aren't excepted. Where an API server streams lists, as this one, list isn't asked for beside watch; older
// ones don't.
func unused(given []Right, requests []Request) (words []string) {
	for _, r := range Unused(given, requests) {
		streamed := r
		streamed.Verb = "watch"
		if unusedHere[r.String()] == "" && (r.Verb != "list" || !slices.Contains(given, streamed)) {
			words = append(words, r.String())
		}
	}
	return words
}

// manifest is what the chart renders, with all that can be asked for.
func (b *bed) manifest(t *testing.T) []byte {
	t.Helper()
	chart, err := deploy.NewChart(t.Context())
	require.NoError(t, err)
	rendered, err := chart.Template(t.Context(), "--set", "agent.nodeSlices=true,agent.probeInterval=10s,agent.repair=longhorn,agent.repairNamespace="+longhorn)
	require.NoError(t, err)
	return rendered
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{Cluster: controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Audit: true, Lab: lab.Options{Nodes: 3, Topology: lab.TopologyLAN}, BinDirs: []string{tools.Ours(t)}})}
	for _, name := range []string{deploy.Namespace, longhorn} {
		require.NoError(t, b.CreateNamespace(t.Context(), name))
	}
	manifest := b.manifest(t)
	require.NoError(t, b.Apply(t.Context(), nil, manifest))
	require.NoError(t, b.CreateNetwork(t.Context(), longhorn, "storage", storage))
	t.Cleanup(func() {
		for _, p := range b.agents {
			assert.NoError(t, p.Kill())
		}
	})
	b.args = agentArgs(t, manifest)
	for i, n := range b.Nodes {
		file := nodefile.File{NodeName: n.Name, Kubeconfig: pluginsAccess}
		if i < 2 {
			file.Record = nodefile.RecordAgent
		}
		data, err := json.Marshal(file)
		require.NoError(t, err)
		require.NoError(t, n.WriteFile(nodefile.DefaultPath, data))
		require.NoError(t, n.UseMultus(t.Context(), controlplane.Thin))
		if i == 2 {
			b.writeAccess(t, n, pluginsAccess, b.nodeToken(t, n.Name))
		}
	}
	b.firstPod(t)
	for _, n := range b.Nodes[:2] {
		b.startAgent(t, n)
	}
	for _, n := range b.Nodes[:2] {
		require.Eventually(t, func() bool { _, err := n.ReadFile(pluginsAccess); return err == nil }, settle, 50*time.Millisecond, "the agent on %s asks for the plugins' token", n.Name)
	}
	return b
}

// agentArgs are the agent's flags, as the chart gives them.
func agentArgs(t *testing.T, manifest []byte) []string {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var set appsv1.DaemonSet
		require.NoError(t, decoder.Decode(&set))
		if set.Kind == "DaemonSet" {
			return set.Spec.Template.Spec.Containers[0].Args
		}
	}
}

// nodeToken is one of the plugins' on a node.
func (b *bed) nodeToken(t *testing.T, node string) string {
	t.Helper()
	token, err := b.Token(t.Context(), metav1.NamespaceSystem, "lhstorage-node", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node})
	require.NoError(t, err)
	return token
}

// agentToken is one of an agent on a node: bound to its pod.
func (b *bed) agentToken(t *testing.T, node string) string {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "lhstorage-" + node},
		Spec:       corev1.PodSpec{NodeName: node, HostNetwork: true, ServiceAccountName: "lhstorage-agent", Containers: []corev1.Container{{Name: "agent", Image: "none"}}},
	}
	_, err := b.Kube.CoreV1().Pods(deploy.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		require.NoError(t, err)
	}
	token, err := b.Token(t.Context(), deploy.Namespace, "lhstorage-agent", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name})
	require.NoError(t, err)
	return token
}

func (b *bed) writeAccess(t *testing.T, n *controlplane.Node, path, token string) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		return kubeconfig.File{Server: b.Server(), CA: b.Config.CAData, Token: token}.Write(path)
	}))
}

func (b *bed) startAgent(t *testing.T, n *controlplane.Node) {
	t.Helper()
	b.writeAccess(t, n, agentAccess, b.agentToken(t, n.Name))
	argv := slices.Concat([]string{"/opt/cni/bin/lhstorage-agent"}, b.args, []string{"--kubeconfig=" + agentAccess, "--attachment-grace=1s", "--leak-interval=1s"})
	p, err := controlplane.Launch("agent on "+n.Name, n.Log("agent"), n.Host.Enter, argv, []string{"PATH=" + os.Getenv("PATH"), "NODE_NAME=" + n.Name})
	require.NoError(t, err)
	b.agents = append(b.agents, p)
}

// pod starts a pod on a node.
func (b *bed) pod(t *testing.T, n *controlplane.Node, name, network string) *controlplane.Sandbox {
	t.Helper()
	s, err := b.tryPod(t.Context(), n, name, network)
	require.NoError(t, err)
	return s
}

func (b *bed) tryPod(ctx context.Context, n *controlplane.Node, name, network string) (*controlplane.Sandbox, error) {
	_, err := b.CreatePod(ctx, n.Name, longhorn, name, controlplane.Network{Namespace: longhorn, Name: network, Interface: "lhnet1"})
	if err != nil {
		return nil, err
	}
	return n.RunPod(ctx, longhorn, name)
}

// end removes a pod's sandbox and its object.
func (b *bed) end(t *testing.T, name string, s *controlplane.Sandbox) {
	t.Helper()
	require.NoError(t, s.Remove(t.Context()))
	require.NoError(t, b.DeletePod(t.Context(), longhorn, name))
}

// firstPod is the network's first, while there is no agent: its plugin makes the pool, which a recorder might else do before it.
func (b *bed) firstPod(t *testing.T) {
	t.Helper()
	b.end(t, "first", b.pod(t, b.Nodes[2], "first", "storage"))
}

// pods start on all nodes at once, so that they take addresses from each other.
func pods(t *testing.T, b *bed) {
	const each = 4
	var wg sync.WaitGroup
	sandboxes := make([]*controlplane.Sandbox, each*len(b.Nodes))
	for i := range sandboxes {
		wg.Go(func() {
			var err error
			sandboxes[i], err = b.tryPod(t.Context(), b.Nodes[i%len(b.Nodes)], fmt.Sprintf("crowd-%d", i), "storage")
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	for i, s := range sandboxes {
		if s != nil {
			b.end(t, fmt.Sprintf("crowd-%d", i), s)
		}
	}
}

// again makes a second sandbox of a pod while the first holds its address.
func again(t *testing.T, b *bed) {
	for _, n := range b.Nodes {
		name := "again-" + n.Name
		first := b.pod(t, n, name, "storage")
		require.NoError(t, first.RemoveNetns())
		second, err := n.RunPod(t.Context(), longhorn, name)
		require.NoError(t, err)
		b.end(t, name, second)
	}
}

// forgotten lets a pod end whose record is gone: its claim is found by its label.
func forgotten(t *testing.T, b *bed) {
	for _, n := range b.Nodes {
		name := "forgotten-" + n.Name
		s := b.pod(t, n, name, "storage")
		require.NoError(t, n.Do(func() error { return os.RemoveAll("/run/lhstorage/attachments") }))
		b.end(t, name, s)
	}
}

const reservation = `{"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation", "metadata": {"name": "10.100.1.32", "namespace": "kube-system"},
 "spec": {"containerid": "theirs", "podref": "default/theirs", "ifname": "net1"}}`

// stranger holds the first address, by Whereabouts' records alone.
func stranger(t *testing.T, b *bed) {
	require.NoError(t, b.Apply(t.Context(), nil, []byte(reservation)))
	for _, n := range b.Nodes {
		name := "beside-" + n.Name
		b.end(t, name, b.pod(t, n, name, "storage"))
	}
	_, err := b.Kubectl(t.Context(), "--namespace", metav1.NamespaceSystem, "delete", "overlappingrangeipreservation", "10.100.1.32")
	require.NoError(t, err)
}

// slicesOfNodes are given and taken back by the agent that leads.
func slicesOfNodes(t *testing.T, b *bed) {
	require.NoError(t, b.CreateNetwork(t.Context(), longhorn, "sliced", sliced))
	given := func() string {
		out, err := b.Kubectl(t.Context(), "--namespace", metav1.NamespaceSystem, "get", "nodeslicepool", "sliced", "-o", "jsonpath={.status.allocations[*].nodeName}")
		if err != nil {
			return err.Error()
		}
		return out
	}
	become := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(given(), want) }, settle, 50*time.Millisecond)
	}
	become("node1 node2 node3")
	_, err := b.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node4", Labels: map[string]string{corev1.LabelOSStable: "linux"}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	become("node1 node2 node3 node4")
	require.NoError(t, b.Kube.CoreV1().Nodes().Delete(t.Context(), "node4", metav1.DeleteOptions{}))
	for _, n := range b.Nodes {
		name := "sliced-" + n.Name
		b.end(t, name, b.pod(t, n, name, "sliced"))
	}
	time.Sleep(3 * time.Second) // the leader measures how full slices are with each look for leaked claims
	require.NoError(t, b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(longhorn).Delete(t.Context(), "sliced", metav1.DeleteOptions{}))
	become("not found")
}

// shims are the places, by index, each with its node.
func (b *bed) shims(t *testing.T) string {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "get", "hostshims", "--selector=lhstorage.io/parent=vxlan-storage", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.lhstorage\.io/node}{"\n"}{end}`)
	require.NoError(t, err)
	return out
}

// places change by hand: a label is lost, a node is pinned to another index.
func places(t *testing.T, b *bed) {
	before := b.shims(t)
	_, err := b.Kubectl(t.Context(), "label", "hostshims", "--selector=lhstorage.io/parent=vxlan-storage", "lhstorage.io/node-")
	require.NoError(t, err)
	b.hears(t, b.Nodes[2], "label")
	require.Eventually(t, func() bool { return b.shims(t) == before }, settle, 100*time.Millisecond, "the labels are put back")
	for i, n := range b.Nodes {
		_, err := b.Kubectl(t.Context(), "annotate", "node", n.Name, fmt.Sprintf("%s=%d", v1alpha1.IndexAnnotation, 21+i))
		require.NoError(t, err)
	}
	b.hears(t, b.Nodes[2], "moved")
	require.Eventually(t, func() bool {
		return b.shims(t) == "vxlan-storage-21 node1\nvxlan-storage-22 node2\nvxlan-storage-23 node3\n"
	}, settle, 100*time.Millisecond, "the places move: %s", b.shims(t))
}

// hears lets the plugins on a node ask for their place anew.
func (b *bed) hears(t *testing.T, n *controlplane.Node, name string) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		files, err := filepath.Glob("/var/lib/lhstorage/place/*.json")
		old := time.Now().Add(-time.Hour)
		faults := []error{err}
		for _, file := range files {
			faults = append(faults, os.Chtimes(file, old, old))
		}
		return errors.Join(faults...)
	}))
	b.end(t, name, b.pod(t, n, name, "storage"))
}

// meddler changes a HostShim just before somebody else's patch of it arrives.
type meddler struct {
	http.RoundTripper
	once   sync.Once
	meddle func()
}

func (m *meddler) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch {
		m.once.Do(m.meddle)
	}
	return m.RoundTripper.RoundTrip(r)
}

// raced calls what plugin and agent call, and lets somebody else be quicker: then the object is read again.
func raced(t *testing.T, b *bed) {
	conf, err := netconf.Parse(netconf.Add, []byte(storage), "")
	require.NoError(t, err)
	for _, token := range []string{b.agentToken(t, "node3"), b.nodeToken(t, "node3")} { // where no agent runs
		_, err := b.Kubectl(t.Context(), "label", "hostshim", "vxlan-storage-23", "lhstorage.io/node-")
		require.NoError(t, err)
		cfg := rest.CopyConfig(b.Config)
		cfg.CertData, cfg.KeyData, cfg.BearerToken = nil, nil, token
		cfg.WrapTransport = func(next http.RoundTripper) http.RoundTripper {
			return &meddler{RoundTripper: next, meddle: func() {
				_, err := b.Kubectl(t.Context(), "annotate", "--overwrite", "hostshim", "vxlan-storage-23", "test="+time.Now().Format(time.RFC3339Nano))
				assert.NoError(t, err)
			}}
		}
		api, err := kubeapi.New(cfg)
		require.NoError(t, err)
		claimer := hostclaim.Claimer{API: api, Node: nodefile.File{NodeName: "node3"}}
		_, err = claimer.Claim(t.Context(), conf, place.Seen{}, place.Place{})
		require.NoError(t, err)
	}
}

// sh runs a script on a node.
func sh(n *controlplane.Node, script string) error {
	return n.Do(func() error {
		out, err := exec.Command("sh", "-euc", script).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return err
	})
}

// repaired breaks the same thing twice: the second time an Event is counted up.
func repaired(t *testing.T, b *bed) {
	n := b.Nodes[0]
	for range 2 {
		require.NoError(t, sh(n, "ip link del lhnet1-host"))
		require.Eventually(t, func() bool { return sh(n, "ip link show lhnet1-host") == nil }, settle, 50*time.Millisecond)
		time.Sleep(time.Second) // Events are written one after the other
	}
}

// away lets pods end without the API server: the agents give back what they held.
func away(t *testing.T, b *bed) {
	sandboxes := map[string]*controlplane.Sandbox{}
	for _, n := range b.Nodes[:2] {
		sandboxes[n.Name] = b.pod(t, n, "leaving-"+n.Name, "storage")
	}
	require.NoError(t, b.StopAPIServer())
	for _, n := range b.Nodes[:2] {
		require.NoError(t, n.Do(func() error { return delOnNode(sandboxes[n.Name]) }))
	}
	b.started = time.Now()
	require.NoError(t, b.StartAPIServer(t.Context()))
	require.Eventually(t, func() bool {
		out, err := b.Kubectl(t.Context(), "get", "addressclaims", "-o", "name")
		return err == nil && !strings.Contains(out, "addressclaim")
	}, settle, 100*time.Millisecond, "the claims are given back")
	for _, n := range b.Nodes[:2] {
		require.NoError(t, sandboxes[n.Name].RemoveNetns())
		require.NoError(t, b.DeletePod(t.Context(), longhorn, "leaving-"+n.Name))
	}
}

// delOnNode calls the plugin itself: Multus doesn't get that far without the API server.
func delOnNode(s *controlplane.Sandbox) error {
	cmd := exec.Command("/opt/cni/bin/lhstorage")
	cmd.Stdin = strings.NewReader(storage)
	cmd.Env = []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=" + s.ID, "CNI_IFNAME=lhnet1", "CNI_NETNS=" + s.Netns.Path(), "CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("DEL: %w: %s", err, out)
	}
	return nil
}

// poolGone removes Whereabouts' pool while a pod of node2 has an address of it.
func poolGone(t *testing.T, b *bed) {
	n := b.Nodes[1]
	first := b.pod(t, n, "before", "storage")
	_, err := b.Kubectl(t.Context(), "--namespace", metav1.NamespaceSystem, "delete", "ippools", "--all")
	require.NoError(t, err)
	second := b.pod(t, n, "after", "storage")
	b.end(t, "before", first)
	b.end(t, "after", second)
}

// anew starts the agents again while there are more claims than a recorder looks up one by one.
func anew(t *testing.T, b *bed) {
	const claims = 60
	for i := range claims {
		address := fmt.Sprintf("10.100.1.%d", 100+i)
		require.NoError(t, b.Apply(t.Context(), nil, fmt.Appendf(nil, `{"apiVersion": "lhstorage.io/v1alpha1", "kind": "AddressClaim", "metadata": {"name": %[1]q,
  "labels": {"lhstorage.io/pool": "10.100.1.0-24", "lhstorage.io/node": "node1"}},
 "spec": {"address": %[1]q, "pool": "10.100.1.0-24", "range": "10.100.1.0/24", "network": "storage", "node": "node1", "podRef": "default/many-%[2]d", "containerID": "many-%[2]d", "ifName": "lhnet1"}}`, address, i)))
	}
	for _, p := range b.agents {
		require.NoError(t, p.Stop())
	}
	b.agents = nil
	for _, n := range b.Nodes[:2] {
		b.startAgent(t, n)
	}
	lists := Right{agentAccount, "", "whereabouts.cni.cncf.io", "overlappingrangeipreservations", "", "list"}
	require.Eventually(t, func() bool {
		requests, err := Requests(b.AuditLog(), agentAccount)
		return err == nil && slices.ContainsFunc(requests, lists.covers)
	}, settle, 200*time.Millisecond, "the recorder begins")
}

const managerCRD = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "instancemanagers.longhorn.io"},
 "spec": {"group": "longhorn.io", "scope": "Namespaced", "names": {"kind": "InstanceManager", "plural": "instancemanagers", "singular": "instancemanager"},
  "versions": [{"name": "v1beta2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}`

// lacking is an instance manager that runs without its network and serves nothing.
func lacking(t *testing.T, b *bed) {
	require.NoError(t, b.Apply(t.Context(), nil, []byte(managerCRD)))
	require.NoError(t, b.Apply(t.Context(), nil, []byte(`{"apiVersion": "longhorn.io/v1beta2", "kind": "InstanceManager", "metadata": {"name": "im", "namespace": "`+longhorn+`"}, "status": {"instances": {}}}`)))
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "im", Labels: map[string]string{"longhorn.io/component": "instance-manager"},
			Annotations: map[string]string{controlplane.NetworksAnnotation: `[{"namespace": "` + longhorn + `", "name": "storage", "interface": "lhnet1"}]`},
		},
		Spec: corev1.PodSpec{NodeName: "node1", AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "im", Image: "none"}}},
	}
	pod, err := b.Kube.CoreV1().Pods(longhorn).Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	pod.Status.Phase = corev1.PodRunning
	_, err = b.Kube.CoreV1().Pods(longhorn).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		now, err := b.Kube.CoreV1().Pods(longhorn).Get(t.Context(), "im", metav1.GetOptions{})
		return apierrors.IsNotFound(err) || err == nil && now.DeletionTimestamp != nil
	}, settle, 100*time.Millisecond)
	require.NoError(t, b.DeletePod(t.Context(), longhorn, "im")) // its kubelet is done with it: the turn to repair is passed on
}
