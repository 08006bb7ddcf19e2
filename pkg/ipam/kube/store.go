// Package kube keeps claims in a Kubernetes cluster, beside Whereabouts' own objects.
//
// An address is claimed by creating an AddressClaim that is named after it: the API server gives a name
// once, so of any number of processes on any number of nodes one gets it, and nobody waits. Whereabouts'
// IPPool and reservation mirror the claim. With `record: sync` they do so before an ADD returns, which makes
// it safe to have a real Whereabouts allocate from the same pool; with `record: agent` a recorder (package recorder)
// mirrors claims in batches, and an ADD returns on the claim.
//
// # Recording
//
// One IPPool is one object, and everyone who writes it contends for it. So whoever writes it in a crowd
// writes for all: it adds the entries of all claims that lack one and removes those of all claims that
// were given up; the others find their work done. See record.go for why a list of claims that is
// a little old can't bring an entry back to life.
//
// # Giving up
//
// A claim is first marked as released, then its entry and its reservation go, then the claim: its name stays
// held until nothing else holds the address, and whoever is killed in between leaves a mark that
// the next one goes on from.
package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	defaultNamespace = metav1.NamespaceSystem // where Whereabouts has its objects if the kubeconfig doesn't say

	// One IPPool is one object of etcd, which takes 1.5 MB: about 8000 entries. Each write of it gets dearer before.
	warnEntries = 5000
	mostEntries = 7000

	undoTime = 2 * time.Second // bounds what must be undone though the time of the call is over
)

// JournalName is the journal's directory in a node's run directory.
const JournalName = "ipam"

// Options of a store.
type Options struct {
	API       *kubeapi.Client
	Namespace string       // of Whereabouts' objects; empty: kube-system
	Pools     []ipam.Pool  // of the configuration: where records of a real Whereabouts are looked for
	Order     ipam.Order   // Sticky with Agent needs but a pool's summary before a claim
	Agent     bool         // record: agent, for as long as there is a recorder
	Journal   string       // directory of this node's notes, gone after a reboot
	Queue     *queue.Queue // for releases that can't reach the API server; nil: they fail
	Warn      func(string) // what an operator should know; nil: nobody listens
}

// Store is a cluster's claims as one process sees them, for one call. It implements [ipam.Store].
type Store struct {
	Options
	journal journal

	agent     func(context.Context) bool // whether a recorder mirrors claims now
	views     map[string]*view           // pools as last read, by name
	entries   map[string]int             // how many there are in a pool, by its name
	strangers map[string]bool            // claim names whose address somebody's reservation holds
	held      map[string]bool            // claim names that other attachments of this node have, or ask for now
	crowd     bool                       // others are claiming at the same time
	exactly   bool                       // a pool must be read as it is: the copy in the server's memory won't do
}

var _ ipam.Store = (*Store)(nil)

