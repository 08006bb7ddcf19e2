package kubeipam

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// killedIn are the folders whose fault points the table has to cover.
var killedIn = []string{"pkg/ipam/kube", "pkg/ipam/queue"}

// interruption is a call, the fault points of those folders that it passes, and what it finds.
type interruption struct {
	name    string
	record  string // sync unless it says agent
	before  func(*testing.T, *ward)
	verb    string
	section string // of the configuration; shared10 if empty
	who     string // container
	unheard bool   // the API server can't be reached
	points  string
	left    string // there when all sandboxes have been deleted
}

const (
	shared10 = `"range": "10.0.0.0/24"`
	hurried  = shared10 + `, "timeout": "300ms"` // where nothing listens there is nothing to wait for
	held10   = " 10.0.0.1 cid1 ns/pod1 net1"
)

var interruptions = []interruption{
	{name: "ADD", verb: "ADD", who: "cid1", points: "ipam.add.claimed ipam.add.recorded"},
	{name: "ADD of a newer sandbox", before: attached, verb: "ADD", who: "cid2", points: "ipam.add.reowned ipam.add.recorded"},
	{
		name: "ADD beside a stranger", before: reserved, verb: "ADD", who: "cid1",
		points: "ipam.add.claimed ipam.add.recorded ipam.del.entry ipam.del.unrecorded", left: "reservation 10.0.0.1  other/pod net1",
	},
	{name: "DEL", before: attached, verb: "DEL", who: "cid1", points: "ipam.del.marked ipam.del.entry ipam.del.unrecorded"},
	{
		name: "decline", before: attached, verb: "decline 10.0.0.1 02:00:00:00:00:09", who: "cid1",
		points: "ipam.decline.marked ipam.del.entry", left: "claim" + held10 + " declined",
	},
	{name: "GC", before: attached, verb: "GC", points: "ipam.del.marked ipam.del.entry ipam.del.unrecorded"},
	{
		name: "DEL without the API server", before: attached, verb: "DEL", section: hurried, who: "cid1", unheard: true,
		points: "queue.put queue.written",
	},
	{name: "replay", before: released, verb: "DEL", who: "cid9", points: "ipam.del.marked ipam.del.entry ipam.del.unrecorded queue.released"},
	{name: "ADD with a recorder", record: "agent", verb: "ADD", who: "cid1", points: "ipam.add.claimed"},
	{name: "ADD of a newer sandbox with a recorder", record: "agent", before: attached, verb: "ADD", who: "cid2", points: "ipam.add.reowned"},
	{name: "DEL with a recorder", record: "agent", before: attached, verb: "DEL", who: "cid1", points: "ipam.del.marked"},
	{
		name: "decline with a recorder", record: "agent", before: attached, verb: "decline 10.0.0.1 02:00:00:00:00:09", who: "cid1",
		points: "ipam.decline.marked ipam.del.entry", left: "claim" + held10 + " declined",
	},
}

// ward is a node whose program has fault points.
type ward struct {
	*machine
	bed    *bed
	record string
}

// call makes a call that has to go well.
func (w *ward) call(t *testing.T, verb, container, section string) {
	t.Helper()
	_, _, err := w.run(verb, w.pod(container), w.conf(verb, section), 0)
	require.NoError(t, err)
}

func (w *ward) pod(container string) attachment {
	return attachment{plugin: w.binary, container: container, pod: "pod1"}
}

