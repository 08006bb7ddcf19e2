package multus

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const (
	parentDevice = "vxlan-storage"
	shimDevice   = "lhnet1-host"
)

// TestPlaces takes three nodes that a script set up as the source design does (the lab's stock parent: VTEP on lo, routes,
// VXLAN without learning, the host's address on it) through what becomes of nodes.
func TestPlaces(t *testing.T) {
	b := newBed(t, lab.Options{Nodes: 3, Plugin: lab.PluginMacvlan, NoLearning: true})
	for _, test := range []struct {
		name string
		run  func(*testing.T, bed)
	}{
		{"scripted nodes, in the order 3, 2, 1", scripted},
		{"a network of whereabouts changes its type", changedType},
		{"two networks on one parent", twoNetworks},
		{"deleted and registered again", registeredAgain},
		{"renamed", renamed},
		{"rebuilt", rebuilt},
		{"a full host range", full},
		{"a Kubernetes address on the parent", kubernetesAddress},
		{"lhstorage with the addresses of whereabouts", overWhereabouts},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, b) }) {
			return // they build on each other
		}
	}
}

// sh runs a script on a node.
func sh(t *testing.T, n *controlplane.Node, format string, args ...any) {
	t.Helper()
	script := fmt.Sprintf(format, args...)
	require.NoError(t, n.Do(func() error {
		if out, err := exec.Command("sh", "-euc", script).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	}))
}

// requireAddresses checks a device's addresses on a node, as `ip` prints them.
func requireAddresses(t *testing.T, n *controlplane.Node, device string, want ...string) {
	t.Helper()
	var have []string
	require.NoError(t, n.Do(func() error {
		out, err := exec.Command("ip", "-o", "-4", "addr", "show", "dev", device).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			have = append(have, strings.Fields(line)[3])
		}
		return err
	}))
	assert.Equal(t, want, have, "%s on %s", device, n.Name)
}

// requirePlaces checks the HostShims, each as "NAME NODE ADDRESS VTEP".
func requirePlaces(t *testing.T, b bed, want ...string) {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "get", "hostshims", "--no-headers", "-o", "custom-columns=:.metadata.name,:.spec.node,:.spec.address,:.spec.vtep")
	require.NoError(t, err)
	var have []string
	for line := range strings.Lines(out) {
		have = append(have, strings.Join(strings.Fields(line), " "))
	}
	assert.Equal(t, want, have)
}

// forget makes a node ask the cluster again.
func forget(t *testing.T, n *controlplane.Node) {
	t.Helper()
	require.NoError(t, n.Do(func() error { return age("/var/lib/lhstorage/place") }))
}

// requireEveryLeg pings from each host to the pods, and between the pods.
func requireEveryLeg(t *testing.T, b bed, pods []pod) {
	t.Helper()
	for i, from := range pods {
		for j, to := range pods {
			requireReached(t, fmt.Sprintf("host %d to pod %d", i+1, j+1), b.Nodes[i].Host, to.addr)
			if i != j {
				requireReached(t, fmt.Sprintf("pod %d to pod %d", i+1, j+1), from.Netns, to.addr)
				requireReached(t, fmt.Sprintf("host %d to host %d", i+1, j+1), b.Nodes[i].Host, netip.MustParseAddr(fmt.Sprintf("10.100.1.%d", j+1)))
			}
		}
	}
}

// Each node keeps its address and its VTEP, though the first to come is the one with the highest; also where the script put
// the address on a shim.
func scripted(t *testing.T, b bed) {
	sh(t, b.Nodes[1], `ip addr del 10.100.1.2/24 dev %[1]s
		ip link add %[2]s link %[1]s type macvlan mode bridge
		ip addr add 10.100.1.2/24 dev %[2]s
		ip link set %[2]s up`, parentDevice, shimDevice)
	pods := make([]pod, len(b.Nodes))
	for _, i := range []int{2, 1, 0} {
		pods[i] = b.run(t, b.Nodes[i], fmt.Sprintf("first-%d", i+1))
	}
	requirePlaces(t, b, "vxlan-storage-1 node1 10.100.1.1 10.100.100.1", "vxlan-storage-2 node2 10.100.1.2 10.100.100.2", "vxlan-storage-3 node3 10.100.1.3 10.100.100.3")
	for i, n := range b.Nodes {
		requireAddresses(t, n, shimDevice, fmt.Sprintf("10.100.1.%d/24", i+1))
		requireAddresses(t, n, parentDevice)
		requireAddresses(t, n, "lo", "127.0.0.1/8", fmt.Sprintf("10.100.100.%d/32", i+1))
	}
	requireEveryLeg(t, b, pods)
	columns, err := b.Kubectl(t.Context(), "get", "hostshims")
	require.NoError(t, err)
	assert.Equal(t, "NAME NODE PARENT ADDRESS VTEP READY AGE", strings.Join(strings.Fields(strings.Split(columns, "\n")[0]), " "))
}

