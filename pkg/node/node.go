// Package node makes a node ready for a network: VTEP, routes, parent, flood
// entries and host shim, in that order, each by difference (packages parent and
// hostshim).
//
// [Ensurer.Ensure] is on the path of every pod's start. When the kernel is as the
// last answer on disk says it must be, it costs a few reads and takes no lock.
// Otherwise it waits, for a bounded time, for the node's lock, looks again and
// applies what is left. Nothing is held while it waits, and a process that dies
// halfway leaves a state that the next call's difference mends.
package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"go4.org/netipx"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/hostshim"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/parent"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// Ensurer makes this node ready for networks.
type Ensurer struct {
	Kernel     kernel.Kernel
	Neighbours hostshim.Neighbours
	Node       nodefile.File
	// RestoreMTU gives the pods' interfaces on parent the MTU that its raising
	// allows them again. The kernel lowers them with their parent, but never
	// raises them.
	RestoreMTU func(parent kernel.Link) error
	// Claim asks the cluster for this node's place on plan's parent; nil without a
	// cluster. Its errors have code 11 where the cluster can't be asked now.
	Claim func(ctx context.Context, plan *netconf.Plan, seen place.Seen, last place.Place) (place.Place, error)
	// Live says that Claim knows of each change at once and costs nothing (the
	// agent's), so it is asked in every call, however young the last answer is.
	Live bool
	// Warn tells what went on otherwise than it should have.
	Warn func(text string)
	// InUse says that pods of this node are attached to a network on a parent.
	InUse func(network, parent string) bool
	// Grace is hostshim.Desired's.
	Grace time.Duration
	// LockWait bounds the wait for the node's lock.
	LockWait time.Duration
}

// State is what Ensure found or made.
type State struct {
	Parent  kernel.Link
	Shim    string         // the host shim's name, "" where the network has none
	Addrs   []netip.Prefix // the shim's addresses, with the network's length
	Place   place.Place
	Changed []Change // what was done; empty on the fast path
}

// Change is something that was done.
type Change struct {
	Step string // kernel.Step's Name
	Text string // in words
}

func (c Change) String() string { return c.Text }

// maxRounds bounds the rounds of differences; three are the most ever needed,
// and something that changes the kernel back must not hold a pod's start.
const maxRounds = 10

// Ensure makes the node ready for plan's network. Errors carry CNI codes: 7 who
// this node is can't be told, 11 the lock wasn't had in time, 100 the shim's
// address is taken, 101 a device differs and can't be changed.
func (e *Ensurer) Ensure(ctx context.Context, plan *netconf.Plan) (State, error) {
	r := &run{Ensurer: e, plan: plan}
	quiet, err := r.look(ctx)
	if err != nil || quiet {
		return r.state, err
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return r.state, err
	}
	defer unlock()
	err = r.apply(ctx)
	return r.state, err
}

// Look tells what Ensure would change first, without changing anything; "" for
// nothing. CHECK and STATUS ask it.
func (e *Ensurer) Look(ctx context.Context, plan *netconf.Plan) (State, string, error) {
	r := &run{Ensurer: e, plan: plan, passive: true}
	_, err := r.look(ctx)
	if errors.Is(err, errUnclaimed) {
		return r.state, err.Error(), nil
	}
	return r.state, r.pending, err
}

func (e *Ensurer) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(e.Node.RunDir, "lock")
	if err := os.MkdirAll(e.Node.RunDir, 0o700); err != nil {
		return nil, cnierr.New(cnierr.IO, "make the directory for the node's lock: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, e.LockWait)
	defer cancel()
	l := flock.New(path)
	if _, err := l.TryLockContext(wait, 5*time.Millisecond); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, cnierr.New(cnierr.TryAgain, "another process has been changing this node's storage network for %s "+
				"(lock %s; `fuser -v %s` names it): try again", e.LockWait, path, path)
		}
		return nil, cnierr.New(cnierr.IO, "lock %s: %w", path, err)
	}
	return func() { _ = l.Close() }, nil
}

