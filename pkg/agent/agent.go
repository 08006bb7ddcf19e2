// Package agent keeps a node ready for its storage networks, and the cluster's part of them in order: the program that runs once on each
// node (cmd/lhstorage-agent).
//
// On each node the [keeper] makes the kernel as it must be, by the very code that the CNI plugin runs (package node), on every event that may
// concern it and on a timer. Beside it: the release queue, the plugins' token, the pods that lack their network, probes and
// metrics. One agent of the cluster, elected, does what is to be done once.
//
// Nothing here is needed for a pod to start: the plugin does all of it by itself, more slowly. So an agent may be killed, be
// away, or be there twice. What two of them, or an agent and a plugin, must not do at the same time is done under the node's lock.
//
// # Which flood entries go
//
// A VXLAN parent sends broadcasts to each VTEP that it has an entry for. Entries of peers are added at once. An entry is removed
//
//   - at once, when it was a peer's: its HostShim, or its Node, is gone, or its VTEP has changed;
//   - when nobody knows it, as soon as every Node has its place on the parent: until then it may be the entry, made by a script, of
//     a node that lhstorage hasn't come to yet, and removing it would cut that node off. Nodes that will never have a place
//     (--node-selector) are left out of this.
//
// While the API server is away what was last known counts; after a start with the API server away no unknown entry is removed.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/labels"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	eventrecorder "sigs.k8s.io/controller-runtime/pkg/recorder"

	"github.com/lhstorage/lhstorage/pkg/attach"
	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/ipam/recorder"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

// Options are the command line's.
type Options struct {
	Config          *rest.Config // of the cluster
	Namespace       string       // of the agents' Lease
	MetricsAddress  string       // host:port; "0" for none
	HealthAddress   string
	NodeSelector    string        // the Nodes that take part; empty: all
	Recorder        bool          // record pools for nodes with record: agent, though this one isn't one of them
	Repair          string        // "" or RepairLonghorn
	AttachmentGrace time.Duration // after which a pod should have its networks; 0: a minute
	TokenLifetime   time.Duration // of the plugins' token; 0: a day
	Elected         Elected
	NoFirewall      bool // keep none, and remove what an earlier agent kept
	FirewallAllow   []firewall.Port
	NoProbes        bool
	ProbeInterval   time.Duration // between the beginnings of rounds; 0: a minute
	Version         string
}

// The agents' Lease. Those that don't lead read it at each retry: with 1000 nodes some 60 times a second, and it says
// nothing that is urgent.
const (
	leaseName     = "lhstorage-agent"
	leaseDuration = time.Minute
	renewDeadline = 40 * time.Second
	retryPeriod   = 15 * time.Second
)

const (
	defaultGrace = time.Minute
	restartAfter = 5 * time.Second
)

var errNotYet = errors.New("the cluster isn't known yet")

// Agent is one node's agent.
type Agent struct {
	options  Options
	node     nodefile.File
	config   *rest.Config
	api      *kubeapi.Client
	kernel   *kernel.Netlink
	plugin   *attach.Plugin
	claimer  *hostclaim.Claimer // nil where the node file names no cluster
	watches  *watches
	manager  ctrl.Manager
	recorder eventrecorder.EventRecorder
	metrics  *metrics
	health   health
	status   status
	faults   faults
	seen     *observed
	compiled atomic.Pointer[Compiled]
	shared   *shared
	host     *hostParts
	log      *slog.Logger
	identity string // of this process, different from all others'
}

// part is a piece of the agent's work that goes on until ctx ends.
type part struct {
	name string
	run  func(ctx context.Context) error
}

// everywhere is what each agent does.
func (a *Agent) everywhere() []part {
	parts := []part{
		{"node", (&keeper{Agent: a, wake: make(chan struct{}, 1)}).start},
		{"attachments", (&attachments{Agent: a}).Run},
		{"status", a.writeStatus},
	}
	if a.node.Kubeconfig != "" {
		parts = append(parts, part{"releases", a.replay}, part{"token", a.renewToken}, part{"verifications", a.answerVerifications})
	}
	return append(parts, a.host.parts()...)
}

// elected is what one agent of the cluster does.
func (a *Agent) elected() []part {
	parts := append([]part{{"definitions", a.tellFaults}}, a.upkeep()...)
	if a.options.Recorder || a.node.Record == nodefile.RecordAgent {
		r := &recorder.Recorder{API: a.api, Namespace: kubeapi.NamespaceOf(a.node.Kubeconfig), Identity: a.identity, Log: a.log.With("part", "recorder")}
		parts = append(parts, part{"recorder", r.Run})
	}
	return parts
}

