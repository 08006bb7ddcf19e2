package lab

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

func complete(t *testing.T, o Options) Options {
	t.Helper()
	o.Root, o.BinDirs = "/run/lhstorage-lab", []string{"/opt/cni/bin"}
	o, err := o.complete()
	require.NoError(t, err)
	return o
}

// TestPlanHasNoCollisions checks that no two things in a lab share an address.
func TestPlanHasNoCollisions(t *testing.T) {
	for _, storage := range []string{"10.100.1.0/24", "192.168.0.0/25", "172.16.0.0/12", "fd00:64::/64", "fd00:64::/121"} {
		for nodes := 1; nodes <= maxNodes; nodes++ {
			for _, parent := range []string{ParentVXLAN, ParentDevice} {
				o := complete(t, Options{Nodes: nodes, Parent: parent, Range: netip.MustParsePrefix(storage)})
				seen := map[netip.Addr]string{}
				take := func(a netip.Addr, what string) {
					require.Empty(t, seen[a], "%s: %s is also %s", storage, a, what)
					seen[a] = what
				}
				var windows []Window
				for _, n := range o.nodes() {
					require.True(t, o.Range.Contains(n.Host.Addr()))
					if parent == ParentVXLAN {
						take(n.VTEP, n.Name+" VTEP")
						require.True(t, o.hostRange().Contains(n.Host.Addr()))
					}
					take(n.Host.Addr(), n.Name)
					windows = append(windows, n.Window)
				}
				if o.Topology == TopologyLAN {
					take(o.gateway().Addr(), "gateway")
				}
				for i, w := range windows {
					require.False(t, w.Last.Less(w.First))
					require.True(t, o.Range.Contains(w.First) && o.Range.Contains(w.Last))
					require.False(t, o.hostRange().Contains(w.First))
					require.True(t, i == 0 || windows[i-1].Last.Less(w.First), "windows overlap")
					for a, what := range seen {
						require.False(t, w.contains(a), "%s: window of node %d holds %s of %s", storage, i+1, a, what)
					}
				}
			}
		}
	}
}

func TestMeshLinksAreDistinct(t *testing.T) {
	o := complete(t, Options{Nodes: maxNodes})
	seen := map[netip.Addr]bool{}
	for i := 1; i <= maxNodes; i++ {
		for j := i + 1; j <= maxNodes; j++ {
			a, b := o.meshLink(i, j)
			assert.Equal(t, a.Masked(), b.Masked(), "the two ends of %d-%d", i, j)
			assert.False(t, seen[a.Addr()] || seen[b.Addr()], "link %d-%d", i, j)
			seen[a.Addr()], seen[b.Addr()] = true, true
		}
	}
	assert.Len(t, seen, maxNodes*(maxNodes-1))
}

// TestOptionsReportAllFaults gives many faults at once.
func TestOptionsReportAllFaults(t *testing.T) {
	_, err := New(Options{
		Name: "Lab/..", Root: "here", Nodes: 16, Topology: "ring", Parent: "bond", Plugin: "bridge", IPAM: "dhcp",
		MTU: 100, Range: netip.MustParsePrefix("10.100.1.1/24"),
	})
	for _, part := range []string{
		`name "Lab/.."`, `root "here"`, "nodes 16", `topology "ring"`, `parent "bond"`, `plugin "bridge"`, `ipam "dhcp"`, "mtu 100", "range 10.100.1.1/24", "no directory",
	} {
		require.ErrorContains(t, err, part)
	}
	_, err = New(Options{Parent: ParentDevice, Topology: TopologyMesh, BinDirs: []string{"/"}, Range: netip.MustParsePrefix("10.0.0.0/8")})
	require.ErrorContains(t, err, "use topology lan")
	require.ErrorContains(t, err, "overlaps")
	_, err = New(Options{Nodes: 1, Topology: TopologyMesh, BinDirs: []string{"/"}})
	require.ErrorContains(t, err, "mesh with one node")
}

// TestNetConf compares the configurations that are written for nodes with
// golden files (UPDATE=1 writes them). lhstorage's own parser must accept its.
func TestNetConf(t *testing.T) {
	for name, o := range map[string]Options{
		"lhstorage-mesh":    {},
		"lhstorage-lan":     {Topology: TopologyLAN, IPAM: IPAMHostLocal},
		"lhstorage-device":  {Parent: ParentDevice, IPAM: IPAMStatic},
		"macvlan-mesh":      {Plugin: PluginMacvlan},
		"macvlan-device":    {Plugin: PluginMacvlan, Parent: ParentDevice},
		"lhstorage-changed": {Nodes: 1, Configure: func(_ Node, conf map[string]any) { conf["iscsiPath"] = "pod-ip" }},
	} {
		t.Run(name, func(t *testing.T) {
			o := complete(t, o)
			l := &Lab{opts: o}
			list := l.confList(o.node(1))
			got, err := json.MarshalIndent(list, "", "  ")
			require.NoError(t, err)
			golden := filepath.Join("testdata", name+".json")
			if os.Getenv("UPDATE") != "" {
				require.NoError(t, writeFile(golden, append(got, '\n')))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), string(got)+"\n")
			if o.Plugin == PluginLhstorage && o.IPAM != IPAMStatic {
				accepts(t, list)
			}
		})
	}
}

