package faults

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// scenario is a call and the state of the node and pod that it is made in.
type scenario struct {
	name    string
	network func(*bed) conf
	node    func(*testing.T, *bed)       // what the node has before
	pod     func(*testing.T, *bed, *pod) // what the pod has before
	verb    verb
	base    string // a fault that the call meets in any case
	only    string // what the points to fail at begin with, in words; the others are left to other scenarios
	first   bool   // fail at the first pass of each point only
	points  string // all points that the call passes, in order; "x3" for three times in a row
}

// What every ADD passes before and after the node is made ready.
const (
	begun  = "add.leftovers add.node "
	noted  = "add.record record.written "
	given  = "add.ipam "
	linked = "add.child add.prepare add.up add.addresses "
	routed = "add.address add.routes add.routex2 add.announce "
	ended  = "add.iscsi add.attached record.written add.result add.done "
	onPod  = noted + given + linked + routed + ended

	ownerFile = "ensure.owner.written "
	placeFile = "ensure.place ensure.place.written "
	newParent = "ensure.parent.create ensure.shim.create ensure.parent.sysctlx2 ensure.parent.flood.add ensure.parent.up "
	newShim   = "ensure.shim.sysctlx4 ensure.shim.up ensure.shim.address ensure.shim.address.set "
	moved     = "ensure.shim.move ensure.shim.move.copied ensure.shim.move.moved "

	oursGiven   = "ipam.add.snapshot ipam.add.create ipam.add.drafted ipam.add.created "
	oursPrinted = "ipam.add.result "
	declined    = "add.decline ipam.decline ipam.decline.drafted ipam.decline.staged ipam.decline.renamed add.declined "
)

