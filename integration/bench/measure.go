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

// bench is what the cases run on: a node of its own for each, those in the
// cluster one for all, and pods that they share, one case at a time.
type bench struct {
	cluster *cluster
	nodes   []*testnode.Node
	pods    []ns.NetNS
	calls   []*storm.Storm // by case, on no pods yet
}

// newBench makes the nodes and pods. A bench that comes with an error is to be
// closed, too.
func newBench(ctx context.Context, dirs directories, p programs, pods int) (b *bench, err error) {
	b = &bench{}
	if b.cluster, err = startCluster(ctx); err != nil {
		return b, err
	}
	for i, c := range cases {
		call, err := b.newCall(c, dirs, p, i)
		if err != nil {
			return b, fmt.Errorf("make the node of %s: %w", c.name, err)
		}
		b.calls = append(b.calls, call)
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

// newCall makes a case's node, and how it is called there.
func (b *bench) newCall(c testCase, dirs directories, p programs, number int) (*storm.Storm, error) {
	var node *testnode.Node
	var err error
	if c.network > 0 {
		node, err = b.cluster.newNode(c)
	} else {
		node, err = c.newNode(dirs, number)
	}
	if node != nil {
		b.nodes = append(b.nodes, node)
	}
	if err != nil {
		return nil, err
	}
	conf, err := c.conf(filepath.Join(node.Dir, "host-local"))
	return &storm.Storm{Node: node, Plugin: p.find(c.plugin), Path: p.path(), Conf: conf}, err
}

func (b *bench) close() error {
	var faults []error
	for _, node := range b.nodes {
		faults = append(faults, node.Close())
	}
	return errors.Join(append(faults, b.cluster.stop())...)
}

func (b *bench) measure(ctx context.Context, s size, dirs directories, p programs) (*report, error) {
	r, err := newReport(p, b.cluster.Conditions())
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
	if err := b.memory(ctx, dirs, r); err != nil {
		return nil, err
	}
	return r, b.byFill(ctx, s, p, r)
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
		for _, agent := range []bool{false, true} { // the recorder runs beside no others
			if err := b.cluster.recording(ctx, agent, func() error {
				for i := range cases {
					i = (i + turn) % len(cases)
					if cases[i].byAgent() != agent {
						continue
					}
					add, del, err := b.attachDetach(ctx, i, 1)
					if err != nil {
						return err
					}
					adds[i].add(add)
					dels[i].add(del)
				}
				return nil
			}); err != nil {
				return err
			}
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
				if err := b.cluster.recording(ctx, c.byAgent(), func() error {
					add, del, err := b.attachDetach(ctx, i, n)
					adds[i].add(add)
					dels[i].add(del)
					return err
				}); err != nil {
					return err
				}
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
	return b.attachDetachBy(ctx, *b.calls[i], cases[i], n)
}

func (b *bench) attachDetachBy(ctx context.Context, calls storm.Storm, c testCase, n int) (add, del storm.Report, err error) {
	calls.Pods = b.pods[:n]
	add, del = calls.Attach(ctx), calls.Detach(ctx)
	if failures := slices.Concat(add.Failures, del.Failures); n == 1 && len(failures) > 0 {
		err = fmt.Errorf("%s: %w", c.name, errors.Join(failures...))
	}
	if c.byAgent() {
		err = errors.Join(err, b.cluster.settle(ctx, c))
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
