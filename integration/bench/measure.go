package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/integration/testnode"
)

const (
	// patience is after how much time a case's further rounds are left out: whereabouts
	// needs most of a minute for a round of 200.
	patience = 12 * time.Second

	// block is how many turns of single calls the cases without a recorder take before
	// those with one take theirs.
	block = 20
)

// bench is what the cases run on: a node of its own for each, those in the
// cluster one for all, and pods that they share, one case at a time.
type bench struct {
	settings
	programs programs
	dirs     directories
	progress *progress
	report   *report

	cluster  *cluster // nil if no case needs it
	nodes    []*testnode.Node
	pods     []ns.NetNS
	subjects []*subject
	stages   []stage
	versions []versionCase
	podCases []podCase
	meter    meter
}

// subject is a case on its node.
type subject struct {
	testCase
	calls storm.Storm // on no pods yet
	turns int         // taken so far
}

// next are the calls of the subject's next turn: in a sandbox of its own, as
// each time that a pod is started, and for a pod that no other case has, since some share a pool.
func (s *subject) next(pods []ns.NetNS) storm.Storm {
	s.turns++
	calls := s.calls
	calls.Pods, calls.ContainerSuffix = pods, fmt.Sprintf("-%d", s.turns)
	calls.PodSuffix = "-" + strings.NewReplacer(":", "-", "/", "-", "+", "-", "=", "-").Replace(s.name)
	if !s.returns {
		calls.PodSuffix += calls.ContainerSuffix
	}
	return calls
}

// prepare makes the nodes and pods, and starts a cluster if a case needs it. Even
// after an error the bench is to be closed.
func (b *bench) prepare(ctx context.Context) (err error) {
	plan, err := b.plan()
	if err != nil {
		return err
	}
	b.progress.say("making nodes and pods")
	conditions := ""
	if plan.needCluster() {
		if b.cluster, err = startCluster(ctx, b.noFsync); err != nil {
			return err
		}
		conditions = b.cluster.Conditions()
	}
	if b.report, err = newReport(b.programs, conditions); err != nil {
		return err
	}
	if b.subjects, err = b.newSubjects(plan.cases); err != nil {
		return err
	}
	b.stages, b.versions, b.podCases = plan.stages, plan.versions, plan.pods
	if b.meter, err = newMeter(ctx, b.dirs.meter); err != nil {
		return err
	}
	return b.newPods(b.most())
}

func (b *bench) newPods(n int) error {
	sandboxes := &testnode.Node{}
	b.nodes = append(b.nodes, sandboxes)
	for range n {
		pod, err := sandboxes.NewNetns()
		if err != nil {
			return err
		}
		b.pods = append(b.pods, pod)
	}
	return nil
}

