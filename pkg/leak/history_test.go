package leak

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// world is a cluster as it is, which a pass sees through the API alone.
type world struct {
	*rapid.T
	settings Settings
	memory   Memory
	now      time.Time
	count    int

	claims    map[string]*v1alpha1.AddressClaim
	pods      map[string]*livingPod
	nodes     map[string]*machine
	sandboxes []*sandbox
	collected map[Reason]int
}

type livingPod struct {
	Pod
	ref, uid string
	static   bool
}

type machine struct {
	registered, ready bool
	left              time.Time // it was deleted, though it runs
}

// sandbox is what a runtime runs. Only one of a pod runs at a time.
type sandbox struct {
	id, ref, uid, node string
	claim              string
	runs               bool
}

const start = 1_800_000_000

func newWorld(t *rapid.T, collected map[Reason]int) *world {
	w := &world{
		T: t, now: time.Unix(start, 0), claims: map[string]*v1alpha1.AddressClaim{}, pods: map[string]*livingPod{}, nodes: map[string]*machine{}, collected: collected,
	}
	w.settings = Settings{Interval: time.Minute, MinAge: time.Minute, NodeGrace: 150 * time.Second}
	for _, name := range []string{"n1", "n2", "n3"} {
		w.nodes[name] = &machine{registered: true, ready: true}
	}
	return w
}

func (w *world) next() int { w.count++; return w.count }

// choose draws one of some things; false when there is none.
func choose[T any](w *world, label string, from []T) (T, bool) {
	if len(from) == 0 {
		var none T
		return none, false
	}
	return rapid.SampledFrom(from).Draw(w.T, label), true
}

func (w *world) chance(label string) bool { return rapid.Bool().Draw(w.T, label) }

func (w *world) podsThat(is func(*livingPod) bool) (list []*livingPod) {
	for _, ref := range slices.Sorted(maps.Keys(w.pods)) {
		if is(w.pods[ref]) {
			list = append(list, w.pods[ref])
		}
	}
	return list
}

// running is the sandbox of a pod.
func (w *world) running(uid string) *sandbox {
	for _, s := range w.sandboxes {
		if s.runs && s.uid == uid && s.ref != "" {
			return s
		}
	}
	return nil
}

func (w *world) runningOn(node string) (list []*sandbox) {
	for _, s := range w.sandboxes {
		if s.runs && s.node == node {
			list = append(list, s)
		}
	}
	return list
}

// holder is the sandbox that has a claim's address.
func (w *world) holder(c *v1alpha1.AddressClaim) *sandbox {
	for _, s := range w.sandboxes {
		if s.runs && s.claim == c.Name && s.id == c.Spec.ContainerID {
			return s
		}
	}
	return nil
}

func (w *world) nodesThat(is func(*machine) bool) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		if is(w.nodes[name]) {
			names = append(names, name)
		}
	}
	return names
}

func up(m *machine) bool { return m.registered && m.ready }

// create makes a pod, perhaps of a name that had another.
func (w *world) create() {
	ref := "ns/" + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(w.T, "pod")
	node, ok := choose(w, "node", w.nodesThat(up))
	if w.pods[ref] != nil || !ok {
		return
	}
	p := &livingPod{ref: ref, Pod: Pod{Node: node}, uid: fmt.Sprint("uid", w.next()), static: w.chance("static")}
	p.UIDs = []string{p.uid}
	if p.static { // the API knows it under another UID
		p.UIDs = []string{fmt.Sprint("mirror", w.count), p.uid}
	}
	w.pods[ref] = p
}

// touch is a write of a claim.
func (w *world) touch(c *v1alpha1.AddressClaim) { c.ResourceVersion = strconv.Itoa(w.next()) }

func (w *world) claim(s *sandbox) {
	for i := 1; ; i++ {
		name := fmt.Sprint("10.0.0.", i)
		if w.claims[name] != nil {
			continue
		}
		c := &v1alpha1.AddressClaim{ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID(fmt.Sprint("claim", w.next())), CreationTimestamp: metav1.NewTime(w.now.Truncate(time.Second)),
		}}
		c.Spec.Address, c.Spec.Pool, c.Spec.IfName, c.Spec.ContainerID = name, "pool", "net1", s.id
		c.Spec.PodRef, c.Spec.PodUID, c.Spec.Node = s.ref, s.uid, s.node
		if w.chance("runtime without UIDs") {
			c.Spec.PodUID = ""
		}
		w.touch(c)
		w.claims[name], s.claim = c, name
		return
	}
}

