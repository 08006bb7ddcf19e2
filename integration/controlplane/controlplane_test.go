package controlplane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const (
	namespace = "longhorn-system"
	network   = "storage"
	ifName    = "lhnet1"

	poolName = "10.100.1.0-24"
	stockNAD = `{"cniVersion": "1.0.0", "name": "storage", "type": "macvlan", "master": "vxlan-storage", "mode": "bridge",
  "ipam": {"type": "whereabouts", "range": "10.100.1.0/24", "exclude": ["10.100.1.0/28"]}}`
)

// crashEnv makes this test binary a process that starts a cluster and waits to be
// killed.
const crashEnv = "LHSTORAGE_TEST_CRASH"

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		startAndHang()
	}
	os.Exit(m.Run())
}

func TestControlPlane(t *testing.T) {
	c := Up(t, Options{Lab: lab.Options{Nodes: 2, Plugin: lab.PluginMacvlan}, UnsafeNoFsync: true})
	require.NoError(t, c.CreateNamespace(t.Context(), namespace))
	require.NoError(t, c.CreateNetwork(t.Context(), namespace, network, stockNAD))
	require.NoError(t, c.Nodes[0].UseMultus(t.Context(), Thin))
	require.NoError(t, c.Nodes[1].UseMultus(t.Context(), Thick))

	for _, n := range c.Nodes {
		form := map[string]string{"node1": Thin, "node2": Thick}[n.Name]
		t.Run("a pod comes and goes with Multus "+form, func(t *testing.T) { comeAndGo(t, c, n, "before-"+form) })
	}
	t.Run("a failed ADD leaves nothing", func(t *testing.T) { failedAdd(t, c) })
	t.Run("rights", func(t *testing.T) { rights(t, c) })
	t.Run("a proxy before the API server", func(t *testing.T) { proxy(t, c) })
	t.Run("a node's files are its own", func(t *testing.T) { ownFiles(t, c) })
	t.Run("the API server restarts on its data", func(t *testing.T) { restart(t, c) })
	t.Run("kubectl", func(t *testing.T) {
		out, err := c.Kubectl(t.Context(), "get", "nodes", "-o", "name")
		require.NoError(t, err)
		require.Equal(t, "node/node1\nnode/node2\n", out)
	})
	logMemory(t, c)
	stopLeavesNothing(t, c)
}

// comeAndGo follows one pod from its object to its end.
func comeAndGo(t *testing.T, c *Cluster, n *Node, name string) {
	t.Helper()
	before, err := n.Files("/var/lib/cni")
	require.NoError(t, err)
	s := attach(t, c, n, name)
	address := storageAddress(t, s)
	wantRecorded(t, c, address, s.ID, namespace+"/"+name)

	require.NoError(t, s.Del(t.Context()))
	links, err := testnode.Links(s.Netns)
	require.NoError(t, err)
	require.Empty(t, links, "devices in the sandbox after DEL")
	require.NoError(t, s.Del(t.Context()), "a second DEL, as a runtime may call it")
	require.NoError(t, s.RemoveNetns())
	wantNoRecord(t, c)
	after, err := n.Files("/var/lib/cni")
	require.NoError(t, err)
	require.Subset(t, append(before, lastReserved, hostLocalLock), after, "files that Multus, libcni and host-local left behind")
	require.NoError(t, c.DeletePod(t.Context(), namespace, name))
}

// What host-local keeps on purpose.
const (
	lastReserved  = "/var/lib/cni/networks/cluster/last_reserved_ip.0"
	hostLocalLock = "/var/lib/cni/networks/cluster/lock"
)

// attach runs a pod with the storage network and checks what it got.
func attach(t *testing.T, c *Cluster, n *Node, name string) *Sandbox {
	t.Helper()
	_, err := c.CreatePod(t.Context(), n.Name, namespace, name, Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	s, err := n.RunPod(t.Context(), namespace, name)
	require.NoError(t, err)
	links, err := testnode.Links(s.Netns)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"eth0", ifName}, links)
	require.Len(t, s.Result.IPs, 1, "the runtime is told of the cluster network alone")
	return s
}