// They share index and VTEP; each has a shim of its own.
func twoNetworks(t *testing.T, b bed) {
	backup := strings.NewReplacer(`"name": "storage"`, `"name": "backup"`, `"hostShim": {`, `"hostShim": {"name": "lhnet2-host", `, "10.100.1.0", "10.100.2.0").Replace(nad)
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "backup", backup))
	n := b.Nodes[2]
	_, err := b.CreatePod(t.Context(), n.Name, namespace, "both",
		controlplane.Network{Namespace: namespace, Name: network, Interface: ifName}, controlplane.Network{Namespace: namespace, Name: "backup", Interface: "lhnet2"})
	require.NoError(t, err)
	s, err := n.RunPod(t.Context(), namespace, "both")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	requirePlaces(t, b, "vxlan-storage-1 node1 10.100.1.1 10.100.100.1", "vxlan-storage-2 node2 10.100.1.2 10.100.100.2", "vxlan-storage-3 node3 10.100.1.3,10.100.2.3 10.100.100.3")
	requireAddresses(t, n, shimDevice, "10.100.1.3/24")
	requireAddresses(t, n, "lhnet2-host", "10.100.2.3/24")
	for _, device := range []string{ifName, "lhnet2"} {
		addrs, err := testnode.Addresses(s.Netns, device)
		require.NoError(t, err)
		require.Len(t, addrs, 1)
		requireReached(t, "host to its pod's "+device, n.Host, addrs[0])
	}
}

func (b bed) deleteNode(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, b.Kube.CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}))
}

// The place is the node's when its Node object comes back.
func registeredAgain(t *testing.T, b bed) {
	n := b.Nodes[1]
	b.deleteNode(t, n.Name)
	require.NoError(t, n.Register(t.Context()))
	forget(t, n)
	p := b.run(t, n, "again")
	requirePlaces(t, b, "vxlan-storage-1 node1 10.100.1.1 10.100.100.1", "vxlan-storage-2 node2 10.100.1.2 10.100.100.2", "vxlan-storage-3 node3 10.100.1.3,10.100.2.3 10.100.100.3")
	requireReached(t, "host to its pod", n.Host, p.addr)
}

// wipe leaves nothing of lhstorage or of a script on a node that has no pods.
func wipe(t *testing.T, n *controlplane.Node) {
	t.Helper()
	sh(t, n, `for d in lhnet1-host lhnet2-host %s; do if ip link show $d >/dev/null 2>&1; then ip link del $d; fi; done
		ip addr flush dev lo to 10.100.100.0/24
		rm -rf /var/lib/lhstorage/* /run/lhstorage`, parentDevice)
}

// By its machine id a renamed node finds its place again, with nothing in its kernel and on its disk; but not while there is a
// Node of the old name, which would have it too.
func renamed(t *testing.T, b bed) {
	n := b.Nodes[0]
	n.Name = "worker-1"
	identify(t, n)
	require.NoError(t, n.Register(t.Context()))
	forget(t, n)
	_, err := b.try(t, n, network, "too-early")
	require.ErrorContains(t, err, "node worker-1 can't have its place on vxlan-storage: index 1 and VTEP 10.100.100.1 and address 10.100.1.1 is node node1's (HostShim vxlan-storage-1)")
	requireAddresses(t, n, shimDevice, "10.100.1.1/24")
	b.deleteNode(t, "node1")
	wipe(t, n)
	p := b.run(t, n, "renamed")
	requirePlaces(t, b, "vxlan-storage-1 worker-1 10.100.1.1 10.100.100.1", "vxlan-storage-2 node2 10.100.1.2 10.100.100.2", "vxlan-storage-3 node3 10.100.1.3,10.100.2.3 10.100.100.3")
	requireAddresses(t, n, shimDevice, "10.100.1.1/24")
	requireReached(t, "host to its pod", n.Host, p.addr)
	requireReached(t, "a remote host to the pod", b.Nodes[1].Host, p.addr)
}

// A node of the same name with another disk has the same place.
func rebuilt(t *testing.T, b bed) {
	n := b.Nodes[2]
	wipe(t, n)
	n.MachineID = strings.ReplaceAll(uuid.NewString(), "-", "")
	require.NoError(t, n.WriteFile("/etc/machine-id", []byte(n.MachineID+"\n")))
	p := b.run(t, n, "rebuilt")
	requirePlaces(t, b, "vxlan-storage-1 worker-1 10.100.1.1 10.100.100.1", "vxlan-storage-2 node2 10.100.1.2 10.100.100.2", "vxlan-storage-3 node3 10.100.1.3,10.100.2.3 10.100.100.3")
	out, err := b.Kubectl(t.Context(), "get", "hostshim", "vxlan-storage-3", "-o", "jsonpath={.spec.machineID}")
	require.NoError(t, err)
	assert.Equal(t, n.MachineID, out)
	requireReached(t, "host to its pod", n.Host, p.addr)
	requireReached(t, "a remote host to the pod", b.Nodes[1].Host, p.addr)
}

