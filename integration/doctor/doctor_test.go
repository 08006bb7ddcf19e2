// Package doctor breaks real nodes and objects of a real API server one by one, and lets `lhstoragectl doctor` find what was broken.
package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/doctor"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/status"
)

const (
	namespace       = "longhorn-system"
	system          = "lhstorage-system"
	kubeconfig      = "/etc/lhstorage/kubeconfig"
	agentKubeconfig = "/etc/lhstorage/agent.kubeconfig"
	settle          = time.Minute
)

// The bed's cluster network makes eth0 first, so only the pod's own address can be dialled: `auto` would be LHS145.
const nad = `{
  "cniVersion": "1.1.0", "name": "storage", "type": "lhstorage", "iscsiPath": "pod-ip",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100,
             "vtep": {"cidr": "10.100.100.0/24", "routes": "static",
                      "via": {"10.100.100.1": "to-node1", "10.100.100.2": "to-node2", "10.100.100.3": "to-node3"}}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`

// bed is a cluster of three nodes that agents made ready and left.
type bed struct {
	*controlplane.Cluster

	t       *testing.T
	node    *controlplane.Node // the second: the one that is looked at
	sandbox *controlplane.Sandbox
	admin   string
	status  string // the network-status of its pod, by Multus
}

func newBed(t *testing.T) *bed {
	t.Helper()
	c := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Lab: lab.Options{Nodes: 3}, BinDirs: []string{tools.Ours(t)}})
	b := &bed{Cluster: c, t: t, node: c.Nodes[1], admin: c.AdminKubeconfig()}
	_, err := c.InstallOwn(t.Context())
	require.NoError(t, err)
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, c.ApplyFiles(t.Context(), nil, filepath.Join(root, "deploy", "rbac", "agent.yaml")))
	account, err := c.ServiceAccountKubeconfig(t.Context(), system, "lhstorage-agent", "")
	require.NoError(t, err)
	for _, n := range c.Nodes {
		require.NoError(t, n.WriteFile(agentKubeconfig, account))
		file, err := json.Marshal(nodefile.File{NodeName: n.Name, Kubeconfig: kubeconfig})
		require.NoError(t, err)
		require.NoError(t, n.WriteFile(nodefile.DefaultPath, file))
		require.NoError(t, n.UseMultus(t.Context(), controlplane.Thin))
	}
	require.NoError(t, c.CreateNamespace(t.Context(), namespace))
	require.NoError(t, c.CreateNetwork(t.Context(), namespace, "storage", nad))
	b.agents()
	b.daemonSet()
	b.sandbox = b.pod("im2")
	return b
}

// agents run until all nodes are ready and know each other, and end then: they would mend what is broken.
func (b *bed) agents() {
	var started []*controlplane.Process
	for _, n := range b.Nodes {
		p, err := controlplane.Launch("agent on "+n.Name, n.Log("agent"), n.Host.Enter, []string{
			"/opt/cni/bin/lhstorage-agent", "--kubeconfig=" + agentKubeconfig, "--metrics-address=0", "--health-address=127.0.0.1:9811",
		}, []string{"PATH=" + os.Getenv("PATH")})
		require.NoError(b.t, err)
		b.t.Cleanup(func() { _ = p.Kill() }) // after its end that is nothing
		started = append(started, p)
		// Places are given in the order in which nodes come, and the definition names nodes' cables by their places.
		require.Eventually(b.t, func() bool {
			out, err := b.Kubectl(b.t.Context(), "get", "hostshims", "-o", `jsonpath={.items[*].spec.node}`)
			return err == nil && strings.Contains(out, n.Name)
		}, settle, 100*time.Millisecond, "%s", n.Name)
	}
	require.Eventually(b.t, func() bool {
		out, err := b.Kubectl(b.t.Context(), "get", "hostshims", "-o", `jsonpath={range .items[*]}{.status.ready} {end}`)
		if err != nil || out != strings.Repeat("True ", 3) {
			return false
		}
		return !slices.ContainsFunc(b.Nodes, func(n *controlplane.Node) bool {
			out, err := b.on(n, "bridge fdb show dev vxlan-storage | grep -c '00:00:00:00:00:00.*dst' && test -s "+kubeconfig)
			return err != nil || strings.TrimSpace(out) != "2"
		})
	}, settle, 200*time.Millisecond)
	for _, p := range started {
		require.NoError(b.t, p.Stop())
	}
}

// daemonSet is the agents' object: nothing here makes pods of it.
func (b *bed) daemonSet() {
	labels := map[string]string{"app.kubernetes.io/name": "lhstorage"}
	sets := b.Kube.AppsV1().DaemonSets(system)
	made, err := sets.Create(b.t.Context(), &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "lhstorage", Labels: labels}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "none"}}}},
	}}, metav1.CreateOptions{})
	require.NoError(b.t, err)
	made.Status.DesiredNumberScheduled, made.Status.CurrentNumberScheduled, made.Status.NumberReady = 3, 3, 3
	_, err = sets.UpdateStatus(b.t.Context(), made, metav1.UpdateOptions{})
	require.NoError(b.t, err)
}

