package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/demo"
	"github.com/lhstorage/lhstorage/pkg/lab/view"
)

// labFlags are shared by the lab's commands.
type labFlags struct {
	lab.Options
	output format
}

func newLab() *cobra.Command {
	f := &labFlags{output: asTable}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A simulated cluster in network namespaces of this machine",
		Long:  "Simulated nodes in network namespaces of this machine, driven by real CNI binaries (root). See docs/lab.md.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.Name, "name", "lab", "the lab's name; several can be up at once")
	flags.VarP(&f.output, "output", "o", "table, json or yaml")
	cmd.AddCommand(f.up(), f.down(), f.add(), f.del(), f.matrix(), f.exec(), f.status(), f.demo())
	return cmd
}

// creating adds the flags of commands that make a lab.
func (f *labFlags) creating(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().IntVar(&f.Nodes, "nodes", 3, "number of nodes, up to 15")
	cmd.Flags().IntVar(&f.MTU, "mtu", 9000, "the underlay's MTU in bytes")
	cmd.Flags().StringSliceVar(&f.BinDirs, "bin-dir", nil, "directories with the CNI plugins (default $LHSTORAGE_BIN_DIR, else this program's own, and /opt/cni/bin)")
	return cmd
}

func (f *labFlags) up() *cobra.Command {
	pods := 1
	cmd := f.creating(&cobra.Command{
		Use: "up", Short: "Make the nodes and the network between them", Args: cobra.NoArgs,
		Example: "  lhstoragectl lab up --nodes 4 --pods 2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.New(f.complete(cmd))
			if err != nil {
				return err
			}
			if err := upWithPods(cmd.Context(), l, pods); err != nil {
				return broken(err)
			}
			return f.showStatus(cmd, l)
		},
	})
	cmd.Flags().IntVar(&pods, "pods", pods, "pods per node, called pod1, pod2, …")
	cmd.Flags().StringVar(&f.Topology, "topology", "", "mesh (a link per pair of nodes) or lan (one switch) (default mesh; lan for --parent device and for one node)")
	cmd.Flags().StringVar(&f.Parent, "parent", lab.ParentVXLAN, "vxlan, or device: eth1, which holds the node's own address")
	cmd.Flags().StringVar(&f.Plugin, "plugin", lab.PluginLhstorage, "lhstorage or macvlan (the stock one)")
	cmd.Flags().StringVar(&f.IPAM, "ipam", "", "lhstorage-ipam, host-local or static (default lhstorage-ipam; host-local for --plugin macvlan)")
	cmd.Flags().BoolVar(&f.NoLearning, "nolearning", false, "make stock macvlan's VXLAN parents as the source design does: without learning")
	return cmd
}

// upWithPods leaves nothing behind if a pod can't be added.
func upWithPods(ctx context.Context, l *lab.Lab, pods int) error {
	if err := l.Up(ctx); err != nil {
		return err
	}
	err := addPods(ctx, l, pods)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.Down(clean))
	}
	return err
}

func addPods(ctx context.Context, l *lab.Lab, pods int) error {
	for _, node := range l.Nodes() {
		for i := range pods {
			if _, err := l.AddPod(ctx, node.Name, fmt.Sprintf("pod%d", i+1), lab.PodOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *labFlags) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the lab: pods by DEL, then the nodes", Args: cobra.NoArgs,
		Example: "  lhstoragectl lab down",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.New(f.complete(cmd))
			if err != nil {
				return err
			}
			return broken(l.Down(cmd.Context()))
		},
	}
}

func (f *labFlags) add() *cobra.Command {
	var o lab.PodOptions
	cmd := &cobra.Command{
		Use: "add NODE POD", Short: "Attach a pod", Args: cobra.ExactArgs(2),
		Example: "  lhstoragectl lab add node1 extra --eth0 moved",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open("", f.Name)
			if err != nil {
				return broken(err)
			}
			pod, err := l.AddPod(cmd.Context(), args[0], args[1], o)
			if err != nil {
				return broken(err)
			}
			return f.output.write(cmd.OutOrStdout(), pod, func() { view.To(cmd.OutOrStdout()).Pod(pod) })
		},
	}
	cmd.Flags().StringVar(&o.Eth0, "eth0", "", "give the pod an eth0 first: inside (low ifindex) or moved (high ifindex)")
	return cmd
}

func (f *labFlags) del() *cobra.Command {
	return &cobra.Command{
		Use: "del NODE POD", Short: "Detach a pod and remove it", Args: cobra.ExactArgs(2),
		Example: "  lhstoragectl lab del node1 extra",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open("", f.Name)
			if err != nil {
				return broken(err)
			}
			return broken(l.DelPod(cmd.Context(), args[0], args[1]))
		},
	}
}