// storageAddress is the address on lhnet1, which must be the one in the pod's
// network-status.
func storageAddress(t *testing.T, s *Sandbox) netip.Addr {
	t.Helper()
	addresses, err := testnode.Addresses(s.Netns, ifName)
	require.NoError(t, err)
	require.Len(t, addresses, 1)
	status, err := s.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status, 2)
	require.True(t, status[0].Default)
	require.Equal(t, []string{s.Result.IPs[0].Address.IP.String()}, status[0].IPs)
	require.Equal(t, namespace+"/"+network, status[1].Name)
	require.Equal(t, ifName, status[1].Interface)
	require.Equal(t, []string{addresses[0].String()}, status[1].IPs)
	return addresses[0]
}

func wantRecorded(t *testing.T, c *Cluster, address netip.Addr, id, podref string) {
	t.Helper()
	key := strconv.Itoa(int(address.As4()[3]))
	require.Equal(t, map[string]any{key: map[string]any{"id": id, "podref": podref, "ifname": ifName}}, allocations(t, c))
	reservation, err := c.Dynamic.Resource(Reservations).Namespace(metav1.NamespaceSystem).Get(t.Context(), address.String(), metav1.GetOptions{})
	require.NoError(t, err)
	owner, _, err := unstructured.NestedString(reservation.Object, "spec", "podref")
	require.NoError(t, err)
	require.Equal(t, podref, owner)
}

func wantNoRecord(t *testing.T, c *Cluster) {
	t.Helper()
	require.Empty(t, allocations(t, c), "entries of the pool")
	reservations, err := c.Dynamic.Resource(Reservations).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, reservations.Items, "reservations")
}

func allocations(t *testing.T, c *Cluster) map[string]any {
	t.Helper()
	pool, err := c.Dynamic.Resource(IPPools).Namespace(metav1.NamespaceSystem).Get(t.Context(), poolName, metav1.GetOptions{})
	require.NoError(t, err)
	entries, _, err := unstructured.NestedMap(pool.Object, "spec", "allocations")
	require.NoError(t, err)
	return entries
}

// failedAdd asks for a network that isn't there.
func failedAdd(t *testing.T, c *Cluster) {
	t.Helper()
	spaces, err := namespaces(c.Name + ".")
	require.NoError(t, err)
	for _, n := range c.Nodes {
		name := "lost-" + n.Name
		_, err := c.CreatePod(t.Context(), n.Name, namespace, name, Network{Namespace: namespace, Name: "none", Interface: ifName})
		require.NoError(t, err)
		_, err = n.RunPod(t.Context(), namespace, name)
		require.ErrorContains(t, err, "cannot find a network-attachment-definition (none)")
		require.NoError(t, c.DeletePod(t.Context(), namespace, name))
	}
	after, err := namespaces(c.Name + ".")
	require.NoError(t, err)
	require.Equal(t, spaces, after, "network namespaces")
	wantNoRecord(t, c)
}

// rights shows that tokens are real and RBAC and the Node authorizer are on.
func rights(t *testing.T, c *Cluster) {
	t.Helper()
	account, err := c.ServiceAccountKubeconfig(t.Context(), metav1.NamespaceSystem, "whereabouts", "")
	require.NoError(t, err)
	whereabouts := client(t, c, account)
	_, err = whereabouts.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	_, err = whereabouts.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "secrets: %v", err)

	kubelet, err := c.NodeKubeconfig("node1")
	require.NoError(t, err)
	node1 := client(t, c, kubelet)
	_, err = node1.CoreV1().Nodes().Get(t.Context(), "node1", metav1.GetOptions{})
	require.NoError(t, err)
	_, err = node1.CoreV1().Nodes().Patch(t.Context(), "node2", "application/merge-patch+json", []byte(`{"metadata": {"labels": {"a": "b"}}}`), metav1.PatchOptions{})
	require.True(t, apierrors.IsForbidden(err), "another node: %v", err)
}

