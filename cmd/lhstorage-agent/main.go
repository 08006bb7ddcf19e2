// lhstorage-agent runs on each node and keeps it ready for the storage networks: see package agent and docs/agent.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// version is set at build time.
var version = "unknown"

// minProbeInterval leaves time for the answers of a round.
const minProbeInterval = 10 * time.Second

// gcPercent trades a little CPU for memory, which every node pays for and the leader of a large cluster most: its passes over ten thousand claims leave
// much behind.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "lhstorage-agent: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var o agent.Options
	var nodeFile, kubeconfig string
	var level slog.Level
	guard, probes := true, true
	flags := flag.NewFlagSet("lhstorage-agent", flag.ContinueOnError)
	flags.StringVar(&nodeFile, "node-file", nodefile.Path(), "the node file, as the plugins on this node read it; environment "+nodefile.PathEnv)
	flags.StringVar(&kubeconfig, "kubeconfig", "", "a kubeconfig; empty: the pod's service account")
	flags.StringVar(&o.Namespace, "namespace", "lhstorage-system", "namespace of the agents' Lease")
	flags.StringVar(&o.MetricsAddress, "metrics-address", ":9810", "where metrics are served; 0: nowhere")
	flags.StringVar(&o.HealthAddress, "health-address", ":9811", "where /healthz and /readyz are served")
	flags.StringVar(&o.NodeSelector, "node-selector", "", "labels of the Nodes that take part in storage networks; empty: all. Flood entries that nobody knows are removed once each of them has its place")
	flags.BoolVar(&o.Recorder, "recorder", false, "let the leader record pools though its own node has record: sync")
	flags.StringVar(&o.Repair, "repair", "", "longhorn: delete Longhorn's instance managers that run without their network and run no instance")
	flags.DurationVar(&o.AttachmentGrace, "attachment-grace", 0, "after which a pod should have its networks; 0: a minute")
	flags.DurationVar(&o.TokenLifetime, "token-lifetime", 0, "of the plugins' token; 0: a day")
	flags.DurationVar(&o.Elected.Leaks.Interval, "leak-interval", 0, "between two passes that look for leaked claims; two must find one leaked; 0: a minute")
	flags.DurationVar(&o.Elected.Leaks.MinAge, "leak-min-age", 0, "of a claim that may count as leaked; 0: five minutes")
	flags.DurationVar(&o.Elected.Leaks.NodeGrace, "leak-node-grace", 0, "for which a Node must be gone before its claims count as leaked; 0: five minutes")
	flags.DurationVar(&o.Elected.PlaceGrace, "place-grace", 0, "for which a node that has left keeps its place on a parent; 0: an hour")
	flags.BoolVar(&o.Elected.NodeSlices, "node-slices", false, "let the leader divide ranges with node_slice_size among nodes; only where Whereabouts' node slice controller doesn't run")
	flags.BoolVar(&guard, "firewall", true, "keep the storage network to itself; false removes what an earlier agent kept")
	flags.Func("firewall-allow", "services of the host that pods may reach over the storage network, such as 2049/tcp,123/udp", func(text string) (err error) {
		o.FirewallAllow, err = firewall.ParsePorts(text)
		return err
	})
	flags.BoolVar(&probes, "probe", true, "measure the legs of the storage network, and report them")
	flags.DurationVar(&o.ProbeInterval, "probe-interval", 0, "between the beginnings of two rounds of probes, 10s at least; 0: a minute")
	flags.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q isn't a flag", flags.Arg(0))
	}
	if o.Repair != "" && o.Repair != agent.RepairLonghorn {
		return fmt.Errorf("--repair %q: must be empty or %q", o.Repair, agent.RepairLonghorn)
	}
	if o.ProbeInterval != 0 && o.ProbeInterval < minProbeInterval {
		return fmt.Errorf("--probe-interval %s: must be 0 or at least %s", o.ProbeInterval, minProbeInterval)
	}
	o.NoFirewall, o.NoProbes = !guard, !probes
	o.Version = version
	if err := os.Setenv(nodefile.PathEnv, nodeFile); err != nil {
		return err
	}
	node, err := nodefile.Load()
	if err != nil {
		return err
	}
	if o.Config, err = clientConfig(kubeconfig); err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	a, err := agent.New(node, o, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return a.Run(ctx)
}

// clientConfig is that of a kubeconfig, or of the pod.
func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server (outside a pod name a kubeconfig by --kubeconfig): %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}
