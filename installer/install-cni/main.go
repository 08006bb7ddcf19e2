// Command install-cni puts lhstorage's CNI programs and a node's configuration onto a host: as the init container of lhstorage's DaemonSet, or
// by hand. With --check it says whether all is as it was installed, with --uninstall it removes it. See docs/install.md.
//
// Exit codes: 0 all is well; 1 it isn't, each fault is a line on stderr; 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/pkg/install"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// version is set by the linker.
var version = "unknown"

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// failed is an error of the work, not of the usage.
type failed struct{ error }

func (f failed) Unwrap() error { return f.error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newCommand(stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(stderr, "install-cni:", strings.TrimSuffix(line, "\n"))
	}
	if errors.As(err, &failed{}) {
		return exitFailed
	}
	return exitUsage
}

// options are the flags.
type options struct {
	hostRoot, binDir, confDir string
	from                      string
	node                      nodefile.File
	kubeconfig, server        string
	noCluster                 bool
	lifetime, timeout         time.Duration
	check, uninstall          bool
}

func newCommand(stderr io.Writer) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "install-cni", Short: "Installs lhstorage's CNI programs and node configuration on a host", Version: version, Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			if err := o.run(ctx, cmd.OutOrStdout(), slog.New(slog.NewJSONHandler(stderr, nil))); err != nil {
				return failed{err}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.hostRoot, "host-root", "/host", "where the host's root directory is mounted; / on the host itself")
	flags.StringVar(&o.binDir, "cni-bin-dir", "", "the runtime's directory of CNI plugins, a path of the host (default: by the distribution that is found)")
	flags.StringVar(&o.confDir, "conf-dir", "", "for node file, kubeconfig and manifest, a path of the host (default /etc/lhstorage, on Talos /var/lib/lhstorage)")
	flags.StringVar(&o.from, "from", "", "directory of the programs to install (default: this program's own)")
	flags.StringVar(&o.node.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this Node (environment: NODE_NAME)")
	flags.StringVar(&o.node.Record, "record", "", "who writes Whereabouts' objects, sync or agent, unless the node file says another than was installed")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "by which to ask for the plugins' token (default: that of the pod)")
	flags.StringVar(&o.server, "api-server", "", "URL of the API server as the host reaches it (default: as the pod does)")
	flags.DurationVar(&o.lifetime, "token-lifetime", kubeconfig.DefaultLifetime, "of the plugins' token, a wish; the agent renews it")
	flags.BoolVar(&o.noCluster, "no-cluster", false, "install for a machine without a cluster")
	flags.DurationVar(&o.timeout, "timeout", time.Minute, "give up after this time")
	flags.BoolVar(&o.check, "check", false, "change nothing; say whether all is as it was installed")
	flags.BoolVar(&o.uninstall, "uninstall", false, "remove what was installed, unless pods are attached; say what stays")
	cmd.MarkFlagsMutuallyExclusive("check", "uninstall")
	cmd.MarkFlagsMutuallyExclusive("no-cluster", "kubeconfig")
	cmd.MarkFlagsMutuallyExclusive("no-cluster", "api-server")
	return cmd
}

func (o options) run(ctx context.Context, stdout io.Writer, log *slog.Logger) error {
	i := &install.Installer{Host: install.Host{Root: o.hostRoot}, From: o.from, Release: version, Node: o.node, Log: log}
	var err error
	i.Layout, err = install.FindLayout(i.Host, install.Layout{BinDir: o.binDir, ConfDir: o.confDir})
	if o.check || o.uninstall {
		if err != nil {
			return err
		}
		return o.look(ctx, i, stdout)
	}
	faults := []error{err, o.complete(i)}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	log.Info("installing", "release", version, "distribution", i.Layout.Distribution, "binDir", i.Layout.BinDir, "confDir", i.Layout.ConfDir)
	return i.Install(ctx)
}

// look checks or uninstalls.
func (o options) look(ctx context.Context, i *install.Installer, stdout io.Writer) error {
	if o.check {
		release, err := i.Check(ctx)
		if err == nil {
			fmt.Fprintf(stdout, "release %s is installed: %s, %s\n", release, i.Layout.BinDir, i.Layout.ConfDir)
		}
		return err
	}
	stays, err := i.Uninstall(ctx)
	for _, what := range stays {
		fmt.Fprintln(stdout, "stays:", what)
	}
	return err
}

// complete adds what only an installation needs.
func (o options) complete(i *install.Installer) error {
	var faults []error
	if i.From == "" {
		self, err := os.Executable()
		i.From = filepath.Dir(self)
		faults = append(faults, err)
	}
	if o.node.Record != "" && o.node.Record != nodefile.RecordSync && o.node.Record != nodefile.RecordAgent {
		faults = append(faults, fmt.Errorf("--record %q: must be %s or %s", o.node.Record, nodefile.RecordSync, nodefile.RecordAgent))
	}
	if o.noCluster {
		return errors.Join(faults...)
	}
	if o.node.NodeName == "" {
		faults = append(faults, errors.New("the Node's name isn't known: set NODE_NAME (in a pod, from spec.nodeName) or --node-name"))
	}
	access, err := o.access()
	i.Access = access
	return errors.Join(append(faults, err)...)
}

// access is how the plugins' token is asked for.
func (o options) access() (*kubeconfig.Renewal, error) {
	cfg, err := o.client()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w; outside a pod name a --kubeconfig, or say --no-cluster", err)
	}
	cfg.UserAgent = "install-cni/" + version
	client, err := kubeapi.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	file, err := kubeconfig.ServerOf(cfg)
	if o.server != "" {
		file.Server = o.server
	}
	return &kubeconfig.Renewal{API: client, Account: kubeconfig.NodeAccount, Node: o.node.NodeName, Lifetime: o.lifetime, File: file}, err
}

func (o options) client() (*rest.Config, error) {
	if o.kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", o.kubeconfig)
}