// add is an ADD of a new sandbox, once the old one of the pod is stopped. It takes over the claim that the pod has, unless it doesn't see it; it
// may be killed.
func (w *world) add(p *livingPod, killed, blind bool) {
	s := &sandbox{id: fmt.Sprint("sandbox", w.next()), ref: p.ref, uid: p.uid, node: p.Node, runs: true}
	var own []*v1alpha1.AddressClaim
	for _, name := range slices.Sorted(maps.Keys(w.claims)) {
		if c := w.claims[name]; c.Spec.PodRef == p.ref && !c.Spec.Released && c.Spec.Declined == nil {
			own = append(own, c)
		}
	}
	if c, ok := choose(w, "own", own); ok && !blind {
		c.Spec.ContainerID, c.Spec.Node, c.Spec.PodUID = s.id, s.node, s.uid
		w.touch(c)
		s.claim = c.Name
	} else {
		w.claim(s)
	}
	s.runs = !killed
	w.sandboxes = append(w.sandboxes, s)
}

func (w *world) attach() {
	p, ok := choose(w, "pod", w.podsThat(func(p *livingPod) bool {
		return !p.Finished && !p.Terminating && w.running(p.uid) == nil && up(w.nodes[p.Node])
	}))
	if ok {
		w.add(p, w.chance("killed"), w.chance("blind"))
	}
}

// report is Multus writing a network-status. It may never come, and an old one stay.
func (w *world) report(p *livingPod) {
	s := w.running(p.uid)
	if s == nil {
		return
	}
	p.Status = []Interface{{"eth0", []netip.Addr{netip.MustParseAddr("10.244.0.9")}}, {"net1", []netip.Addr{netip.MustParseAddr(s.claim)}}}
}

func (w *world) anyReport() {
	if p, ok := choose(w, "pod", w.podsThat(func(p *livingPod) bool { return w.running(p.uid) != nil })); ok {
		w.report(p)
	}
}

// stop ends a sandbox, with a DEL that is carried out, killed, or never comes.
func (w *world) stop(s *sandbox) {
	s.runs = false
	c := w.claims[s.claim]
	if c == nil || c.Spec.ContainerID != s.id {
		return
	}
	switch rapid.SampledFrom([]string{"done", "killed", "none", "none"}).Draw(w.T, "DEL") {
	case "done":
		delete(w.claims, c.Name)
	case "killed":
		c.Spec.Released = true
		w.touch(c)
	}
}

func (w *world) crash() {
	s, ok := choose(w, "sandbox", slices.DeleteFunc(slices.Clone(w.sandboxes), func(s *sandbox) bool { return !s.runs }))
	if ok {
		w.stop(s)
	}
}

// finish: the pod's phase comes first, and the kubelet's word that the sandbox is gone later.
func (w *world) finish() {
	p, ok := choose(w, "pod", w.podsThat(func(p *livingPod) bool { return !p.Terminating }))
	switch {
	case !ok:
	case !p.Finished:
		p.Finished = true
	case up(w.nodes[p.Node]):
		w.end(p)
	}
}

// end is the kubelet stopping what a pod has.
func (w *world) end(p *livingPod) {
	if s := w.running(p.uid); s != nil {
		w.stop(s)
	}
	p.SandboxGone = true
}

// remove deletes a pod: first it is marked, then the kubelet stops it, then it goes; or at once, by force. Where the kubelet hears of it
// the sandbox is stopped; else it runs on.
func (w *world) remove() {
	p, ok := choose(w, "pod", w.podsThat(func(*livingPod) bool { return true }))
	switch {
	case !ok:
	case !p.Terminating && !w.chance("by force"):
		p.Terminating = true
	default:
		w.forget(p)
	}
}

func (w *world) forget(p *livingPod) {
	if up(w.nodes[p.Node]) {
		w.end(p)
	}
	delete(w.pods, p.ref)
}

// byHand runs a container without a pod.
func (w *world) byHand() {
	if node, ok := choose(w, "node", w.nodesThat(up)); ok {
		s := &sandbox{id: fmt.Sprint("sandbox", w.next()), node: node, runs: true}
		w.claim(s)
		w.sandboxes = append(w.sandboxes, s)
	}
}

// wander makes a node unheard of, or its Node deleted while it runs; or it comes back, and the kubelet stops what has been deleted meanwhile.
func (w *world) wander() {
	name := rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(w.T, "node")
	m := w.nodes[name]
	switch {
	case up(m) && w.chance("unheard"):
		m.ready = false
	case up(m):
		m.registered, m.left = false, w.now
	default:
		w.comeBack(name)
	}
}

func (w *world) comeBack(name string) {
	*w.nodes[name] = machine{registered: true, ready: true}
	for _, s := range w.runningOn(name) {
		if p := w.pods[s.ref]; s.ref != "" && (p == nil || p.uid != s.uid) {
			w.stop(s)
		}
	}
}

