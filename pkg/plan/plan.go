// Package plan works out how large a storage network must be: how many addresses
// Longhorn's pods and the nodes need, the smallest range that holds them, the one
// to choose, and what a range collides with. It is pure; what a cluster has comes
// in as numbers and networks.
package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Limits of one pool of addresses: Whereabouts keeps all of it in one object, which
// gets slow to change and at about 8000 entries too large for etcd.
const (
	PoolWarn  = 5000
	PoolLimit = 7000
)

// Options say where the network is to be.
type Options struct {
	Range   netip.Prefix   // the range to look at; invalid: a free one is proposed
	Exclude []netip.Prefix // parts of Range that neither pods nor hosts may have, such as a gateway
	Known   []Network      // what the range must keep clear of
	Growth  int            // percent of room to keep for more nodes, disks and images
	Flat    bool           // the range is that of the nodes' own NIC, so their addresses may lie in it if excluded
}

// Plan is what a cluster needs, and where to put it.
type Plan struct {
	Items    []Item    `json:"items"`
	Need     Need      `json:"need"`               // today
	Grown    Need      `json:"withGrowth"`         // with room to grow
	Smallest Layout    `json:"smallest"`           // the smallest range for Need
	Choose   Layout    `json:"choose"`             // the range to use
	Compare  []Compare `json:"harvester,omitzero"` // what Harvester says of the same cluster
	Steps    []string  `json:"steps"`              // how the figures came about, a line each
	Findings []Finding `json:"findings"`           // what is wrong with Choose, or should be known
}

// Level says how bad a finding is.
type Level string

// The levels.
const (
	Wrong   Level = "wrong"   // the network can't be used like this
	Warning Level = "warning" // it works; it should be known
)

// Finding is something about the plan that the reader must know.
type Finding struct {
	Level Level  `json:"level"`
	Text  string `json:"text"`
}

// OK says whether nothing is wrong.
func (p *Plan) OK() bool {
	return !slices.ContainsFunc(p.Findings, func(f Finding) bool { return f.Level == Wrong })
}

// Make plans a network. An error names all that is wrong with the input itself; what
// is wrong with a range that was asked for is in Findings.
func Make(d Demand, o Options) (*Plan, error) {
	if err := errors.Join(d.check(), o.check()); err != nil {
		return nil, err
	}
	p := &Plan{Items: d.Items(), Compare: d.harvester()}
	p.Need = need(p.Items)
	p.Grown = need(d.grown(o.Growth).Items())
	var err error
	if p.Smallest, err = Smallest(p.Need); err != nil {
		return nil, err
	}
	if err := p.choose(o); err != nil {
		return nil, err
	}
	p.pool()
	p.explain(o)
	return p, nil
}

func (o Options) check() error {
	var faults []error
	if o.Growth < 0 || o.Growth > maxGrowth {
		faults = append(faults, fmt.Errorf("growth of %d %%: want 0 to %d", o.Growth, maxGrowth))
	}
	if len(o.Exclude) > 0 && !o.Range.IsValid() {
		faults = append(faults, errors.New("addresses are to be excluded, but no range was given that they could be in"))
	}
	for _, x := range o.Exclude {
		if o.Range.IsValid() && !o.Range.Overlaps(x) {
			faults = append(faults, fmt.Errorf("excluded %s lies outside the range %s", x, o.Range))
		}
	}
	return errors.Join(faults...)
}

// choose takes the range that was asked for, or proposes one.
func (p *Plan) choose(o Options) error {
	if !o.Range.IsValid() {
		size, err := Smallest(p.Grown)
		if err != nil {
			return fmt.Errorf("with room to grow by %d %%: %w", o.Growth, err)
		}
		place, ok := free(size.Bits, o.Known)
		if !ok {
			return fmt.Errorf("no private network of length /%d is clear of what this cluster uses: name one by its range", size.Bits)
		}
		p.Choose, _ = Fit(place, nil, p.Grown) // it fits wherever it is
		return nil
	}
	layout, ok := Fit(o.Range, o.Exclude, p.Grown)
	if !ok {
		layout, ok = Fit(o.Range, o.Exclude, p.Need)
		if ok {
			p.warn("%s holds what is needed today, but not with room to grow by %d %%; to change the range later all volumes must be detached", o.Range, o.Growth)
		}
	}
	p.Choose = layout
	if !ok {
		p.wrong("%s is too small: %d addresses for pods and %d for nodes are needed, so /%d or larger (/%d with room to grow)",
			o.Range, p.Need.Pods, p.Need.Hosts, p.Smallest.Bits, smallestBits(p.Grown))
	}
	p.overlaps(o)
	return nil
}

// smallestBits is the length of the smallest range for n, 0 if there is none.
func smallestBits(n Need) int {
	l, err := Smallest(n)
	if err != nil {
		return 0
	}
	return l.Bits
}

func (p *Plan) pool() {
	switch n := p.Need.Pods; {
	case n > PoolLimit:
		p.wrong("%d pods in one pool of addresses are more than the %d that one object in Kubernetes' store can hold: use node slices (ipam.node_slice_size)", n, PoolLimit)
	case n > PoolWarn:
		p.warn("%d pods in one pool of addresses: an attachment gets slow beyond %d; think of node slices (ipam.node_slice_size)", n, PoolWarn)
	}
}

func (p *Plan) overlaps(o Options) {
	for _, n := range Overlapping(o.Range, o.Known) {
		inside := n.Kind == Node && o.Flat
		switch {
		case inside && slices.ContainsFunc(o.Exclude, func(x netip.Prefix) bool { return within(n.Prefix, x) }):
		case inside:
			p.wrong("%s lies in %s and isn't excluded: a pod would get it", n, o.Range)
		case n.Advisory:
			p.warn("%s overlaps %s", o.Range, n)
		default:
			p.wrong("%s overlaps %s", o.Range, n)
		}
	}
}

func (p *Plan) wrong(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Wrong, fmt.Sprintf(format, args...)})
}

func (p *Plan) warn(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Warning, fmt.Sprintf(format, args...)})
}

func (p *Plan) explain(o Options) {
	say := func(format string, args ...any) { p.Steps = append(p.Steps, fmt.Sprintf(format, args...)) }
	for _, i := range p.Items {
		say("%s: %d × %d = %d: %s", i.What, i.Count, i.Each, i.IPs, i.Why)
	}
	say("together %d: %d for pods, %d for nodes", p.Need.Pods+p.Need.Hosts, p.Need.Pods, p.Need.Hosts)
	say("smallest: /%d: %s", p.Smallest.Bits, p.Smallest.room())
	if o.Growth > 0 {
		say("with %d %% more nodes, disks and images: %d for pods, %d for nodes", o.Growth, p.Grown.Pods, p.Grown.Hosts)
	}
	switch {
	case !p.Choose.Range.IsValid():
		say("range: %s was asked for and is too small", o.Range)
	case o.Range.IsValid():
		say("range: %s, as asked for: %s", p.Choose.Range, p.Choose.room())
	default:
		say("choose: %s: %s; clear of all networks that are known here", p.Choose.Range, p.Choose.room())
	}
	if p.Choose.Hosts.IsValid() {
		say("host range: %s, kept for the nodes' own interfaces", p.Choose.Hosts)
	}
}
