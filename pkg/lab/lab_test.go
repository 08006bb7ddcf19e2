package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStockMacvlan shows what the project is about: with stock macvlan the host
// can't reach its own pods, on any parent, and everything else works.
func TestStockMacvlan(t *testing.T) {
	for _, o := range []lab.Options{
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyMesh},
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyLAN, IPAM: lab.IPAMStatic},
		{Parent: lab.ParentDevice, Topology: lab.TopologyLAN},
	} {
		t.Run(o.Parent+"-"+o.Topology, func(t *testing.T) {
			o.Plugin = lab.PluginMacvlan
			l := labtest.Up(t, o)
			labtest.AddPodPerNode(t, l)
			legs, err := l.Matrix(t.Context(), lab.MatrixOptions{})
			require.NoError(t, err)
			require.Len(t, legs, 15)
			for _, leg := range legs {
				assert.GreaterOrEqual(t, leg.Packets, 20)
				if leg.Leg == lab.LegHostLocal {
					assert.InDelta(t, 100, leg.Loss, 0, "%+v", leg)
					assert.Nil(t, leg.RTT)
				} else {
					assert.Zero(t, leg.Loss, "%+v", leg)
					assert.NotNil(t, leg.RTT)
				}
			}
		})
	}
}

// TestLhstorage is the promise: every leg of every pair, on every parent, with
// every IPAM, in packets of the full MTU too.
func TestLhstorage(t *testing.T) {
	for _, o := range []lab.Options{
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyMesh, Nodes: 4},
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyLAN, IPAM: lab.IPAMStatic},
		{Parent: lab.ParentDevice, Topology: lab.TopologyLAN},
		{Parent: lab.ParentDevice, Topology: lab.TopologyLAN, IPAM: lab.IPAMHostLocal, MTU: 1500},
		{Parent: lab.ParentVXLAN, Topology: lab.TopologyMesh, Range: netip.MustParsePrefix("fd00:64::/64")},
	} {
		t.Run(strings.Join([]string{o.Parent, o.Topology, o.IPAM, o.Range.String()}, " "), func(t *testing.T) {
			l := labtest.Up(t, o)
			before := hostNetworks(t, l)
			labtest.AddPodPerNode(t, l)
			_, err := l.AddPod(t.Context(), "node1", "pod2", lab.PodOptions{Eth0: lab.Eth0Inside})
			require.NoError(t, err)
			mtu := l.Options().MTU
			if o.Parent == lab.ParentVXLAN {
				mtu -= 50
			}
			for _, size := range []int{0, mtu} {
				legs, err := l.Matrix(t.Context(), lab.MatrixOptions{MTU: size})
				require.NoError(t, err)
				assert.Len(t, legs, wantLegs(l.Options().Nodes))
				assert.Empty(t, lab.Failed(legs))
			}
			tooLarge, err := l.Matrix(t.Context(), lab.MatrixOptions{MTU: mtu + 1})
			require.NoError(t, err)
			assert.Len(t, lab.Failed(tooLarge), len(tooLarge), "packets of one byte more pass")
			for _, node := range l.Nodes() {
				require.NoError(t, l.Check(t.Context(), node.Name, "pod1"))
			}
			assert.Equal(t, before, hostNetworks(t, l), "the nodes' own addresses and default routes")
		})
	}
}

// wantLegs counts the legs with one pod per node and a second one on node1.
func wantLegs(nodes int) int {
	podPod := nodes*(nodes-1) + 2*(nodes-1)
	hostToPod := nodes * (nodes + 1)
	return podPod + hostToPod
}

