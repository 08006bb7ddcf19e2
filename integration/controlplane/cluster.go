// Package controlplane starts a Kubernetes control plane of real parts for tests
// and benchmarks: etcd and kube-apiserver built from their Go modules, with RBAC
// and service-account tokens, and nodes on which real Multus and real whereabouts
// attach pods as a runtime would have them do it.
//
// Everything is on this machine, in namespaces of its own:
//
//	/run/netns/lhcp-PID-N.cp             etcd, kube-apiserver and the nodes' switch, 10.100.220.0/24
//	/run/netns/lhcp-PID-N.node1          a node: eth0 to that switch, and the storage underlay of package lab
//	/run/netns/lhcp-PID-N.node1.ID       a pod's sandbox
//	/var/tmp/lhstorage-controlplane/…    data, logs, certificates, the nodes' disks
//
// A node is a mount namespace besides: its /etc/cni, /opt/cni, /run, /var/lib/cni
// and so on are its own, so programs run on it with the paths that they use in a
// real cluster.
//
// There is no controller, scheduler or kubelet: objects are what a test makes
// them, and [Node.RunPod] does a kubelet's and runtime's part of a pod's network.
//
// # What it costs
//
// [Start] builds what is missing, so the first caller waits; package tools keeps
// it outside the checkout, by version. Measured cold, downloads included, on one
// CPU of a busy machine at the lowest priority: Kubernetes and etcd 19 minutes (13
// minutes of CPU), Multus 7 (4), whereabouts 8 (4). Built, a cluster of two nodes
// starts in 4.5 to 6 s; one of three, on two CPUs with a load of 20 to 45, in 9 s,
// with fsync in 11 s. Memory at most: kube-apiserver 280 MB, etcd 50 MB,
// a Multus daemon 43 MB. It stops in 0.2 s.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// Options describe a cluster. The zero value is a cluster with three nodes.
type Options struct {
	// Lab describes the nodes and the storage network between them. Name, Root and
	// BinDirs are Start's. With plugin macvlan the nodes have a VXLAN parent that a
	// script would have made; with lhstorage the plugin makes its own.
	Lab lab.Options

	// BinDirs are directories with more CNI plugins for the nodes' /opt/cni/bin. The
	// stock ones, Multus and whereabouts are there always, lhstorage's if Lab needs them.
	BinDirs []string

	// Bare leaves Multus, the cluster network and the Node objects to whoever makes
	// the nodes real ones: package cluster.
	Bare bool

	// Audit lets the API server log who asked for what: see [Cluster.AuditLog].
	Audit bool

	// UnsafeNoFsync lets etcd answer before its data are on disk. It makes every write
	// faster, so a figure that was measured with it has to say so: see
	// [Cluster.Conditions].
	UnsafeNoFsync bool
}

// Cluster is a running control plane with its nodes. Its methods may be called
// concurrently.
type Cluster struct {
	Name string
	Dir  string // of its data and logs

	Config  *rest.Config // the administrator's, for this process; no limit on requests per second
	Kube    kubernetes.Interface
	Dynamic dynamic.Interface
	Nodes   []*Node

	opts     Options
	programs programs
	claim    *claim
	pki      *pki
	mapper   mapper

	mu        sync.Mutex
	etcd, api *Process
	daemons   []*Process
}

// programs are the directories of what was built, and what was built.
type programs struct {
	kubernetes string
	cni        []string // directories, those of Options.BinDirs last
	versions   []string
}

// Start starts a cluster. Where that fails, or ctx ends first, nothing is left of
// it. Clusters that a crashed process left behind are removed first.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	built, err := build(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("build the control plane's programs: %w", err)
	}
	claim, err := newClaim(ctx)
	if err != nil {
		return nil, fmt.Errorf("make room for a control plane: %w", err)
	}
	c := &Cluster{Name: claim.name, Dir: claim.dir, opts: o, programs: built, claim: claim}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start control plane %s: %w", c.Name, err), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	nodes, err := c.makeUnderlay(ctx)
	if err != nil {
		return err
	}
	if err := c.makeSwitch(nodes); err != nil {
		return err
	}
	if c.pki, err = newPKI(filepath.Join(c.Dir, "pki")); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.makeClients(); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	if err := c.install(ctx); err != nil {
		return err
	}
	return c.makeNodes(ctx, nodes)
}

// Stop ends everything and removes it. It goes on past errors and reports them
// all. Stopping twice does no harm.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var faults []error
	// The data are thrown away: nobody needs an orderly end.
	for _, p := range append(c.daemons, c.api, c.etcd) {
		faults = append(faults, p.Kill())
	}
	c.daemons, c.api, c.etcd = nil, nil, nil
	for _, n := range c.Nodes {
		faults = append(faults, n.Host.Close())
	}
	c.Nodes = nil
	faults = append(faults, c.claim.release())
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("stop control plane %s: %w", c.Name, err)
	}
	return nil
}

// Node finds a node by its name: node1, node2, …
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("cluster %s has no node %q", c.Name, name)
}

// Conditions are what a figure measured on this cluster depends on: versions, and
// whether etcd waited for its disk.
func (c *Cluster) Conditions() string {
	fsync := "fsync on"
	if c.opts.UnsafeNoFsync {
		fsync = "without fsync (--unsafe-no-fsync)"
	}
	return strings.Join(append(c.programs.versions, "etcd "+fsync), ", ")
}

// Logs are the last lines of each program's log that is part of the cluster.
func (c *Cluster) Logs() string {
	var out strings.Builder
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "*.log"))
	for _, path := range logs {
		fmt.Fprintf(&out, "== %s\n%s\n", filepath.Base(path), tail(path))
	}
	return out.String()
}

// build builds what is missing, one module after the other: each uses all CPUs.
func build(ctx context.Context, o Options) (programs, error) {
	var p programs
	var err error
	if p.kubernetes, err = tools.Module(ctx, "kubernetes"); err != nil {
		return p, err
	}
	modules := []string{"stock", "whereabouts"}
	if !o.Bare {
		modules = append(modules, "multus")
	}
	for _, module := range modules {
		dir, err := tools.Module(ctx, module)
		if err != nil {
			return p, err
		}
		p.cni = append(p.cni, dir)
	}
	if o.Lab.Plugin != lab.PluginMacvlan || o.Lab.IPAM == lab.IPAMLhstorage {
		dir, err := tools.Own(ctx)
		if err != nil {
			return p, err
		}
		p.cni = append(p.cni, dir)
	}
	p.cni = append(p.cni, o.BinDirs...)
	p.versions, err = versions()
	return p, err
}

// versions name the parts that decide what is measured.
func versions() ([]string, error) {
	var all []string
	for _, part := range []struct{ module, path, name string }{
		{"kubernetes", "k8s.io/kubernetes", "kube-apiserver"},
		{"kubernetes", "go.etcd.io/etcd/server/v3", "etcd"},
		{"multus", multusModule, "multus"},
		{"whereabouts", whereaboutsModule, "whereabouts"},
	} {
		version, err := tools.Version(part.module, part.path)
		if err != nil {
			return nil, err
		}
		all = append(all, part.name+" "+version)
	}
	return all, nil
}

// Until calls ready every few milliseconds until that returns nil, and says what
// was waited for if readyWait passes, ctx ends or watched (nil: nothing) exits
// first.
func Until(ctx context.Context, watched *Process, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // what stood in the way before the time was up
			last = err
		}
		select {
		case <-watched.Done():
			return fmt.Errorf("wait until %s: %w", what, watched.failure())
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w: %w%s", what, context.Cause(ctx), last, watched.logged())
		case <-ticker.C:
		}
	}
}