// run is one call of Ensure.
type run struct {
	*Ensurer
	plan    *netconf.Plan
	saved   place.Place  // the answer on disk
	last    place.Place  // what a round goes by
	fresh   bool         // the MTU must be worked out anew
	passive bool         // nothing may be changed, in the cluster neither
	asked   time.Time    // when the cluster gave last
	claimed *place.Place // what this call goes by, once the cluster was asked
	renewed bool         // the cluster answered
	former  []netip.Addr // peers of the answer on disk that are none any more
	fixed   []netip.Addr // Kubernetes addresses of this node that are on the parent, and stay there
	state   State
	pending string
}

// look does one round without changing anything; quiet means nothing is to do.
func (r *run) look(ctx context.Context) (quiet bool, err error) {
	if err := r.load(); err != nil {
		return false, err
	}
	if err := r.resolve(ctx); err != nil {
		return false, err
	}
	for _, stage := range r.stages() {
		steps, err := stage(ctx)
		if err != nil {
			return false, err
		}
		if len(steps) > 0 {
			r.pending = steps[0].Text
			return false, nil
		}
	}
	if r.restoring() {
		r.pending = "restore the MTU of pods' interfaces"
		return false, nil
	}
	if owned, err := r.owned(); err != nil || !owned {
		r.pending = "write " + r.ownerPath()
		return false, err
	}
	if !r.answered() {
		r.pending = "write " + r.placePath()
		return false, nil
	}
	if r.renewed {
		_ = os.Chtimes(r.placePath(), time.Time{}, time.Now()) // still true, so it need not be asked for soon
	}
	return true, r.observe()
}

func (r *run) apply(ctx context.Context) (err error) {
	r.fresh = true
	if err := r.load(); err != nil { // another process may have been quicker
		return err
	}
	if err := r.own(); err != nil {
		return err
	}
	for range maxRounds {
		quiet, err := r.round(ctx)
		if err != nil {
			return err
		}
		if quiet {
			return r.finish()
		}
	}
	return cnierr.New(cnierr.Kernel, "the storage network of this node doesn't stay as it is set; in %d rounds: %s. "+
		"Something else changes it: look for NetworkManager, systemd-networkd or a script that manages %s",
		maxRounds, join(r.state.Changed), r.plan.Parent.Name)
}

// round applies each stage's steps; quiet means that there were none.
func (r *run) round(ctx context.Context) (quiet bool, err error) {
	if err := r.resolve(ctx); err != nil {
		return false, err
	}
	r.last = r.state.Place // a round may take away what it was told by, a parent that is made again for one
	quiet = true
	for _, stage := range r.stages() {
		steps, err := stage(ctx)
		if err != nil {
			return false, err
		}
		if len(steps) > 0 {
			quiet = false
		}
		if err := r.announceRaise(steps); err != nil {
			return false, err
		}
		done, err := kernel.Apply(r.Kernel, steps)
		for i, text := range done {
			r.state.Changed = append(r.state.Changed, Change{steps[i].Name, text})
		}
		if err != nil {
			return false, coded(err)
		}
	}
	return quiet, nil
}

func join(changes []Change) string {
	texts := make([]string, 0, len(changes))
	for _, c := range changes {
		texts = append(texts, c.Text)
	}
	return strings.Join(texts, "; ")
}

// coded gives code 104 to an error that has none.
func coded(err error) error {
	if cnierr.CodeOf(err) == cnierr.Unclassified {
		return cnierr.New(cnierr.Kernel, "%w", err)
	}
	return err
}

func (r *run) finish() error {
	if err := r.observe(); err != nil {
		return err
	}
	if r.restoring() {
		if err := fault.At("ensure.restore"); err != nil {
			return err
		}
		if err := r.RestoreMTU(r.state.Parent); err != nil {
			return coded(err)
		}
		if err := fault.At("ensure.restored"); err != nil {
			return err
		}
		if err := os.Remove(r.restorePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return cnierr.New(cnierr.IO, "%w", err)
		}
		r.state.Changed = append(r.state.Changed, Change{"restore", "restored the MTU of pods' interfaces on " + r.state.Parent.Name})
	}
	if r.answered() {
		return nil
	}
	if err := fault.At("ensure.place"); err != nil {
		return err
	}
	return savePlace(r.placePath(), r.state.Place)
}