// New makes a store. No call is made.
func New(o Options) *Store {
	if o.Namespace == "" {
		o.Namespace = defaultNamespace
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	s := &Store{Options: o, journal: journal{o.Journal, o.Agent}, views: map[string]*view{}, entries: map[string]int{}, strangers: map[string]bool{}}
	s.agent = func(context.Context) bool { return false }
	if o.Agent {
		var once sync.Once
		var fresh bool
		s.agent = func(ctx context.Context) bool {
			once.Do(func() { fresh = s.recorderRuns(ctx) })
			return fresh
		}
	}
	return s
}

// Where says where the claims are.
func (s *Store) Where() string {
	return fmt.Sprintf("the claims are what `kubectl get addressclaims` lists, and the entries of the IPPools in namespace %s", s.Namespace)
}

// view is an IPPool as it was read.
type view struct {
	object whereabouts.IPPool
	base   netip.Addr
}

func (v *view) version() string {
	if v == nil {
		return ""
	}
	return v.object.ResourceVersion
}

// entry is what the pool holds for an address.
func (v *view) entry(addr netip.Addr) (whereabouts.IPAllocation, bool) {
	e, ok := v.object.Spec.Allocations[keyOf(v.base, addr)]
	return e, ok
}

// read reads a pool, and makes it if it isn't there and pool is given.
func (s *Store) read(ctx context.Context, name string, pool *ipam.Pool, opts ...kubeapi.Option) (*view, error) {
	var object whereabouts.IPPool
	err := s.API.Get(ctx, Pools(s.Namespace), name, &object, opts...)
	if apierrors.IsNotFound(err) && pool != nil {
		object, err = s.makePool(ctx, *pool)
	}
	if err != nil {
		return nil, fmt.Errorf("IPPool %s/%s: %w", s.Namespace, name, s.API.Explain(err))
	}
	whole, err := netip.ParsePrefix(object.Spec.Range)
	if err != nil {
		return nil, cnierr.New(cnierr.InvalidConfig, "IPPool %s/%s: spec.range %q isn't a network in CIDR notation: something else wrote it; repair it or remove the pool when it is empty",
			s.Namespace, name, object.Spec.Range)
	}
	v := &view{object, whole.Addr()}
	s.views[name] = v
	return v, nil
}

// makePool makes an empty pool as Whereabouts does.
func (s *Store) makePool(ctx context.Context, pool ipam.Pool) (whereabouts.IPPool, error) {
	object := whereabouts.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: whereaboutsGroup + "/" + whereaboutsVersion, Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: pool.Name, Namespace: s.Namespace},
		Spec:       whereabouts.IPPoolSpec{Range: pool.Kept().String(), Allocations: map[string]whereabouts.IPAllocation{}},
	}
	var made whereabouts.IPPool
	err := s.API.Create(ctx, Pools(s.Namespace), object, &made)
	if apierrors.IsAlreadyExists(err) { // another process was quicker, or the copy in the server's memory was old
		err = s.API.Get(ctx, Pools(s.Namespace), pool.Name, &made)
	}
	return made, err
}

// Snapshot reads the pool as the server has it in memory; a copy that is a little old costs a claim
// in vain. What this pod may hold without the pool's knowledge is in the journal.
func (s *Store) Snapshot(ctx context.Context, pool ipam.Pool, owner ipam.Owner) (ipam.Snapshot, error) {
	var seen ipam.Snapshot
	pages, err := s.journal.pod(owner)
	if err != nil {
		return seen, err
	}
	if s.Agent {
		go s.agent(ctx) // it is needed soon
	}
	s.held = s.journal.held(owner)
	own := map[netip.Addr]whereabouts.IPAllocation{}
	for _, p := range pages {
		for _, c := range p.Claims {
			if p.Owner.IfName == owner.IfName && c.Pool == pool.Name {
				own[c.Address] = whereabouts.IPAllocation{}
			} else {
				seen.Pod = append(seen.Pod, c.Address)
			}
		}
	}
	brief := false
	if s.brief(ctx) {
		if seen.Taken, brief, err = s.readSummary(ctx, pool); err != nil {
			return seen, err
		}
	}
	if !brief {
		v, err := s.look(ctx, pool)
		if err != nil {
			return seen, err
		}
		seen.Taken = s.taken(v, owner, own)
	}
	s.count(pool.Name, len(seen.Taken))
	for addr, entry := range own {
		claim, err := s.own(ctx, pool, addr, entry, owner)
		switch {
		case err != nil:
			return seen, err
		case claim != nil:
			seen.Own = append(seen.Own, *claim)
		}
	}
	return seen, nil
}

// look reads a pool; nil where there is none yet. It is made by who writes the first entry: STATUS and CHECK look, too.
func (s *Store) look(ctx context.Context, pool ipam.Pool) (*view, error) {
	if !s.exactly {
		v, err := s.read(ctx, pool.Name, nil, kubeapi.Cached())
		if !apierrors.IsNotFound(err) {
			return v, err
		}
	}
	v, err := s.read(ctx, pool.Name, nil)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return v, err
}

// Reclaim looks closely at a pool that seems to be full: it reads it as it is, and finishes what others
// began to give up and quarantines that are over.
func (s *Store) Reclaim(ctx context.Context, pool ipam.Pool) (bool, error) {
	var list v1alpha1.AddressClaimList
	if err := s.API.List(ctx, Claims, &list, kubeapi.Selected(inPool(pool.Name)+","+v1alpha1.LabelState)); err != nil {
		return false, fmt.Errorf("list the claims of pool %s that nobody has: %w", pool.Name, s.API.Explain(err))
	}
	again := !s.exactly
	s.exactly = true
	var errs []error
	for _, object := range list.Items {
		if object.Spec.Pool == pool.Name && (object.Spec.Released || over(object, s.API.Now())) {
			again = true
			errs = append(errs, s.finish(ctx, object))
		}
	}
	return again, errors.Join(errs...)
}

