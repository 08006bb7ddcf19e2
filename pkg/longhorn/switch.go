package longhorn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"
)

// Verifier says whether the storage network carries traffic. Errors name the leg, the nodes and what to do.
type Verifier interface {
	Verify(ctx context.Context, network Network) error
}

// Timeouts bound the waits. Zero: the default.
type Timeouts struct {
	Nodes  time.Duration // for parent and shim on each node
	Detach time.Duration // for detached volumes
	Pods   time.Duration // for Longhorn's pods
	Verify time.Duration // for a network that carries traffic
	Settle time.Duration // for volumes that are attached again
	Poll   time.Duration // between looks
}

// What a change took on longhorn-manager v1.10.0 was 14 to 55 s; a pod that was made anew repeatedly waited 2 minutes more.
var defaults = Timeouts{
	Nodes: 3 * time.Minute, Detach: 10 * time.Minute, Pods: 10 * time.Minute, Verify: 2 * time.Minute, Settle: 10 * time.Minute, Poll: time.Second,
}

func (t Timeouts) complete() Timeouts {
	for _, f := range []struct{ value, fallback *time.Duration }{
		{&t.Nodes, &defaults.Nodes}, {&t.Detach, &defaults.Detach}, {&t.Pods, &defaults.Pods},
		{&t.Verify, &defaults.Verify}, {&t.Settle, &defaults.Settle}, {&t.Poll, &defaults.Poll},
	} {
		if *f.value == 0 {
			*f.value = *f.fallback
		}
	}
	return t
}

// Switch moves Longhorn from one network to another.
type Switch struct {
	*Cluster
	Verifier Verifier // nil: what agents and pods report
	// SkipVerify leaves the step verify out: of a run that goes on although a leg fails.
	SkipVerify bool
	Timeouts   Timeouts          // zero: the defaults
	Progress   func(line string) // told what happens; nil: nobody is

	journal *Journal
}

func (s *Switch) tell(format string, args ...any) {
	if s.Progress != nil {
		s.Progress(fmt.Sprintf(format, args...))
	}
}

// StoppedError says at which step a run ended, and what can be done now.
type StoppedError struct {
	Step     Step
	Switched bool
	Err      error
}

func (e *StoppedError) Error() string {
	state := "Longhorn's setting is as it was"
	if e.Switched {
		state = "Longhorn's setting may have been changed already"
	}
	text := fmt.Sprintf("step %q: %v\n%s; what was stopped may still be. `lhstoragectl resume` goes on from here, `lhstoragectl rollback` goes back to how it was", e.Step, e.Err, state)
	if e.Step == StepVerify {
		text += ", `lhstoragectl resume --skip-verify` starts what was stopped although the network isn't whole"
	}
	return text
}

// Unwrap gives what stood in the way.
func (e *StoppedError) Unwrap() error { return e.Err }

// Plan says what a request would come to: findings, and the journal that a run would begin with. Nothing is changed. The journal
// is nil when there is nothing to do, or when findings stand in the way.
func (s *Switch) Plan(ctx context.Context, req Request) (*Journal, []Finding, error) {
	o, err := s.observe(ctx, req)
	if err != nil {
		return nil, nil, fmt.Errorf("look at the cluster: %w", err)
	}
	findings := judge(o, req, s.API.Now())
	switch {
	case len(blocking(findings, req.Ignore)) > 0:
		return nil, findings, nil
	case o.done(req):
		return nil, append(findings, Finding{NothingToDo, true, "Longhorn uses " + req.Network.words() + " already, and all its pods are well"}), nil
	}
	return draft(o, req, s.API.Now()), findings, nil
}

// Run does what a request says.
func (s *Switch) Run(ctx context.Context, req Request) error {
	s.tell("looking at the cluster")
	journal, findings, err := s.Plan(ctx, req)
	if err != nil {
		return err
	}
	refused := Refused(findings, req.Ignore)
	for _, f := range findings {
		if f.Warning || refused == nil {
			s.tell("%s", f)
		}
	}
	if refused != nil {
		return refused
	}
	if journal == nil {
		return nil
	}
	journal.Workloads, journal.Volumes = nil, nil // what runs when the time has come counts, not what runs now
	return s.walk(ctx, journal)
}

