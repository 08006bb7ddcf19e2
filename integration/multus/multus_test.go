// Package multus runs lhstorage as a cluster does: NADs, real Multus, places and
// addresses kept by a real API server, and traffic between simulated nodes.
package multus

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	namespace = "longhorn-system"
	network   = "storage"
	ifName    = "lhnet1"

	kubeconfig = "/etc/lhstorage/kubeconfig"
)

// nad is the source design's network: each node's link towards another is named
// after it, and on a link of two the other end is the next hop.
const nad = `{
  "cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100,
             "vtep": {"cidr": "10.100.100.0/24", "routes": "static",
                      "via": {"10.100.100.1": "to-node1", "10.100.100.2": "to-node2", "10.100.100.3": "to-node3"}}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`

// bed is a cluster with lhstorage installed as its installer will do it.
type bed struct {
	*controlplane.Cluster
}

func newBed(t *testing.T, nodes lab.Options) bed {
	t.Helper()
	c := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Lab: nodes, BinDirs: []string{tools.Ours(t)}})
	account, err := c.InstallOwn(t.Context())
	require.NoError(t, err)
	for i, n := range c.Nodes {
		identify(t, n)
		require.NoError(t, n.WriteFile(kubeconfig, account))
		require.NoError(t, n.UseMultus(t.Context(), []string{controlplane.Thin, controlplane.Thick, controlplane.Thick}[i]))
	}
	require.NoError(t, c.CreateNamespace(t.Context(), namespace))
	require.NoError(t, c.CreateNetwork(t.Context(), namespace, network, nad))
	return bed{c}
}

// identify writes the node file, as the installer does.
func identify(t *testing.T, n *controlplane.Node) {
	t.Helper()
	file, err := json.Marshal(nodefile.File{NodeName: n.Name, Kubeconfig: kubeconfig})
	require.NoError(t, err)
	require.NoError(t, n.WriteFile(nodefile.DefaultPath, file))
}

// pod is a running pod and its address on the storage network.
type pod struct {
	*controlplane.Sandbox
	addr netip.Addr
}

// run starts a pod that is annotated as Longhorn annotates its own.
func (b bed) run(t *testing.T, n *controlplane.Node, name string) pod {
	t.Helper()
	s, err := b.try(t, n, network, name)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Remove(context.Background())) })
	addrs, err := testnode.Addresses(s.Netns, ifName)
	require.NoError(t, err)
	require.Len(t, addrs, 1)
	status, err := s.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status, 2)
	assert.Equal(t, namespace+"/"+network, status[1].Name)
	assert.Equal(t, ifName, status[1].Interface)
	assert.Equal(t, []string{addrs[0].String()}, status[1].IPs, "exactly our addresses, never none: an empty list crashes longhorn-manager")
	return pod{s, addrs[0]}
}

// try starts a pod on a network, which may be refused.
func (b bed) try(t *testing.T, n *controlplane.Node, network, name string) (*controlplane.Sandbox, error) {
	t.Helper()
	_, err := b.CreatePod(t.Context(), n.Name, namespace, name, controlplane.Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	return n.RunPod(t.Context(), namespace, name)
}

type namespaceOf interface {
	Do(func(ns.NetNS) error) error
}

func requireReached(t *testing.T, leg string, from namespaceOf, to netip.Addr) {
	t.Helper()
	require.NoError(t, from.Do(func(ns.NetNS) error {
		result, err := probe.Ping(t.Context(), probe.PingOptions{Target: to, Count: 10, Interval: 10 * time.Millisecond, Wait: time.Second})
		if err == nil && result.Received < result.Wanted {
			err = fmt.Errorf("%d of %d came back", result.Received, result.Wanted)
		}
		return err
	}), "%s: to %s", leg, to)
}

// refused calls an ADD that can't have an address now.
func refused(t *testing.T, n *controlplane.Node, container string, netns ns.NetNS) {
	t.Helper()
	began := time.Now()
	err := n.Do(func() error { return callOnNode("ADD", container, netns, nad) })
	var refusal *types.Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, types.ErrTryAgainLater, refusal.Code, "%v", err)
	assert.Less(t, time.Since(began), 30*time.Second)
	links, err := testnode.Links(netns)
	require.NoError(t, err)
	assert.NotContains(t, links, ifName, "nothing is left of it")
}

