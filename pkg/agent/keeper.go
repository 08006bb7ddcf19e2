package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/place"
)

const (
	debounce    = 5 * time.Millisecond // a change comes as several messages
	restFor     = 4                    // times what a pass took comes before the next one: a storm of messages gets a fifth of a CPU at most
	resync      = 30 * time.Second     // and up to a tenth more or less, so that nodes don't do it together
	sysctlEvery = time.Second
	claimTime   = 5 * time.Second // bounds the calls of one claim: what is put right in the kernel must not wait for an API server that is away
	firstPass   = 3 * time.Second // is waited for the first lists; then what is on disk serves
)

// keeper makes the node as it must be, again and again. It is one goroutine: observe, diff, apply.
type keeper struct {
	*Agent
	wake   chan struct{}
	states map[string]*netState // by network and parent
}

// netState is what is known of a network after its last pass.
type netState struct {
	plan    *netconf.Plan
	place   place.Place
	shim    []netip.Prefix // its addresses, with the network's length
	done    bool           // a pass has succeeded with plan and place
	contest contest
	trouble string // why it isn't ready; "" when it is
}

// key names a network as its files on disk are named.
func key(p *netconf.Plan) string { return p.Name + "@" + p.Parent.Name }

// call asks for a pass soon.
func (k *keeper) call() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run passes on start, when called, when a sysctl has changed, and every now and then.
func (k *keeper) Run(ctx context.Context) error {
	go listen(ctx, k.seen, k.log, k.call)
	k.untilKnown(ctx)
	tick := time.NewTicker(sysctlEvery)
	defer tick.Stop()
	for next := time.Now(); ctx.Err() == nil; {
		if !time.Now().Before(next) || k.sysctlChanged() {
			k.call()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			continue
		case <-k.wake:
		}
		pause(ctx, debounce)
		select { // what came meanwhile is seen by this pass
		case <-k.wake:
		default:
		}
		began := time.Now()
		again := k.pass(ctx)
		took := time.Since(began)
		k.metrics.pass.Observe(took.Seconds())
		next = began.Add(min(again, resync*9/10+rand.N(resync/5)))
		pause(ctx, restFor*took)
	}
	return nil
}

// untilKnown waits a moment for the first lists.
func (k *keeper) untilKnown(ctx context.Context) {
	for until := time.Now().Add(firstPass); time.Now().Before(until) && ctx.Err() == nil; {
		if k.watches == nil || synced(k.watches.definitions, k.watches.hostShims, k.watches.nodes) {
			return
		}
		pause(ctx, debounce)
	}
}

func (k *keeper) sysctlChanged() bool {
	path := k.seen.changed(k.kernel)
	if path != "" {
		k.log.Debug("a sysctl has changed", "path", path)
	}
	return path != ""
}

// pass makes the node ready for every network. again is when it must be tried again at the latest.
func (k *keeper) pass(ctx context.Context) (again time.Duration) {
	compiled := k.compile(ctx)
	k.seen.begin()
	states := map[string]*netState{}
	again = resync
	for _, n := range compiled.Networks {
		id := key(n.Plan)
		state := k.states[id]
		if state == nil {
			state = &netState{}
		}
		states[id] = state
		if k.network(ctx, n, state); state.trouble != "" {
			again = min(again, max(firstTruce, time.Until(state.contest.until)))
		}
	}
	k.forget(states)
	k.states = states
	k.publish(compiled)
	k.host.guard(compiled.Networks, states)
	return again
}

// compile reads the definitions: those of the cluster, or until they are known, those that the last agent kept on disk.
func (k *keeper) compile(ctx context.Context) Compiled {
	definitions, known := []Definition(nil), false
	if k.watches != nil {
		definitions, known = k.watches.networks(ctx)
	}
	if !known {
		definitions = loadDefinitions(k.node.StateDir)
	}
	if known {
		definitions = slices.DeleteFunc(definitions, func(d Definition) bool { _, ours, _ := pluginConf(d); return !ours })
		if err := saveDefinitions(k.node.StateDir, definitions); err != nil {
			k.log.Warn("an agent that starts with the API server away won't know the networks", "error", err)
		}
	}
	compiled := Compile(definitions)
	k.compiled.Store(&compiled)
	k.faults.set(compiled.Faults)
	return compiled
}

// network makes the node ready for one.
func (k *keeper) network(ctx context.Context, n Network, state *netState) {
	log := k.log.With("network", n.Plan.Name, "parent", n.Plan.Parent.Name)
	if state.contest.holds(time.Now()) {
		k.look(n)
		return
	}
	ensurer := k.plugin.Ensurer(n.Plan)
	ensurer.Kernel = observing{ensurer.Kernel, k.seen}
	ensurer.Warn = func(text string) { log.Warn(text) }
	if k.claimer != nil {
		ensurer.Claim, ensurer.Live = k.claim, true
	}
	result, err := ensurer.Ensure(ctx, n.Plan)
	wanted := state.done && reflect.DeepEqual(state.plan.Parent, n.Plan.Parent) && reflect.DeepEqual(state.plan.HostShim, n.Plan.HostShim) && samePlace(state.place, result.Place)
	k.tell(n, state, result.Changed, wanted)
	if err != nil && ctx.Err() == nil {
		k.trouble(n, state, err.Error())
		return
	}
	state.plan, state.place, state.shim, state.done = n.Plan, result.Place, result.Addrs, true
	if len(result.Changed) == 0 {
		state.contest.quiet(time.Now())
	}
	if state.contest.holds(time.Now()) {
		return
	}
	if state.trouble != "" {
		log.Info("the network is ready again")
	}
	state.trouble = ""
}