// Resume goes on with what was begun.
func (s *Switch) Resume(ctx context.Context) error {
	journal, err := s.Journal(ctx)
	switch {
	case IsNoJournal(err):
		return fmt.Errorf("nothing to go on with: %w", err)
	case err != nil:
		return err
	case journal.Finished:
		s.tell("nothing is left to do: %s is finished", journal.words())
		return nil
	}
	s.tell("going on with %s", journal.words())
	return s.walk(ctx, journal)
}

// Rollback goes back to what was before.
func (s *Switch) Rollback(ctx context.Context) error {
	journal, err := s.Journal(ctx)
	switch {
	case IsNoJournal(err):
		return fmt.Errorf("nothing to go back from: %w", err)
	case err != nil:
		return err
	case journal.Direction == Back && journal.Finished:
		return fmt.Errorf("nothing to go back from: %s is finished", journal.words())
	case journal.Direction == Back:
		s.tell("going on with %s", journal.words())
		return s.walk(ctx, journal)
	}
	s.tell("going back from %s", journal.words())
	return s.walk(ctx, journal.Turned())
}

// walk does the steps that are left. The journal says that a step is begun before anything of it is done.
func (s *Switch) walk(ctx context.Context, j *Journal) error {
	s.journal, s.Timeouts = j, s.Timeouts.complete()
	j.Holder = holderName()
	steps := j.Left()
	for i, step := range steps {
		j.Step = step
		err := s.save(ctx, j)
		if err == nil {
			s.tell("%d/%d %s", i+1, len(steps), s.describe(step))
			err = s.do(ctx, step)
		}
		if taken, ok := errors.AsType[*TakenError](err); ok {
			return taken
		}
		if err != nil {
			return &StoppedError{step, j.Switched, err}
		}
	}
	j.Finished = true
	if err := s.save(ctx, j); err != nil {
		return &StoppedError{j.Step, j.Switched, err}
	}
	s.tell("done: Longhorn uses %s", j.Wanted().words())
	return nil
}

// holderName is another one for each run.
func holderName() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])
}

func (s *Switch) do(ctx context.Context, step Step) error {
	return map[Step]func(context.Context) error{
		StepNetwork: s.makeNetwork, StepNodes: s.waitNodes, StepStop: s.stopWorkloads, StepDetach: s.waitDetached, StepAdopt: s.adopt,
		StepSetting: s.changeSetting, StepPods: s.waitPods, StepVerify: s.verify, StepStart: s.startWorkloads, StepSettle: s.waitSettled, StepClean: s.clean,
	}[step](ctx)
}

// draft is the journal of a run that is about to begin.
func draft(o *observed, req Request, now time.Time) *Journal {
	j := &Journal{
		Version: journalVersion, Started: now.UTC(), Direction: Forward, Step: StepNetwork, Harvester: req.Harvester, Ignore: req.Ignore,
		New: Network{Ref: req.Network, Config: req.Config}, Before: o.target, Workloads: o.running(), Volumes: o.users.Volumes,
	}
	if o.target != nil && req.Config == "" {
		j.New.Config = o.target.Config
	}
	if ref, err := ParseRef(o.value()); err == nil {
		j.Old.Ref = ref
	}
	if o.now != nil {
		j.Old = *o.now
	}
	if req.RWX != nil {
		j.RWX = &RWX{Setting: o.rwx.Name, Old: o.rwx.Value, New: rwxValue(o.rwx.Name, req)}
	}
	if o.journal != nil {
		j.version = o.journal.version
	}
	return j
}

// rwxValue is what the setting for shared volumes shall say: older versions have a switch, newer ones name the network.
func rwxValue(name string, req Request) string {
	on := *req.RWX && !req.Network.None()
	switch {
	case name == settingRWX:
		return fmt.Sprint(on)
	case on:
		return req.Network.String()
	}
	return ""
}

// done says whether everything is as a request wants it.
func (o *observed) done(req Request) bool {
	if o.value() != req.Network.String() || req.RWX != nil && o.rwx.Value != rwxValue(o.rwx.Name, req) {
		return false
	}
	config := req.Config
	if o.target != nil {
		if config != "" && !sameConfig(config, o.target.Config) {
			return false
		}
		config = o.target.Config
	}
	return len(unwell(req.Network, read(req.Network.Name, config), o.dataPods, o.managers)) == 0
}

// Preview says, a line for each step, what a run would do.
func (s *Switch) Preview(j *Journal) []string {
	as := &Switch{SkipVerify: s.SkipVerify, journal: j}
	var lines []string
	for _, step := range j.Steps() {
		lines = append(lines, fmt.Sprintf("%-8s %s", step, as.describe(step)))
	}
	return lines
}