// New makes the agent of a node. No call is made.
func New(node nodefile.File, o Options, log *slog.Logger) (*Agent, error) {
	members, err := labels.Parse(o.NodeSelector)
	if err != nil {
		return nil, fmt.Errorf("--node-selector %q: %w", o.NodeSelector, err)
	}
	if o.AttachmentGrace == 0 {
		o.AttachmentGrace = defaultGrace
	}
	o.Config = rest.AddUserAgent(rest.CopyConfig(o.Config), "lhstorage-agent/"+o.Version)
	a := &Agent{options: o, node: node, config: o.Config, log: log, seen: &observed{}, identity: node.NodeName + "_" + uuid.NewString()}
	a.status.wake, a.faults.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	a.compiled.Store(&Compiled{})
	if a.api, err = kubeapi.New(o.Config); err != nil {
		return nil, err
	}
	if a.kernel, err = kernel.Host(); err != nil {
		return nil, err
	}
	a.plugin = &attach.Plugin{Node: node, Kernel: a.kernel}
	logger := logr.FromSlogHandler(log.Handler())
	klog.SetLogger(logger)
	ctrllog.SetLogger(logger)
	grace := 5 * time.Second
	a.manager, err = ctrl.NewManager(o.Config, ctrl.Options{
		Scheme: newScheme(), MapperProvider: newMapper, Cache: cacheOptions(node.NodeName), Logger: logger,
		Metrics: metricsserver.Options{BindAddress: o.MetricsAddress}, HealthProbeBindAddress: "0", GracefulShutdownTimeout: &grace,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare to watch the cluster: %w", err)
	}
	a.recorder = a.manager.GetEventRecorder("lhstorage-agent")
	a.metrics, a.shared = newMetrics(ctrlmetrics.Registry), newShared(ctrlmetrics.Registry)
	a.watches = &watches{cache: a.manager.GetCache(), node: node.NodeName, members: members}
	if node.Kubeconfig != "" {
		a.claimer = &hostclaim.Claimer{API: a.api, Node: node, MachineID: machineID(), Answers: probe.Answers, Known: a.watches.snapshot}
	}
	a.host = newHostParts(a, ctrlmetrics.Registry)
	return a, nil
}

// machineID is the host's, where a container is shown it.
func machineID() string {
	content, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// networks are those that the node is kept ready for.
func (a *Agent) networks() []Network { return a.compiled.Load().Networks }

// start lets the informers call the keeper, and runs it. It doesn't wait for the manager, which waits for the API server.
func (k *keeper) start(ctx context.Context) error {
	if err := k.watches.watch(ctx, k.call); err != nil {
		return err
	}
	return k.Run(ctx)
}

// Run does the agent's work until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.health.serve(ctx, a.options.HealthAddress) })
	group.Go(func() error { return a.manager.Start(ctx) })
	group.Go(func() error { return a.elect(ctx) })
	for _, p := range a.everywhere() {
		group.Go(func() error { return a.supervise(ctx, p) })
	}
	a.log.Info("the agent runs", "node", a.node.NodeName, "version", a.options.Version)
	return group.Wait()
}

// supervise runs a part anew when it fails: the others don't depend on it.
func (a *Agent) supervise(ctx context.Context, p part) error {
	for ctx.Err() == nil {
		if err := p.run(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("a part of the agent failed, and is started again", "part", p.name, "error", err)
			pause(ctx, restartAfter)
		}
	}
	return nil
}

// elect runs the elected parts while this agent leads. controller-runtime's manager ends the process when it loses the Lease; this one's
// node needs it when the API server is away, so here it only stands for election again.
func (a *Agent) elect(ctx context.Context) error {
	lock, err := a.electionLock()
	if err != nil {
		return fmt.Errorf("prepare the agents' election: %w", err)
	}
	var leading sync.Mutex // what an earlier term began has ended before the next one begins
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, Name: leaseName, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					leading.Lock()
					defer leading.Unlock()
					a.lead(ctx)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("prepare the agents' election: %w", err)
		}
		elector.Run(ctx)
	}
	leading.Lock() // until what it began has ended
	defer leading.Unlock()
	return nil
}

// electionLock is the agents' Lease. It tells of no Events, which would take a right of their own: who leads is in the Lease.
func (a *Agent) electionLock() (resourcelock.Interface, error) {
	config := rest.AddUserAgent(rest.CopyConfig(a.config), "leader-election")
	config.Timeout = renewDeadline / 2 // one call that hangs must not cost the Lease
	leases, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return resourcelock.New(resourcelock.LeasesResourceLock, a.options.Namespace, leaseName, nil, leases, resourcelock.ResourceLockConfig{Identity: a.identity})
}

// lead runs the elected parts until ctx ends.
func (a *Agent) lead(ctx context.Context) {
	a.log.Info("this agent leads")
	a.metrics.lead.Set(1)
	defer a.metrics.lead.Set(0)
	var group errgroup.Group
	for _, p := range a.elected() {
		group.Go(func() error { return a.supervise(ctx, p) })
	}
	_ = group.Wait() // supervise returns none
}