// observe reads the parent once more for what the caller needs of it.
func (r *run) observe() error {
	link, err := r.Kernel.Link(r.plan.Parent.Name)
	if err != nil {
		return coded(err)
	}
	r.state.Parent = link
	return nil
}

// resolve works out this node's place from what it holds.
func (r *run) resolve(ctx context.Context) error {
	seen, err := r.see()
	if err != nil {
		return coded(err)
	}
	p, err := r.find(ctx, seen)
	if err != nil {
		return err
	}
	p.MTU = r.last.MTU
	r.state.Place = p
	r.former = append(r.former, former(r.last, p)...)
	r.fixed = slices.DeleteFunc(slices.Clone(seen.OnParent), func(a netip.Addr) bool { return !slices.Contains(p.Kubernetes, a) })
	if r.plan.HostShim != nil {
		r.state.Shim, r.state.Addrs = r.plan.HostShim.Name, shimAddrs(r.plan.HostShim, p)
	}
	return nil
}

// claimAge is how long the cluster's last answer is gone by. The agent keeps it
// true; without one, new peers are found by this.
const claimAge = time.Minute

// errUnclaimed is Look's way to say that the cluster would have to be asked.
var errUnclaimed = errors.New("claim this node's place in the cluster")

// find works out this node's place: from what it holds and its node file, or, in
// a cluster, by what the cluster says. The cluster's last answer serves while it is young,
// and when the cluster can't be asked: a node must come up with the API away.
func (r *run) find(ctx context.Context, seen place.Seen) (place.Place, error) {
	if r.Claim == nil || r.plan.HostShim == nil && r.plan.Parent.Type != netconf.ParentVXLAN {
		return place.Resolve(r.plan, r.Node, seen, r.last)
	}
	known := complete(r.plan, r.last)
	switch {
	case r.claimed != nil:
		return *r.claimed, nil
	case known && (r.passive || !r.Live && time.Since(r.asked) < claimAge && r.made()):
		return r.last, nil
	case r.passive:
		return place.Place{}, errUnclaimed
	}
	if known && !r.Live && r.made() {
		asked, others := r.asking()
		if others {
			return r.last, nil
		}
		defer asked()
	}
	p, err := r.Claim(ctx, r.plan, seen, r.last)
	switch {
	case err == nil:
		r.renewed = true
	case known && cnierr.CodeOf(err) == cnierr.TryAgain:
		if r.Warn != nil {
			r.Warn(fmt.Sprintf("%v; going by the last answer, index %d", err, r.last.Index))
		}
		p = r.last // for all rounds of this call: each would wait for the API server again
	default:
		return p, err
	}
	r.claimed = &p
	return p, nil
}

// asking says whether another process of this node is asking the cluster for the same answer: hundreds of pods that start at once
// need one. Without a place for the lock each asks for itself.
func (r *run) asking() (asked func(), others bool) {
	l := flock.New(filepath.Join(r.Node.RunDir, "asking-"+filepath.Base(r.placePath())))
	got, err := l.TryLock()
	return func() { _ = l.Close() }, err == nil && !got
}

// made says that the parent is there. A node that must make it has been started just now, and peers may have come meanwhile:
// however young the last answer is, it asks.
func (r *run) made() bool {
	_, err := r.Kernel.Link(r.plan.Parent.Name)
	return !kernel.IsNotFound(err)
}

// complete says that a place has all that plan's network needs.
func complete(plan *netconf.Plan, p place.Place) bool {
	shims := plan.HostShim == nil || len(p.Shim) == len(plan.HostShim.Ranges)
	return p.Index != 0 && shims && (plan.Parent.Type != netconf.ParentVXLAN || p.VTEP.IsValid())
}

func (r *run) see() (place.Seen, error) {
	addrs, err := r.Kernel.Addrs()
	if err != nil {
		return place.Seen{}, err
	}
	var seen place.Seen
	for _, a := range addrs {
		seen.Local = append(seen.Local, a.Prefix.Addr())
	}
	if link, err := r.Kernel.Link(r.plan.Parent.Name); err == nil {
		seen.OnParent, seen.Tunnel = plain(kernel.AddrsOf(addrs, link.Index)), link.VXLAN.Local
	} else if !kernel.IsNotFound(err) {
		return seen, err
	}
	if r.plan.HostShim == nil {
		return seen, nil
	}
	if link, err := r.Kernel.Link(r.plan.HostShim.Name); err == nil {
		seen.OnShim = plain(kernel.AddrsOf(addrs, link.Index))
	} else if !kernel.IsNotFound(err) {
		return seen, err
	}
	return seen, nil
}