var scenarios = []scenario{
	{
		name: "ADD on a fresh node", network: vxlan, node: nodeWithVTEPDevice, verb: add{}, only: "ensure.",
		points: begun + ownerFile + "ensure.vtep.up ensure.vtep.address ensure.route.add " + newParent + newShim + placeFile + onPod,
	},
	{
		name: "ADD without a VTEP device", network: vxlan, node: bareNode, verb: add{}, only: "ensure.vtep.",
		points: begun + ownerFile + "ensure.vtep.create ensure.route.add " + newParent + newShim + placeFile + onPod,
	},
	{
		name: "ADD on a node that a script made", network: vxlan, node: scriptedNode, verb: add{}, only: "ensure.",
		points: begun + ownerFile + "ensure.route.del ensure.route.add ensure.parent.mtu ensure.parent.local ensure.parent.learning " +
			"ensure.parent.sysctlx2 ensure.parent.flood.add ensure.parent.flood.del ensure.parent.up " + newShim + moved + moved +
			"ensure.restore ensure.restored " + placeFile + onPod,
	},
	{
		name: "ADD that raises the MTU", network: vxlan, node: lowNode, verb: add{}, only: "ensure.",
		points: begun + "ensure.parent.mtu ensure.shim.mtu ensure.restore ensure.restored " + onPod,
	},
	{
		name: "ADD with another VNI", network: vxlan, node: otherVNI, verb: add{}, only: "ensure.parent.recreate ensure.parent.guarded ensure.parent.create",
		points: begun + ownerFile + "ensure.vtep.up ensure.vtep.address ensure.route.add ensure.parent.recreate ensure.parent.guarded " +
			newParent + newShim + placeFile + onPod,
	},
	{
		name: "ADD after a deletion of the parent was killed", network: vxlan, node: guardedParent, verb: add{}, only: "ensure.parent.unguard",
		points: begun + ownerFile + "ensure.parent.unguard ensure.parent.sysctlx2 ensure.parent.flood.add ensure.parent.up ensure.shim.create " +
			newShim + placeFile + onPod,
	},
	{
		name: "ADD on a flat network", network: flat, node: flatNode, verb: add{}, only: "ensure.parent.sysctl ensure.shim.route",
		points: begun + ownerFile + "ensure.parent.sysctl ensure.shim.sysctlx4 ensure.shim.address ensure.shim.address.set " +
			"ensure.shim.route.del ensure.shim.route.addx4 " + placeFile + onPod,
	},
	{
		name: "ADD on a node whose shim has another prefix length", network: vxlan, node: shortShim, verb: add{}, only: "ensure.shim.length",
		points: begun + ownerFile + "ensure.route.add ensure.parent.sysctlx2 ensure.parent.flood.add ensure.shim.sysctlx4 " +
			"ensure.shim.length ensure.shim.length.added " + placeFile + onPod,
	},
	{
		name: "ADD on a node whose shim had a duplicate", network: dual, node: duplicateShim, verb: add{}, only: "ensure.shim.duplicate ensure.shim.address",
		points: begun + ownerFile + "ensure.route.add ensure.parent.sysctlx2 ensure.parent.flood.add ensure.shim.sysctlx5 " +
			"ensure.shim.address ensure.shim.address.set ensure.shim.duplicate ensure.shim.address ensure.shim.address.set " + placeFile +
			noted + given + oursGiven + oursGiven + oursPrinted + linked + "add.addressx2 add.routes add.announce " + ended,
	},
	{
		name: "ADD on a node whose shim is being probed for", network: dual, node: tentativeShim, verb: add{}, only: "ensure.shim.",
		points: begun + "ensure.shim.settle " + placeFile +
			noted + given + oursGiven + oursGiven + oursPrinted + linked + "add.addressx2 add.routes add.announce " + ended,
	},
	{
		name: "ADD on a ready node", network: vxlan, node: readyNode, verb: add{},
		points: begun + onPod,
	},
	{
		name: "ADD with our IPAM plugin, dual stack", network: dual, node: readyNode, verb: add{}, only: "add.address ipam.",
		points: begun + noted + given + oursGiven + oursGiven + oursPrinted + linked + "add.addressx2 add.routes add.announce " + ended,
	},
	{
		name: "ADD that declines", network: ours, node: takenAddresses, verb: add{}, first: true, only: "add.decline ipam.decline",
		points: begun + noted + given + oursGiven + oursPrinted + linked + declined + oursGiven + oursPrinted + "add.address add.routes add.announce " + ended,
	},
	{
		name: "ADD of a pod that was restarted", network: ours, node: readyNode, pod: claimed, verb: add{}, only: "ipam.",
		points: begun + noted + given + "ipam.add.snapshot ipam.add.reown ipam.add.reown.drafted ipam.add.reown.staged ipam.add.reown.renamed " +
			oursPrinted + linked + "add.address add.routes add.announce " + ended,
	},
	{
		name: "ADD behind macvlan", network: chained, node: nodeWithMacvlan, verb: add{}, only: "add. record.",
		points: begun + ownerFile + "ensure.parent.sysctl ensure.shim.create " + newShim + "ensure.shim.route.addx4 " + placeFile + noted + ended,
	},
	{
		name: "ADD that is taken back", network: vxlan, node: readyNode, verb: addTakenBack{}, base: "add.attached=error", only: "undo.",
		points: begun + noted + given + linked + routed + "add.iscsi add.attached undo.interface undo.address undo.record",
	},
	{
		name: "DEL", network: vxlan, node: readyNode, pod: attached, verb: del{},
		points: "del.link del.ipam del.record",
	},
	{
		name: "DEL with our IPAM plugin", network: ours, node: readyNode, pod: attached, verb: del{},
		points: "del.link del.ipam ipam.del.release ipam.del.unlinked del.record",
	},
	{
		name: "GC", network: ours, node: readyNode, pod: attached, verb: gc{}, first: true,
		points: "del.link del.ipam ipam.del.release ipam.del.unlinked del.record ipam.gc.collect",
	},
}

