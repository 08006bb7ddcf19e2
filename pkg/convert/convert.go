// Package convert makes networks of lhstorage's out of what others have: Harvester's setting, definitions of the stock plugins macvlan, ipvlan and bridge, and
// the ConfigMap and DaemonSet of a hand-made VXLAN with host shims (the source design). It is pure; what it makes is checked by the code that reads it on a node.
package convert

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/harvester"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

// Options say what the input doesn't.
type Options struct {
	Namespace, Name string         // of the network; default the input's
	Hosts           netip.Prefix   // the part of the range kept for nodes; default a free one
	Nodes           int            // how many nodes the default host range is for
	Parent          string         // the device that carries the network, where the input doesn't name it
	MTU             int            // of the cluster network (Harvester), bytes
	KeepIPAM        bool           // leave whereabouts as it is
	Need            int            // addresses that a Harvester value must have
	VMVLANs         []int          // VLANs of virtual machines (Harvester)
	Networks        []plan.Network // what a range must keep clear of
}

// Result is what became of one network.
type Result struct {
	Source  string          `json:"source"`              // what it was
	NAD     nad.Definition  `json:"nad"`                 // ours
	Theirs  *nad.Definition `json:"harvester,omitempty"` // the one that Harvester makes
	Hashes  *Hashes         `json:"hashes,omitempty"`
	Indexes map[string]int  `json:"indexes,omitempty"` // by node: its place in the host range, kept by annotation lhstorage.io/index
	Notes   []string        `json:"notes,omitempty"`   // what is different, a sentence each
}

// Hashes mark a Harvester value.
type Hashes struct {
	Raw       string `json:"raw"`       // as Harvester computes it: white space counts
	Canonical string `json:"canonical"` // the same for all ways to write one network
}

// Error holds all that is wrong with the input.
type Error struct{ Faults []string }

// Error is one line per fault.
func (e *Error) Error() string { return strings.Join(e.Faults, "\n") }

// converter collects results and faults.
type converter struct {
	o       Options
	results []Result
	faults  []string
	design  design
}

// Convert converts all documents. An error is an [*Error] with every fault of all of them; nothing is half converted.
func Convert(documents []Document, o Options) ([]Result, error) {
	if o.Nodes == 0 {
		o.Nodes = 14
	}
	c := &converter{o: o}
	c.design.collect(documents)
	for _, d := range documents {
		c.document(d)
	}
	c.design.convert(c)
	if len(c.results) == 0 && len(c.faults) == 0 {
		c.fault("", "nothing here is a network that can be converted: want a Harvester setting or its value, a NetworkAttachmentDefinition or a CNI configuration of macvlan, ipvlan or bridge, or the source design's ConfigMap and DaemonSet")
	}
	if len(c.faults) > 0 {
		return nil, &Error{c.faults}
	}
	return c.results, nil
}

func (c *converter) fault(what, format string, args ...any) {
	if what != "" {
		what += ": "
	}
	c.faults = append(c.faults, what+fmt.Sprintf(format, args...))
}

func (c *converter) document(d Document) {
	switch {
	case c.design.owns(d):
	case d.Kind == "Setting":
		name, value, err := harvester.Setting(d.JSON)
		switch {
		case err != nil:
			c.fault(d.String(), "%v", err)
		case name != "storage-network":
			c.fault(d.String(), "is another setting than storage-network, the one that can be converted")
		case value == "":
			c.fault(d.String(), "has no value: this cluster has no storage network")
		default:
			c.value(d.String(), value)
		}
	case d.Kind == "NetworkAttachmentDefinition":
		c.definition(d)
	case d.Kind != "":
		// Whatever else a manifest holds.
	case has(d.JSON, "type", "plugins"):
		c.config(d.String(), string(d.JSON), c.o.Namespace, c.o.Name)
	case has(d.JSON, "clusterNetwork", "range", "vlan"):
		c.value(d.String(), d.Raw)
	default:
		c.fault(d.String(), "is neither a Kubernetes object (kind), a CNI configuration (type or plugins), nor a value of Harvester's setting (clusterNetwork)")
	}
}

// has says whether an object has one of the keys.
func has(object []byte, keys ...string) bool {
	var m map[string]json.RawMessage
	return json.Unmarshal(object, &m) == nil && slices.ContainsFunc(keys, func(key string) bool { return m[key] != nil })
}

// value converts a value of Harvester's setting.
func (c *converter) value(what, raw string) {
	v, err := harvester.ParseValue(raw)
	if err != nil {
		c.fault(what, "%v", err)
		return
	}
	known := harvester.Known{Need: c.o.Need, VMVLANs: c.o.VMVLANs, Networks: append(plan.HarvesterReserved(true), c.o.Networks...)}
	if faults := v.Faults(known); len(faults) > 0 {
		for _, f := range faults {
			c.fault(what, "%s", f)
		}
		return
	}
	theirs, err := v.Definition(raw, c.o.MTU)
	if err != nil {
		c.fault(what, "%v", err)
		return
	}
	name := c.o.Name
	if name == "" {
		name = "longhorn-storage"
	}
	network, notes, err := v.Network(name, netip.Prefix{}, c.o.MTU)
	if err != nil {
		c.fault(what, "%v", err)
		return
	}
	if c.o.Parent != "" {
		network.Parent.Device, network.Parent.Name = c.o.Parent, ""
		if network.Parent.VLAN == 0 {
			network.Parent.Device, network.Parent.Name = "", c.o.Parent
		}
	}
	if c.o.Namespace != "" {
		network.Namespace = c.o.Namespace
	}
	r := Result{
		Source: "a value of Harvester's setting storage-network", Theirs: &theirs, Notes: notes,
		Hashes: &Hashes{harvester.Hash(raw), v.CanonicalHash()},
	}
	c.finish(what, r, network.Config(), network.Namespace, network.Name)
}

// finish gives a configuration its host range, checks it and keeps the result.
func (c *converter) finish(what string, r Result, config nad.Config, namespace, name string) {
	notes, ok := c.hosts(what, config)
	if !ok {
		return
	}
	p, err := nad.Check(config)
	if err != nil {
		c.fault(what, "%v", err)
		return
	}
	for _, network := range p.IPAM.Ranges {
		for _, n := range plan.Overlapping(network, c.o.Networks) {
			c.fault(what, "range %s overlaps %s", network, n)
		}
	}
	r.NAD = nad.Of(namespace, name, config.String())
	r.Notes = append(append(r.Notes, notes...), p.Warnings...)
	c.results = append(c.results, r)
}
