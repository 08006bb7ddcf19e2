// Command bench measures lhstorage beside the stock plugins: all cases in one
// run, taking turns, so that whatever else the machine does meets all of them.
//
// It needs root. BENCH_QUICK=1 makes fewer repeats; BENCH_OUT=file writes the
// figures as JSON, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// Size of a run.
type size struct {
	repeats int   // of each single call
	rounds  int   // of each number at once
	atOnce  []int // ascending
}

var (
	full  = size{repeats: 60, rounds: 3, atOnce: []int{10, 50, 100, 200}}
	quick = size{repeats: 20, rounds: 1, atOnce: []int{10, 50}}
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root")
	}
	programs, err := build(ctx)
	if err != nil {
		return err
	}
	s := full
	if os.Getenv("BENCH_QUICK") != "" {
		s = quick
	}
	dirs, err := makeDirectories()
	defer func() { err = errors.Join(err, dirs.remove()) }()
	if err != nil {
		return err
	}
	b, err := newBench(dirs, programs, s.atOnce[len(s.atOnce)-1])
	if err != nil {
		return errors.Join(err, b.close())
	}
	defer func() { err = errors.Join(err, b.close()) }()

	r, err := b.measure(ctx, s, dirs, programs)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	if path := os.Getenv("BENCH_OUT"); path != "" {
		if err := r.write(path); err != nil {
			return err
		}
	}
	return r.verdict()
}

// directories are those of all nodes. They are on the file systems that a node's
// would be on, since what it costs to write there is part of what is measured.
type directories struct {
	state string // in /var/lib
	run   string // on a tmpfs
}

// makeDirectories makes them; what it could make is to be removed even on an error.
func makeDirectories() (d directories, err error) {
	for _, at := range []struct {
		dir    *string
		parent string
	}{{&d.state, "/var/lib"}, {&d.run, tmpfs()}} {
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
	for _, dir := range []string{d.state, d.run} {
		if dir != "" {
			faults = append(faults, os.RemoveAll(dir))
		}
	}
	return errors.Join(faults...)
}

// programs are the binaries that are measured.
type programs struct{ stock, own string }

func build(ctx context.Context) (programs, error) {
	stock, err := tools.Module(ctx, "stock")
	if err != nil {
		return programs{}, err
	}
	own, err := tools.Own(ctx)
	return programs{stock: stock, own: own}, err
}

// path is the CNI_PATH of both.
func (p programs) path() string { return p.stock + ":" + p.own }

// find is the binary of a plugin type.
func (p programs) find(pluginType string) string {
	for _, dir := range []string{p.own, p.stock} {
		file := filepath.Join(dir, pluginType)
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return pluginType // the kernel's error will name it
}