// proxy lets a program on a node come to the API by way of this process.
func proxy(t *testing.T, c *Cluster) {
	t.Helper()
	listener, err := c.Listen(t.Context())
	require.NoError(t, err)
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(c.Config))
	require.NoError(t, err)
	target, err := url.Parse(c.Server())
	require.NoError(t, err)
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = transport
	var seen atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		forward.ServeHTTP(w, r)
	})}
	go server.Serve(listener) //nolint:errcheck // it ends by Close
	defer server.Close()      //nolint:errcheck // nothing is left to lose

	const path = "/etc/lhstorage/proxied.kubeconfig"
	n := c.Nodes[0]
	kubeconfig, err := c.ServiceAccountKubeconfig(t.Context(), metav1.NamespaceSystem, "whereabouts", "https://"+listener.Addr().String())
	require.NoError(t, err)
	require.NoError(t, n.WriteFile(path, kubeconfig))
	require.NoError(t, n.Do(func() error {
		cmd := exec.CommandContext(t.Context(), filepath.Join(c.programs.kubernetes, "kubectl"), "--kubeconfig="+path, "get", "--raw", "/api/v1/nodes/node1")
		cmd.Env = environ()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	require.EqualValues(t, 1, seen.Load(), "requests by way of the proxy")
}

// client is a client that has what is in a kubeconfig.
func client(t *testing.T, c *Cluster, kubeconfig []byte) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	require.NoError(t, err)
	config.Dial = c.Dial
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return client
}

func ownFiles(t *testing.T, c *Cluster) {
	t.Helper()
	const path = "/run/lhstorage/of-one-node"
	require.NoError(t, c.Nodes[0].WriteFile(path, []byte("x")))
	require.NoFileExists(t, path)
	_, err := c.Nodes[1].ReadFile(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	name, err := c.Nodes[1].ReadFile("/etc/hostname")
	require.NoError(t, err)
	require.Equal(t, "node2\n", string(name))

	// Whatever starts programs in a network namespace starts them on the node.
	_, err = cniexec.Run(t.Context(), c.Nodes[0].Host, cniexec.Call{Plugin: binDir + "/whereabouts", Command: "VERSION"})
	require.NoError(t, err)
}

// restart stops the API server in order and kills it; pods outlive both.
func restart(t *testing.T, c *Cluster) {
	t.Helper()
	var running []*Sandbox
	for _, n := range c.Nodes {
		running = append(running, attach(t, c, n, "survivor-"+n.Name))
	}
	uid := kubeSystemUID(t, c)
	for verb, end := range map[string]func() error{"stop": c.StopAPIServer, "kill": c.KillAPIServer} {
		require.NoError(t, end(), verb)
		_, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
		require.Error(t, err, "after %s", verb)
		begin := time.Now()
		require.NoError(t, c.StartAPIServer(t.Context()))
		t.Logf("kube-apiserver ready %s after %s", time.Since(begin).Round(10*time.Millisecond), verb)
		require.Equal(t, uid, kubeSystemUID(t, c))
	}
	require.ErrorContains(t, c.StartAPIServer(t.Context()), "runs already")
	require.Len(t, allocations(t, c), len(c.Nodes))
	for _, s := range running {
		storageAddress(t, s)
		require.NoError(t, s.Remove(t.Context()))
		require.NoError(t, c.DeletePod(t.Context(), namespace, s.pod.Name))
	}
	wantNoRecord(t, c)
	for _, n := range c.Nodes {
		hearAgain(t, c, n)
		comeAndGo(t, c, n, "after-"+n.Name)
	}
}

// hearAgain waits until Multus hears of new pods. The watch of its thick daemon comes back some time after the
// API server; until then an ADD succeeds, but "pod not found" in the daemon's cache is tolerated and the
// network-status is never written (multus.go, after SetNetworkStatus, v4.2.3).
func hearAgain(t *testing.T, c *Cluster, n *Node) {
	t.Helper()
	for tries, begin := 0, time.Now(); ; tries++ {
		s := attach(t, c, n, fmt.Sprintf("heard-%s-%d", n.Name, tries))
		_, err := s.Status(t.Context())
		require.NoError(t, s.Remove(t.Context()))
		require.NoError(t, c.DeletePod(t.Context(), namespace, s.pod.Name))
		if err == nil {
			t.Logf("Multus on %s wrote no network-status of the first %d pods after the API server's return", n.Name, tries)
			return
		}
		require.Less(t, time.Since(begin), 2*time.Minute, "Multus on %s doesn't hear of new pods: %v", n.Name, err)
	}
}

func kubeSystemUID(t *testing.T, c *Cluster) string {
	t.Helper()
	namespace, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), metav1.NamespaceSystem, metav1.GetOptions{})
	require.NoError(t, err)
	return string(namespace.UID)
}