func plain(addrs []kernel.Addr) []netip.Addr {
	list := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, a.Prefix.Addr())
	}
	return list
}

// shimAddrs gives the shim's addresses the length of their network, or of a host
// where the network isn't known.
func shimAddrs(shim *netconf.HostShim, p place.Place) []netip.Prefix {
	var list []netip.Prefix
	for i, a := range p.Shim {
		bits := a.BitLen()
		if i < len(shim.Networks) && shim.Networks[i].IsValid() {
			bits = shim.Networks[i].Bits()
		}
		list = append(list, netip.PrefixFrom(a, bits))
	}
	return list
}

// stages are the parts of a round, in the order in which they build on each other.
func (r *run) stages() []func(context.Context) ([]kernel.Step, error) {
	vxlan := r.plan.Parent.Type == netconf.ParentVXLAN
	var stages []func(context.Context) ([]kernel.Step, error)
	if vxlan {
		stages = append(stages, r.vtep, r.routes)
	}
	stages = append(stages, r.parent)
	if r.plan.HostShim != nil {
		stages = append(stages, r.shim)
	}
	return stages
}

func (r *run) vtep(context.Context) ([]kernel.Step, error) {
	return parent.DiffVTEP(r.Kernel, r.plan.Parent.VTEP, r.state.Place.VTEP)
}

func (r *run) routes(context.Context) ([]kernel.Step, error) {
	return parent.DiffRoutes(r.Kernel, r.plan.Parent.VTEP, r.state.Place.Peers)
}

func (r *run) parent(context.Context) ([]kernel.Step, error) {
	if err := r.workOutMTU(); err != nil {
		return nil, err
	}
	p := r.state.Place
	moving, err := r.moving()
	if err != nil {
		return nil, err
	}
	steps, err := parent.Diff(r.Kernel, parent.Desired{
		Parent: r.plan.Parent, Local: p.VTEP, Peers: p.Peers, AutoMTU: p.MTU,
		MAC:    place.MAC(r.Node, r.plan.Parent.Name, "parent", p.VTEP),
		Beside: r.plan.HostShim != nil && !r.owner(), Moving: moving, Incomplete: r.Claim != nil && !p.Complete, Former: r.former,
	})
	if err == nil && len(r.fixed) > 0 && slices.ContainsFunc(steps, func(s kernel.Step) bool { return s.Name == "parent.recreate" }) {
		return nil, cnierr.New(cnierr.IncompatibleParent, "parent %s differs from the network's configuration in what the kernel can't change, and it isn't made again, because "+
			"it has this node's Kubernetes address %s: set the configuration to what `ip -d link show %[1]s` says, or give the parent another name", r.plan.Parent.Name, r.fixed[0])
	}
	return steps, err
}

// former are the peers of the last answer that this one doesn't have any more.
func former(last, now place.Place) []netip.Addr {
	if now.Peers == nil || slices.Equal(last.Peers, now.Peers) {
		return nil
	}
	still := map[netip.Addr]bool{now.VTEP: true}
	for _, a := range now.Peers {
		still[a] = true
	}
	return slices.DeleteFunc(slices.Clone(last.Peers), func(a netip.Addr) bool { return still[a] })
}

// workOutMTU asks the routes to all peers, which is dear, only where no answer is
// on disk, or a change is being made anyway: that there are other peers is one.
func (r *run) workOutMTU() error {
	auto := r.plan.Parent.Type == netconf.ParentVXLAN && r.plan.Parent.MTU == 0
	known := r.last.MTU != 0 && !r.fresh
	if !auto || known {
		return nil
	}
	mtu, err := parent.AutoMTU(r.Kernel, r.state.Place.VTEP, r.state.Place.Peers)
	if err != nil {
		return err
	}
	r.state.Place.MTU = mtu
	r.last.MTU, r.fresh = mtu, false // the routes are made before the parent: once serves all rounds
	return nil
}

