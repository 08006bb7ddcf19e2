package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/recorder"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	namespace  = "kube-system" // of Whereabouts' objects
	kubeconfig = "/etc/lhstorage/kubeconfig"
	identity   = "bench" // of the recorder

	poll     = 10 * time.Millisecond
	pollWait = time.Minute // for what takes a moment

	quietTime = 500 * time.Millisecond // more than two rounds of a recorder
)

// cluster is a control plane with one node, on which all cases that keep their
// addresses in Kubernetes run.
type cluster struct {
	*controlplane.Cluster
	node *controlplane.Node
	api  *kubeapi.Client
}

// startCluster starts the control plane, with etcd waiting for its disk as a
// user's does unless noFsync.
func startCluster(ctx context.Context, noFsync bool) (*cluster, error) {
	started, err := controlplane.Start(ctx, controlplane.Options{
		Lab: lab.Options{Nodes: 1, Plugin: lab.PluginMacvlan}, UnsafeNoFsync: noFsync,
	})
	if err != nil {
		return nil, err
	}
	c := &cluster{Cluster: started, node: started.Nodes[0]}
	if err := c.prepare(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// prepare installs what lhstorage needs in a cluster, as its installer does.
func (c *cluster) prepare(ctx context.Context) (err error) {
	if c.api, err = kubeapi.New(c.Config); err != nil {
		return err
	}
	content, err := c.InstallOwn(ctx)
	if err != nil {
		return err
	}
	return c.node.WriteFile(kubeconfig, content)
}

// stop ends a cluster; none is none.
func (c *cluster) stop() error {
	if c == nil {
		return nil
	}
	return c.Stop()
}

// newNode is the cluster's node with files, and for an attachment a parent, that
// are the case's own. Its directories are the node's own disk and /run.
func (c *cluster) newNode(t testCase) (*testnode.Node, error) {
	name := t.networkName() + t.record
	n := &testnode.Node{
		Host: c.node.Host, Dir: "/var/lib/lhstorage/" + name, Run: "/run/lhstorage/" + name,
	}
	content, err := json.Marshal(nodefile.File{
		NodeName: c.node.Name, Kubeconfig: kubeconfig, Record: t.record, RunDir: n.Run, StateDir: n.StateDir(),
	})
	if err != nil {
		return nil, err
	}
	if err := c.node.WriteFile(filepath.Join(n.Dir, "node.json"), content); err != nil {
		return nil, err
	}
	if t.plugin != t.main {
		return n, nil
	}
	return n, c.node.Do(func() error { return addVeth(t.parent()) })
}

// addVeth makes a device that leads nowhere, up.
func addVeth(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName = name + "-peer"
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the parent device %s: %w", name, err)
	}
	for _, end := range []string{name, veth.PeerName} {
		link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: end}}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", end, err)
		}
	}
	return nil
}

// recording calls f, while a recorder runs if wanted that has seen all claims there
// are: one that starts beside f isn't what is to be measured.
func (c *cluster) recording(ctx context.Context, wanted bool, f func() error) error {
	if !wanted {
		return f()
	}
	r, err := c.startRecorder(ctx)
	if err != nil {
		return err
	}
	if err := r.quiet(ctx); err != nil {
		return errors.Join(err, r.stop())
	}
	return errors.Join(f(), r.stop())
}

// recorderRun is a recorder that runs in this process.
type recorderRun struct {
	cancel context.CancelFunc
	ended  chan error
	last   atomic.Int64 // time of the last request, in ns
}

// startRecorder returns when plugins see that there is a recorder.
func (c *cluster) startRecorder(ctx context.Context) (*recorderRun, error) {
	ctx, cancel := context.WithCancel(ctx)
	run := &recorderRun{cancel: cancel, ended: make(chan error, 1)}
	config := rest.CopyConfig(c.Config)
	config.WrapTransport = func(next http.RoundTripper) http.RoundTripper { return tripper{next, &run.last} }
	api, err := kubeapi.New(config)
	if err != nil {
		cancel()
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	r := &recorder.Recorder{API: api, Identity: identity, Log: log}
	go func() { run.ended <- r.Run(ctx) }()
	if err := until(ctx, "the recorder has its Lease", func() (bool, error) {
		var lease kube.Lease
		err := c.api.Get(ctx, kube.Leases(namespace), kube.RecorderLease, &lease, kubeapi.Cached())
		return err == nil && lease.Spec.HolderIdentity == identity && lease.Fresh(time.Now()), nil
	}); err != nil {
		return nil, errors.Join(err, run.stop())
	}
	return run, nil
}

// stop lets the recorder give its Lease back.
func (r *recorderRun) stop() error {
	r.cancel()
	return <-r.ended
}

// quiet waits until the recorder has found nothing to do for a few of its rounds.
func (r *recorderRun) quiet(ctx context.Context) error {
	return until(ctx, "the recorder has caught up", func() (bool, error) {
		return time.Since(time.Unix(0, r.last.Load())) > quietTime, nil
	})
}

// tripper notes when requests end.
type tripper struct {
	http.RoundTripper
	last *atomic.Int64
}

func (t tripper) RoundTrip(r *http.Request) (*http.Response, error) {
	defer func() { t.last.Store(time.Now().UnixNano()) }()
	return t.RoundTripper.RoundTrip(r)
}

func until(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, pollWait)
	defer cancel()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-time.After(poll):
		}
	}
}