// look notes the devices of a network that is left alone for now.
func (k *keeper) look(n Network) {
	names := []string{n.Plan.Parent.Name}
	if n.Plan.HostShim != nil {
		names = append(names, n.Plan.HostShim.Name)
	}
	for _, name := range names {
		_, _ = observing{k.kernel, k.seen}.Link(name) // that it is asked for is what counts
	}
}

// tell counts and logs what was done. What had to be done although nothing else was wanted than before is a repair.
func (k *keeper) tell(n Network, state *netState, changes []node.Change, wanted bool) {
	if len(changes) == 0 {
		return
	}
	counter, message := k.metrics.changes, "changed the node"
	if wanted {
		counter, message = k.metrics.repairs, "repaired the node"
	}
	var texts []string
	for _, c := range changes {
		counter.WithLabelValues(c.Step).Inc()
		texts = append(texts, c.Text)
	}
	k.log.Info(message, "network", n.Plan.Name, "parent", n.Plan.Parent.Name, "done", texts)
	if !wanted {
		return
	}
	k.event(k.nodeObject(), ReasonRepaired, "Repair", "network %s: %s", n.Plan.Name, strings.Join(texts, "; "))
	if state.contest.repaired(changes, time.Now()) {
		k.metrics.contests.Inc()
		k.log.Error("something else changes the node back", "network", n.Plan.Name, "reason", state.contest.reason, "pause", state.contest.truce)
		k.event(k.nodeObject(), ReasonContested, "Pause", "network %s: %s", n.Plan.Name, state.contest.reason)
		state.trouble = state.contest.reason
	}
}

// trouble says once that a network isn't ready.
func (k *keeper) trouble(n Network, state *netState, reason string) {
	if state.trouble != reason {
		k.log.Error("the node isn't ready for the network", "network", n.Plan.Name, "parent", n.Plan.Parent.Name, "error", reason)
		k.event(k.nodeObject(), ReasonNotReady, "Ensure", "network %s: %s", n.Plan.Name, reason)
	}
	state.trouble = reason
}

func samePlace(a, b place.Place) bool {
	return a.Index == b.Index && a.VTEP == b.VTEP && slices.Equal(a.Shim, b.Shim) && slices.Equal(a.Peers, b.Peers) && a.Complete == b.Complete
}

// claim finds the node's place: by what watches have told, as a rule without a call.
func (k *keeper) claim(ctx context.Context, plan *netconf.Plan, seen place.Seen, last place.Place) (place.Place, error) {
	ctx, cancel := context.WithTimeout(kubeapi.Impatient(ctx), claimTime)
	defer cancel()
	answer, err := k.claimer.Claim(ctx, plan, seen, last)
	if err != nil {
		return place.Place{}, err
	}
	p := place.Place{Index: answer.Index, Shim: answer.Addresses, VTEP: answer.VTEP, Peers: answer.Peers, Kubernetes: answer.Kubernetes}
	departed, complete := k.watches.peers(plan.Parent.Name)
	p.Complete = complete
	p.Peers = slices.DeleteFunc(p.Peers, func(a netip.Addr) bool { return departed[a] })
	return p, nil
}

// forget drops what was known of networks that are gone. Their devices stay: pods may hang on them.
func (k *keeper) forget(now map[string]*netState) {
	for id, state := range k.states {
		if now[id] == nil && state.plan != nil {
			k.metrics.forget(state.plan)
		}
	}
}

// publish makes known how the networks are: as metrics, by the readiness probe and in the HostShims' status.
func (k *keeper) publish(compiled Compiled) {
	k.metrics.definitions(compiled)
	var troubles []string
	status := map[string]string{} // why a parent's networks aren't ready, by its name
	for _, n := range compiled.Networks {
		state := k.states[key(n.Plan)]
		k.metrics.network(n.Plan, state)
		if state.trouble != "" {
			troubles = append(troubles, fmt.Sprintf("network %s: %s", n.Plan.Name, state.trouble))
			status[n.Plan.Parent.Name] = join(status[n.Plan.Parent.Name], troubles[len(troubles)-1])
		} else if _, there := status[n.Plan.Parent.Name]; !there {
			status[n.Plan.Parent.Name] = ""
		}
	}
	k.health.set(partNode, strings.Join(troubles, "\n"))
	k.status.set(status)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