// accepts gives the first plugin's configuration to lhstorage's parser, with
// what libcni adds to it.
func accepts(t *testing.T, list map[string]any) {
	t.Helper()
	conf := list["plugins"].([]any)[0].(map[string]any)
	conf["cniVersion"], conf["name"] = list["cniVersion"], list["name"]
	data, err := json.Marshal(conf)
	require.NoError(t, err)
	_, err = netconf.Parse(netconf.Add, data, "")
	require.NoError(t, err)
}

func TestStaticConf(t *testing.T) {
	o := complete(t, Options{Plugin: PluginMacvlan, IPAM: IPAMStatic})
	data, err := json.Marshal((&Lab{opts: o}).confList(o.node(2)))
	require.NoError(t, err)
	got, err := staticConf(data, netip.MustParsePrefix("10.100.1.20/24"))
	require.NoError(t, err)
	assert.Contains(t, string(got), `"ipam":{"addresses":[{"address":"10.100.1.20/24"}],"type":"static"}`)
	for _, broken := range []string{`{`, `{"plugins":[]}`, `{"plugins":[{"type":"x"}]}`} {
		_, err := staticConf([]byte(broken), netip.MustParsePrefix("10.100.1.20/24"))
		assert.Error(t, err, broken)
	}
}

func TestFreeAddress(t *testing.T) {
	network := netip.MustParsePrefix("10.0.0.0/24")
	node := Node{Name: "node1", Window: Window{First: netip.MustParseAddr("10.0.0.5"), Last: netip.MustParseAddr("10.0.0.6")}}
	var pods []Pod
	for _, want := range []string{"10.0.0.5/24", "10.0.0.6/24"} {
		got, err := freeAddress(network, node, pods)
		require.NoError(t, err)
		assert.Equal(t, want, got.String())
		pods = append(pods, Pod{Static: got})
	}
	_, err := freeAddress(network, node, pods)
	require.ErrorContains(t, err, "no address left")
}

func TestNodeFileIsReadable(t *testing.T) {
	o, err := Options{Root: t.TempDir(), BinDirs: []string{"/"}}.complete()
	require.NoError(t, err)
	l := &Lab{opts: o}
	node := o.node(3)
	require.NoError(t, l.writeNode(node))
	t.Setenv(nodefile.PathEnv, node.NodeFile())
	file, err := nodefile.Load()
	require.NoError(t, err)
	assert.Equal(t, nodefile.File{NodeName: "node3", Index: 3, StateDir: node.StateDir(), RunDir: node.RunDir(), Record: nodefile.RecordSync}, file)
}

func TestStateSurvivesARoundTrip(t *testing.T) {
	o := complete(t, Options{Parent: ParentDevice, NoLearning: true})
	s := store{dir: filepath.Join(t.TempDir(), "root", "x")}
	_, err := s.load()
	require.ErrorIs(t, err, errNoState)
	want := State{
		Version: stateVersion, Options: o, Created: time.Unix(1_700_000_000, 0).UTC(), Namespaces: o.namespaces(),
		Pods: []Pod{{Node: "node1", Name: "a", UID: "u", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}},
	}
	require.NoError(t, s.create(want))
	require.ErrorContains(t, s.create(want), "is there already")
	got, err := s.load()
	require.NoError(t, err)
	assert.Equal(t, want, got)

	closed, err := s.close()
	require.NoError(t, err)
	assert.True(t, closed.Closing)
	require.ErrorContains(t, closed.take(&Pod{Node: "node1", Name: "b"}, o.node(1)), "going down")
	require.NoError(t, s.remove())
	assert.NoDirExists(t, filepath.Dir(s.dir))
	_, err = s.change(func(*State) error { return nil })
	require.ErrorIs(t, err, errNoState)
}

func TestStateOfAnotherVersionIsRefused(t *testing.T) {
	s := store{dir: t.TempDir()}
	for _, broken := range []string{`{"version": 2}`, `{`, `[]`} {
		require.NoError(t, os.WriteFile(s.file(), []byte(broken), 0o600))
		_, err := s.load()
		require.ErrorContains(t, err, s.file())
	}
}

// TestStateIsChangedAlone lets many change it at once.
func TestStateIsChangedAlone(t *testing.T) {
	s := store{dir: filepath.Join(t.TempDir(), "x")}
	require.NoError(t, s.create(State{Version: stateVersion}))
	var group sync.WaitGroup
	const writers = 20
	for i := range writers {
		group.Go(func() {
			_, err := s.change(func(state *State) error {
				state.Pods = append(state.Pods, Pod{Name: string(rune('a' + i))})
				return nil
			})
			assert.NoError(t, err)
		})
	}
	group.Wait()
	state, err := s.load()
	require.NoError(t, err)
	assert.Len(t, state.Pods, writers)
}

func TestUsage(t *testing.T) {
	flow := Flow{FromNode: "node1", ToNode: "node2"}
	before := map[direction]uint64{{"node1", "node2"}: 10, {"node2", "node1"}: 5, {"node1", "node3"}: 1, {"node3", "node2"}: 0}
	after := map[direction]uint64{{"node1", "node2"}: 1010, {"node2", "node1"}: 105, {"node1", "node3"}: 501, {"node3", "node2"}: 250}
	u := flow.usage(before, after)
	assert.EqualValues(t, 1000, u.Carried)
	assert.EqualValues(t, 750, u.Wasted)
	assert.InDelta(t, 0.75, u.WasteRatio(), 1e-9)
	assert.Equal(t, []LinkUsage{
		{"node1", "node2", 1000, true}, {"node1", "node3", 500, false}, {"node2", "node1", 100, true}, {"node3", "node2", 250, false},
	}, u.Links)
	assert.Zero(t, Usage{}.WasteRatio())
}
