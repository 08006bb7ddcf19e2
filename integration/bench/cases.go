package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// The networks of the cases.
const (
	storageRange = "10.100.0.0/22"
	hostRange    = "10.100.0.0/28"
	vtepRange    = "10.100.100.0/24"
	vtep         = "10.100.100.1"
	vxlanParent  = "vxlan-storage"
	vni          = 100
)

// testCase is one way to give a pod its interface or its address.
type testCase struct {
	name     string
	plugin   string // type of the binary that is called
	main     string // type of the conf; for an IPAM plugin alone the one that would call it
	ipam     string // type
	vxlan    bool   // the parent is a VXLAN device; else it is the end of a veth pair
	probing  bool   // duplicate addresses are looked for
	record   string // of lhstorage-ipam in the cluster
	network  int    // the case's own in the cluster, from 1; 0: no cluster
	sticky   bool   // a pod's place goes by its name
	returns  bool   // the same pod comes back each turn, at once; else each turn has a pod of its own
	bits     int    // length of the case's pool in the cluster; 0: 20
	baseline string // the case that it is held against; empty: none
	thorough bool   // not in a quick run, unless it is asked for
}

// Cases named without a suffix have a device for parent, and no probing, which
// the stock plugins don't have. Those in the cluster have no host shim either:
// it is made once per node, and the others have none.
var cases = []testCase{
	{name: "macvlan+host-local", plugin: "macvlan", main: "macvlan", ipam: "host-local"},
	{name: "lhstorage+host-local", plugin: "lhstorage", main: "lhstorage", ipam: "host-local", baseline: "macvlan+host-local"},
	{name: "lhstorage+embedded", plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", baseline: "macvlan+host-local", thorough: true},
	{name: "lhstorage+host-local/probing", plugin: "lhstorage", main: "lhstorage", ipam: "host-local", probing: true, baseline: "macvlan+host-local", thorough: true},
	{name: "lhstorage+embedded/probing", plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", probing: true, baseline: "macvlan+host-local", thorough: true},
	{name: "macvlan+host-local/vxlan", plugin: "macvlan", main: "macvlan", ipam: "host-local", vxlan: true, thorough: true},
	{name: "lhstorage+host-local/vxlan", plugin: "lhstorage", main: "lhstorage", ipam: "host-local", vxlan: true, baseline: "macvlan+host-local/vxlan", thorough: true},
	{name: "lhstorage+embedded/vxlan", plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", vxlan: true, baseline: "macvlan+host-local/vxlan", thorough: true},
	{name: "ipam:host-local", plugin: "host-local", main: "macvlan", ipam: "host-local"},
	{name: "ipam:embedded", plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", baseline: "ipam:host-local", thorough: true},

	{name: "macvlan+whereabouts", network: 1, plugin: "macvlan", main: "macvlan", ipam: "whereabouts"},
	{name: "lhstorage+whereabouts", network: 2, plugin: "lhstorage", main: "lhstorage", ipam: "whereabouts", baseline: "macvlan+whereabouts"},
	{name: "lhstorage+sync", network: 3, plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordSync, baseline: "macvlan+whereabouts"},
	{name: "lhstorage+agent", network: 4, plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, baseline: "macvlan+whereabouts"},
	{name: "lhstorage+whereabouts/probing", network: 5, plugin: "lhstorage", main: "lhstorage", ipam: "whereabouts", probing: true, baseline: "macvlan+whereabouts", thorough: true},
	{name: "lhstorage+sync/probing", network: 6, plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordSync, probing: true, baseline: "macvlan+whereabouts", thorough: true},
	{name: "lhstorage+agent/probing", network: 7, plugin: "lhstorage", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, probing: true, baseline: "macvlan+whereabouts", thorough: true},
	{name: "ipam:whereabouts", network: 8, plugin: "whereabouts", main: "macvlan", ipam: "whereabouts"},
	{name: "ipam:sync", network: 9, plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordSync, baseline: "ipam:whereabouts"},
	{name: "ipam:agent", network: 10, plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, baseline: "ipam:whereabouts"},
	{name: "ipam:whereabouts/return", network: 14, plugin: "whereabouts", main: "macvlan", ipam: "whereabouts", returns: true, thorough: true},
	{name: "ipam:sync/return", network: 15, plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordSync, returns: true, baseline: "ipam:whereabouts/return", thorough: true},
	{name: "ipam:agent/return", network: 16, plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, returns: true, baseline: "ipam:whereabouts/return"},
}

// fillCases are the IPAM plugins, measured one by one on pools of several sizes and
// fills. All use one pool, so that all pay for the same objects, whereabouts' list
// of all pools among them.
var fillCases = []testCase{
	{name: "ipam:whereabouts", plugin: "whereabouts", main: "macvlan", ipam: "whereabouts"},
	{name: "ipam:sync", plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordSync, baseline: "ipam:whereabouts"},
	{name: "ipam:agent", plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, baseline: "ipam:whereabouts"},
	{name: "ipam:agent+sticky", plugin: "lhstorage-ipam", main: "lhstorage", ipam: "lhstorage-ipam", record: nodefile.RecordAgent, sticky: true, baseline: "ipam:whereabouts"},
}

// stage is a pool that other pods hold a part of, and who is measured on it.
type stage struct {
	label   string
	network int // as in testCase
	bits    int // of the pool's length
	entries int // addresses held by others
	cases   []testCase
}

// stages are in the order in which they are measured: each leaves its pool as it
// is, and all pools are in one cluster, so the small ones come first.
var stages = []stage{
	newStage("fill=0", 11, 20, 0),
	newStage("size=24", 12, 24, 0),
	newStage("size=16", 13, 16, 0),
	newStage("entries=250", 11, 20, 250),
	newStage("fill=50", 11, 20, percentOf20(50)),
	newStage("fill=90", 11, 20, percentOf20(90)),
	newStage("fill=99", 11, 20, percentOf20(99)),
}

// percentOf20 is a number of a /20's usable addresses.
func percentOf20(percent int) int { return (1<<12 - 2) * percent / 100 }

func newStage(label string, network, bits, entries int) stage {
	s := stage{label: label, network: network, bits: bits, entries: entries}
	for _, c := range fillCases {
		c.name += "/" + label
		if c.baseline != "" {
			c.baseline += "/" + label
		}
		c.network, c.bits = network, bits
		s.cases = append(s.cases, c)
	}
	return s
}

// versionCase is a program whose start-up is measured.
type versionCase struct {
	plugin  string
	against string // the stock one that it is held against; empty: none
}

var versionCases = []versionCase{
	{"macvlan", ""}, {"host-local", ""}, {"whereabouts", ""}, {"lhstorage", "macvlan"}, {"lhstorage-ipam", "host-local"},
}

func (v versionCase) name() string { return "version:" + v.plugin }

func (v versionCase) baseline() string {
	if v.against == "" {
		return ""
	}
	return "version:" + v.against
}

// inCrowds says whether the case is measured with many calls at once, too: not if
// it differs from another by what makes the same difference one by one.
func (c testCase) inCrowds() bool { return !c.vxlan && !c.probing && !c.returns }

// parent is the device of the case's children.
func (c testCase) parent() string {
	if c.network > 0 {
		return fmt.Sprintf("bench%d", c.network)
	}
	if c.vxlan {
		return vxlanParent
	}
	return testnode.Parent
}

// conf is the case's network configuration, with host-local's files in dataDir.
func (c testCase) conf(dataDir string) ([]byte, error) {
	conf := map[string]any{"cniVersion": "1.1.0", "name": c.networkName(), "type": c.main, "ipam": c.ipamConf(dataDir)}
	if c.main == "macvlan" {
		conf["master"] = c.parent()
		return json.Marshal(conf)
	}
	if c.network == 0 {
		conf["hostShim"] = map[string]any{"name": "lhnet1-host", "range": hostRange}
	}
	conf["conflictDetection"] = map[string]any{"enabled": c.probing}
	conf["parent"] = map[string]any{"type": "device", "name": c.parent()}
	if c.vxlan {
		conf["parent"] = map[string]any{
			"type": "vxlan", "name": c.parent(), "vni": vni, "mtu": 1450,
			"vtep": map[string]any{"cidr": vtepRange}, "peers": []string{vtep, "10.100.100.2", "10.100.100.3"},
		}
	}
	return json.Marshal(conf)
}

func (c testCase) ipamConf(dataDir string) map[string]any {
	switch {
	case c.ipam == "host-local":
		return map[string]any{"type": c.ipam, "dataDir": dataDir, "ranges": [][]map[string]any{{{"subnet": storageRange}}}}
	case c.sticky:
		return map[string]any{"type": c.ipam, "range": c.pool().String(), "allocation": "sticky"}
	case c.network > 0:
		return map[string]any{"type": c.ipam, "range": c.pool().String()}
	}
	return map[string]any{"type": c.ipam, "range": storageRange}
}

func (c testCase) networkName() string {
	if c.network > 0 {
		return fmt.Sprintf("bench%d", c.network)
	}
	return "bench"
}

// pool is the range of the case's network in the cluster.
func (c testCase) pool() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(120 + c.network), 0, 0}), cmp.Or(c.bits, 20))
}

// poolName is what Whereabouts calls that pool.
func (c testCase) poolName() string { return strings.ReplaceAll(c.pool().String(), "/", "-") }

// byAgent says whether the case needs a recorder.
func (c testCase) byAgent() bool { return c.record == nodefile.RecordAgent }

// newNode makes the case's own node, named number, in the directories of all nodes.
func (c testCase) newNode(dirs directories, number int) (*testnode.Node, error) {
	name := fmt.Sprintf("node%d", number)
	node, err := testnode.New(filepath.Join(dirs.state, name), filepath.Join(dirs.run, name), 1)
	if err != nil {
		return node, err
	}
	if err := node.AddParent(); err != nil || !c.vxlan {
		return node, err
	}
	err = node.AddAddress(testnode.Parent, vtep+"/24")
	if err == nil && c.main == "macvlan" {
		err = node.AddVXLAN(vxlanParent, vni, net.ParseIP(vtep))
	}
	return node, err
}
