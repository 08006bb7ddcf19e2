// Command bench measures lhstorage beside the stock plugins: all cases in one
// run, taking turns, so that whatever else the machine does meets all of them.
//
// Those that keep addresses in Kubernetes do so on a real etcd, which waits for
// its disk, and a real kube-apiserver, started for the run and built before if
// need be.
//
// It needs root. Environment:
//
//	BENCH_QUICK=1     fewer repeats, 10 and 50 at once, no filled pools
//	BENCH_CASES=RE    only the cases whose name the regular expression matches
//	BENCH_N=1,200     only these numbers of calls at once
//	BENCH_FSYNC=off   etcd doesn't wait for its disk
//	BENCH_OUT=FILE    the figures as JSON, too
//
// With 100 at once and more, unless the run is a quick one, it ends with whole pods in a real
// cluster of three nodes (package cluster).
//
// A run that is interrupted (SIGINT, SIGTERM) prints and writes what it has
// measured so far. It fails when a call of lhstorage failed, an address was given
// twice or not given back; how fast something is, is for the reader.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	s, err := settingsFrom(os.Getenv)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root")
	}
	programs, err := build(ctx)
	if err != nil {
		return err
	}
	dirs, err := makeDirectories()
	defer func() { err = errors.Join(err, dirs.remove()) }()
	if err != nil {
		return err
	}
	b := &bench{settings: s, programs: programs, dirs: dirs, progress: newProgress()}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	return b.conclude(ctx, b.measure(ctx))
}

// conclude prints and writes what there is to report, even if not all of it could
// be measured.
func (b *bench) conclude(ctx context.Context, measured error) error {
	b.progress.done()
	if ctx.Err() != nil {
		measured = errors.New("interrupted: the figures are those of what was measured until then")
	}
	b.report.print(os.Stdout)
	if b.out == "" {
		return errors.Join(measured, b.report.verdict())
	}
	return errors.Join(measured, b.report.write(b.out), b.report.verdict())
}

// directories are those of all nodes. They are on the file systems that a node's
// would be on, since what it costs to write there is part of what is measured.
type directories struct {
	state string // in /var/lib
	run   string // on a tmpfs
	meter string // the same on all nodes, those of the cluster too
}

// makeDirectories makes them; what it could make is to be removed even on an error.
func makeDirectories() (d directories, err error) {
	for _, at := range []struct {
		dir    *string
		parent string
	}{{&d.state, "/var/lib"}, {&d.run, tmpfs()}, {&d.meter, "/var/tmp"}} {
		if *at.dir, err = os.MkdirTemp(at.parent, "lhstorage-bench-"); err != nil {
			return d, fmt.Errorf("make room for the nodes' files: %w", err)
		}
	}
	return d, nil
}

// tmpfs is /run, or in a container where that is none a place that is one.
func tmpfs() string {
	for _, dir := range []string{"/run", "/dev/shm"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
			return dir
		}
	}
	return "/run"
}

func (d directories) remove() error {
	var faults []error
	for _, dir := range []string{d.state, d.run, d.meter} {
		if dir != "" {
			faults = append(faults, os.RemoveAll(dir))
		}
	}
	return errors.Join(faults...)
}

// programs are the binaries that are measured.
type programs struct{ stock, whereabouts, own string }

// build builds what is missing, the control plane's programs too.
func build(ctx context.Context) (programs, error) {
	notice := time.AfterFunc(10*time.Second, func() {
		fmt.Fprintln(os.Stderr, "bench: building the programs, which are kept for the next time: the control plane's can take half an hour")
	})
	defer notice.Stop()
	var p programs
	for module, dir := range map[string]*string{"stock": &p.stock, "whereabouts": &p.whereabouts, "multus": nil, "kubernetes": nil} {
		built, err := tools.Module(ctx, module)
		if err != nil {
			return p, err
		}
		if dir != nil {
			*dir = built
		}
	}
	var err error
	p.own, err = tools.Own(ctx)
	return p, err
}

// path is the CNI_PATH of all.
func (p programs) path() string { return p.stock + ":" + p.whereabouts + ":" + p.own }

// find is the binary of a plugin type.
func (p programs) find(pluginType string) string {
	for _, dir := range []string{p.own, p.stock, p.whereabouts} {
		file := filepath.Join(dir, pluginType)
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return pluginType // the kernel's error will name it
}
