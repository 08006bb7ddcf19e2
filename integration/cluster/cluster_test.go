package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	// wanted is set by `make test-cluster`: a cluster takes a machine for minutes.
	// With the value full, what is repeated is repeated as often as it was asked for.
	wanted = "LHSTORAGE_TEST_CLUSTER"
	full   = "full"

	namespace = "longhorn-system"

	stockNAD = `{"cniVersion": "1.0.0", "name": "stock", "type": "macvlan", "master": "vxlan-storage", "mode": "bridge",
  "ipam": {"type": "whereabouts", "range": "10.100.1.0/24", "exclude": ["10.100.1.0/28"]}}`

	// The source design's network.
	ourNAD = `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100,
             "vtep": {"cidr": "10.100.100.0/24", "routes": "static",
                      "via": {"10.100.100.1": "to-node1", "10.100.100.2": "to-node2", "10.100.100.3": "to-node3", "10.100.100.4": "to-node4"}}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`
)

var (
	stock = controlplane.Network{Namespace: namespace, Name: "stock", Interface: StorageInterface}
	ours  = controlplane.Network{Namespace: namespace, Name: "storage", Interface: StorageInterface}
)

// bed is a cluster under test.
type bed struct {
	*Cluster
}

func newBed(t *testing.T, o Options) bed {
	t.Helper()
	if os.Getenv(wanted) == "" {
		t.Skipf("%s isn't set: `make test-cluster` sets it", wanted)
	}
	testnode.RequireRoot(t)
	o.UnsafeNoFsync = true
	begin := time.Now()
	// Not the test's context: that ends before the clean-up.
	c, err := Start(context.Background(), o)
	require.NoError(t, err)
	t.Logf("%s after %s: %s", c.Name, time.Since(begin).Round(10*time.Millisecond), c.Conditions())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", c.Logs())
		}
		require.NoError(t, c.Stop())
	})
	require.NoError(t, c.CreateNamespace(t.Context(), namespace))
	return bed{c}
}

// on are the nodes that have power.
func (b bed) on() []*Node {
	return slices.DeleteFunc(slices.Clone(b.Nodes), (*Node).Off)
}

// times is how often something is repeated: little in CI, often in a full run.
func times(little, often int) int {
	if os.Getenv(wanted) == full {
		return often
	}
	return little
}

// managers makes an instance manager on each node that is on.
func (b bed) managers(t *testing.T, network controlplane.Network) []Running {
	t.Helper()
	begin := time.Now()
	var names []string
	for _, n := range b.on() {
		names = append(names, "instance-manager-"+n.Name)
		require.NoError(t, b.Create(t.Context(), namespace, InstanceManager(n.Name, names[len(names)-1], network)))
	}
	pods := b.running(t, names...)
	t.Logf("%d instance managers with network %s after %s", len(pods), network.Name, time.Since(begin).Round(10*time.Millisecond))
	return pods
}

func (b bed) running(t *testing.T, names ...string) []Running {
	t.Helper()
	var pods []Running
	for _, name := range names {
		p, err := b.WaitRunning(t.Context(), namespace, name)
		require.NoError(t, err)
		require.True(t, p.Storage.IsValid(), "pod %s has no %s", name, StorageInterface)
		pods = append(pods, p)
	}
	return pods
}

// remove deletes all pods and waits until they and what they held are gone.
func (b bed) remove(t *testing.T) {
	t.Helper()
	require.NoError(t, b.RemovePods(t.Context(), namespace))
}

func (b bed) until(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	require.NoError(t, controlplane.Until(t.Context(), nil, what, f))
}

func (b bed) wantNoneHeld(t *testing.T) {
	t.Helper()
	require.NoError(t, b.WaitNoneHeld(t.Context()))
}

// wantLegs checks the legs of all pods: those of the kind lost, and those from the
// nodes that are cut off, must lose everything and all others nothing.
func (b bed) wantLegs(t *testing.T, pods []Running, lost string, cut ...*Node) {
	t.Helper()
	legs, err := b.Matrix(t.Context(), pods)
	require.NoError(t, err)
	require.NotEmpty(t, legs)
	for _, leg := range legs {
		want := 0.0
		if leg.Leg == lost || slices.ContainsFunc(cut, func(n *Node) bool { return n.Name == leg.From }) {
			want = 100
		}
		assert.InDelta(t, want, leg.Loss, 0, "%s, %s to %s: loss in percent", leg.Leg, leg.From, leg.To)
	}
	t.Logf("%d legs, %d packets each", len(legs), legs[0].Packets)
}