// pod starts a pod on the node, and says that it runs, as a kubelet does.
func (b *bed) pod(name string) *controlplane.Sandbox {
	_, err := b.CreatePod(b.t.Context(), b.node.Name, namespace, name, controlplane.Network{Namespace: namespace, Name: "storage", Interface: "lhnet1"})
	require.NoError(b.t, err)
	s, err := b.node.RunPod(b.t.Context(), namespace, name)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = s.RemoveNetns() }) // the cluster goes with all that it knows
	pods := b.Kube.CoreV1().Pods(namespace)
	pod, err := pods.Get(b.t.Context(), name, metav1.GetOptions{})
	require.NoError(b.t, err)
	start := metav1.NewTime(time.Now().Add(-time.Hour))
	b.status = pod.Annotations[controlplane.NetworkStatusAnnotation]
	pod.Status.Phase, pod.Status.StartTime = corev1.PodRunning, &start
	_, err = pods.UpdateStatus(b.t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(b.t, err)
	return s
}

// on runs a script on a node.
func (b *bed) on(n *controlplane.Node, script string) (out string, err error) {
	err = n.Do(func() error {
		data, err := exec.Command("sh", "-euc", script).CombinedOutput()
		out = string(data)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, data)
		}
		return nil
	})
	return out, err
}

func (b *bed) sh(t *testing.T, script string) {
	t.Helper()
	_, err := b.on(b.node, script)
	require.NoError(t, err)
}

// ctl runs lhstoragectl on the node.
func (b *bed) ctl(t *testing.T, args ...string) (stdout []byte, code int) {
	t.Helper()
	require.NoError(t, b.node.Do(func() error {
		cmd := exec.Command("/opt/cni/bin/lhstoragectl", append(args, "--kubeconfig", b.admin, "--local", "-o", "json")...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		var err error
		stdout, err = cmd.Output()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			code, err = exit.ExitCode(), nil
		}
		assert.Less(t, code, 2, "%s", stderr.String())
		return err
	}))
	return stdout, code
}

// diagnose gives the codes that doctor finds. The programs of this bed aren't install-cni's, which is LHS100.
func (b *bed) diagnose(t *testing.T) []string {
	t.Helper()
	out, code := b.ctl(t, "doctor")
	var report struct {
		Findings []doctor.Finding `json:"findings"`
	}
	require.NoError(t, json.Unmarshal(out, &report), "%s", out)
	assert.Equal(t, 1, code)
	found := []string{}
	for _, f := range report.Findings {
		t.Logf("%s %s: %s", f.Code, f.Where, f.What)
		if f.Code != "LHS100" && !slices.Contains(found, f.Code) {
			found = append(found, f.Code)
		}
	}
	return found
}

// breakage is done on the second node, and undone.
type breakage struct{ code, broken, mended string }

var onNode = []breakage{
	{"LHS112", "ip link set vxlan-storage down", "ip link set vxlan-storage up"},
	{"LHS113", "ip route del 10.100.100.3/32 proto 211", "ip route add 10.100.100.3/32 via 10.100.200.5 dev to-node3 proto 211"},
	{"LHS114", "bridge fdb del 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.3 self", "bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.3 self permanent"},
	{"LHS115", "bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.77 self permanent", "bridge fdb del 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.77 self"},
	{"LHS116", "ip link set vxlan-storage type vxlan nolearning", "ip link set vxlan-storage type vxlan learning"},
	{"LHS119", "sysctl -qw net.ipv4.conf.vxlan-storage.arp_ignore=0", "sysctl -qw net.ipv4.conf.vxlan-storage.arp_ignore=8"},
	{"LHS122", "ip link add flannel.1 type vxlan id 1 dstport 4789 local 10.100.100.2", "ip link del flannel.1"},
	{"LHS132", "ip link set lhnet1-host down", "ip link set lhnet1-host up"},
	{"LHS133", "ip addr del 10.100.1.2/24 dev lhnet1-host", "ip addr add 10.100.1.2/24 dev lhnet1-host"},
	{"LHS134", "ip addr add 10.100.1.2/32 dev lo", "ip addr del 10.100.1.2/32 dev lo"},
	{"LHS135", "ip addr add 10.100.1.77/24 dev vxlan-storage", "ip addr del 10.100.1.77/24 dev vxlan-storage"},
	{"LHS136", "sysctl -qw net.ipv4.conf.lhnet1-host.rp_filter=1", "sysctl -qw net.ipv4.conf.lhnet1-host.rp_filter=2"},
	{"LHS141", "$IN ip link set lhnet1 down", "$IN ip link set lhnet1 up"},
	{"LHS146", "$IN ip link add eth1 type bridge; $IN ip addr add 172.31.0.9/24 dev eth1; $IN ip link set eth1 up", "$IN ip link del eth1"},
	{"LHS142", "$IN ip addr del 10.100.1.16/24 dev lhnet1; $IN ip addr add 10.100.1.200/24 dev lhnet1", "$IN ip addr del 10.100.1.200/24 dev lhnet1; $IN ip addr add 10.100.1.16/24 dev lhnet1"},
	{"LHS144", "sed -i s,$NETNS,/run/netns/none, /run/lhstorage/attachments/*.json", "sed -i s,/run/netns/none,$NETNS, /run/lhstorage/attachments/*.json"},
	{"LHS130", "ip link del lhnet1-host", ""},
}

