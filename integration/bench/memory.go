package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// meter starts programs through peakrss, see there.
type meter struct{ program, out string }

func newMeter(ctx context.Context, dir string) (meter, error) {
	m := meter{program: filepath.Join(dir, "peakrss"), out: filepath.Join(dir, "peakrss.out")}
	root, err := tools.Root()
	if err != nil {
		return m, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", m.program, "./integration/bench/peakrss")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return m, fmt.Errorf("build peakrss: %w\n%s", err, output)
	}
	// Not through Call.Env, which a storm fills from its node.
	return m, os.Setenv("PEAKRSS_OUT", m.out)
}

// read is what the last program needed, in bytes.
func (m meter) read() (int64, error) {
	data, err := os.ReadFile(m.out)
	if err != nil {
		return 0, fmt.Errorf("read what peakrss measured: %w", err)
	}
	return strconv.ParseInt(string(data), 10, 64)
}

// memory measures peak memory in single calls, apart from their time, and puts it
// into all of a case's results.
func (b *bench) memory(ctx context.Context) error {
	for _, agent := range []bool{false, true} {
		group := byRecorder(b.subjects, agent)
		if len(group) == 0 {
			continue
		}
		if err := b.cluster.recording(ctx, agent, func() error { return b.weigh(ctx, group) }); err != nil {
			return err
		}
	}
	for _, v := range b.versions {
		if err := b.peaks(v.name(), []string{"VERSION"}, func(string) error {
			_, err := v.call(ctx, b.programs, b.meter.program)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// weigh measures the memory of ADD and DEL, with a recorder where the subjects need
// one.
func (b *bench) weigh(ctx context.Context, subjects []*subject) error {
	for _, s := range subjects {
		if err := b.weighOne(ctx, s); err != nil {
			b.report.fault(s.testCase, fmt.Errorf("%s, while its memory was measured: %w", s.name, err))
		}
	}
	return ctx.Err()
}

func (b *bench) weighOne(ctx context.Context, s *subject) error {
	b.progress.say("peak memory: %s", s.name)
	var calls storm.Storm
	if err := b.peaks(s.name, attachAndDetach, func(verb string) error {
		if verb == "DEL" {
			return errors.Join(calls.Detach(ctx).Failures...)
		}
		calls = s.next(b.pods[:1])
		calls.Through = b.meter.program
		return errors.Join(calls.Attach(ctx).Failures...)
	}); err != nil || !s.byAgent() {
		return err
	}
	// What comes next may need the addresses, and then no recorder runs.
	left, err := b.cluster.leftOf(ctx, s.testCase)
	if err == nil && len(left.held) > 0 {
		err = fmt.Errorf("%d objects are left, the first: %s", len(left.held), left.held[0])
	}
	return err
}

// peaks calls each verb in turn, some times over, and gives the report the medians.
func (b *bench) peaks(name string, verbs []string, call func(verb string) error) error {
	peaks := map[string][]int64{}
	for range b.weighed {
		for _, verb := range verbs {
			if err := call(verb); err != nil {
				return err
			}
			peak, err := b.meter.read()
			if err != nil {
				return err
			}
			peaks[verb] = append(peaks[verb], peak)
		}
	}
	for _, verb := range verbs {
		b.report.setRSS(name, verb, percentile(peaks[verb], 50))
	}
	return nil
}