// lose is a machine that is gone for good, and is deleted by people with its pods; one of the same name may come later.
func (w *world) lose() {
	name := rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(w.T, "node")
	for _, s := range w.runningOn(name) {
		s.runs = false
	}
	for _, p := range w.podsThat(func(p *livingPod) bool { return p.Node == name }) {
		delete(w.pods, p.ref)
	}
	*w.nodes[name] = machine{}
}

// see is what the API tells.
func (w *world) see() *Cluster {
	c := &Cluster{Now: w.now, Pods: map[string]Pod{}, Nodes: map[string]Node{}}
	for _, name := range slices.Sorted(maps.Keys(w.claims)) {
		c.Claims = append(c.Claims, *w.claims[name].DeepCopy())
	}
	for ref, p := range w.pods {
		c.Pods[ref] = p.Pod
	}
	for name, m := range w.nodes {
		if m.registered {
			c.Nodes[name] = Node{Away: !m.ready}
		}
	}
	return c
}

// pass is a pass of the collector, between whose reading and writing something may happen.
func (w *world) pass(between func()) {
	_, due := w.memory.Pass(w.settings, w.now, w.see())
	between()
	for _, v := range due {
		c := w.claims[v.Claim.Name]
		if c == nil || c.ResourceVersion != v.Claim.ResourceVersion {
			continue
		}
		if s := w.holder(c); s != nil {
			w.Fatalf("%s was collected (%s: %s), but is held by %+v of pod %+v", c.Name, v.Reason, v.Why, *s, w.pods[s.ref])
		}
		delete(w.claims, c.Name)
		w.collected[v.Reason]++
	}
}

// wait lets time go by, with passes. A node that was deleted though it runs is back within the grace time.
func (w *world) wait(d time.Duration) {
	w.now = w.now.Add(d)
	for _, name := range []string{"n1", "n2", "n3"} {
		if m := w.nodes[name]; !m.registered && !m.left.IsZero() && w.now.Sub(m.left) >= w.settings.NodeGrace-w.settings.Interval {
			w.comeBack(name)
		}
	}
}

// settle ends all that is under way: what runs is as the API says then, and what doesn't is gone.
func (w *world) settle() {
	for name, m := range w.nodes {
		if m.registered || !m.left.IsZero() {
			w.comeBack(name)
		}
	}
	for _, p := range w.podsThat(func(*livingPod) bool { return true }) {
		switch {
		case p.Finished:
			w.end(p)
		case p.Terminating:
			w.forget(p)
		case w.running(p.uid) == nil:
			w.add(p, false, false)
			w.report(p)
		default:
			w.report(p)
		}
	}
}

// No claim of a live sandbox is ever collected, whatever happens; and when things have settled every leaked one is back
// within two passes.
func TestHistories(t *testing.T) {
	require.NoError(t, flag.Set("rapid.checks", "4000")) // most histories have nothing special
	require.NoError(t, flag.Set("rapid.steps", "60"))
	collected := map[Reason]int{}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, collected)
		act := map[string]func(*rapid.T){}
		for name, do := range map[string]func(){
			"create": w.create, "attach": w.attach, "report": w.anyReport, "crash": w.crash, "finish": w.finish, "remove": w.remove,
			"by hand": w.byHand, "wander": w.wander, "lose": w.lose,
		} {
			act[name], act[name+" again"] = func(*rapid.T) { do() }, func(*rapid.T) { do() }
		}
		for _, name := range []string{"wait", "wait longer", "wait on"} {
			act[name] = func(*rapid.T) {
				w.wait(time.Duration(rapid.IntRange(30, 100).Draw(rt, "seconds")) * time.Second)
				w.pass(func() {
					if w.chance("meanwhile") {
						w.attach()
					}
				})
			}
		}
		rt.Repeat(act)
		w.settle()
		w.wait(w.settings.MinAge)
		w.pass(func() {}) // the Nodes that are gone are missed from now on at the latest
		w.wait(w.settings.NodeGrace)
		for range 2 {
			w.wait(w.settings.Interval)
			w.pass(func() {})
		}
		for _, c := range w.claims {
			if c.Spec.PodRef != "" || !w.nodes[c.Spec.Node].registered {
				require.NotNil(rt, w.holder(c), "leaked for good: %+v; pod %+v", c, w.pods[c.Spec.PodRef])
			}
		}
	})
	for _, reason := range Reasons {
		require.NotZero(t, collected[reason], "the histories have no claim that is %s", reason)
	}
	t.Logf("collected: %v", collected)
}