// TestFaults fails and kills a call at every point that it passes, and holds the
// points of the sources against those that it was failed at.
func TestFaults(t *testing.T) {
	failed := map[string]bool{}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			points := s.trace(t)
			require.Equal(t, strings.Fields(s.points), folded(points), "the points that the call passes")
			undisturbed := s.undisturbed(t)
			for _, point := range s.numbered(points) {
				name, _, _ := strings.Cut(point, "#")
				failed[name] = true
				for how, test := range s.verb.tests() {
					t.Run(point+" "+how, func(t *testing.T) {
						t.Parallel()
						test(&trial{T: t, scenario: s, point: point, undisturbed: undisturbed})
					})
				}
			}
		})
	}
	if t.Failed() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // not all scenarios were seen
	}
	want, err := readSources(t).points()
	require.NoError(t, err)
	for _, point := range want {
		assert.True(t, failed[point], "no scenario fails at the point %s", point)
	}
}

func (s scenario) set(t *testing.T) (*bed, *pod) {
	t.Helper()
	b := newBed(t, faulty, s.network)
	s.node(t, b)
	p := b.pod(t, "a")
	if s.pod != nil {
		s.pod(t, b, p)
	}
	return b, p
}

// trace is what the call passes when nothing but the base fault happens.
func (s scenario) trace(t *testing.T) []string {
	t.Helper()
	b, p := s.set(t)
	file := filepath.Join(t.TempDir(), "trace")
	err := s.verb.call(t, b, p, fault(s.base), tracing(file))
	if s.base == "" {
		require.NoError(t, err)
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Fields(string(data))
}

// undisturbed is the state of the node after an ADD without faults.
func (s scenario) undisturbed(t *testing.T) map[string]string {
	t.Helper()
	b, _ := s.set(t)
	b.add(t, b.pod(t, "other"))
	return b.state(t)
}

// folded writes repeated points as one with a count.
func folded(points []string) (list []string) {
	for len(points) > 0 {
		n := 1
		for n < len(points) && points[n] == points[0] {
			n++
		}
		text := points[0]
		if n > 1 {
			text += fmt.Sprint("x", n)
		}
		list, points = append(list, text), points[n:]
	}
	return list
}

// numbered are the points to fail at, each with the number of the pass.
func (s scenario) numbered(points []string) (list []string) {
	count := map[string]int{}
	for _, point := range points {
		count[point]++
		chosen := s.only == "" || slices.ContainsFunc(strings.Fields(s.only), func(only string) bool { return strings.HasPrefix(point, only) })
		if chosen && (count[point] == 1 || !s.first) {
			list = append(list, fmt.Sprintf("%s#%d", point, count[point]))
		}
	}
	return list
}

// trial is a scenario with a fault at one point.
type trial struct {
	*testing.T
	scenario
	point       string
	undisturbed map[string]string
}

// verb is a call and what is looked at after a fault in it.
type verb interface {
	call(t *testing.T, b *bed, p *pod, how ...call) error
	tests() map[string]func(*trial)
}

// fail makes the call fail at the trial's point.
func (t *trial) fail(b *bed, p *pod) {
	t.Helper()
	point, _, _ := strings.Cut(t.point, "#")
	err := t.verb.call(t.T, b, p, fault(t.base, t.point+"=error"))
	requireRefused(t, err, 0, "injected fault at "+point)
}

// kill kills the call at the trial's point. At a point of the IPAM plugin it is
// that which dies, and the call fails.
func (t *trial) kill(b *bed, p *pod) {
	t.Helper()
	err := t.verb.call(t.T, b, p, fault(t.base, t.point+"=kill"))
	if strings.HasPrefix(t.point, "ipam.") {
		requireRefused(t, err, cnierr.IO, "signal: killed")
		return
	}
	requireKilled(t, err)
}

// requireUndisturbed wants the node as it is without faults, and the traffic of the
// pods that are attached.
func (t *trial) requireUndisturbed(b *bed) {
	t.Helper()
	have := b.state(t)
	for what, want := range t.undisturbed {
		require.Equal(t, strings.Split(want, "\n"), strings.Split(have[what], "\n"), what)
	}
	require.Len(t, have, len(t.undisturbed))
	for _, p := range b.pods {
		if p.attached {
			b.requireTraffic(t, p)
		}
	}
}

type add struct{}

func (add) call(t *testing.T, b *bed, p *pod, how ...call) error {
	t.Helper()
	return b.tryAdd(t, p, how...)
}

func (add) tests() map[string]func(*trial) {
	return map[string]func(*trial){
		"error": func(t *trial) {
			if strings.HasPrefix(t.point, "add.done#") {
				t.Skip("the result is out; all that can still happen is to be killed")
			}
			b, p := t.set(t.T)
			t.fail(b, p)
			b.requireClean(t, "restore-mtu-", "lhsdel") // which is for the next ADD to see to
			b.add(t, p)
			t.requireUndisturbed(b)
			b.del(t, p)
			b.requireClean(t)
		},
		"kill, then ADD of another pod and again": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			other := b.pod(t.T, "other")
			b.add(t, other)
			t.requireUndisturbed(b)
			t.addAgain(b, p)
			t.requireUndisturbed(b)
			b.del(t, p)
			b.del(t, other)
			b.requireClean(t)
		},
		"kill, then DEL": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			b.del(t, p)
			b.requireNothing(t)
			b.add(t, p)
			t.requireUndisturbed(b)
			b.del(t, p)
			b.requireClean(t)
		},
	}
}

