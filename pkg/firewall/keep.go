package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"time"
)

// Firewall keeps the rules of the network namespace that its methods are called
// in.
type Firewall struct {
	log     *slog.Logger
	metrics *Metrics
	wake    chan struct{}

	mu      sync.Mutex
	desired *Desired
	backend Backend // in use; chosen by the last look

	// Run's own.
	said string // the last error logged
	seen string // the tables as they were at the last look
	kept kept
}

// kept is what a look has left in the nft tables. As long as their generation is the same nobody has changed anything since.
type kept struct {
	generation uint32 // 0: not known
	rules      map[Family][]Chain
}

// New makes a firewall that does nothing until it is told what to keep.
func New(log *slog.Logger, metrics *Metrics) *Firewall {
	return &Firewall{log: log, metrics: metrics, wake: make(chan struct{}, 1), backend: unknown}
}

// Set says what Run has to keep. What it keeps already it isn't told again.
func (f *Firewall) Set(d Desired) {
	f.mu.Lock()
	same := f.desired != nil && reflect.DeepEqual(*f.desired, d)
	f.desired = &d
	f.mu.Unlock()
	if same {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default: // it will look anyway
	}
}

const (
	resync   = time.Minute            // between full looks, backend included
	lookOver = time.Second            // between looks at legacy tables, which tell nobody of changes
	settle   = 200 * time.Millisecond // after a change of another's: it may not be done
)

// Run keeps the rules until ctx ends, and leaves them where they are: a node
// isn't open while its agent is restarted. Whatever stands in the way is logged
// once and tried again.
func (f *Firewall) Run(ctx context.Context) error {
	changed, stop, err := watch()
	if err != nil {
		f.log.Warn("changes of the firewall by others are seen only once a minute", "error", err)
	}
	defer stop()
	full := time.NewTicker(resync)
	defer full.Stop()
	look := time.NewTicker(lookOver)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			f.keep(ctx, f.using() == unknown) // all tables of a host may be long: they are no peer's business
		case <-full.C:
			f.keep(ctx, true)
		case <-changed:
			if !sleep(ctx, settle) {
				return nil
			}
			drain(changed)
			f.keep(ctx, false)
		case <-look.C:
			if f.using() == Legacy && f.moved(ctx) {
				f.keep(ctx, false)
			}
		}
	}
}

// moved says whether the tables read otherwise than at the last look. It is
// asked once a second, so it is one process for a family.
func (f *Firewall) moved(ctx context.Context) bool {
	var all strings.Builder
	for _, family := range families() {
		out, err := exec.CommandContext(ctx, f.using().program(family, "-save"), "-t", Table).Output() //nolint:gosec // one of a few fixed names
		if err != nil {
			return true // keep will say why
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") { // the time
				all.WriteString(strings.Split(line, " [")[0]) // without counters
			}
		}
	}
	if all.String() == f.seen {
		return false
	}
	f.seen = all.String()
	return true
}

func (f *Firewall) using() Backend {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// keep is one round of Run.
func (f *Firewall) keep(ctx context.Context, anew bool) {
	f.mu.Lock()
	desired := f.desired
	f.mu.Unlock()
	if desired == nil {
		return
	}
	changes, err := f.ensure(ctx, *desired, anew)
	for _, change := range changes {
		f.log.Info("firewall: "+change, "backend", f.using())
	}
	text := ""
	if err != nil && ctx.Err() == nil {
		text = err.Error()
	}
	if text != "" && text != f.said {
		f.log.Error("the firewall isn't as it must be", "error", err)
	}
	f.said = text
}

// Ensure makes the rules as they must be and says what it changed; nothing the
// second time.
func (f *Firewall) Ensure(ctx context.Context, d Desired) (changes []string, err error) {
	return f.ensure(ctx, d, true)
}

func (f *Firewall) ensure(ctx context.Context, d Desired, anew bool) (changes []string, err error) {
	if anew {
		all := backends(ctx)
		changes, err = f.leave(ctx, f.take(all), all)
	}
	done, err := f.fillAll(ctx, d, anew, err)
	changes = append(changes, done...)
	f.metrics.count(changes, err)
	return changes, err
}

// fillAll fills the tables of all families. While the generation says that they are as the last look has left them none is read again: a change
// is written at once, and when it is heard of there is nothing to do.
func (f *Firewall) fillAll(ctx context.Context, d Desired, anew bool, before error) (changes []string, err error) {
	faults := []error{before}
	now := kept{f.generation(), map[Family][]Chain{}}
	untouched := !anew && now.generation != 0 && now.generation == f.kept.generation
	for _, family := range families() {
		t := &table{family: family, backend: f.using()}
		if untouched {
			t.known = asWanted(f.kept.rules[family])
		}
		want, err := d.Rules(family)
		if err == nil {
			var done []string
			if done, err = t.change(ctx, func(have found) (string, []string) { return diff(have, want) }); len(done) > 0 {
				now.generation++
			}
			changes = append(changes, done...)
		}
		now.rules[family] = want
		faults = append(faults, err)
	}
	err = errors.Join(faults...)
	f.kept = kept{}
	if err == nil && f.generation() == now.generation {
		f.kept = now
	}
	return changes, err
}

// generation is that of the nft tables, if those are used; 0 where it can't be told.
func (f *Firewall) generation() uint32 {
	if f.using() != NFT {
		return 0
	}
	return generation()
}

func (f *Firewall) take(all map[Backend]usage) Backend {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backend = choose(all)
	return f.backend
}

// leave removes our chains from the backends that aren't used.
func (f *Firewall) leave(ctx context.Context, used Backend, all map[Backend]usage) (changes []string, err error) {
	var faults []error
	for b, u := range all {
		if b != used && u.ours {
			done, err := purge(ctx, b)
			changes = append(changes, done...)
			faults = append(faults, err)
		}
	}
	return changes, errors.Join(faults...)
}

// change reads the table and writes the difference. When that is refused because
// somebody else was quicker, it looks again.
func (t *table) change(ctx context.Context, difference func(found) (string, []string)) ([]string, error) {
	const tries = 3
	var refused error
	for range tries {
		have, err := t.look(ctx)
		if err != nil {
			return nil, errors.Join(refused, err)
		}
		input, changes := difference(have)
		if input == "" {
			return nil, nil
		}
		if refused = t.write(ctx, input); refused == nil {
			return label(t.family, changes), nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("change the %s firewall: %w", t.family, refused)
}

func label(f Family, changes []string) []string {
	list := make([]string, 0, len(changes))
	for _, c := range changes {
		list = append(list, f.String()+": "+c)
	}
	return list
}

// Remove takes all chains and jumps of ours out of both backends, and nothing
// else.
func (f *Firewall) Remove(ctx context.Context) (changes []string, err error) {
	f.mu.Lock()
	f.desired = nil
	f.mu.Unlock()
	all := backends(ctx)
	if choose(all) == plain {
		all[plain] = usage{ours: true}
	}
	return f.leave(ctx, unknown, all)
}

func purge(ctx context.Context, b Backend) (changes []string, err error) {
	var faults []error
	for _, family := range families() {
		t := &table{family: family, backend: b}
		done, err := t.change(ctx, removal)
		changes = append(changes, done...)
		faults = append(faults, err)
	}
	return changes, errors.Join(faults...)
}

// families are those that this kernel has.
func families() []Family {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []Family{IPv4}
	}
	return []Family{IPv4, IPv6}
}