func (b *bench) newSubjects(cases []testCase) ([]*subject, error) {
	var all []*subject
	for i, c := range cases {
		s, err := b.newSubject(c, i)
		if err != nil {
			return nil, fmt.Errorf("make the node of %s: %w", c.name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// newSubject makes a case's node, and how it is called there.
func (b *bench) newSubject(c testCase, number int) (*subject, error) {
	var node *testnode.Node
	var err error
	if c.network > 0 {
		node, err = b.cluster.newNode(c)
	} else {
		node, err = c.newNode(b.dirs, number)
	}
	if node != nil {
		b.nodes = append(b.nodes, node)
	}
	if err != nil {
		return nil, err
	}
	conf, err := c.conf(filepath.Join(node.Dir, "host-local"))
	calls := storm.Storm{Node: node, Plugin: b.programs.find(c.plugin), Path: b.programs.path(), Conf: conf}
	return &subject{testCase: c, calls: calls}, err
}

func (b *bench) close() error {
	var faults []error
	for _, node := range b.nodes {
		faults = append(faults, node.Close())
	}
	return errors.Join(append(faults, b.cluster.stop())...)
}

// measure goes on where a call fails: what failed is part of the report.
func (b *bench) measure(ctx context.Context) error {
	for _, step := range []func(context.Context) error{b.warmUp, b.singles, b.crowds, b.startUp, b.memory, b.byFill, b.wholePods} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// warmUp makes what is made once per node: our parent, shim and addresses. Here a
// failure ends the run: nothing would come of it.
func (b *bench) warmUp(ctx context.Context) error {
	for _, s := range b.subjects {
		b.progress.say("%s: first call", s.name)
		add, del, err := s.attachDetach(ctx, b.pods[:1])
		if err := errors.Join(append(append(add.Failures, del.Failures...), err)...); err != nil {
			return fmt.Errorf("%s, the first call of all: %w", s.name, err)
		}
	}
	return nil
}

// attachDetach attaches and detaches all pods at once, one after the other. Its
// error is ctx's: then the reports are of no use.
func (s *subject) attachDetach(ctx context.Context, pods []ns.NetNS) (add, del storm.Report, err error) {
	calls := s.next(pods)
	add, del = calls.Attach(ctx), calls.Detach(ctx)
	return add, del, ctx.Err()
}

func (b *bench) singles(ctx context.Context) error {
	if !b.oneByOne() {
		return nil
	}
	return b.compare(ctx, b.subjects, 1, effort{turns: b.repeats, block: block})
}

// crowds measures many calls at the same time.
func (b *bench) crowds(ctx context.Context) error {
	subjects := slices.DeleteFunc(slices.Clone(b.subjects), func(s *subject) bool { return !b.inCrowds(s.testCase) })
	for _, n := range b.atOnce() {
		if err := b.compare(ctx, subjects, n, effort{turns: b.rounds, patience: patience}); err != nil {
			return err
		}
	}
	return nil
}

// effort is how often calls are repeated.
type effort struct {
	turns    int
	patience time.Duration // after so much time a case takes no further turn; 0: it takes all
	block    int           // turns of cases without a recorder before those with one take theirs; 0: all
	weigh    bool          // peak memory, too
}

// tally is what one subject's calls have cost.
type tally struct {
	*subject
	add, del sample
	spent    time.Duration
	done     bool
	left     leftover
}

// compare measures all subjects with n calls at once. They take turns, each time
// in another order, and no turn waits for what an earlier one has left to do.
func (b *bench) compare(ctx context.Context, subjects []*subject, n int, e effort) error {
	tallies := make([]*tally, len(subjects))
	for i, s := range subjects {
		tallies[i] = &tally{subject: s}
	}
	defer func() {
		for _, t := range tallies {
			b.report.enter(t, n)
		}
	}()
	step := cmp.Or(e.block, e.turns)
	for first := 0; first < e.turns; first += step {
		for _, agent := range []bool{false, true} { // the recorder runs beside no others
			group := slices.DeleteFunc(byRecorder(tallies, agent), func(t *tally) bool { return t.done })
			if len(group) == 0 {
				continue
			}
			if err := b.cluster.recording(ctx, agent, func() error {
				if err := b.turns(ctx, group, n, first, min(first+step, e.turns), e); err != nil || !e.weigh {
					return err
				}
				return b.weigh(ctx, each(group, func(t *tally) *subject { return t.subject }))
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// byRecorder are those of all that need a recorder, or that need none.
func byRecorder[T interface{ byAgent() bool }](all []T, agent bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(one T) bool { return one.byAgent() != agent })
}

// turns takes those from first up to end.
func (b *bench) turns(ctx context.Context, group []*tally, n, first, end int, e effort) error {
	for turn := first; turn < end; turn++ {
		for i := range group {
			t := group[(i+turn)%len(group)]
			if t.done {
				continue
			}
			b.progress.say("%d at once, turn %d of %d: %s", n, turn+1, e.turns, t.name)
			if err := t.take(ctx, b.pods[:n]); err != nil {
				return err
			}
			if t.done = turn+1 == e.turns || e.patience > 0 && t.spent > e.patience; !t.done || t.network == 0 {
				continue
			}
			var err error
			if t.left, err = b.cluster.leftOf(ctx, t.testCase); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tally) take(ctx context.Context, pods []ns.NetNS) error {
	add, del, err := t.attachDetach(ctx, pods)
	if err != nil {
		return err
	}
	t.add.add(add)
	t.del.add(del)
	t.spent += add.Wall + del.Wall
	return nil
}

// startUp measures VERSION, from start to exit.
func (b *bench) startUp(ctx context.Context) error {
	if len(b.versions) == 0 {
		return nil
	}
	samples := make([]sample, len(b.versions))
	defer func() {
		for i, v := range b.versions {
			b.report.add(v.name(), v.baseline(), "VERSION", 1, samples[i])
		}
	}()
	for turn := range b.repeats {
		b.progress.say("VERSION: turn %d of %d", turn+1, b.repeats)
		for i, v := range b.versions {
			outcome, err := v.call(ctx, b.programs, "")
			if err != nil {
				return err
			}
			samples[i].add(storm.Report{Wall: outcome.Wall, Outcomes: []cniexec.Outcome{outcome}})
		}
	}
	return nil
}

// call asks the program, started through another one or not, for its versions.
func (v versionCase) call(ctx context.Context, p programs, through string) (cniexec.Outcome, error) {
	return cniexec.Run(ctx, nil, cniexec.Call{
		Plugin: p.find(v.plugin), Through: through, Command: "VERSION", Conf: []byte(`{"cniVersion": "1.1.0"}`),
	})
}
