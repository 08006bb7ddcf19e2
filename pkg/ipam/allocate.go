package ipam

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
)

// undoTime bounds a rollback, which must run even when the time of the call is over.
const undoTime = 2 * time.Second

// Allocator gives one attachment its addresses and takes them back.
type Allocator struct {
	Store Store
	Pools []Pool
	Order Order
	Owner Owner
	// Spread makes a claim that met another's go on at a random distance: where a claim is a call over
	// the network, hundreds that want the lowest address at once must not all try each next one.
	Spread bool
}

// Grant is what Add gave.
type Grant struct {
	Addresses []netip.Prefix // one per pool, in the pools' order
	fresh     []Claim        // those that did not exist before
	store     Store
}

// Add claims one address of each pool. An address that the pod's interface already
// holds in a pool is taken over, unless it is excluded by now: then it is given back and
// another one is chosen. Either all pools give an address or nothing new is held
// afterwards.
func (a Allocator) Add(ctx context.Context) (*Grant, error) {
	grant := &Grant{store: a.Store}
	for _, pool := range a.Pools {
		addr, err := a.addFrom(ctx, pool, grant)
		if err != nil {
			return nil, errors.Join(timeIsUp(ctx, err), grant.Undo(ctx))
		}
		grant.Addresses = append(grant.Addresses, netip.PrefixFrom(addr, pool.Range.Bits()))
	}
	return grant, nil
}

// Undo gives back what this grant claimed. What the pod already held stays its own until DEL.
func (g *Grant) Undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var errs []error
	for _, claim := range slices.Backward(g.fresh) {
		if err := g.store.Release(ctx, claim); err != nil {
			errs = append(errs, fmt.Errorf("give back %s: %w", claim.Address, err))
		}
	}
	g.fresh = nil
	return errors.Join(errs...)
}

