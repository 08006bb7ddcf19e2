package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/integration/testnode"
)

// bench is what the cases run on: a node of its own for each, and pods that they
// share, one case at a time.
type bench struct {
	nodes []*testnode.Node
	pods  []ns.NetNS
	calls []*storm.Storm // by case, on no pods yet
}

// newBench makes the nodes and pods. A bench that comes with an error is to be
// closed, too.
func newBench(dirs directories, p programs, pods int) (*bench, error) {
	b := &bench{}
	for i, c := range cases {
		node, err := c.newNode(dirs, i)
		if node != nil {
			b.nodes = append(b.nodes, node)
		}
		if err != nil {
			return b, fmt.Errorf("make the node of %s: %w", c.name, err)
		}
		conf, err := c.conf(filepath.Join(node.Dir, "host-local"))
		if err != nil {
			return b, err
		}
		b.calls = append(b.calls, &storm.Storm{Node: node, Plugin: p.find(c.plugin), Path: p.path(), Conf: conf})
	}
	for range pods {
		pod, err := b.nodes[0].NewNetns()
		if err != nil {
			return b, err
		}
		b.pods = append(b.pods, pod)
	}
	return b, nil
}

func (b *bench) close() error {
	var faults []error
	for _, node := range b.nodes {
		faults = append(faults, node.Close())
	}
	return errors.Join(faults...)
}

func (b *bench) measure(ctx context.Context, s size, dirs directories, p programs) (*report, error) {
	r, err := newReport(p)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, size, *report) error{b.warmUp, b.oneByOne, b.allAtOnce} {
		if err := step(ctx, s, r); err != nil {
			return nil, err
		}
	}
	if err := startUp(ctx, s, r); err != nil {
		return nil, err
	}
	return r, b.memory(ctx, dirs, r)
}

// warmUp makes what is made once per node: our parent, shim and addresses.
func (b *bench) warmUp(ctx context.Context, _ size, _ *report) error {
	for i := range cases {
		if _, _, err := b.attachDetach(ctx, i, 1); err != nil {
			return err
		}
	}
	return nil
}

// oneByOne measures single calls. The cases take turns, each time in another
// order.
func (b *bench) oneByOne(ctx context.Context, s size, report *report) error {
	adds, dels := make([]sample, len(cases)), make([]sample, len(cases))
	for turn := range s.repeats {
		progress("one at a time: turn %d of %d", turn+1, s.repeats)
		for i := range cases {
			i = (i + turn) % len(cases)
			add, del, err := b.attachDetach(ctx, i, 1)
			if err != nil {
				return err
			}
			adds[i].add(add)
			dels[i].add(del)
		}
	}
	for i, c := range cases {
		report.add(c.name, c.baseline, "ADD", 1, adds[i])
		report.add(c.name, c.baseline, "DEL", 1, dels[i])
	}
	return nil
}

// allAtOnce measures many calls at the same time, of the cases that don't probe
// and have a device for parent: the others differ by what is measured one by one.
func (b *bench) allAtOnce(ctx context.Context, s size, report *report) error {
	for _, n := range s.atOnce {
		adds, dels := make([]sample, len(cases)), make([]sample, len(cases))
		for round := range s.rounds {
			for i, c := range cases {
				if c.vxlan || c.probing {
					continue
				}
				progress("%d at once: round %d of %d, %s", n, round+1, s.rounds, c.name)
				add, del, err := b.attachDetach(ctx, i, n)
				if err != nil {
					return err
				}
				adds[i].add(add)
				dels[i].add(del)
			}
		}
		for i, c := range cases {
			if len(adds[i].walls) > 0 {
				report.add(c.name, c.baseline, "ADD", n, adds[i])
				report.add(c.name, c.baseline, "DEL", n, dels[i])
			}
		}
	}
	return nil
}

// attachDetach attaches and detaches n pods at once. A single failed call is an
// error; of many at once the failures are counted.
func (b *bench) attachDetach(ctx context.Context, i, n int) (add, del storm.Report, err error) {
	calls := *b.calls[i]
	calls.Pods = b.pods[:n]
	add, del = calls.Attach(ctx), calls.Detach(ctx)
	if failures := slices.Concat(add.Failures, del.Failures); n == 1 && len(failures) > 0 {
		err = fmt.Errorf("%s: %w", cases[i].name, errors.Join(failures...))
	}
	return add, del, errors.Join(err, ctx.Err())
}

// startUp measures VERSION, from start to exit.
func startUp(ctx context.Context, s size, report *report) error {
	samples := make([]sample, len(versionCases))
	for turn := range s.repeats {
		progress("VERSION: turn %d of %d", turn+1, s.repeats)
		for i, v := range versionCases {
			outcome, err := cniexec.Run(ctx, nil, cniexec.Call{
				Plugin: report.programs.find(v.plugin), Command: "VERSION", Conf: []byte(`{"cniVersion": "1.1.0"}`),
			})
			if err != nil {
				return err
			}
			samples[i].add(storm.Report{Wall: outcome.Wall, Outcomes: []cniexec.Outcome{outcome}})
		}
	}
	for i, v := range versionCases {
		baseline := ""
		if v.baseline != "" {
			baseline = "version:" + v.baseline
		}
		report.add("version:"+v.plugin, baseline, "VERSION", 1, samples[i])
	}
	return nil
}

// progress overwrites one line of a terminal, and says nothing to anything else.
func progress(format string, args ...any) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\033[K"+format, args...)
	}
}