// untilPeers waits until nodes that have just joined know each other, which an agent is allowed two seconds for, and a busy machine more.
func (b bed) untilPeers(t *testing.T, pods []Running) {
	t.Helper()
	b.until(t, "the nodes know each other", func(ctx context.Context) error {
		legs, err := b.Matrix(ctx, pods)
		for _, leg := range legs {
			if err == nil && leg.Loss > 0 {
				err = fmt.Errorf("%s, %s to %s: %v %% lost", leg.Leg, leg.From, leg.To, leg.Loss)
			}
		}
		return err
	})
}

// dialled are the addresses that Longhorn's initiator dials.
func dialled(t *testing.T, pods []Running) []netip.Addr {
	t.Helper()
	var addrs []netip.Addr
	for _, p := range pods {
		a, err := DialAddress(p)
		require.NoError(t, err)
		addrs = append(addrs, a)
	}
	return addrs
}

func TestCluster(t *testing.T) {
	b := newBed(t, Options{Script: true, Primary: Moved, Spare: 1})
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, stock.Name, stockNAD))
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, ours.Name, ourNAD))
	steps := []struct {
		name string
		run  func(*testing.T, bed)
	}{
		{"stock macvlan: no host reaches its own pod", problem},
		{"lhstorage beside it: every leg and every disk", answer},
		{"eth0 made in the pod: Longhorn dials that", bridged},
		{"a node dies and comes back", reboots},
		{"a hundred pods at once", crowd},
		{"the API server away, containerd and kubelet restarted, programs replaced", troubles},
		{"a node is cut off, and one is slow", cutOff},
		{"a node joins", joined},
		{"a node is drained and removed", removed},
	}
	for _, step := range steps {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, b) }) {
			return // each step begins with what the one before has left
		}
	}
}

// problem is the user's: a macvlan parent and its children can't talk.
func problem(t *testing.T, b bed) {
	pods := b.managers(t, stock)
	b.wantLegs(t, pods, lab.LegHostLocal)
	for i, addr := range dialled(t, pods) {
		require.Equal(t, pods[i].Storage, addr, "eth0 was moved in: %s comes first", StorageInterface)
		next := b.Nodes[(i+1)%len(pods)]
		require.NoError(t, next.Attach(t.Context(), addr), "a remote disk")
		require.Error(t, b.Nodes[i].Attach(t.Context(), addr), "the test shows nothing: %s reaches its own pod", b.Nodes[i].Name)
	}
	b.remove(t)
	b.wantNoneHeld(t)
}

// answer is lhstorage on the parents that the script made.
func answer(t *testing.T, b bed) {
	require.NoError(t, b.InstallLhstorage(t.Context()))
	pods := b.managers(t, ours)
	b.wantLegs(t, pods, "")
	for i, addr := range dialled(t, pods) {
		require.Equal(t, pods[i].Storage, addr)
		b.wantAttached(t, addr)
	}
	b.remove(t)
	b.wantNoneHeld(t)
}

// bridged is the same where the pod's first interface can't be overtaken.
func bridged(t *testing.T, b bed) {
	require.NoError(t, b.UsePrimary(Bridge))
	pods := b.managers(t, ours)
	b.wantLegs(t, pods, "")
	for i, addr := range dialled(t, pods) {
		require.Equal(t, pods[i].Status.PodIP, addr.String())
		b.wantAttached(t, addr)
		b.wantAttached(t, pods[i].Storage)
	}
}

// wantAttached attaches a disk from every node.
func (b bed) wantAttached(t *testing.T, addr netip.Addr) {
	t.Helper()
	for _, n := range b.on() {
		require.NoError(t, n.Attach(t.Context(), addr))
	}
}