// hostNetworks are the nodes' own addresses and default routes, which the
// plugin must leave alone: those of the underlay's devices.
func hostNetworks(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	var lines []string
	for _, node := range l.Nodes() {
		in, err := l.In(node.Name, "")
		require.NoError(t, err)
		require.NoError(t, in(func() error {
			addrs, err := netlinksafe.AddrList(nil, netlink.FAMILY_V4)
			require.NoError(t, err)
			for _, a := range addrs {
				if a.Label == "eth1" || strings.HasPrefix(a.Label, "to-") {
					lines = append(lines, node.Name+" "+a.String())
				}
			}
			routes, err := netlinksafe.RouteList(nil, netlink.FAMILY_V4)
			require.NoError(t, err)
			for _, r := range routes {
				if r.Dst == nil || r.Dst.IP.IsUnspecified() {
					lines = append(lines, node.Name+" "+r.String())
				}
			}
			return nil
		}))
	}
	return lines
}

func TestDownLeavesNothing(t *testing.T) {
	labtest.RequireRoot(t)
	for _, topology := range []string{lab.TopologyMesh, lab.TopologyLAN} {
		t.Run(topology, func(t *testing.T) {
			before := snapshot(t)
			root := filepath.Join(t.TempDir(), "root")
			l := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, Topology: topology, Root: root})
			require.NoError(t, l.Up(t.Context()))
			labtest.AddPodPerNode(t, l)
			_, err := l.AddPod(t.Context(), "node1", "pod2", lab.PodOptions{Eth0: lab.Eth0Moved})
			require.NoError(t, err)

			other, err := lab.Open(root, l.Options().Name)
			require.NoError(t, err)
			require.NoError(t, other.DelPod(t.Context(), "node2", "pod1"))
			require.NoError(t, other.Down(t.Context()))
			assert.NoDirExists(t, root)
			assert.Equal(t, before, snapshot(t))
			require.NoError(t, l.Down(t.Context()), "a second time")
		})
	}
}

// TestInterruptLeavesNothing interrupts Up and AddPod at many moments.
func TestInterruptLeavesNothing(t *testing.T) {
	labtest.RequireRoot(t)
	before := snapshot(t)
	root := filepath.Join(t.TempDir(), "root")
	interrupted := 0
	for delay := time.Millisecond; delay < 400*time.Millisecond; delay = delay * 5 / 3 {
		l := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, Nodes: 4, Root: root})
		ctx, cancel := context.WithTimeoutCause(t.Context(), delay, errors.New("interrupted"))
		err := l.Up(ctx)
		if err == nil {
			_, err = l.AddPod(ctx, "node1", "pod1", lab.PodOptions{})
			pods, podsErr := l.Pods()
			require.NoError(t, podsErr)
			assert.Equal(t, err == nil, len(pods) == 1, "a pod stays exactly if AddPod succeeded")
			require.NoError(t, l.Down(t.Context()))
		}
		cancel()
		if err != nil {
			interrupted++
			assert.ErrorContains(t, err, "interrupted")
		}
		assert.Equal(t, before, snapshot(t), "interrupted after %s", delay)
		assert.NoDirExists(t, root)
	}
	assert.Greater(t, interrupted, 2)
}

// TestDownAfterKill takes down what a killed process has left half-built.
func TestDownAfterKill(t *testing.T) {
	labtest.RequireRoot(t)
	if name := os.Getenv("LAB_TO_KILL"); name != "" {
		l := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, Nodes: 8, Name: name, Root: os.Getenv("LAB_ROOT")})
		require.NoError(t, l.Up(t.Context()))
		labtest.AddPodPerNode(t, l)
		return
	}
	bin := labtest.Stock(t)
	before := snapshot(t)
	for _, delay := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond} {
		name, root := labtest.Name(), t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestDownAfterKill$")
		cmd.Env = append(os.Environ(), "LAB_TO_KILL="+name, "LAB_ROOT="+root, labtest.BinDirEnv+"="+bin)
		require.NoError(t, cmd.Start())
		time.Sleep(delay)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		l := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, Name: name, Root: root})
		require.NoError(t, l.Down(t.Context()))
		assert.Equal(t, before, snapshot(t), "killed after %s", delay)
	}
}

