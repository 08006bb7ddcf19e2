package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/embedded"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// replayPart is what part of a call's time goes to releases that wait on disk.
const replayPart = 3

// version is what the build says it is.
var version = "unknown"

// standby is what this program has before it has its input. The main plugin starts it ahead of time: it stands by, connected to
// the API server, while the node is looked at.
type standby struct {
	node   nodefile.File
	faults error           // of the node file
	api    *kubeapi.Client // nil without a cluster
	lost   error           // why the cluster can't even be called
}

func standBy() standby {
	node, err := nodefile.Load()
	if err != nil {
		return standby{faults: &cnierr.Error{Code: cnierr.InvalidConfig, Err: err}}
	}
	s := standby{node: node}
	if node.Kubeconfig != "" {
		s.api, s.lost = loadAPI(node.Kubeconfig)
	}
	return s
}

func loadAPI(kubeconfig string) (*kubeapi.Client, error) {
	return kubeapi.Load(kubeconfig, "lhstorage-ipam/"+version)
}

// openStore opens the store that the node and the configuration ask for. Claims on this
// machine's disk say nothing about other nodes: where a cluster is meant they are no way out.
func (c *call) openStore(s standby) error {
	if s.node.Kubeconfig == "" && c.cfg.Kubeconfig != "" {
		s.api, s.lost = loadAPI(c.cfg.Kubeconfig)
	}
	if cmp.Or(s.node.Kubeconfig, c.cfg.Kubeconfig) != "" {
		c.openCluster(s)
		return nil
	}
	boot, err := embedded.BootID()
	if err != nil {
		return err
	}
	c.alloc.Store, err = embedded.Open(filepath.Join(s.node.StateDir, "ipam"), boot)
	return err
}

// openCluster opens the cluster's store, or says in c.lost why not. The node file's kubeconfig is the one that the
// installer wrote, with the rights that are needed; one in the network's configuration says where
// Whereabouts' objects are, and serves where the node file has none.
func (c *call) openCluster(s standby) {
	c.queue = queue.Open(filepath.Join(s.node.StateDir, queue.DirName))
	if c.lost = s.lost; c.lost != nil {
		return
	}
	namespace := s.api.Namespace
	if c.cfg.Kubeconfig != "" && s.node.Kubeconfig != "" && c.cfg.Kubeconfig != s.node.Kubeconfig {
		namespace = cmp.Or(kubeapi.NamespaceOf(c.cfg.Kubeconfig), namespace)
	}
	c.store = kube.New(kube.Options{
		API: s.api, Namespace: namespace, Pools: c.cfg.Pools, Order: c.cfg.Order,
		Agent: s.node.Record == nodefile.RecordAgent, Journal: filepath.Join(s.node.RunDir, kube.JournalName), Queue: c.queue,
		Warn: func(text string) { c.say("%s", text) },
	})
	c.alloc.Store, c.alloc.Spread = c.store, true
}

// connect does what must be done before a verb: what waits since the API server was away is
// carried out, and this node's slices are looked up. An error is for verbs that can't do without.
func (c *call) connect(ctx context.Context) error {
	if c.lost != nil || c.store == nil {
		return c.lost
	}
	// After a long time without the API server that may be much; the rest is for the next calls.
	replay, cancel := context.WithTimeout(ctx, c.cfg.Timeout/replayPart)
	defer cancel()
	if err := c.store.Replay(replay); err != nil {
		c.say("releases that are queued on disk wait for the next call: %v", err)
	}
	if c.cfg.NodeSlice == 0 || len(c.cfg.Pools) == 0 {
		return nil
	}
	pools, err := c.store.Sliced(ctx, c.cfg.Pools, c.cfg.Network, sliceNode(c.alloc.Owner.Node, ipam.NodeNamePath(c.args.StdinData, c.flat)))
	if err != nil {
		return err
	}
	c.alloc.Pools, c.store.Pools = pools, pools
	return nil
}

// sliceNode is the node's name for Whereabouts' node slices: from the environment or the file from
// which its plugin has it, else the node file's.
func sliceNode(own, path string) string {
	name := os.Getenv("NODENAME")
	if data, err := os.ReadFile(path); name == "" && err == nil { //nolint:gosec // the path is the operator's own choice
		name = string(data)
	}
	return cmp.Or(strings.TrimSpace(name), own)
}

// queueDel queues the release of everything, for a cluster that can't be called.
func (c *call) queueDel() error {
	if err := c.queue.Put(queue.Release{Owner: c.alloc.Owner, All: true, Why: c.lost.Error()}); err != nil {
		return errors.Join(c.lost, err)
	}
	c.say("the addresses of %s can't be given up now and are queued on disk: %v", c.alloc.Owner, c.lost)
	return nil
}

// say tells people, on stderr.
func (c *call) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "lhstorage-ipam: network %q: %s\n", c.cfg.Network, fmt.Sprintf(format, args...))
}

var _ ipam.Reclaimer = (*kube.Store)(nil)