// owner says that the parent is the storage network's alone. One that has a Kubernetes address in a range is not: that
// address stays, so the shim stands beside it as on a NIC.
func (r *run) owner() bool {
	return r.plan.Parent.Type == netconf.ParentVXLAN && !slices.ContainsFunc(r.fixed, r.inNetworks)
}

// inNetworks says that an address is in one of the ranges that the shim has an address in.
func (r *run) inNetworks(addr netip.Addr) bool {
	return slices.ContainsFunc(r.state.Addrs, func(p netip.Prefix) bool { return p.Masked().Contains(addr) })
}

// moving are the parent's addresses of the network, about to go to the shim.
func (r *run) moving() ([]netip.Addr, error) {
	if r.plan.HostShim == nil || !r.owner() {
		return nil, nil
	}
	seen, err := r.see()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(seen.OnParent, func(a netip.Addr) bool { return !r.inNetworks(a) }), nil
}

func (r *run) shim(ctx context.Context) ([]kernel.Step, error) {
	if _, err := r.Kernel.Link(r.plan.Parent.Name); kernel.IsNotFound(err) {
		return nil, nil // the parent comes first; the next round sees it
	}
	return hostshim.Diff(ctx, r.Kernel, r.Neighbours, hostshim.Desired{
		Name: r.plan.HostShim.Name, Parent: r.plan.Parent.Name,
		MAC:       place.MAC(r.Node, r.plan.Parent.Name, "shim "+r.plan.HostShim.Name, r.state.Place.Shim[0]),
		Addresses: r.state.Addrs, Hosts: r.plan.HostShim.Ranges,
		Owner: r.owner(), Probe: r.plan.Conflict.Enabled, Grace: r.Grace,
		Excluded: r.plan.IPAM.Excluded, Pods: r.podsEverywhere(),
	})
}

// podsEverywhere are the parts of the ranges that pods of any node have. Without
// a cluster each node may give out a part of its own, so that isn't known.
func (r *run) podsEverywhere() []netipx.IPRange {
	if r.plan.IPAM.Type != "whereabouts" && r.Node.Kubeconfig == "" {
		return nil
	}
	var list []netipx.IPRange
	for _, p := range r.plan.IPAM.Pods {
		list = append(list, netipx.IPRangeFrom(p.First, p.Last))
	}
	return list
}

// announceRaise notes on disk that pods' interfaces are to be restored, before
// the parent's MTU is raised: a process that dies in between leaves the note.
func (r *run) announceRaise(steps []kernel.Step) error {
	changes := slices.ContainsFunc(steps, func(s kernel.Step) bool { return s.Name == "parent.mtu" })
	if !changes || r.RestoreMTU == nil {
		return nil
	}
	if err := os.WriteFile(r.restorePath(), nil, 0o600); err != nil {
		return cnierr.New(cnierr.IO, "note that pods' MTUs must be restored: %w", err)
	}
	return nil
}

func (r *run) restorePath() string {
	return filepath.Join(r.Node.RunDir, "restore-mtu-"+r.plan.Parent.Name)
}

func (r *run) restoring() bool {
	_, err := os.Stat(r.restorePath())
	return err == nil && r.RestoreMTU != nil
}

// placePath is a file for each network and parent: networks that share a parent
// share its VTEP, but have shim addresses of their own.
func (r *run) placePath() string {
	return filepath.Join(r.Node.StateDir, "place", url.PathEscape(r.plan.Name)+"@"+r.plan.Parent.Name+".json")
}

// load reads the answer on disk.
func (r *run) load() (err error) {
	r.saved, r.asked, err = loadPlace(r.placePath())
	r.last = r.saved
	return err
}

// answered says that the answer on disk is the one just found.
func (r *run) answered() bool { return same(r.saved, r.state.Place) }

func same(a, b place.Place) bool {
	return a.Index == b.Index && a.VTEP == b.VTEP && a.MTU == b.MTU &&
		slices.Equal(a.Shim, b.Shim) && slices.Equal(a.Peers, b.Peers) && slices.Equal(a.Kubernetes, b.Kubernetes)
}