func TestUpRefusesWhatIsThere(t *testing.T) {
	l := labtest.Up(t, lab.Options{Plugin: lab.PluginMacvlan, Nodes: 1})
	again := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, Nodes: 2, Name: l.Options().Name, Root: t.TempDir()})
	require.ErrorContains(t, again.Up(t.Context()), "network namespace "+l.Nodes()[0].Netns+" exists already")
	require.NoError(t, again.Down(t.Context()))
	_, err := l.AddPod(t.Context(), "node1", "pod1", lab.PodOptions{})
	require.NoError(t, err, "the first lab is untouched")
	_, err = l.AddPod(t.Context(), "node1", "pod1", lab.PodOptions{})
	require.ErrorContains(t, err, "exists already")
	require.ErrorContains(t, l.DelPod(t.Context(), "node1", "nobody"), "no pod nobody on node1")
}

func TestUpNamesMissingPlugins(t *testing.T) {
	labtest.RequireRoot(t)
	l := labtest.New(t, lab.Options{Plugin: lab.PluginMacvlan, BinDirs: []string{t.TempDir()}})
	err := l.Up(t.Context())
	require.ErrorContains(t, err, "CNI plugin macvlan")
	require.ErrorContains(t, err, "CNI plugin host-local")
	require.ErrorContains(t, err, "make build")
}

// TestEth0 checks on which side of lhnet1 a pod's eth0 lies.
func TestEth0(t *testing.T) {
	l := labtest.Up(t, lab.Options{Plugin: lab.PluginMacvlan, Nodes: 2})
	for _, eth0 := range []string{lab.Eth0Inside, lab.Eth0Moved} {
		_, err := l.AddPod(t.Context(), "node1", eth0, lab.PodOptions{Eth0: eth0})
		require.NoError(t, err)
		in, err := l.In("node1", eth0)
		require.NoError(t, err)
		var cluster, storage int
		require.NoError(t, in(func() error { cluster, storage = index(t, "eth0"), index(t, "lhnet1"); return nil }))
		assert.Equal(t, eth0 == lab.Eth0Inside, cluster < storage, "%s: eth0 %d, lhnet1 %d", eth0, cluster, storage)
	}
	require.NoError(t, l.Exec(t.Context(), "node1", "", []string{"true"}))
	var exit *exec.ExitError
	require.ErrorAs(t, l.Exec(t.Context(), "node1", lab.Eth0Moved, []string{"sh", "-c", "exit 7"}), &exit)
	assert.Equal(t, 7, exit.ExitCode())
}

// TestLearning measures the waste on uninvolved links with learning and without.
func TestLearning(t *testing.T) {
	l := labtest.Up(t, lab.Options{Plugin: lab.PluginMacvlan})
	labtest.AddPodPerNode(t, l)
	const bytes = 20 << 20
	flow := lab.Flow{FromNode: "node1", FromPod: "pod1", ToNode: "node2", ToPod: "pod1", Bytes: bytes}
	for _, learning := range []bool{true, false, true} {
		require.NoError(t, l.SetLearning(learning))
		usage, err := l.Stream(t.Context(), flow)
		require.NoError(t, err)
		assert.Greater(t, usage.Carried, uint64(bytes))
		if learning {
			assert.Less(t, usage.WasteRatio(), 0.02)
		} else {
			assert.InDelta(t, 1, usage.WasteRatio(), 0.1)
		}
	}
}

func index(t *testing.T, name string) int {
	t.Helper()
	link, err := netlinksafe.LinkByName(name)
	require.NoError(t, err)
	return link.Attrs().Index
}

// snapshot lists what a lab could leave behind in this namespace.
func snapshot(t *testing.T) string {
	t.Helper()
	links, err := netlinksafe.LinkList()
	require.NoError(t, err)
	var lines []string
	for _, link := range links {
		lines = append(lines, "link "+link.Attrs().Name)
	}
	entries, err := os.ReadDir("/run/netns")
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "t"+pid()) {
			lines = append(lines, "netns "+e.Name())
		}
	}
	return strings.Join(lines, "\n")
}

// pid begins the names of this process's labs.
func pid() string { return strconv.Itoa(os.Getpid()) }