// brief says that a pool's summary will do: where an address is chosen by the pod's name, and a recorder writes the
// pool. What the pod itself has is in the journal.
func (s *Store) brief(ctx context.Context) bool {
	return s.Order == ipam.Sticky && !s.exactly && s.agent(ctx)
}

// count notes how many entries a pool has.
func (s *Store) count(pool string, n int) {
	s.entries[pool] = n
	if n >= warnEntries {
		s.Warn(fmt.Sprintf("IPPool %s/%s has %d entries: each ADD gets slower, and at %d it is refused; split the range into node slices (node_slice_size)", s.Namespace, pool, n, mostEntries))
	}
}

// taken lists a pool's addresses and adds to own those that are recorded for owner.
func (s *Store) taken(v *view, owner ipam.Owner, own map[netip.Addr]whereabouts.IPAllocation) []netip.Addr {
	if v == nil {
		return nil
	}
	allocations := v.object.Spec.Allocations
	taken := make([]netip.Addr, 0, len(allocations))
	for key, e := range allocations {
		addr, ok := addressAt(v.base, key)
		if !ok {
			continue // not ours to judge
		}
		taken = append(taken, addr)
		if (ipam.Owner{PodRef: e.PodRef, ContainerID: e.ContainerID, IfName: e.IfName}).SameInterface(owner) {
			own[addr] = e
		}
	}
	return taken
}

// own is the claim on an address that the pool or the journal says owner's interface has; nil when it
// hasn't. A record without a claim is a real Whereabouts', or of a claim that was lost: it counts.
func (s *Store) own(ctx context.Context, pool ipam.Pool, addr netip.Addr, entry whereabouts.IPAllocation, owner ipam.Owner) (*ipam.Claim, error) {
	var object v1alpha1.AddressClaim
	err := s.API.Get(ctx, Claims, pool.ClaimName(addr), &object)
	recorded := entry != (whereabouts.IPAllocation{})
	switch {
	case apierrors.IsNotFound(err) && recorded:
		claim := pool.NewClaim(addr, ipam.Owner{
			Network: owner.Network, PodRef: entry.PodRef, ContainerID: entry.ContainerID, IfName: entry.IfName,
		})
		return &claim, nil
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read claim %s: %w", pool.ClaimName(addr), s.API.Explain(err))
	}
	claim := claimOf(object)
	if !live(object) || claim.Pool != pool.Name || !claim.SameInterface(owner) {
		return nil, nil
	}
	return &claim, nil
}

// Create claims an address and, unless a recorder does it, records it. Whatever fails after the
// claim was made takes it back.
func (s *Store) Create(ctx context.Context, pool ipam.Pool, claim ipam.Claim) error {
	if s.strangers[claim.Name] {
		return passed(claim.Name)
	}
	if n := s.entries[pool.Name]; n >= mostEntries {
		return cnierr.New(cnierr.Exhausted, "IPPool %s/%s has %d entries, and more than %d make it too big for etcd: split the range into node slices (node_slice_size) or use a range for each part of the cluster",
			s.Namespace, pool.Name, n, mostEntries)
	}
	switch ours, err := s.hold(claim); {
	case err != nil:
		return err
	case !ours:
		return passed(claim.Name)
	}
	if err := s.note(claim.Owner, noted{Name: claim.Name, Pool: claim.Pool, Address: claim.Address}); err != nil {
		return err
	}
	object, err := s.create(ctx, objectOf(pool, claim))
	var held *ipam.TakenError
	switch {
	case errors.As(err, &held):
		return errors.Join(err, s.journal.forget(claim.Owner, claim.Name))
	case err != nil:
		return errors.Join(err, s.abandon(ctx, claim))
	}
	if err := fault.At("ipam.add.claimed"); err != nil {
		return errors.Join(err, s.abandon(ctx, claim))
	}
	err = s.record(ctx, object, claim.Owner)
	switch {
	case errors.Is(err, errStranger):
		if err := s.giveBack(ctx, object); err != nil {
			return err
		}
		s.avoidReserved(ctx, pool)
		s.strangers[claim.Name] = true
		return errors.Join(passed(claim.Name), s.journal.forget(claim.Owner, claim.Name))
	case err != nil:
		return errors.Join(err, s.abandon(ctx, claim))
	}
	return nil
}