// rebootedUnheard: a node that comes up while the API server is away has nothing in its kernel and in /run. Its first ADD makes
// the overlay by the last answer on its disk, though it gets no address.
func rebootedUnheard(t *testing.T, b bed, p pod) {
	n := b.Nodes[1]
	sh(t, n, `ip link del %[1]s
		ip link del %[2]s
		ip addr flush dev lo to 10.100.100.0/24
		rm -rf /run/lhstorage`, shimDevice, parentDevice)
	refused(t, n, "after-the-reboot", p.Netns)
	requireAddresses(t, n, shimDevice, "10.100.1.2/24")
	for i, other := range []int{1, 3} {
		requireReached(t, fmt.Sprintf("host 2 to host %d", other), n.Host, netip.AddrFrom4([4]byte{10, 100, 1, byte(other)}))
		requireReached(t, fmt.Sprintf("host %d to host 2", other), b.Nodes[2*i].Host, netip.MustParseAddr("10.100.1.2"))
	}
}

func TestStorageNetwork(t *testing.T) {
	b := newBed(t, lab.Options{Nodes: 3})
	// The order in which nodes come decides nothing but the index of fresh ones.
	var pods []pod
	for i, n := range b.Nodes {
		pods = append(pods, b.run(t, n, fmt.Sprintf("pod-%d", i+1)))
	}
	t.Run("each node has a place", func(t *testing.T) {
		out, err := b.Kubectl(t.Context(), "get", "hostshims", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.node}{"\n"}{end}`)
		require.NoError(t, err)
		assert.Equal(t, "vxlan-storage-1 node1\nvxlan-storage-2 node2\nvxlan-storage-3 node3\n", out)
	})
	t.Run("each address is claimed and recorded", func(t *testing.T) {
		for _, p := range pods {
			_, err := b.Kubectl(t.Context(), "get", "addressclaim", p.addr.String())
			require.NoError(t, err)
			_, err = b.Kubectl(t.Context(), "-n", metav1.NamespaceSystem, "get", "overlappingrangeipreservations.whereabouts.cni.cncf.io", p.addr.String())
			require.NoError(t, err)
		}
	})
	t.Run("a node learns of its peers by its next pod", func(t *testing.T) {
		// Without the agent a node asks again when its answer is a minute old.
		for i, n := range b.Nodes {
			require.NoError(t, n.Do(func() error { return age("/var/lib/lhstorage/place") }))
			b.run(t, n, fmt.Sprintf("later-%d", i+1))
		}
	})
	t.Run("every leg", func(t *testing.T) {
		for i, from := range pods {
			for j, to := range pods {
				requireReached(t, fmt.Sprintf("host %d to pod %d", i+1, j+1), b.Nodes[i].Host, to.addr)
				if i != j {
					requireReached(t, fmt.Sprintf("pod %d to pod %d", i+1, j+1), from.Netns, to.addr)
				}
			}
		}
	})
	t.Run("the API server away", func(t *testing.T) { away(t, b, pods) })
	t.Run("DEL leaves nothing", func(t *testing.T) {
		for i, p := range pods {
			require.NoError(t, p.Del(t.Context()))
			links, err := testnode.Links(p.Netns)
			require.NoError(t, err)
			assert.Empty(t, links)
			records, err := b.Nodes[i].Files("/run/lhstorage/attachments")
			require.NoError(t, err)
			assert.Empty(t, records)
			_, err = b.Kubectl(t.Context(), "get", "addressclaim", p.addr.String())
			require.ErrorContains(t, err, "not found")
			_, err = b.Kubectl(t.Context(), "-n", metav1.NamespaceSystem, "get", "overlappingrangeipreservations.whereabouts.cni.cncf.io", p.addr.String())
			require.ErrorContains(t, err, "not found")
			out, err := b.Kubectl(t.Context(), "-n", metav1.NamespaceSystem, "get", "ippools.whereabouts.cni.cncf.io", "10.100.1.0-24", "-o", "jsonpath={.spec.allocations}")
			require.NoError(t, err)
			assert.NotContains(t, out, p.ID)
		}
	})
}

// away: a running network doesn't need the API server, an ADD fails in bounded
// time with a code that says to try again, and a DEL ends well and is caught up on.
func away(t *testing.T, b bed, pods []pod) {
	n := b.Nodes[0]
	leaving := b.run(t, n, "leaving")
	require.NoError(t, b.StopAPIServer())
	requireReached(t, "host to its own pod", n.Host, pods[0].addr)
	requireReached(t, "host to a remote pod", n.Host, pods[1].addr)
	require.NoError(t, n.Do(func() error { return callOnNode("DEL", leaving.ID, leaving.Netns, nad) }))
	refused(t, n, "early", leaving.Netns)
	rebootedUnheard(t, b, pods[1])
	require.NoError(t, b.StartAPIServer(t.Context()))
	_, err := b.Kubectl(t.Context(), "get", "addressclaim", leaving.addr.String())
	require.NoError(t, err, "the release is only queued")
	assert.Equal(t, leaving.addr, b.run(t, n, "next").addr, "the next call replays the queue first, so the lowest address is free again")
}