// holds says whether addr was given to an earlier pool of the same ADD.
func (g *Grant) holds(addr netip.Addr) bool {
	return slices.ContainsFunc(g.Addresses, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// addFrom claims an address of one pool. A claim of our own that changes under our hands (a
// second ADD for the same pod) is a reason to look again, a few times.
func (a Allocator) addFrom(ctx context.Context, pool Pool, grant *Grant) (netip.Addr, error) {
	for range 10 {
		addr, err := a.tryFrom(ctx, pool, grant)
		if !errors.Is(err, ErrChanged) {
			return addr, err
		}
	}
	return netip.Addr{}, cnierr.New(cnierr.TryAgain, "claim an address of pool %s for %s: other processes keep changing this pod's claims; is more than one ADD running for it?", pool.Name, a.Owner)
}

func (a Allocator) tryFrom(ctx context.Context, pool Pool, grant *Grant) (netip.Addr, error) {
	if err := fault.At("ipam.add.snapshot"); err != nil {
		return netip.Addr{}, err
	}
	seen, err := a.Store.Snapshot(ctx, pool, a.Owner)
	if err != nil {
		return netip.Addr{}, err
	}
	usable, err := a.releaseExcluded(ctx, pool, seen.Own)
	if err != nil {
		return netip.Addr{}, err
	}
	if old := a.keep(pool, usable, grant); old != nil {
		return old.Address, a.takeOver(ctx, pool, *old)
	}
	return a.claimNew(ctx, pool, seen, grant)
}

// releaseExcluded gives back what the pod holds in a part of the range that is
// excluded by now, and returns the rest.
func (a Allocator) releaseExcluded(ctx context.Context, pool Pool, own []Claim) ([]Claim, error) {
	var usable []Claim
	for _, claim := range own {
		if !pool.Excluded(claim.Address) {
			usable = append(usable, claim)
			continue
		}
		if err := a.Store.Release(ctx, claim); err != nil {
			return nil, fmt.Errorf("give back %s, which is excluded from pool %s now: %w", claim.Address, pool.Name, err)
		}
	}
	return usable, nil
}

// keep chooses among the addresses that the pod already holds in a pool: rather this sandbox's own
// than another's, rather one inside the window, and then the oldest, so that ranges of one
// CIDR get theirs back in the same order.
func (a Allocator) keep(pool Pool, own []Claim, grant *Grant) *Claim {
	sortOldestFirst(own)
	for _, good := range []func(Claim) bool{
		func(c Claim) bool { return c.SameAttachment(a.Owner) && pool.Window().Contains(c.Address) },
		func(c Claim) bool { return c.SameAttachment(a.Owner) },
		func(c Claim) bool { return pool.Window().Contains(c.Address) },
		func(Claim) bool { return true },
	} {
		for i, claim := range own {
			if good(claim) && !grant.holds(claim.Address) {
				return &own[i]
			}
		}
	}
	return nil
}

func (a Allocator) takeOver(ctx context.Context, pool Pool, old Claim) error {
	if old.Owner != a.Owner {
		if err := fault.At("ipam.add.reown"); err != nil {
			return err
		}
	}
	if err := a.Store.Reown(ctx, pool, old, a.Owner); err != nil {
		return fmt.Errorf("take over %s from container %s: %w", old.Address, old.ContainerID, err)
	}
	return nil
}

// claimNew claims the first candidate that nobody holds. The snapshot may be stale, so
// a candidate that turns out to be held is passed over.
func (a Allocator) claimNew(ctx context.Context, pool Pool, seen Snapshot, grant *Grant) (netip.Addr, error) {
	taken := slices.Concat(seen.Taken, seen.Pod)
	for _, p := range grant.Addresses {
		taken = append(taken, p.Addr())
	}
	next, stop := a.candidates(pool, taken)
	defer stop()
	for met := 0; ; {
		addr, ok := next(met)
		if !ok {
			break
		}
		if err := ctx.Err(); err != nil {
			return netip.Addr{}, err
		}
		if err := fault.At("ipam.add.create"); err != nil {
			return netip.Addr{}, err
		}
		claim := pool.NewClaim(addr, a.Owner)
		err := a.Store.Create(ctx, pool, claim)
		var held *TakenError
		switch {
		case err == nil:
			grant.fresh = append(grant.fresh, claim)
			return addr, fault.At("ipam.add.created")
		case !errors.As(err, &held):
			return netip.Addr{}, fmt.Errorf("claim %s: %w", addr, err)
		case held.Holder != nil && held.Holder.Declined == nil && held.Holder.Pool == pool.Name && held.Holder.SameInterface(a.Owner):
			return netip.Addr{}, ErrChanged // another process claimed it for the same pod just now
		case held.Holder == nil || held.Holder.Declined == nil && held.Holder.ContainerID != "":
			met++
		}
		taken = append(taken, addr)
	}
	if r, ok := a.Store.(Reclaimer); ok {
		switch freed, err := r.Reclaim(ctx, pool); {
		case err != nil:
			return netip.Addr{}, err
		case freed:
			return netip.Addr{}, ErrChanged
		}
	}
	return netip.Addr{}, a.exhausted(pool, taken)
}

// firstSpread bounds how far the second try is from the first, in free addresses; each further one goes four times as far.
const firstSpread = 128

// candidates gives a pool's free addresses one by one, in order; with Spread, and once others were met, at
// random distances, and those passed over at the end, in random order.
func (a Allocator) candidates(pool Pool, taken []netip.Addr) (next func(met int) (netip.Addr, bool), stop func()) {
	inOrder, stop := iter.Pull(pool.Candidates(taken, pool.start(a.Order, a.Owner)))
	var passed []netip.Addr
	return func(met int) (netip.Addr, bool) {
		skip := 0
		if a.Spread && met > 0 {
			skip = rand.IntN(firstSpread << min(2*(met-1), 10))
		}
		for {
			addr, ok := inOrder()
			switch {
			case !ok && len(passed) == 0:
				return netip.Addr{}, false
			case !ok:
				i, last := rand.IntN(len(passed)), len(passed)-1
				addr, passed[i] = passed[i], passed[last]
				passed = passed[:last]
				return addr, true
			case skip == 0:
				return addr, true
			}
			passed = append(passed, addr)
			skip--
		}
	}, stop
}

// exhausted begins with the words that Whereabouts uses: people and runbooks search for them.
func (a Allocator) exhausted(pool Pool, taken []netip.Addr) error {
	held := 0
	slices.SortFunc(taken, netip.Addr.Compare)
	for _, addr := range slices.Compact(taken) {
		if pool.Window().Contains(addr) && !pool.Excluded(addr) {
			held++
		}
	}
	return cnierr.New(cnierr.Exhausted, "error at storage engine: Could not allocate IP in range: ip: %s / - %s / range: %s / excludeRanges: %v\n"+
		"Pool %s of network %q: %d of %s addresses are held or in quarantine. Widen the range or its window, exclude less, or release what no pod uses any more: %s.",
		pool.First, pool.Last, pool.Range, pool.Written, pool.Name, a.Owner.Network, held, countFree(pool.free(nil)), a.Store.Where())
}

// Del gives up all that the attachment holds, whatever the configuration says by now.
func (a Allocator) Del(ctx context.Context) error {
	if err := fault.At("ipam.del.release"); err != nil {
		return err
	}
	return timeIsUp(ctx, a.Store.ReleaseAll(ctx, a.Owner))
}

// Check says what is wrong with an attachment that has the given addresses: each that
// lies in a pool must be claimed for it, and each pool must have given one.
func (a Allocator) Check(ctx context.Context, addresses []netip.Prefix) error {
	own := map[netip.Addr]bool{}
	var faults []error
	for _, pool := range a.Pools {
		seen, err := a.Store.Snapshot(ctx, pool, a.Owner)
		if err != nil {
			return timeIsUp(ctx, err)
		}
		given := false
		for _, claim := range seen.Own {
			if claim.SameAttachment(a.Owner) {
				own[claim.Address] = true
				given = given || hasAddress(addresses, claim.Address)
			}
		}
		if !given {
			faults = append(faults, cnierr.New(cnierr.InvalidConfig, "pool %s: none of the addresses %v is claimed for %s; an ADD would claim one", pool.Name, addresses, a.Owner))
		}
	}
	for _, p := range addresses {
		inPool := slices.ContainsFunc(a.Pools, func(pool Pool) bool { return pool.Window().Contains(p.Addr()) && !pool.Excluded(p.Addr()) })
		if inPool && !own[p.Addr()] {
			faults = append(faults, cnierr.New(cnierr.InvalidConfig, "address %s of a pool isn't claimed for %s", p.Addr(), a.Owner))
		}
	}
	return errors.Join(faults...)
}

func hasAddress(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// Status says why an ADD couldn't be served now; the error has code 50.
func (a Allocator) Status(ctx context.Context) error {
	var faults []error
	for _, pool := range a.Pools {
		seen, err := a.Store.Snapshot(ctx, pool, a.Owner)
		if err != nil {
			faults = append(faults, timeIsUp(ctx, err))
			continue
		}
		if len(pool.free(seen.Taken)) == 0 {
			faults = append(faults, a.exhausted(pool, seen.Taken))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &cnierr.Error{Code: cnierr.NotAvailable, Err: errors.Join(faults...)}
}

// Decline gives up the attachment's claim on addr, because mac answered for it, and
// keeps everyone from getting it for a while. To repeat it is no error.
func (a Allocator) Decline(ctx context.Context, addr netip.Addr, mac string) error {
	why := Declined{MAC: mac, Until: time.Now().Add(Quarantine)}
	for _, pool := range a.Pools {
		if !pool.Range.Contains(addr) {
			continue
		}
		if err := fault.At("ipam.decline"); err != nil {
			return err
		}
		if err := a.Store.Decline(ctx, pool.NewClaim(addr, a.Owner), why); !errors.Is(err, ErrChanged) {
			return timeIsUp(ctx, err)
		}
	}
	return cnierr.New(cnierr.InvalidConfig, "decline %s: no range of network %q has it claimed for %s", addr, a.Owner.Network, a.Owner)
}

// Collect gives up this node's claims of this network whose attachments aren't among
// valid. nil means that the caller doesn't know which are valid: nothing is given up.
func (a Allocator) Collect(ctx context.Context, valid *[]Attachment) error {
	if valid == nil {
		return nil
	}
	if err := fault.At("ipam.gc.collect"); err != nil {
		return err
	}
	_, err := a.Store.Collect(ctx, a.Owner.Network, a.Owner.Node, *valid)
	return timeIsUp(ctx, err)
}

// timeIsUp gives an error that came of the call's time bound the code for "try again".
func timeIsUp(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || cnierr.CodeOf(err) != cnierr.Unclassified {
		return err
	}
	return cnierr.New(cnierr.TryAgain, "the time for this call is over: %w", err)
}
