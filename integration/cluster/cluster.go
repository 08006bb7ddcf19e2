// Package cluster runs a real Kubernetes cluster on one machine, for tests and for
// people who want to try lhstorage: the control plane of package controlplane with
// controllers and scheduler, and nodes with kubelet and containerd, on which Multus
// runs as the DaemonSet of its own manifest and pods are real ones.
//
// A node is a network, mount and process namespace with a cgroup and a disk of its
// own. Its first process holds all others: when that ends, because the node is
// killed or because this process is, the kernel ends the rest, so nothing has to be
// looked for. What remains of a crash (names of namespaces, empty cgroups, files)
// goes when the next cluster starts, or with [Down].
//
// The nodes' storage network is package lab's: a mesh of /31 links, or a LAN. Their
// pods' network is flat: stock bridge or [Moved], and routes. There is no kube-proxy:
// the only Service is the API server's, which has its address itself. There is no
// registry: the images are archives made of this machine's programs.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// Options describe a cluster. The zero value has three nodes and the source
// design's storage network.
type Options struct {
	Nodes    int    // default 3
	Spare    int    // more machines that are cabled and switched off: [Node.Boot] adds one
	Topology string // of the storage network: lab.TopologyMesh (default) or lab.TopologyLAN

	// Script makes, before anything else, the VXLAN parents that stock macvlan needs,
	// as the source design's script does: addresses on the parents, no learning.
	Script bool

	// Untouched leaves lhstorage's programs off the nodes, for what brings them.
	Untouched bool

	Primary Primary // the first network of pods; default Bridge

	// Audit lets the API server log who asked for what.
	Audit bool

	// UnsafeNoFsync lets etcd answer before its data are on disk.
	UnsafeNoFsync bool
}

// Cluster is a running cluster.
type Cluster struct {
	*controlplane.Cluster

	Nodes []*Node // in the order of their indexes, those that are off too

	opts Options
	own  string // directory with lhstorage's programs
}

// Start starts a cluster and returns when its nodes are Ready and Multus runs on
// each. Where that fails, or ctx ends first, nothing is left of it.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if err := checkPrograms(); err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	own, err := tools.Own(ctx)
	if err != nil {
		return nil, err
	}
	helpers, err := tools.Programs(ctx, "integration/cluster/moved")
	if err != nil {
		return nil, err
	}
	simulated := lab.Options{Nodes: o.Nodes + o.Spare, Topology: o.Topology, Plugin: lab.PluginMacvlan, NoLearning: true}
	if !o.Script {
		simulated.Plugin, simulated.IPAM, simulated.NoLearning = lab.PluginLhstorage, lab.IPAMHostLocal, false
	}
	control, err := controlplane.Start(ctx, controlplane.Options{
		Lab: simulated, BinDirs: []string{helpers, own}, Bare: true, Audit: o.Audit, UnsafeNoFsync: o.UnsafeNoFsync,
	})
	if err != nil {
		return nil, err
	}
	c := &Cluster{Cluster: control, opts: o, own: own}
	for _, n := range control.Nodes {
		c.Nodes = append(c.Nodes, &Node{Node: n, cluster: c, handle: -1})
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster %s: %w\n%s", c.Name, err, c.Logs()), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := errors.Join(c.startControllers(), c.routeBack(), writeImages(ctx, c.images())); err != nil {
		return err
	}
	if err := c.UsePrimary(c.opts.Primary); err != nil {
		return err
	}
	if c.opts.Untouched {
		if err := c.removePrograms(); err != nil {
			return err
		}
	}
	boot, bootCtx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes[:c.opts.Nodes] {
		boot.Go(func() error { return n.Boot(bootCtx) })
	}
	if err := errors.Join(c.deployMultus(ctx), boot.Wait()); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// Stop ends everything and removes it. It goes on past errors and reports them
// all. Stopping twice does no harm.
func (c *Cluster) Stop() error {
	var faults []error
	for _, n := range c.Nodes {
		faults = append(faults, n.Kill())
	}
	c.Nodes = nil
	return errors.Join(append(faults, c.Cluster.Stop())...)
}

// Down removes what clusters have left behind whose process crashed.
func Down(ctx context.Context) error { return controlplane.Sweep(ctx) }

// Logs are the ends of the logs of all programs that are part of the cluster, those
// of its pods in kube-system included.
func (c *Cluster) Logs() string {
	var out strings.Builder
	out.WriteString(c.Cluster.Logs())
	for _, n := range c.Nodes {
		files, _ := n.Files("/var/log/pods")
		for _, file := range files {
			if strings.Contains(file, metav1.NamespaceSystem) && strings.HasSuffix(file, ".log") {
				content, _ := n.ReadFile(file)
				fmt.Fprintf(&out, "== %s %s\n%s\n", n.Name, file, content[max(0, len(content)-2000):])
			}
		}
	}
	return out.String()
}

// images is the directory with the images' archives.
func (c *Cluster) images() string { return filepath.Join(c.Dir, "images") }

// startControllers starts kube-controller-manager and kube-scheduler.
func (c *Cluster) startControllers() error {
	for _, program := range []struct {
		name string
		args []string
	}{
		{"kube-controller-manager", []string{
			"--service-account-private-key-file=" + c.File("tokens.key"), "--root-ca-file=" + c.File("ca.crt"),
			"--use-service-account-credentials=true",
		}},
		{"kube-scheduler", nil},
	} {
		content, err := c.UserKubeconfig("", "system:"+program.name)
		if err != nil {
			return err
		}
		access := filepath.Join(c.Dir, program.name+".kubeconfig")
		if err := writeSecret(access, content); err != nil {
			return err
		}
		args := append([]string{"--kubeconfig=" + access, "--leader-elect=false", "--bind-address=127.0.0.1"}, program.args...)
		if _, err := c.StartControl(program.name, args...); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until each node that is on is Ready and its Multus answers.
func (c *Cluster) WaitReady(ctx context.Context) error {
	for _, n := range c.Nodes {
		if n.Off() {
			continue
		}
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until the node is Ready and its Multus answers.
func (n *Node) WaitReady(ctx context.Context) error {
	if err := controlplane.Until(ctx, nil, n.Name+" is Ready", n.ready); err != nil {
		return err
	}
	return controlplane.Until(ctx, nil, "Multus answers on "+n.Name, n.multusAnswers)
}

func (n *Node) ready(ctx context.Context) error {
	node, err := n.cluster.Kube.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status != corev1.ConditionTrue {
				return fmt.Errorf("condition Ready is %s: %s", condition.Status, condition.Message)
			}
			return nil
		}
	}
	return errors.New("kubelet hasn't reported yet")
}