// onManagement is a network of its own over the network that the API server is on: VTEPs are addresses that the nodes have anyway.
func onManagement(name string, vni int, hosts, whole string) string {
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %[1]q, "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-%[1]s", "vni": %[2]d, "vtep": {"cidr": "10.100.220.0/24"}},
  "hostShim": {"name": "shim-%[1]s", "range": %[3]q}, "ipam": {"type": "lhstorage-ipam", "range": %[4]q}}`, name, vni, hosts, whole)
}

// There is a place for two. A third node gets one when another has left long ago, and doesn't answer any more.
func full(t *testing.T, b bed) {
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "full", onManagement("full", 200, "10.100.9.2/31", "10.100.9.0/24")))
	refused := func(name, text string) {
		t.Helper()
		_, err := b.try(t, b.Nodes[2], "full", name)
		require.ErrorContains(t, err, text)
		assert.ErrorContains(t, err, "all 2 places on vxlan-full")
		out, err := b.Kubectl(t.Context(), "get", "addressclaims", "--no-headers", "-l", "lhstorage.io/network=full")
		require.NoError(t, err)
		assert.Equal(t, 2, strings.Count(out, "\n"), "nothing is left of it: %s", out)
	}
	for i, n := range b.Nodes[:2] {
		s, err := b.try(t, n, "full", fmt.Sprintf("full-%d", i+1))
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	}
	refused("full-3", "no node has left")
	gone := b.Nodes[0]
	b.deleteNode(t, gone.Name)
	refused("full-4", "index 1 of node worker-1, which is gone, is kept for another")
	past := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	_, err := b.Kubectl(t.Context(), "annotate", "--overwrite", "hostshim", "vxlan-full-1", "lhstorage.io/node-gone="+past)
	require.NoError(t, err)
	refused("full-5", "index 1 of node worker-1, which is gone, can't be reused: "+gone.Address.String()+" still answers")
	sh(t, gone, "ip link set eth0 down") // the machine is off
	t.Cleanup(func() { sh(t, gone, "ip link set eth0 up") })
	s, err := b.try(t, b.Nodes[2], "full", "full-6")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	requireAddresses(t, b.Nodes[2], "shim-full", "10.100.9.2/24")
	out, err := b.Kubectl(t.Context(), "get", "hostshim", "vxlan-full-1", "-o", "jsonpath={.spec.node} {.spec.vtep}")
	require.NoError(t, err)
	assert.Equal(t, "node3 "+b.Nodes[2].Address.String(), out)
}

// The cluster knows a node by an address that it has on the VXLAN device: it stays there, and the shim stands beside it. In the
// host range there is no way for both.
func kubernetesAddress(t *testing.T, b bed) {
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, "kube", onManagement("kube", 300, "10.100.8.16/28", "10.100.8.0/24")))
	known := func(n *controlplane.Node, address string) {
		sh(t, n, `ip link add vxlan-kube type vxlan id 300 local %s dstport 4789
			ip addr add %s/24 dev vxlan-kube
			ip link set vxlan-kube up`, n.Address, address)
		node, err := b.Kube.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
		require.NoError(t, err)
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address})
		_, err = b.Kube.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
	beside, within := b.Nodes[1], b.Nodes[2]
	known(beside, "10.100.8.200")
	for i := range 2 {
		s, err := b.try(t, beside, "kube", fmt.Sprintf("kube-%d", i+1))
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
		requireAddresses(t, beside, "vxlan-kube", "10.100.8.200/24")
		requireAddresses(t, beside, "shim-kube", "10.100.8.27/32")
		addrs, err := testnode.Addresses(s.Netns, ifName)
		require.NoError(t, err)
		require.Len(t, addrs, 1)
		requireReached(t, "host to its pod", beside.Host, addrs[0])
		forget(t, beside)
	}
	known(within, "10.100.8.20")
	_, err := b.try(t, within, "kube", "kube-3")
	require.ErrorContains(t, err, "10.100.8.20 on vxlan-kube is this node's Kubernetes address (InternalIP), which is never moved")
	requireAddresses(t, within, "vxlan-kube", "10.100.8.20/24")
	links, err := testnode.Links(within.Host)
	require.NoError(t, err)
	assert.NotContains(t, links, "shim-kube")
}
