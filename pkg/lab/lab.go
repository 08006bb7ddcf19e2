// Package lab makes a cluster of simulated nodes in network namespaces of this
// machine: real CNI binaries, called through libcni the way a runtime calls
// them, make real kernel interfaces that carry real traffic.
//
// Each node is a network namespace with a directory of its own: node file, CNI
// configuration, libcni cache and the plugins' state. Each pod is another
// namespace. All names derive from the lab's name, so several labs can run at
// once, and what a lab makes is written to its state file before it is made:
// any process can take down any lab, a half-built one too.
//
//	/run/netns/lab.node1         a node
//	/run/netns/lab.node1.pod1    a pod on it
//	/run/netns/lab.lan           the LAN's switch, with topology lan
//	/run/lhstorage-lab/lab/      state.json, node1/…
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
)

// cleanupTimeout bounds what is undone after a failure or an interrupt.
const cleanupTimeout = time.Minute

// Lab is one simulated cluster. Its methods may be called concurrently, and
// from several processes.
type Lab struct {
	opts  Options
	store store
}

// New prepares a lab without making anything. All faults of o are reported at
// once.
func New(o Options) (*Lab, error) {
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &Lab{opts: o, store: store{dir: filepath.Join(o.Root, o.Name)}}, nil
}

// Open finds the running lab called name below root (empty: DefaultRoot).
func Open(root, name string) (*Lab, error) {
	o := Options{Root: root, Name: name}.withNames()
	if err := o.checkName(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{opts: o, store: store{dir: filepath.Join(o.Root, o.Name)}}
	state, err := l.store.load()
	if err != nil {
		return nil, err
	}
	l.opts = state.Options
	return l, nil
}

// Options are the lab's options with all defaults filled in.
func (l *Lab) Options() Options { return l.opts }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.store.dir }

// Nodes are the lab's nodes, in the order of their indexes.
func (l *Lab) Nodes() []Node { return l.opts.nodes() }

// Node finds a node by name.
func (l *Lab) Node(name string) (Node, error) {
	for _, n := range l.opts.nodes() {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("lab %s has no node %q: it has node1 to node%d", l.opts.Name, name, l.opts.Nodes)
}

// Up makes the lab's nodes and the network between them. If it fails, or if ctx
// is done before it is finished, everything it made is removed again.
func (l *Lab) Up(ctx context.Context) error {
	if err := errors.Join(l.CheckPlugins(), netnsFree(l.opts.namespaces()...)); err != nil {
		return fmt.Errorf("lab %s up: %w", l.opts.Name, err)
	}
	if err := l.store.create(State{Version: stateVersion, Options: l.opts, Created: time.Now(), Namespaces: l.opts.namespaces()}); err != nil {
		return err
	}
	if err := l.build(ctx); err != nil {
		return errors.Join(fmt.Errorf("lab %s up: %w", l.opts.Name, err), l.undo(ctx, l.Down))
	}
	return nil
}

// undo runs a clean-up that an interrupt must not cut short.
func (l *Lab) undo(ctx context.Context, cleanUp func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return cleanUp(ctx)
}

func (l *Lab) build(ctx context.Context) error {
	l.progress("making %d nodes", l.opts.Nodes)
	for _, name := range l.opts.namespaces() {
		if err := stopped(ctx); err != nil {
			return err
		}
		if err := makeNetns(name); err != nil {
			return err
		}
	}
	for _, node := range l.Nodes() {
		if err := l.writeNode(node); err != nil {
			return err
		}
	}
	l.progress("linking them: topology %s, MTU %d", l.opts.Topology, l.opts.MTU)
	if err := l.connect(ctx); err != nil {
		return err
	}
	if l.opts.Plugin != PluginMacvlan || l.opts.Parent != ParentVXLAN {
		return nil
	}
	l.progress("making the VXLAN parents that stock macvlan can't make itself")
	for _, node := range l.Nodes() {
		if err := stopped(ctx); err != nil {
			return err
		}
		if err := l.makeStockParent(node); err != nil {
			return err
		}
	}
	return nil
}

// Down removes everything the lab has made: pods by DEL first, then the
// namespaces, then the directory. It goes on past errors and reports them all.
// A lab that isn't there is no error.
func (l *Lab) Down(ctx context.Context) error {
	state, err := l.store.close()
	if errors.Is(err, errNoState) {
		return l.store.remove()
	}
	if err != nil {
		return err
	}
	// What is there counts, not how this Lab would have been made.
	running := &Lab{opts: state.Options.with(l.opts), store: l.store}
	var errs []error
	for _, pod := range state.Pods {
		if err := running.detach(ctx, pod); err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", pod.Node, pod.Name, err))
		}
	}
	for _, name := range state.Namespaces {
		errs = append(errs, deleteNetns(name))
	}
	errs = append(errs, l.store.remove())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s down: %w", l.opts.Name, err)
	}
	return nil
}

// CheckPlugins looks for the CNI plugins that the lab needs.
func (l *Lab) CheckPlugins() error {
	var errs []error
	for _, plugin := range []string{l.opts.Plugin, l.opts.IPAM} {
		if _, err := invoke.FindInPath(plugin, l.opts.BinDirs); err != nil {
			errs = append(errs, fmt.Errorf("CNI plugin %s: %w (build the plugins with `make build`, or name their directory)", plugin, err))
		}
	}
	return errors.Join(errs...)
}

func (l *Lab) progress(format string, args ...any) {
	if l.opts.Progress != nil {
		l.opts.Progress(fmt.Sprintf(format, args...))
	}
}

// stopped is ctx's cause once it is done.
func stopped(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // nothing secret, and users look in
		return err
	}
	return os.WriteFile(path, data, 0o644) //nolint:gosec // the same
}
