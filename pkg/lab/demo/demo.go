// Package demo shows, on simulated nodes, what stock macvlan can't do and that
// lhstorage does it: all legs, iSCSI from a host to its own pod, the full MTU,
// and no traffic on links that aren't involved.
package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	pod          = "pod1"
	streamBytes  = 128 << 20
	vxlanHeaders = 50 // bytes, over IPv4
)

// Run brings up a lab with stock macvlan and one with lhstorage, both named
// after o.Name, measures both and takes them down. An error means that the demo
// couldn't be run to its end; the report then holds what was measured before.
func Run(ctx context.Context, o lab.Options) (*Report, error) {
	start := time.Now()
	report := &Report{Legs: []lab.Leg{}}
	err := errors.Join(checkTools(), checkPlugins(o))
	if err == nil {
		err = runOne(ctx, o, lab.PluginMacvlan, report.measureStock)
	}
	if err == nil {
		err = runOne(ctx, o, lab.PluginLhstorage, report.measureOurs)
	}
	if err != nil {
		report.Unmeasured = err.Error()
	}
	report.Seconds = time.Since(start).Seconds()
	report.judge()
	return report, err
}

// options are those of the lab with one plugin.
func options(o lab.Options, plugin string) lab.Options {
	o.Name, o.Plugin, o.IPAM = o.Name+"-"+plugin, plugin, ""
	o.Parent, o.Topology = lab.ParentVXLAN, lab.TopologyMesh
	if progress := o.Progress; progress != nil {
		o.Progress = func(step string) { progress(plugin + ": " + step) }
	}
	return o
}

// checkPlugins looks for both labs' plugins before the first is made.
func checkPlugins(o lab.Options) error {
	var errs []error
	for _, plugin := range []string{lab.PluginMacvlan, lab.PluginLhstorage} {
		l, err := lab.New(options(o, plugin))
		if err == nil {
			err = l.CheckPlugins()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// runOne makes a lab with one pod per node, measures it and removes it.
func runOne(ctx context.Context, o lab.Options, plugin string, measure func(context.Context, *lab.Lab) error) (err error) {
	l, err := lab.New(options(o, plugin))
	if err != nil {
		return err
	}
	if err := l.Up(ctx); err != nil {
		return err
	}
	defer func() {
		progress(l, "taking it down")
		// An interrupt must not cut this short.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.Down(clean))
	}()
	progress(l, "attaching a pod on each node")
	for _, node := range l.Nodes() {
		if _, err := l.AddPod(ctx, node.Name, pod, lab.PodOptions{}); err != nil {
			return err
		}
	}
	return measure(ctx, l)
}

func progress(l *lab.Lab, format string, args ...any) {
	if f := l.Options().Progress; f != nil {
		f(fmt.Sprintf(format, args...))
	}
}

func (r *Report) measureStock(ctx context.Context, l *lab.Lab) error {
	if err := r.measureLegs(ctx, l); err != nil {
		return err
	}
	progress(l, "iSCSI from node1 to its own pod (bounded at %s)", stepTimeout)
	var err error
	r.StockISCSI, err = readBlocks(ctx, l, "node1", pod)
	return err
}

func (r *Report) measureOurs(ctx context.Context, l *lab.Lab) error {
	if err := r.measureLegs(ctx, l); err != nil {
		return err
	}
	progress(l, "iSCSI from node1 to its own pod")
	var err error
	if r.ISCSI, err = readBlocks(ctx, l, "node1", pod); err != nil {
		return err
	}
	if err := r.measureMTU(ctx, l); err != nil {
		return err
	}
	return r.measureWaste(ctx, l)
}

func (r *Report) measureLegs(ctx context.Context, l *lab.Lab) error {
	progress(l, "measuring all legs")
	legs, err := l.Matrix(ctx, lab.MatrixOptions{})
	r.Legs = append(r.Legs, legs...)
	return err
}

// measureMTU pings every leg with packets of the full MTU that must not be
// fragmented, and one pod with a byte more, which must fail.
func (r *Report) measureMTU(ctx context.Context, l *lab.Lab) error {
	full := l.Options().MTU - vxlanHeaders
	progress(l, "measuring all legs in packets of %d bytes", full)
	var err error
	if r.FullMTULegs, err = l.Matrix(ctx, lab.MatrixOptions{MTU: full}); err != nil {
		return err
	}
	refused, err := tooLong(ctx, l, full+1)
	if err != nil {
		return err
	}
	if errno, ok := errors.AsType[unix.Errno](refused); ok {
		r.OneMoreError = errno.Error()
	}
	if len(lab.Failed(r.FullMTULegs)) == 0 && errors.Is(refused, unix.EMSGSIZE) {
		r.MTU = full
	}
	return nil
}

// tooLong pings from a pod to one on the next node and returns how that failed.
func tooLong(ctx context.Context, l *lab.Lab, size int) (refused, err error) {
	target, err := l.Pod("node2", pod)
	if err != nil {
		return nil, err
	}
	in, err := l.In("node1", pod)
	if err != nil || len(target.Addresses) == 0 {
		return nil, err
	}
	address := target.Addresses[0].Addr()
	options := probe.PingOptions{Target: address, Count: 3, Payload: probe.PayloadFor(address, size), DontFragment: true}
	var result probe.PingResult
	err = in(func() (err error) {
		result, err = probe.Ping(ctx, options)
		return err
	})
	return result.SendErr, err
}

// measureWaste runs one stream with learning, as lhstorage has it, and one
// without, which shows that the meter works.
func (r *Report) measureWaste(ctx context.Context, l *lab.Lab) (err error) {
	flow := lab.Flow{FromNode: "node1", FromPod: pod, ToNode: "node2", ToPod: pod, Bytes: streamBytes}
	progress(l, "a stream of %d MiB from node1 to node2, bytes counted on every link", streamBytes>>20)
	if r.Stream, err = l.Stream(ctx, flow); err != nil {
		return err
	}
	r.WasteRatio = r.Stream.WasteRatio()
	progress(l, "the same with learning turned off, as the source design has it")
	defer func() { err = errors.Join(err, l.SetLearning(true)) }()
	if err := l.SetLearning(false); err != nil {
		return err
	}
	if r.FloodStream, err = l.Stream(ctx, flow); err != nil {
		return err
	}
	r.FloodRatio = r.FloodStream.WasteRatio()
	return nil
}