// passed says that an address is left to somebody who isn't looked up.
func passed(name string) error {
	return &ipam.TakenError{Name: name, Holder: &ipam.Claim{Name: name}}
}

// hold shares addresses out among the processes of this node. When the pool seems to be full what they
// left is no reason any more: the API server decides.
func (s *Store) hold(claim ipam.Claim) (bool, error) {
	if s.exactly {
		return true, nil
	}
	if s.held[claim.Name] {
		return false, nil
	}
	return s.journal.hold(claim.Owner, claim.Name)
}

// note writes down what is about to be claimed. A release of the same attachment that is still waiting is
// overtaken by that.
func (s *Store) note(owner ipam.Owner, n noted) error {
	if s.Queue != nil {
		if err := s.Queue.Forget(owner); err != nil {
			return err
		}
	}
	return s.journal.note(owner, n)
}

// create makes the object. A holder that is over is removed, and what it held with it.
func (s *Store) create(ctx context.Context, object v1alpha1.AddressClaim) (v1alpha1.AddressClaim, error) {
	for {
		var made v1alpha1.AddressClaim
		err := s.API.Create(ctx, Claims, object, &made)
		if !apierrors.IsAlreadyExists(err) {
			return made, s.API.Explain(err)
		}
		holder, err := s.holder(ctx, object)
		switch {
		case err != nil:
			return made, err
		case holder == nil:
			s.crowd = true
			return made, &ipam.TakenError{Name: object.Name}
		case holder.Spec == object.Spec:
			return *holder, nil // our own call, whose answer got lost
		case holder.Spec.Released && claimOf(*holder).SameInterface(claimOf(object).Owner):
			// The pod's own, which a recorder has yet to remove: it gets it back.
		case !over(*holder, s.API.Now()): // one that is being given up will be free in a moment, and Reclaim looks at it if that is the last
			s.crowd = s.crowd || holder.Spec.Declined == nil
			claim := claimOf(*holder)
			if holder.Spec.Released {
				claim.Owner = ipam.Owner{} // nobody's
			}
			return made, &ipam.TakenError{Name: object.Name, Holder: &claim}
		}
		if err := s.finish(ctx, *holder); err != nil {
			return made, err
		}
	}
}

// holder reads who holds a claim's name; nil when the server's memory doesn't know (any more, or yet).
func (s *Store) holder(ctx context.Context, object v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error) {
	var holder v1alpha1.AddressClaim
	err := s.API.Get(ctx, Claims, object.Name, &holder, kubeapi.Cached())
	if err == nil && claimOf(holder).SameInterface(claimOf(object).Owner) { // whether it still has it must be known exactly
		err = s.API.Get(ctx, Claims, object.Name, &holder)
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read who holds %s: %w", object.Name, s.API.Explain(err))
	}
	return &holder, nil
}

// Reown gives a claim to another sandbox: by a patch that tests the old one, or, where the address
// is recorded without a claim, by making the claim.
func (s *Store) Reown(ctx context.Context, pool ipam.Pool, read ipam.Claim, owner ipam.Owner) error {
	next := read
	next.Owner = owner
	former := ""
	if read.ContainerID != owner.ContainerID {
		former = read.ContainerID
	}
	if err := s.note(owner, noted{Name: read.Name, Pool: read.Pool, Address: read.Address, Former: former}); err != nil {
		return err
	}
	object, err := s.reown(ctx, objectOf(pool, next), read.Owner)
	if err != nil {
		return err
	}
	if err := s.journal.takeOver(owner, read.Name); err != nil {
		return err
	}
	if err := fault.At("ipam.add.reowned"); err != nil {
		return err
	}
	if err := s.record(ctx, object, read.Owner); err != nil {
		if errors.Is(err, errStranger) {
			return errors.Join(ipam.ErrChanged, s.giveBack(ctx, object))
		}
		return err
	}
	return nil
}