func stopLeavesNothing(t *testing.T, c *Cluster) {
	t.Helper()
	processes := append(c.Processes(), c.Nodes[1].MultusDaemon())
	require.Len(t, processes, 3)
	require.NoError(t, c.Stop())
	for _, p := range processes {
		require.False(t, alive(p.PID()), "%s runs", p.Name)
	}
	wantGone(t, c.Name)
	require.NoError(t, c.Stop(), "stopped twice")
}

func wantGone(t *testing.T, name string) {
	t.Helper()
	left, err := namespaces(name + ".")
	require.NoError(t, err)
	require.Empty(t, left, "network namespaces")
	require.NoDirExists(t, filepath.Join(root, name))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), name+".")
	require.NotContains(t, string(mounts), name+"/")
}

func logMemory(t *testing.T, c *Cluster) {
	t.Helper()
	for _, p := range append(c.Processes(), c.Nodes[1].MultusDaemon()) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		require.NoError(t, err)
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "VmHWM:") {
				t.Logf("%s: %s at most", p.Name, strings.Join(strings.Fields(line)[1:], " "))
			}
		}
	}
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

func TestAKilledProcessLeavesNothingThatStays(t *testing.T) {
	testnode.RequireRoot(t)
	name, pids, kill := crashing(t)
	for _, pid := range pids {
		require.True(t, alive(pid), "pid %d", pid)
	}
	kill()
	for _, pid := range pids {
		require.Eventually(t, func() bool { return !alive(pid) }, 10*time.Second, 20*time.Millisecond, "pid %d outlives its test", pid)
	}
	left, err := namespaces(name + ".")
	require.NoError(t, err)
	require.NotEmpty(t, left, "the test shows nothing: there was nothing to sweep")

	claim, err := newClaim(t.Context()) // as the next Start does
	require.NoError(t, err)
	wantGone(t, name)
	require.NoError(t, claim.release())
}

func TestSweepLeavesLiveClustersAlone(t *testing.T) {
	testnode.RequireRoot(t)
	live, err := newClaim(t.Context())
	require.NoError(t, err)
	require.NoError(t, makeNetns(live.name+".cp"))
	other, err := newClaim(t.Context())
	require.NoError(t, err)
	require.DirExists(t, live.dir)
	require.NoError(t, within(live.name+".cp", func() error { return nil }))
	require.NoError(t, errors.Join(live.release(), other.release()))
	wantGone(t, live.name)
	wantGone(t, other.name)
}

// crashing is the name of a cluster in another process, its programs' pids, and
// what kills that process.
func crashing(t *testing.T) (name string, pids []int, kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "the other process started no cluster")
	fields := strings.Fields(line)
	for _, f := range fields[1:] {
		pid, err := strconv.Atoi(f)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return fields[0], pids, func() {
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	}
}

// startAndHang prints a cluster's name and its programs' pids and never returns.
func startAndHang() {
	c, err := Start(context.Background(), Options{Lab: lab.Options{Nodes: 1, Plugin: lab.PluginMacvlan}, UnsafeNoFsync: true})
	if err == nil {
		err = c.Nodes[0].UseMultus(context.Background(), Thick)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line := c.Name
	for _, p := range append(c.Processes(), c.Nodes[0].MultusDaemon()) {
		line += fmt.Sprintf(" %d", p.PID())
	}
	fmt.Fprintln(os.Stdout, line)
	select {}
}