func (w *ward) conf(verb, section string) string {
	c := conf(section)
	if verb == "GC" {
		c = strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "cni.dev/valid-attachments": []`, 1)
	}
	return c
}

func attached(t *testing.T, w *ward) {
	w.call(t, "ADD", "cid1", shared10)
	w.bed.eventually(t, "claim"+held10+"\nentry 10.0.0.0-24 1 cid1 ns/pod1 net1\nreservation"+held10)
}

func reserved(t *testing.T, w *ward) { w.bed.reserve(t, "10.0.0.1", "other/pod", "net1") }

// released has a release on its disk.
func released(t *testing.T, w *ward) {
	attached(t, w)
	w.unheard(t)
	w.call(t, "DEL", "cid1", hurried)
	require.Equal(t, 1, w.queued(t))
	w.settings(t, kubeconfig, w.record)
}

const deafConfig = "/etc/lhstorage/deaf"

// unheard makes the program call an address where nothing listens.
func (w *ward) unheard(t *testing.T) { w.settings(t, deafConfig, w.record) }

// killed kills the program at each point of each call, and lets each fail. What a runtime does next, the same call or the pod's DEL, goes
// well then, and in the end nothing is left: no claim, no entry, no reservation, no note on the node's disk.
func killed(t *testing.T, b *bed) {
	covered := map[string]bool{}
	for _, record := range []string{"sync", "agent"} {
		w := b.ward(t, record)
		if record == "agent" {
			stop := b.record(t, "killed")
			defer stop()
			require.Eventually(t, func() bool { return b.holder(t) == "killed" }, callTime, 20*time.Millisecond)
		}
		for _, c := range interruptions {
			if c.record != record && (c.record != "" || record != "sync") {
				continue
			}
			for _, point := range strings.Fields(c.points) {
				covered[point] = true
				for _, how := range [][2]string{{"kill", "again"}, {"kill", "gone"}, {"error", "again"}} {
					t.Run(fmt.Sprintf("%s, %s at %s, then %s", c.name, how[0], point, how[1]), func(t *testing.T) {
						b.wipe(t)
						c.run(t, w, point, how[0], how[1] == "again")
					})
				}
			}
		}
	}
	assert.Equal(t, faultPoints(t, killedIn...), slices.Sorted(maps.Keys(covered)), "the table covers each point of %v", killedIn)
}

func (b *bed) ward(t *testing.T, record string) *ward {
	w := &ward{b.machine(t, "node1", record), b, record}
	w.binary = filepath.Join(tools.Ours(t, "faultpoints"), "lhstorage-ipam")
	deaf, err := b.ServiceAccountKubeconfig(t.Context(), "kube-system", "lhstorage-node", "https://127.0.0.1:9")
	require.NoError(t, err)
	require.NoError(t, w.WriteFile(deafConfig, deaf))
	return w
}

func (c interruption) run(t *testing.T, w *ward, point, how string, again bool) {
	section := c.section
	if section == "" {
		section = shared10
	}
	if c.before != nil {
		c.before(t, w)
	}
	if c.unheard {
		w.unheard(t)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	_, dead, err := w.run(c.verb, w.pod(c.who), w.conf(c.verb, section), 0, "LHSTORAGE_FAULT="+point+"="+how, "LHSTORAGE_FAULT_TRACE="+trace)
	require.Equal(t, how == "kill", dead, "%v", err)
	passed, readErr := os.ReadFile(trace)
	require.NoError(t, readErr)
	require.Contains(t, strings.Fields(string(passed)), point, "%v", err)
	if again {
		w.call(t, c.verb, c.who, section)
		if c.verb == "ADD" {
			w.bed.attached(t, c.who)
		}
	}
	if c.unheard {
		w.call(t, "DEL", c.who, section) // nothing gets through yet, and it must succeed
		w.settings(t, kubeconfig, w.record)
	}
	for _, container := range []string{"cid1", "cid2"} {
		w.call(t, "DEL", container, shared10)
	}
	w.bed.eventually(t, c.left)
	assert.Zero(t, w.queued(t))
	notes, err := w.Files("/run/lhstorage/ipam")
	require.NoError(t, err)
	assert.NotContains(t, strings.Join(notes, "\n"), ".json")
}

// attached waits until a container has one address, with all that belongs to it. What its killed calls were giving up may be there, too.
func (b *bed) attached(t *testing.T, container string) {
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		objects := b.objects(t)
		var has []string
		for _, line := range strings.Split(objects, "\n") {
			if addr, ok := strings.CutSuffix(line, " "+container+" ns/pod1 net1"); ok && strings.HasPrefix(addr, "claim ") {
				has = append(has, strings.TrimPrefix(addr, "claim "))
			}
		}
		if !assert.Len(t, has, 1, "%s", objects) {
			return
		}
		_, key, _ := cut(has[0] + "/24")
		assert.Contains(t, objects, "entry 10.0.0.0-24 "+key+" "+container+" ns/pod1 net1")
		assert.Contains(t, objects, "reservation "+has[0]+" "+container+" ns/pod1 net1")
	}, callTime, 50*time.Millisecond)
}

// faultPoints are the names of all fault points in folders, sorted, from the sources.
func faultPoints(t *testing.T, folders ...string) []string {
	root, err := tools.Root()
	require.NoError(t, err)
	var points []string
	for _, folder := range folders {
		paths, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
		require.NoError(t, err)
		require.NotEmpty(t, paths)
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			points = append(points, pointsOf(t, path, file)...)
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

func pointsOf(t *testing.T, path string, file *ast.File) (points []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "At" {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "fault" {
			return true
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		require.True(t, ok, "%s: the name of a fault point is written out here", path)
		name, err := strconv.Unquote(lit.Value)
		require.NoError(t, err)
		points = append(points, name)
		return true
	})
	return points
}