func (s *Store) reown(ctx context.Context, object v1alpha1.AddressClaim, old ipam.Owner) (v1alpha1.AddressClaim, error) {
	ops := []kubeapi.Op{
		kubeapi.Test("/spec/containerID", old.ContainerID), kubeapi.Test("/spec/ifName", old.IfName), kubeapi.Test("/spec/released", nil), kubeapi.Test("/spec/declined", nil),
		kubeapi.Add("/spec", object.Spec), kubeapi.Add("/metadata/labels", object.Labels),
	}
	var made v1alpha1.AddressClaim
	err := s.API.Patch(ctx, Claims, object.Name, ops, &made)
	switch {
	case apierrors.IsNotFound(err):
		made, err = s.create(ctx, object)
		var held *ipam.TakenError
		if errors.As(err, &held) {
			return made, ipam.ErrChanged
		}
		return made, err
	case apierrors.IsInvalid(err) || apierrors.IsConflict(err):
		if err := s.API.Get(ctx, Claims, object.Name, &made); err == nil && made.Spec == object.Spec {
			return made, nil // our own call, whose answer got lost
		}
		return made, ipam.ErrChanged
	}
	return made, s.API.Explain(err)
}

// Decline turns a claim into a quarantine: its name stays held, its entry and reservation go.
func (s *Store) Decline(ctx context.Context, claim ipam.Claim, why ipam.Declined) error {
	ops := []kubeapi.Op{
		kubeapi.Test("/spec/containerID", claim.ContainerID), kubeapi.Test("/spec/ifName", claim.IfName),
		kubeapi.Test("/spec/released", nil), kubeapi.Test("/spec/declined", nil),
		kubeapi.Add("/spec/declined", v1alpha1.Declined{MAC: why.MAC, Until: metav1.NewTime(why.Until)}),
		kubeapi.Add("/metadata/labels/"+kubeapi.Escape(v1alpha1.LabelState), v1alpha1.StateDeclined),
	}
	var object v1alpha1.AddressClaim
	err := s.API.Patch(ctx, Claims, claim.Name, ops, &object)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		err = s.API.Get(ctx, Claims, claim.Name, &object)
		if err == nil && (object.Spec.Declined == nil || !claimOf(object).SameAttachment(claim.Owner)) {
			return ipam.ErrChanged
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return ipam.ErrChanged
	case err != nil:
		return fmt.Errorf("decline %s: %w", claim.Name, s.API.Explain(err))
	}
	if err := fault.At("ipam.decline.marked"); err != nil {
		return err
	}
	n, err := s.journal.noted(claim.Owner, claim.Name)
	if err == nil {
		err = s.unrecord(ctx, object, n)
	}
	if err != nil {
		return err
	}
	return s.journal.forget(claim.Owner, claim.Name)
}

// Collect reads the claims of one node and network as they are.
func (s *Store) Collect(ctx context.Context, network, node string, valid []ipam.Attachment) (gone []ipam.Claim, err error) {
	keep := map[ipam.Attachment]bool{}
	for _, a := range valid {
		keep[a] = true
	}
	var list v1alpha1.AddressClaimList
	err = s.API.List(ctx, Claims, &list, kubeapi.Labelled(
		v1alpha1.LabelNode, v1alpha1.LabelValue(node), v1alpha1.LabelNetwork, v1alpha1.LabelValue(network)))
	if err != nil {
		return nil, fmt.Errorf("list the claims of network %q on node %s: %w", network, node, s.API.Explain(err))
	}
	var errs []error
	for _, object := range list.Items {
		claim := claimOf(object)
		if claim.Declined != nil || claim.Network != network || claim.Node != node ||
			keep[ipam.Attachment{ContainerID: claim.ContainerID, IfName: claim.IfName}] {
			continue
		}
		if err := s.release(ctx, object.Name, claim.Owner); err != nil {
			errs = append(errs, fmt.Errorf("give up %s of %s: %w", claim.Address, claim.Owner, err))
			continue
		}
		errs = append(errs, s.journal.close(claim.Owner))
		gone = append(gone, claim)
	}
	return gone, errors.Join(errs...)
}
