package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/plan"
	"github.com/lhstorage/lhstorage/pkg/plan/live"
)

// planFlags are what a network is planned by.
type planFlags struct {
	cluster     clusterFlags
	fromCluster bool
	demand      plan.Demand
	perNode     int
	options     plan.Options
	network     nad.Network
	parent      string // its type
	text        struct{ network, vtep string }
	exclude     []string
	avoid       []string
	harvester   bool
	onlyNAD     bool
	output      format
}

// planOutput is what is printed.
type planOutput struct {
	*plan.Plan
	Notes []string        `json:"notes,omitempty"`
	NAD   *nad.Definition `json:"nad,omitempty"`
}

func newPlan() *cobra.Command {
	f := &planFlags{output: asTable, demand: plan.Demand{V1: true}}
	cmd := &cobra.Command{
		Use: "plan", Short: "How many addresses a storage network needs, which range to choose, and the network's definition", Args: cobra.NoArgs,
		Long: `Counts the addresses that Longhorn's pods and the nodes need, by numbers that are given or by those of a live cluster, finds the smallest
range and one with room to grow, says what it collides with, and writes the network's definition.

Exit codes: 0 the range is good, 1 something is wrong with it, 2 wrong usage, 3 the cluster could not be read.`,
		Example: `  # five nodes with two disks each, and the definition to apply
  lhstoragectl plan --nodes 5 --disks-per-node 2 --images 10
  lhstoragectl plan --nodes 5 --disks-per-node 2 --nad | kubectl apply -f -
  # the same for the cluster of the kubeconfig, on a VLAN
  lhstoragectl plan --from-cluster --range 10.200.0.0/24 --parent vlan --device bond0 --vlan 100`,
		RunE: f.run,
	}
	f.flags(cmd)
	return cmd
}

func (f *planFlags) flags(cmd *cobra.Command) {
	f.cluster.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.fromCluster, "from-cluster", false, "take nodes, disks, engines, shared volumes and networks in use from the cluster; flags that are given win")
	flags.IntVar(&f.demand.Nodes, "nodes", 3, "nodes that run Longhorn")
	flags.IntVar(&f.demand.Disks, "disks", 0, "disks of all nodes together (default nodes times --disks-per-node)")
	flags.IntVar(&f.perNode, "disks-per-node", 1, "disks of each node")
	flags.IntVar(&f.demand.Images, "images", 10, "backing images that are uploaded or downloaded at the same time")
	flags.BoolVar(&f.demand.V1, "v1", true, "the v1 data engine is used")
	flags.BoolVar(&f.demand.V2, "v2", false, "the v2 data engine is used")
	flags.BoolVar(&f.demand.Upgrade, "upgrade", true, "keep room for an upgrade of Longhorn, during which managers run twice")
	flags.BoolVar(&f.demand.RWX, "rwx", false, "shared volumes (RWX) use this network, too")
	flags.IntVar(&f.demand.Shares, "rwx-volumes", 0, "with --rwx: shared volumes in use at the same time")
	flags.BoolVar(&f.demand.Shims, "host-shims", true, "each node gets a host shim")
	flags.IntVar(&f.options.Growth, "growth", 100, "percent of room to keep for more nodes, disks and images: to change the range later all volumes must be detached")
	flags.StringVar(&f.text.network, "range", "", "the network's range (default a private one that is free, as far as is known)")
	flags.StringSliceVar(&f.exclude, "exclude", nil, "addresses or networks in the range that nobody gets, such as a gateway")
	flags.StringSliceVar(&f.avoid, "avoid", nil, "networks that the range must not overlap")
	flags.BoolVar(&f.harvester, "harvester", false, "this is Harvester: its reserved ranges must not be touched")
	flags.BoolVar(&f.onlyNAD, "nad", false, "print nothing but the NetworkAttachmentDefinition, for kubectl apply -f -")
	flags.StringVar(&f.network.Name, "name", "longhorn-storage", "the network's name")
	flags.StringVar(&f.parent, "parent", string(netconf.ParentVXLAN), "what carries the network: vxlan, vlan or device")
	flags.StringVar(&f.network.Parent.Device, "device", "", "the NIC or bond of a vlan or device parent")
	flags.IntVar(&f.network.Parent.VLAN, "vlan", 0, "VLAN ID of a vlan parent")
	flags.IntVar(&f.network.Parent.VNI, "vni", 100, "VXLAN network identifier of a vxlan parent")
	flags.StringVar(&f.text.vtep, "vtep-cidr", "10.100.100.0/24", "network of the nodes' tunnel end points, for a vxlan parent")
	flags.IntVar(&f.network.Parent.MTU, "mtu", 0, "MTU of the parent in bytes (default worked out on the nodes)")
	flags.VarP(&f.output, "output", "o", "table, json or yaml")
}

func (f *planFlags) run(cmd *cobra.Command, _ []string) error {
	if err := f.read(); err != nil {
		return err
	}
	out := planOutput{}
	if f.fromCluster {
		if err := f.look(cmd, &out); err != nil {
			return broken(err)
		}
	} else if !cmd.Flags().Changed("disks") {
		f.demand.Disks = f.demand.Nodes * f.perNode
	}
	f.options.Known = append(f.options.Known, plan.HarvesterReserved(f.harvester)...)
	var err error
	if out.Plan, err = plan.Make(f.demand, f.options); err != nil {
		return err
	}
	if out.OK() {
		definition, err := f.definition(out.Plan)
		if err != nil {
			return err
		}
		out.NAD = &definition
	}
	return f.show(cmd, out)
}

