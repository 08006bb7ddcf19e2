package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/leak"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
	"github.com/lhstorage/lhstorage/pkg/record"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const (
	longhorn = "longhorn-system"
	nadRef   = longhorn + "/storage"
	vx       = "vxlan-storage"
	shimName = "lhnet1-host"
	here     = "node2"
)

const definition = `{
  "cniVersion": "1.1.0", "name": "longhorn-storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// quiet finds no duplicates.
type quiet struct{}

func (quiet) Probe(context.Context, kernel.Link, netip.Addr) error  { return nil }
func (quiet) Announce(kernel.Link, []netip.Addr) error              { return nil }
func (quiet) Settle(context.Context, kernel.Link, netip.Addr) error { return nil }

// world is a healthy cluster of three nodes and the second of them, which a test breaks at one place.
type world struct {
	t       *testing.T
	cluster *snapshot.Cluster
	host    snapshot.Host
	kernel  *kernel.Fake // of the node
	pod     *kernel.Fake // of its instance manager
	netns   map[string]*kernel.Fake
	install error
	drivers map[string]string
	edit    func(*snapshot.Local) // what no device of the fake can show
}

func healthy(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, cluster: healthyCluster(), kernel: kernel.NewFake(), drivers: map[string]string{"eth0": "virtio_net"}}
	dir := t.TempDir()
	w.host = snapshot.Host{
		Kernel: w.kernel, Root: filepath.Join(dir, "root"), Release: "6.18.5",
		Node:   nodefile.File{NodeName: here, Kubeconfig: "/etc/lhstorage/kubeconfig", RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Record: nodefile.RecordSync},
		Inside: w.inside, Check: func(context.Context) (string, error) { return "v1.0.0", w.install },
		Driver: func(device string) string { return w.drivers[device] },
	}
	w.kernel.Have(kernel.Link{Name: "eth0", Kind: "device", Up: true})
	w.kernel.AddrOn("eth0", "192.168.7.2/24")
	w.kernel.RouteVia("0.0.0.0/0", "eth0", 0)
	w.ensure()
	w.attach()
	return w
}

// ensure makes the node ready as its agent does.
func (w *world) ensure() {
	for _, n := range w.cluster.Compiled().Networks {
		e := &node.Ensurer{Kernel: w.kernel, Neighbours: quiet{}, Node: w.host.Node, LockWait: time.Second, Live: true,
			Claim: func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
				return place.Place{Index: 2, VTEP: addr("10.100.100.2"), Shim: []netip.Addr{addr("10.100.1.2")}, Peers: []netip.Addr{addr("10.100.100.1"), addr("10.100.100.3")}, Complete: true}, nil
			}}
		_, err := e.Ensure(context.Background(), n.Plan)
		require.NoError(w.t, err)
	}
}

// attach gives the node its instance manager.
func (w *world) attach() {
	w.pod = kernel.NewFake()
	w.pod.Have(kernel.Link{Name: "lhnet1", Index: 2, Kind: "macvlan", MTU: 1450, Up: true, Macvlan: kernel.Macvlan{Mode: "bridge"}, MAC: []byte{2, 0, 0, 0, 1, 1}, Lower: 1})
	w.pod.Have(kernel.Link{Name: "eth0", Index: 3, Kind: "veth", Up: true})
	w.pod.AddrOn("lhnet1", "10.100.1.17/24")
	w.pod.AddrOn("eth0", "10.42.1.17/24")
	w.netns = map[string]*kernel.Fake{"/run/netns/im2": w.pod}
	w.record(record.Attachment{
		State: record.StateAttached, Created: now.Add(-time.Hour), Node: here, Network: "longhorn-storage", PodRef: longhorn + "/im2", ContainerID: "cid2", IfName: "lhnet1",
		Netns: "/run/netns/im2", Addresses: []netip.Prefix{netip.MustParsePrefix("10.100.1.17/24")}, Parent: vx, Shim: shimName, ISCSIDial: "10.100.1.17",
	})
}

func (w *world) record(a record.Attachment) {
	require.NoError(w.t, record.Dir(filepath.Join(w.host.Node.RunDir, "attachments")).Save(a))
}

// rewrite changes the record of the instance manager.
func (w *world) rewrite(change func(*record.Attachment)) {
	a, ok, err := record.Dir(filepath.Join(w.host.Node.RunDir, "attachments")).Load("cid2", "lhnet1")
	require.NoError(w.t, err)
	require.True(w.t, ok)
	change(&a)
	w.record(a)
}

func (w *world) inside(path string) (kernel.Kernel, func(), error) {
	if k := w.netns[path]; k != nil {
		return k, func() {}, nil
	}
	return nil, nil, errors.New(path + ": no such file or directory")
}

// file writes a file of the node.
func (w *world) file(path, content string) {
	whole := filepath.Join(w.host.Root, path)
	require.NoError(w.t, os.MkdirAll(filepath.Dir(whole), 0o755))
	require.NoError(w.t, os.WriteFile(whole, []byte(content), 0o600))
}

func (w *world) index(device string) int {
	l, err := w.kernel.Link(device)
	require.NoError(w.t, err)
	return l.Index
}

// snapshot is what doctor sees.
func (w *world) snapshot() *snapshot.Snapshot {
	local := snapshot.LookHere(context.Background(), w.host, w.cluster.Definitions)
	if w.edit != nil {
		w.edit(local)
	}
	w.cluster.Leaks.Claims = w.cluster.Claims
	return &snapshot.Snapshot{Time: now, Cluster: w.cluster, Local: local}
}

// sysctl sets a setting of a device as something else might.
func (w *world) sysctl(device, key, value string) {
	require.NoError(w.t, w.kernel.SetSysctl(kernel.ConfPath("ipv4", device, key), value))
}

// define changes the definition, and the node with it.
func (w *world) define(config string) {
	w.cluster.Definitions[0].Config = config
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func status(ref, address string) string {
	return fmt.Sprintf(`[{"name": "cbr0", "interface": "eth0", "ips": ["10.42.0.9"], "default": true}, {"name": %q, "interface": "lhnet1", "ips": [%q]}]`, ref, address)
}

const asked = `[{"namespace": "longhorn-system", "name": "storage", "interface": "lhnet1"}]`

func ready() corev1.PodStatus {
	start := metav1.NewTime(now.Add(-time.Hour))
	return corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &start, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
}

func owned(name string) []metav1.OwnerReference {
	return []metav1.OwnerReference{{Kind: "DaemonSet", Name: name}}
}

func daemonSet(namespace, name string, labels map[string]string) appsv1.DaemonSet {
	return appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}, Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, NumberReady: 3}}
}

func healthyCluster() *snapshot.Cluster {
	agents, multus := map[string]string{"app.kubernetes.io/name": "lhstorage"}, map[string]string{"app": "multus"}
	applied := true
	c := &snapshot.Cluster{
		Definitions: []agent.Definition{{Namespace: longhorn, Name: "storage", UID: "nad", Created: now.Add(-24 * time.Hour), Config: definition}},
		DaemonSets:  []appsv1.DaemonSet{daemonSet("lhstorage-system", "lhstorage", agents), daemonSet("kube-system", "kube-multus-ds", multus), daemonSet(longhorn, csiPlugin, nil)},
		Services:    []string{"10.43.0.0/16"},
		Leaks:       &leak.Cluster{Now: now, Pods: map[string]leak.Pod{}, Nodes: map[string]leak.Node{}},
		Pools:       []whereabouts.IPPool{{ObjectMeta: metav1.ObjectMeta{Name: "10.100.1.0-24"}, Spec: whereabouts.IPPoolSpec{Range: "10.100.1.0/24", Allocations: map[string]whereabouts.IPAllocation{}}}},
		Longhorn:    snapshot.Longhorn{Namespace: longhorn, Installed: true},
	}
	setting := snapshot.LonghornSetting{ObjectMeta: metav1.ObjectMeta{Name: snapshot.StorageNetworkSetting}, Value: nadRef}
	setting.Status.Applied = &applied
	c.Longhorn.Settings = []snapshot.LonghornSetting{setting}
	for i := 1; i <= 3; i++ {
		addNode(c, i)
	}
	volume := snapshot.Volume{ObjectMeta: metav1.ObjectMeta{Name: "vol"}}
	volume.Status.State = "attached"
	c.Longhorn.Volumes = []snapshot.Volume{volume}
	c.Longhorn.Engines = []snapshot.Instance{instance("vol-e", "im2", "10.100.1.17")}
	c.Longhorn.Replicas = []snapshot.Instance{instance("vol-r1", "im1", "10.100.1.16"), instance("vol-r2", "im3", "10.100.1.18")}
	return c
}

func instance(name, manager, storageIP string) snapshot.Instance {
	i := snapshot.Instance{ObjectMeta: metav1.ObjectMeta{Name: name}}
	i.Spec.Volume, i.Status.State, i.Status.StorageIP, i.Status.InstanceManager = "vol", "running", storageIP, manager
	return i
}

// addNode adds a node with its place, its report, and its pods.
func addNode(c *snapshot.Cluster, i int) {
	name := fmt.Sprintf("node%d", i)
	vtep, shim, pod := fmt.Sprintf("10.100.100.%d", i), fmt.Sprintf("10.100.1.%d", i), fmt.Sprintf("10.100.1.%d", 15+i)
	c.Nodes = append(c.Nodes, corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.42.%d.0/24", i)}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.7.%d", i)}}},
	})
	c.HostShims = append(c.HostShims, v1alpha1.HostShim{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", vx, i)},
		Spec: v1alpha1.HostShimSpec{Node: name, Parent: vx, Index: i, VTEP: vtep, Address: shim,
			Networks: []v1alpha1.ShimNetwork{{Name: "longhorn-storage", Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(shim)}}}},
		Status: v1alpha1.HostShimStatus{Ready: metav1.ConditionTrue},
	})
	c.ProbeReports = append(c.ProbeReports, v1alpha1.ProbeReport{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProbeReportSpec{Node: name},
		Status: v1alpha1.ProbeReportStatus{Time: metav1.NewTime(now.Add(-time.Minute)), Measured: 1, Legs: []v1alpha1.ProbeLeg{
			{Kind: v1alpha1.LegHostLocal, Network: "longhorn-storage", Node: name, Pod: fmt.Sprintf("%s/im%d", longhorn, i), Address: pod, Sent: 5},
		}},
	})
	c.Pods = append(c.Pods,
		corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "lhstorage-system", Name: "lhstorage-" + name, Labels: c.DaemonSets[0].Labels, OwnerReferences: owned("lhstorage")},
			Spec: corev1.PodSpec{NodeName: name, HostNetwork: true}, Status: ready()},
		corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "multus-" + name, Labels: c.DaemonSets[1].Labels, OwnerReferences: owned("kube-multus-ds")},
			Spec: corev1.PodSpec{NodeName: name, HostNetwork: true}, Status: ready()},
		corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: longhorn, Name: fmt.Sprintf("im%d", i), UID: types.UID(fmt.Sprint("uid", i)),
			Labels:      map[string]string{snapshot.LonghornComponent: snapshot.InstanceManagers, snapshot.LonghornNode: name},
			Annotations: map[string]string{nad.NetworksAnnotation: asked, nad.StatusAnnotation: status(nadRef, pod)}},
			Spec: corev1.PodSpec{NodeName: name}, Status: ready()},
	)
	manager := snapshot.InstanceManager{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("im%d", i)}}
	manager.Spec.Node, manager.Spec.DataEngine, manager.Status.State = name, "v1", "running"
	c.Longhorn.InstanceManagers = append(c.Longhorn.InstanceManagers, manager)
	claim(c, pod, fmt.Sprintf("%s/im%d", longhorn, i), name, fmt.Sprint("uid", i))
}

// claim records an address for a pod, as lhstorage-ipam does.
func claim(c *snapshot.Cluster, address, pod, node, uid string) {
	c.Claims = append(c.Claims, v1alpha1.AddressClaim{
		ObjectMeta: metav1.ObjectMeta{Name: address, UID: types.UID("claim" + address), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)), ResourceVersion: "7"},
		Spec:       v1alpha1.AddressClaimSpec{Address: address, Pool: "10.100.1.0-24", Network: "longhorn-storage", Node: node, PodRef: pod, PodUID: uid, ContainerID: "cid", IfName: "lhnet1"},
	})
	c.Leaks.Nodes[node] = leak.Node{}
	c.Leaks.Pods[pod] = leak.Pod{Node: node, UIDs: []string{uid}, Status: []leak.Interface{{Name: "lhnet1", Addresses: []netip.Addr{addr(address)}}}}
	c.Pools[0].Spec.Allocations[fmt.Sprint(addr(address).As4()[3])] = whereabouts.IPAllocation{ContainerID: "cid", PodRef: pod, IfName: "lhnet1"}
}

// manager is the instance manager of a node.
func (w *world) manager(i int) *corev1.Pod { return w.podNamed(fmt.Sprintf("im%d", i)) }

func (w *world) podNamed(name string) *corev1.Pod {
	for i := range w.cluster.Pods {
		if w.cluster.Pods[i].Name == name {
			return &w.cluster.Pods[i]
		}
	}
	w.t.Fatal("no pod " + name)
	return nil
}
