package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
)

// memoryTurns is few: peak memory hardly varies.
const memoryTurns = 5

// meter starts programs through peakrss, see there.
type meter struct{ program, out string }

func newMeter(ctx context.Context, dir string) (meter, error) {
	m := meter{program: filepath.Join(dir, "peakrss"), out: filepath.Join(dir, "peakrss.out")}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", m.program, "./integration/bench/peakrss")
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

// memory measures each case's peak memory in single calls, apart from their
// time, and puts it into all of the case's results.
func (b *bench) memory(ctx context.Context, dirs directories, r *report) error {
	m, err := newMeter(ctx, dirs.meter)
	if err != nil {
		return err
	}
	for i, c := range cases {
		calls := *b.calls[i]
		calls.Pods, calls.Through = b.pods[:1], m.program
		verbs := map[string]func(context.Context) storm.Report{"ADD": calls.Attach, "DEL": calls.Detach}
		measure := func() error {
			return m.measure(r, c.name, []string{"ADD", "DEL"}, func(verb string) error {
				for _, err := range verbs[verb](ctx).Failures {
					return err
				}
				if verb == "DEL" && c.byAgent() {
					return b.cluster.settle(ctx, c)
				}
				return nil
			})
		}
		if err := b.cluster.recording(ctx, c.byAgent(), measure); err != nil {
			return err
		}
	}
	for _, v := range versionCases {
		if err := m.measure(r, "version:"+v.plugin, []string{"VERSION"}, func(verb string) error {
			_, err := cniexec.Run(ctx, nil, cniexec.Call{
				Plugin: r.programs.find(v.plugin), Through: m.program, Command: verb, Conf: []byte(`{"cniVersion": "1.1.0"}`),
			})
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// measure calls each verb in turn, some times over, and gives the report the medians.
func (m meter) measure(r *report, name string, verbs []string, call func(verb string) error) error {
	peaks := map[string][]int64{}
	for range memoryTurns {
		for _, verb := range verbs {
			if err := call(verb); err != nil {
				return err
			}
			peak, err := m.read()
			if err != nil {
				return err
			}
			peaks[verb] = append(peaks[verb], peak)
		}
	}
	for _, verb := range verbs {
		r.setRSS(name, verb, percentile(peaks[verb], 50))
	}
	return nil
}
