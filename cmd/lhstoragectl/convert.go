package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/lhstorage/lhstorage/pkg/convert"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

// convertFlags say what the input doesn't.
type convertFlags struct {
	options       convert.Options
	hosts         string
	avoid         []string
	nodes, disks  int
	nad, theirNAD bool
	output        format
}

func newConvert() *cobra.Command {
	f := &convertFlags{output: asTable}
	cmd := &cobra.Command{
		Use: "convert [FILE...]", Short: "Make a network of lhstorage's out of Harvester's setting, a stock plugin's definition or a hand-made VXLAN",
		Long: `Reads files, or standard input, with any of: Harvester's setting storage-network, whole or its value alone; NetworkAttachmentDefinitions or CNI
configurations of macvlan, ipvlan and bridge; the ConfigMap and DaemonSet of a hand-made VXLAN with host shims. JSON and YAML, several documents and lists.
All faults are said at once; nothing is written then.

Exit codes: 0 converted, 1 the input has faults, 2 wrong usage, 3 a file could not be read.`,
		Example: `  # what is there, and what becomes of it
  kubectl get net-attach-def -n longhorn-system storage -o yaml | lhstoragectl convert
  # from Harvester's setting to a definition that can be applied
  kubectl get settings.harvesterhci.io storage-network -o json | lhstoragectl convert --nad | kubectl apply -f -
  # the definition that Harvester would make of a value
  echo '{"clusterNetwork":"storage","vlan":100,"range":"192.168.0.0/24"}' | lhstoragectl convert --harvester-nad`,
		RunE: f.run,
	}
	flags := cmd.Flags()
	o := &f.options
	flags.StringVar(&o.Name, "name", "", "the network's name (default the input's, else longhorn-storage)")
	flags.StringVarP(&o.Namespace, "namespace", "n", "", "its namespace (default the input's)")
	flags.StringVar(&f.hosts, "host-range", "", "the part of the range kept for nodes (default the input's, else the upper end of the range)")
	flags.IntVar(&f.nodes, "nodes", 0, "nodes that run Longhorn: the default host range is for so many (default 14), and a Harvester value must have addresses for them")
	flags.IntVar(&f.disks, "disks", 0, "disks of all nodes together, for the same")
	flags.StringVar(&o.Parent, "parent-device", "", "the device that carries the network, where the input doesn't name it")
	flags.IntVar(&o.MTU, "mtu", 0, "MTU of Harvester's cluster network in bytes, if it isn't 1500")
	flags.BoolVar(&o.KeepIPAM, "keep-ipam", false, "leave whereabouts as it is (default lhstorage-ipam, which goes on with its pools)")
	flags.IntSliceVar(&o.VMVLANs, "vm-vlans", nil, "VLANs of virtual machines, for Harvester's exclusiveVlan")
	flags.StringSliceVar(&f.avoid, "avoid", nil, "networks that the range must not overlap")
	flags.BoolVar(&f.nad, "nad", false, "print nothing but the NetworkAttachmentDefinitions, for kubectl apply -f -")
	flags.BoolVar(&f.theirNAD, "harvester-nad", false, "print nothing but the definition that Harvester makes, for kubectl create -f -")
	flags.VarP(&f.output, "output", "o", "table, json or yaml")
	cmd.MarkFlagsMutuallyExclusive("nad", "harvester-nad")
	return cmd
}

func (f *convertFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.read(); err != nil {
		return err
	}
	data, err := readAll(cmd.InOrStdin(), args)
	if err != nil {
		return broken(err)
	}
	documents, err := convert.Read(data)
	if err != nil {
		return coded{exitFailed, err}
	}
	results, err := convert.Convert(documents, f.options)
	if err != nil {
		return coded{exitFailed, err}
	}
	return f.show(cmd, results)
}

func (f *convertFlags) read() error {
	var faults []error
	if f.hosts != "" {
		p, err := netip.ParsePrefix(f.hosts)
		if err != nil {
			faults = append(faults, fmt.Errorf("--host-range %q: want a network such as 10.100.1.0/28", f.hosts))
		}
		f.options.Hosts = p
	}
	for _, text := range f.avoid {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("--avoid %q: want a network such as 10.42.0.0/16", text))
		}
		f.options.Networks = append(f.options.Networks, plan.Network{Kind: plan.Other, Prefix: p})
	}
	if f.nodes < 0 || f.disks < 0 || f.nodes > 1<<20 || f.disks > 1<<20 {
		faults = append(faults, fmt.Errorf("--nodes %d, --disks %d: can't be", f.nodes, f.disks))
	}
	f.options.Nodes, f.options.Need = f.nodes, 2*f.nodes+2*f.disks // as Harvester's webhook counts
	return errors.Join(faults...)
}

// readAll reads files, "-" and none at all being standard input.
func readAll(stdin io.Reader, files []string) ([]byte, error) {
	if len(files) == 0 {
		files = []string{"-"}
	}
	var all []byte
	var faults []error
	for i, file := range files {
		var data []byte
		var err error
		if file == "-" {
			data, err = io.ReadAll(stdin)
		} else {
			data, err = os.ReadFile(file) //nolint:gosec // the files that the user names
		}
		if err != nil {
			faults = append(faults, err)
		}
		if i > 0 {
			all = append(all, "\n---\n"...)
		}
		all = append(all, data...)
	}
	return all, errors.Join(faults...)
}

func (f *convertFlags) show(cmd *cobra.Command, results []convert.Result) error {
	if !f.nad && !f.theirNAD {
		return f.output.write(cmd.OutOrStdout(), results, func() {
			for i, r := range results {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				showResult(cmd.OutOrStdout(), r)
			}
		})
	}
	var definitions []any
	for _, r := range results {
		switch {
		case f.nad:
			definitions = append(definitions, r.NAD)
		case r.Theirs != nil:
			definitions = append(definitions, r.Theirs)
		default:
			return coded{exitFailed, fmt.Errorf("%s isn't Harvester's, so Harvester makes no definition of it", r.Source)}
		}
		for _, note := range r.Notes {
			fmt.Fprintln(cmd.ErrOrStderr(), "note:", note)
		}
	}
	return writeManifest(cmd.OutOrStdout(), definitions...)
}

func showResult(w io.Writer, r convert.Result) {
	fmt.Fprintln(w, "from:", r.Source)
	if r.Hashes != nil {
		fmt.Fprintln(w, "hash of the value as it is written:", r.Hashes.Raw)
		fmt.Fprintln(w, "hash of what it means:", r.Hashes.Canonical)
	}
	for _, node := range slices.Sorted(maps.Keys(r.Indexes)) {
		fmt.Fprintf(w, "kubectl annotate node %s lhstorage.io/index=%d\n", node, r.Indexes[node])
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, "note:", note)
	}
	if r.Theirs != nil {
		fmt.Fprintln(w, "Harvester's definition (--harvester-nad prints it alone):", r.Theirs.Spec.Config)
	}
	fmt.Fprintf(w, "network %s/%s (--nad prints its definition alone):\n%s\n", r.NAD.Metadata.Namespace, r.NAD.Metadata.Name, r.NAD.Spec.Config)
}