func (f *labFlags) matrix() *cobra.Command {
	var o lab.MatrixOptions
	cmd := &cobra.Command{
		Use: "matrix", Short: "Measure every leg between nodes and pods; exit code 1 if one loses packets", Args: cobra.NoArgs,
		Example: "  lhstoragectl lab matrix --size 8950",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open("", f.Name)
			if err != nil {
				return broken(err)
			}
			legs, err := l.Matrix(cmd.Context(), o)
			if err != nil {
				return broken(err)
			}
			if err := f.output.write(cmd.OutOrStdout(), legs, func() { view.To(cmd.OutOrStdout()).Matrix(legs) }); err != nil {
				return err
			}
			if len(lab.Failed(legs)) > 0 {
				return errCheckFailed
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&o.Count, "count", 20, "packets per leg and pair")
	cmd.Flags().DurationVar(&o.Interval, "interval", 0, "between packets (default 10ms)")
	cmd.Flags().IntVar(&o.MTU, "size", 0, "fill IP packets up to this many bytes and forbid fragments")
	return cmd
}

func (f *labFlags) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec NODE[/POD] -- COMMAND [ARG...]", Short: "Run a command in a node's or a pod's network namespace",
		Example: "  lhstoragectl lab exec node1/pod1 -- ip address",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open("", f.Name)
			if err != nil {
				return broken(err)
			}
			node, pod, _ := strings.Cut(args[0], "/")
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("no command was given")
			}
			// An interrupt is the command's to handle: the terminal sends it there too.
			return broken(l.Exec(context.WithoutCancel(cmd.Context()), node, pod, argv))
		},
	}
	cmd.Flags().SetInterspersed(false) // the command's flags are its own
	return cmd
}

func (f *labFlags) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show nodes and pods", Args: cobra.NoArgs,
		Example: "  lhstoragectl lab status -o yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open("", f.Name)
			if err != nil {
				return broken(err)
			}
			return f.showStatus(cmd, l)
		},
	}
}

func (f *labFlags) showStatus(cmd *cobra.Command, l *lab.Lab) error {
	status, err := l.Status()
	if err != nil {
		return broken(err)
	}
	return f.output.write(cmd.OutOrStdout(), status, func() { view.To(cmd.OutOrStdout()).Status(status) })
}

func (f *labFlags) demo() *cobra.Command {
	var file string
	cmd := f.creating(&cobra.Command{
		Use: "demo", Short: "Stock macvlan against lhstorage: all legs, iSCSI, MTU, waste; exit code 1 if lhstorage fails", Args: cobra.NoArgs,
		Example: "  lhstoragectl lab demo --json report.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := f.complete(cmd)
			if !cmd.Flags().Changed("name") {
				o.Name = "demo"
			}
			if o.Nodes < 3 {
				return fmt.Errorf("--nodes %d: the demo needs 3 or more, so that one isn't involved in a stream", o.Nodes)
			}
			report, err := demo.Run(cmd.Context(), o)
			if writeErr := writeReport(file, report); writeErr != nil {
				return broken(writeErr)
			}
			if showErr := f.output.write(cmd.OutOrStdout(), report, func() { view.To(cmd.OutOrStdout()).Demo(report) }); showErr != nil {
				return showErr
			}
			switch {
			case err != nil:
				return broken(err)
			case !report.OK:
				return errCheckFailed
			}
			return nil
		},
	})
	cmd.Flags().StringVar(&file, "json", "", "also write the report to this file")
	return cmd
}

func writeReport(file string, report *demo.Report) error {
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(data, '\n'), 0o644) //nolint:gosec // a report for anyone
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// complete fills in where the plugins are and how progress is told.
func (f *labFlags) complete(cmd *cobra.Command) lab.Options {
	o := f.Options
	if len(o.BinDirs) == 0 {
		o.BinDirs = defaultBinDirs()
	}
	o.Progress = func(step string) { fmt.Fprintln(cmd.ErrOrStderr(), "…", step) }
	return o
}

func defaultBinDirs() []string {
	if dir := os.Getenv("LHSTORAGE_BIN_DIR"); dir != "" {
		return []string{dir}
	}
	dirs := []string{"/opt/cni/bin"}
	if self, err := os.Executable(); err == nil {
		dirs = append([]string{filepath.Dir(self)}, dirs...)
	}
	return dirs
}