// reboots cuts the last node's power, while others talk.
func reboots(t *testing.T, b bed) {
	pods := b.running(t, "instance-manager-node1", "instance-manager-node2", "instance-manager-node3")
	stop := b.talk(t, b.Nodes[0], pods[1].Storage)
	before := pods[2]
	var took time.Duration
	n := times(2, 20)
	for range n {
		begin := time.Now()
		require.NoError(t, b.Nodes[2].Reboot(t.Context()))
		require.NoError(t, b.Nodes[2].WaitReady(t.Context()))
		after := b.again(t, before)
		took += time.Since(begin)
		require.Equal(t, before.Storage, after.Storage, "the pod keeps its address")
		pods[2] = after
		b.wantLegs(t, pods, "")
		require.NoError(t, b.Nodes[2].Attach(t.Context(), after.Storage))
		held, err := b.Held(t.Context())
		require.NoError(t, err)
		require.Len(t, held, 3*len(pods), "claim, reservation and pool entry for each pod: %v", held)
	}
	sent, lost := stop()
	require.Zero(t, lost, "packets between nodes that had no part in it")
	t.Logf("%d reboots, %s each until the pod was Ready again; %d packets between the other nodes, none lost",
		n, (took / time.Duration(n)).Round(100*time.Millisecond), sent)
}

// age makes the cluster's answers, as a node keeps them, an hour old.
func age() error {
	files, err := filepath.Glob("/var/lib/lhstorage/place/*.json")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("the node has kept no answer (%w)", err)
	}
	old := time.Now().Add(-time.Hour)
	for _, f := range files {
		if err := os.Chtimes(f, old, old); err != nil {
			return err
		}
	}
	return nil
}

// again waits until a pod runs in a new sandbox.
func (b bed) again(t *testing.T, before Running) Running {
	t.Helper()
	var after Running
	b.until(t, before.Name+" runs again", func(ctx context.Context) (err error) {
		if after, err = b.WaitRunning(ctx, namespace, before.Name); err != nil {
			return err
		}
		if !after.Storage.IsValid() {
			return fmt.Errorf("it has no %s", StorageInterface)
		}
		return nil
	})
	return after
}

// talk sends packets until it is told to stop, and says how many and how many were
// lost.
func (b bed) talk(t *testing.T, from *Node, to netip.Addr) (stop func() (sent, lost int)) {
	t.Helper()
	return talkIn(t, from.Do, to)
}

// talkIn is the same from wherever in takes it.
func talkIn(t *testing.T, in func(func() error) error, to netip.Addr) (stop func() (sent, lost int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var sent, lost int
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			var r probe.PingResult
			err := in(func() (err error) {
				r, err = probe.Ping(t.Context(), probe.PingOptions{Target: to, Count: 50, Interval: 20 * time.Millisecond, Wait: 2 * time.Second})
				return err
			})
			assert.NoError(t, err)
			sent, lost = sent+r.Wanted, lost+r.Wanted-r.Received
		}
	})
	return func() (int, int) {
		cancel()
		wg.Wait()
		return sent, lost
	}
}

// names are the pods' names of a crowd.
func names(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("crowd-%d", i))
	}
	return all
}

func crowd(t *testing.T, b bed) {
	b.remove(t)
	b.wantNoneHeld(t)
	for range times(1, 3) {
		b.oneCrowd(t, ours, times(30, 100))
	}
}

// oneCrowd makes pods at once, wherever the scheduler puts them, and removes them.
func (b bed) oneCrowd(t *testing.T, network controlplane.Network, n int) {
	t.Helper()
	made, err := b.MakeCrowd(t.Context(), namespace, network, n)
	require.NoError(t, err)
	t.Logf("%d pods with network %s: Ready after %s", n, network.Name, made.Wall().Round(100*time.Millisecond))
	require.NoError(t, made.Duplicates())
	begin := time.Now()
	b.remove(t)
	b.wantNoneHeld(t)
	t.Logf("gone, and all addresses free, after %s more", time.Since(begin).Round(100*time.Millisecond))
	for _, node := range b.on() {
		peak, err := node.MultusMemoryPeak(t.Context())
		require.NoError(t, err)
		t.Logf("%s: the Multus pod had %d MiB at most", node.Name, peak>>20)
	}
}