// read reads the flags that are networks; all that is wrong is said at once.
func (f *planFlags) read() error {
	var faults []error
	prefix := func(flag, text string) netip.Prefix {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			if addr, addrErr := netip.ParseAddr(text); addrErr == nil && flag != "range" && flag != "vtep-cidr" {
				return netip.PrefixFrom(addr, addr.BitLen())
			}
			faults = append(faults, fmt.Errorf("--%s %q: want a network such as 10.100.1.0/24", flag, text))
		}
		return p.Masked()
	}
	if f.text.network != "" {
		f.options.Range = prefix("range", f.text.network)
	}
	for _, text := range f.exclude {
		f.options.Exclude = append(f.options.Exclude, prefix("exclude", text))
	}
	for _, text := range f.avoid {
		f.options.Known = append(f.options.Known, plan.Network{Kind: plan.Other, Prefix: prefix("avoid", text)})
	}
	p := &f.network.Parent
	switch p.Type = netconf.ParentType(f.parent); p.Type {
	case netconf.ParentVXLAN:
		p.VTEP = prefix("vtep-cidr", f.text.vtep)
		p.Name = "vxlan-storage"
		f.options.Known = append(f.options.Known, plan.Network{Kind: plan.VTEP, Prefix: p.VTEP})
	case netconf.ParentVLAN, netconf.ParentDevice:
		p.VNI = 0
		f.options.Flat = p.Type == netconf.ParentDevice
		if p.Device == "" {
			faults = append(faults, fmt.Errorf("--parent %s: --device is missing, the NIC or bond that carries the network", p.Type))
		}
		if p.Type == netconf.ParentDevice {
			p.Name, p.Device = p.Device, ""
		}
	default:
		faults = append(faults, fmt.Errorf("--parent %q: want vxlan, vlan or device", f.parent))
	}
	return errors.Join(faults...)
}

// look takes from the cluster what no flag says.
func (f *planFlags) look(cmd *cobra.Command, out *planOutput) error {
	api, err := f.cluster.client()
	if err != nil {
		return err
	}
	found, err := live.Read(cmd.Context(), api, f.cluster.longhornNamespace())
	if err != nil {
		return err
	}
	given := cmd.Flags().Changed
	d := &f.demand
	if !given("nodes") {
		d.Nodes = found.Demand.Nodes
	}
	switch {
	case given("disks"):
	case given("disks-per-node"):
		d.Disks = d.Nodes * f.perNode
	default:
		d.Disks = found.Demand.Disks
	}
	for flag, v := range map[string]struct {
		to    *bool
		value bool
	}{"v1": {&d.V1, found.Demand.V1}, "v2": {&d.V2, found.Demand.V2}, "rwx": {&d.RWX, found.Demand.RWX}, "harvester": {&f.harvester, found.Harvester}} {
		if !given(flag) {
			*v.to = v.value
		}
	}
	if !given("rwx-volumes") && d.RWX {
		d.Shares = found.Demand.Shares
	}
	f.options.Known = append(f.options.Known, found.Networks...)
	out.Notes = found.Notes
	return nil
}

// definition is the planned network's.
func (f *planFlags) definition(p *plan.Plan) (nad.Definition, error) {
	n := f.network
	n.Namespace = f.cluster.longhornNamespace()
	n.Range, n.Hosts = p.Choose.Range, p.Choose.Hosts
	for _, x := range f.options.Exclude {
		n.Exclude = append(n.Exclude, x.String())
	}
	return n.Definition()
}

func (f *planFlags) show(cmd *cobra.Command, out planOutput) error {
	var err error
	switch {
	case !f.onlyNAD:
		err = f.output.write(cmd.OutOrStdout(), out, func() { out.table(cmd.OutOrStdout()) })
	case out.NAD != nil:
		err = writeManifest(cmd.OutOrStdout(), *out.NAD)
		fallthrough
	default:
		for _, finding := range out.Findings {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", finding.Level, finding.Text)
		}
	}
	if err == nil && !out.OK() {
		return errCheckFailed
	}
	return err
}

func (o planOutput) table(w io.Writer) {
	for _, step := range o.Steps {
		fmt.Fprintln(w, step)
	}
	fmt.Fprintln(w, "\nto compare:")
	for _, c := range o.Compare {
		fmt.Fprintf(w, "  %s: %d (%s)\n", c.Who, c.IPs, c.Why)
	}
	for _, note := range o.Notes {
		fmt.Fprintln(w, "note:", note)
	}
	for _, finding := range o.Findings {
		fmt.Fprintf(w, "%s: %s\n", finding.Level, finding.Text)
	}
	if o.NAD != nil {
		fmt.Fprintf(w, "\nnetwork %s/%s (--nad prints its definition alone):\n%s\n", o.NAD.Metadata.Namespace, o.NAD.Metadata.Name, o.NAD.Spec.Config)
	}
}

// writeManifest writes objects as YAML documents.
func writeManifest(w io.Writer, objects ...any) error {
	var b strings.Builder
	for i, object := range objects {
		if i > 0 {
			b.WriteString("---\n")
		}
		data, err := yaml.Marshal(object)
		if err != nil {
			return broken(err)
		}
		b.Write(data)
	}
	_, err := io.WriteString(w, b.String())
	return broken(err)
}