var inCluster = []breakage{
	{"LHS031", `patch -n lhstorage-system daemonset lhstorage --subresource=status --type=merge -p {"status":{"numberReady":2}}`, `patch -n lhstorage-system daemonset lhstorage --subresource=status --type=merge -p {"status":{"numberReady":3}}`},
	{"LHS033", `patch hostshim vxlan-storage-3 --subresource=status --type=merge -p {"status":{"ready":"False","reason":"down"}}`, `patch hostshim vxlan-storage-3 --subresource=status --type=merge -p {"status":{"ready":"True","reason":""}}`},
	{"LHS036", `annotate node node3 lhstorage.io/index=9`, `annotate node node3 lhstorage.io/index-`},
	{"LHS050", `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status=[] --overwrite`, `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status=STATUS --overwrite`},
	{"LHS051", `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status=[{"name":"longhorn-system/storage","interface":"lhnet1","ips":[]}] --overwrite`, `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status=STATUS --overwrite`},
	{"LHS054", `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status={ --overwrite`, `annotate -n longhorn-system pod im2 k8s.v1.cni.cncf.io/network-status=STATUS --overwrite`},
}

func TestDoctorOnRealParts(t *testing.T) {
	b := newBed(t)
	require.Empty(t, b.diagnose(t), "what agents made is healthy")

	var report status.Report
	out, _ := b.ctl(t, "status")
	require.NoError(t, json.Unmarshal(out, &report), "%s", out)
	require.Len(t, report.Nodes, 3)
	assert.Equal(t, "True", report.Nodes[1].Ready)
	assert.Equal(t, 2, report.Nodes[1].Peers)
	require.Len(t, report.Attachments, 1)
	assert.True(t, report.Attachments[0].Claimed)
	require.Len(t, report.Pools, 1)
	assert.EqualValues(t, 1, report.Pools[0].Used)
	assert.EqualValues(t, 239, report.Pools[0].Size)
	assert.True(t, netip.MustParsePrefix("10.100.1.0/24").Contains(netip.MustParseAddr(report.Attachments[0].Addresses[0])))

	t.Run("cluster", func(t *testing.T) { b.each(t, inCluster, b.kubectl) })
	t.Run("MTU", b.mtu)
	t.Run("node", func(t *testing.T) { b.each(t, onNode, b.script) })
}

func (b *bed) each(t *testing.T, list []breakage, do func(*testing.T, string)) {
	for _, c := range list {
		t.Run(c.code, func(t *testing.T) {
			do(t, c.broken)
			assert.Equal(t, []string{c.code}, b.diagnose(t))
			if c.mended != "" {
				do(t, c.mended)
				assert.Empty(t, b.diagnose(t), "it was mended")
			}
		})
	}
}

func (b *bed) script(t *testing.T, text string) {
	path := b.sandbox.Netns.Path()
	b.sh(t, strings.NewReplacer("$IN", "nsenter --net="+path, "$NETNS", path).Replace(text))
}

// mtu: the kernel lowers the children with their parent, and raising that doesn't raise them.
func (b *bed) mtu(t *testing.T) {
	out, err := b.on(b.node, `ip -o link show vxlan-storage | sed 's/.* mtu \([0-9]*\).*/\1/'`)
	require.NoError(t, err)
	right := strings.TrimSpace(out)
	b.script(t, "ip link set vxlan-storage mtu 1300")
	assert.Equal(t, []string{"LHS117"}, b.diagnose(t))
	b.script(t, "ip link set vxlan-storage mtu "+right)
	assert.Equal(t, []string{"LHS137", "LHS143"}, b.diagnose(t))
	b.script(t, "ip link set lhnet1-host mtu "+right+"; $IN ip link set lhnet1 mtu "+right)
	assert.Empty(t, b.diagnose(t))
}

// kubectl runs it with these arguments; STATUS stands for the network-status that Multus wrote.
func (b *bed) kubectl(t *testing.T, text string) {
	args := strings.Fields(text)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "STATUS", b.status)
	}
	_, err := b.Kubectl(t.Context(), args...)
	require.NoError(t, err)
}