// troubles are what happens to a cluster and must not happen to its storage.
func troubles(t *testing.T, b bed) {
	pods := b.managers(t, ours)
	stop := b.talk(t, b.Nodes[0], pods[0].Storage)
	require.NoError(t, b.StopAPIServer())
	b.wantLegs(t, pods, "")
	require.NoError(t, b.StartAPIServer(t.Context()))
	for _, n := range b.on() {
		require.NoError(t, n.RestartContainerd(t.Context()))
		require.NoError(t, n.RestartKubelet())
	}
	b.wantLegs(t, pods, "")
	require.NoError(t, b.WaitReady(t.Context()))

	const more = 9
	for _, name := range names(more) {
		require.NoError(t, b.Create(t.Context(), namespace, Pod("", name, ours)))
	}
	replacing, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, n := range b.on() {
		wg.Go(func() {
			for replacing.Err() == nil {
				assert.NoError(t, n.ReplacePrograms())
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	b.running(t, names(more)...)
	cancel()
	wg.Wait()
	sent, lost := stop()
	require.Zero(t, lost, "of %d packets from a host to its own pod", sent)
}

// cutOff takes one node off the network, whose host goes on reaching its own pod, and
// slows another down.
func cutOff(t *testing.T, b bed) {
	pods := b.running(t, "instance-manager-node1", "instance-manager-node2", "instance-manager-node3")
	cut := b.Nodes[1]
	require.NoError(t, cut.CutOff())
	b.wantLegs(t, []Running{pods[0], pods[2]}, "", cut)
	require.NoError(t, cut.Attach(t.Context(), pods[1].Storage), "a disk on the node itself")
	require.Error(t, cut.Attach(t.Context(), pods[0].Storage), "the test shows nothing: it isn't cut off")
	require.NoError(t, cut.Restore())
	b.until(t, "the node is reached again", func(ctx context.Context) error { return cut.Attach(ctx, pods[0].Storage) })
	b.wantLegs(t, pods, "")

	const rate = 2 << 20 // bytes per second: a disk takes two seconds
	require.NoError(t, b.Nodes[2].SlowDown(rate))
	b.wantLegs(t, pods, "")
	begin := time.Now()
	require.NoError(t, b.Nodes[0].Attach(t.Context(), pods[2].Storage))
	require.Greater(t, time.Since(begin), time.Second, "the test shows nothing: the node isn't slow")
	require.NoError(t, b.Nodes[2].Restore())
}

// joined switches a new machine on.
func joined(t *testing.T, b bed) {
	last := b.Nodes[len(b.Nodes)-1]
	require.True(t, last.Off())
	begin := time.Now()
	require.NoError(t, last.Boot(t.Context()))
	require.NoError(t, last.WaitReady(t.Context()))
	name := "instance-manager-" + last.Name
	require.NoError(t, b.Create(t.Context(), namespace, InstanceManager(last.Name, name, ours)))
	b.running(t, name)
	t.Logf("its pod is Ready %s after it was switched on", time.Since(begin).Round(100*time.Millisecond))
	// Until there is the agent, a node hears of a new peer with its first pod a minute later.
	for _, n := range b.on()[:3] {
		require.NoError(t, n.Do(age))
		require.NoError(t, b.Create(t.Context(), namespace, Pod(n.Name, "hears-"+n.Name, ours)))
		b.running(t, "hears-"+n.Name)
	}
	pods := b.running(t, "instance-manager-node1", "instance-manager-node2", "instance-manager-node3", name)
	b.wantLegs(t, pods, "")
	for _, p := range pods {
		b.wantAttached(t, p.Storage)
	}
}

// removed drains a node, takes it out of the cluster and off the net.
func removed(t *testing.T, b bed) {
	last := b.Nodes[2]
	_, err := b.Kubectl(t.Context(), "drain", last.Name, "--ignore-daemonsets", "--force", "--timeout=90s")
	require.NoError(t, err)
	b.until(t, "the node's addresses are free", func(ctx context.Context) error {
		list, err := b.Dynamic.Resource(claims).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, claim := range list.Items {
			if node, _, _ := unstructured.NestedString(claim.Object, "spec", "node"); node == last.Name {
				return fmt.Errorf("%s is held", claim.GetName())
			}
		}
		return nil
	})
	_, err = b.Kubectl(t.Context(), "delete", "node", last.Name)
	require.NoError(t, err)
	require.NoError(t, last.Kill())
	b.wantLegs(t, b.running(t, "instance-manager-node1", "instance-manager-node2", "instance-manager-node4"), "")
}