// addAgain is ADD after one that was killed. When that had finished, all but for
// telling, the runtime has to call DEL first, as it does after any failed ADD.
func (t *trial) addAgain(b *bed, p *pod) {
	t.Helper()
	if b.main == nil && (strings.HasPrefix(t.point, "add.result#") || strings.HasPrefix(t.point, "add.done#")) {
		requireRefused(t, b.tryAdd(t, p), cnierr.InvalidEnvironment, ifName, "DEL it first")
		b.del(t, p)
	}
	b.add(t, p)
}

// addTakenBack is an ADD that fails, with a fault in taking it back.
type addTakenBack struct{ add }

func (addTakenBack) tests() map[string]func(*trial) {
	stumble := map[string]func(*trial, *bed, *pod){"error": (*trial).fail, "kill": (*trial).kill}
	tests := map[string]func(*trial){}
	for how, stumble := range stumble {
		tests[how+", then ADD"] = func(t *trial) {
			b, p := t.set(t.T)
			stumble(t, b, p)
			b.add(t, p)
			t.requireUndisturbed(b)
			b.del(t, p)
			b.requireClean(t)
		}
		tests[how+", then DEL"] = func(t *trial) {
			b, p := t.set(t.T)
			stumble(t, b, p)
			b.del(t, p)
			b.requireClean(t)
		}
	}
	return tests
}

type del struct{}

func (del) call(t *testing.T, b *bed, p *pod, how ...call) error {
	t.Helper()
	return b.tryDel(t, p, how...)
}

func (del) tests() map[string]func(*trial) {
	return map[string]func(*trial){
		"error": func(t *trial) {
			b, p := t.set(t.T)
			t.fail(b, p)
			b.del(t, p)
			b.requireClean(t)
		},
		"kill, then DEL": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			b.del(t, p)
			b.requireClean(t)
		},
		"kill, then ADD": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			links, err := testnode.Links(p)
			require.NoError(t, err)
			if slices.Contains(links, ifName) {
				requireRefused(t, b.tryAdd(t, p), cnierr.InvalidEnvironment, "DEL it first")
				b.del(t, p)
			}
			b.add(t, p)
			t.requireUndisturbed(b)
			b.del(t, p)
			b.requireClean(t)
		},
	}
}

type gc struct{}

func (gc) call(t *testing.T, b *bed, p *pod, how ...call) error {
	t.Helper()
	return b.tryGC(t, p, how...)
}

func (gc) tests() map[string]func(*trial) {
	return map[string]func(*trial){
		"error": func(t *trial) {
			b, p := t.set(t.T)
			t.fail(b, p)
			require.NoError(t, b.tryGC(t, p))
			b.requireClean(t)
		},
		"kill, then GC": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			require.NoError(t, b.tryGC(t, p))
			b.requireClean(t)
		},
		"kill, then DEL": func(t *trial) {
			b, p := t.set(t.T)
			t.kill(b, p)
			b.del(t, p)
			b.requireClean(t)
		},
	}
}
