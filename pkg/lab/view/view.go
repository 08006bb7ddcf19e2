// Package view writes what a lab measured as text for people: aligned tables,
// in colour on a terminal.
package view

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/demo"
	"github.com/lhstorage/lhstorage/pkg/terminal"
)

// View writes to W. Nothing depends on colour: each verdict is a word as well.
type View struct {
	W     io.Writer
	Color bool
}

// To makes a view on w, in colour if w is a terminal and NO_COLOR
// (no-color.org) isn't set.
func To(w io.Writer) View { return View(terminal.To(w)) }

var (
	good   = terminal.Good
	bad    = terminal.Bad
	strong = terminal.Strong
)

func (v View) paint(c text.Colors, s string) string { return terminal.Screen(v).Paint(c, s) }

func (v View) verdict(ok bool) string {
	if ok {
		return v.paint(good, "ok")
	}
	return v.paint(bad, "FAILS")
}

func (v View) title(format string, args ...any) {
	fmt.Fprintf(v.W, "%s\n", v.paint(strong, fmt.Sprintf(format, args...)))
}

// table starts a table; right names the columns, from 1, that hold numbers.
func (v View) table(right []int, header ...any) table.Writer {
	return terminal.Screen(v).Table(right, header...)
}

func (v View) render(t table.Writer) { terminal.Screen(v).Render(t) }

// Matrix writes one line per leg, and a summary.
func (v View) Matrix(legs []lab.Leg) {
	t := v.table([]int{5, 6, 7}, "LEG", "FROM", "TO", "ADDRESS", "PACKETS", "LOSS", "RTT", "")
	for _, leg := range legs {
		rtt := "-"
		if leg.RTT != nil {
			rtt = fmt.Sprintf("%.3f ms", *leg.RTT)
		}
		t.AppendRow(table.Row{leg.Leg, leg.From, leg.To, leg.Address, leg.Packets, fmt.Sprintf("%.3g %%", leg.Loss), rtt, v.verdict(leg.OK())})
	}
	v.render(t)
	failed := len(lab.Failed(legs))
	fmt.Fprintf(v.W, "%d of %d legs pass: %s\n", len(legs)-failed, len(legs), v.verdict(failed == 0))
}

// Status writes one line per pod, or per node without pods.
func (v View) Status(s lab.Status) {
	v.title("lab %s: %d nodes, topology %s, parent %s, plugin %s, ipam %s, since %s", s.Options.Name, len(s.Nodes),
		s.Options.Topology, s.Options.Parent, s.Options.Plugin, s.Options.IPAM, s.Created.Format("2006-01-02 15:04:05"))
	t := v.table([]int{4}, "NODE", "VTEP", "HOST", "MTU", "POD", "ADDRESS", "MAC", "NETNS")
	for _, n := range s.Nodes {
		host := n.Shim
		if len(host) == 0 {
			host = n.ParentAddress
		}
		row := table.Row{n.Name, orDash(n.VTEP.IsValid(), n.VTEP), joined(host), orDash(n.ParentMTU > 0, n.ParentMTU)}
		if len(n.Pods) == 0 {
			t.AppendRow(append(row, "-", "-", "-", n.Netns))
		}
		for _, p := range n.Pods {
			t.AppendRow(append(row[:4:4], p.Name, joined(p.Addresses), orDash(p.MAC != "", p.MAC), p.Netns))
			row = table.Row{"", "", "", ""}
		}
	}
	v.render(t)
}

// Pod writes a pod that was just added.
func (v View) Pod(p lab.Pod) {
	fmt.Fprintf(v.W, "%s/%s: %s has %s (%s), network namespace %s\n", p.Node, p.Name, p.IfName, joined(p.Addresses), p.MAC, p.Netns)
}

func orDash(there bool, value any) string {
	if !there {
		return "-"
	}
	return fmt.Sprint(value)
}

func joined(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, p := range prefixes {
		words[i] = p.String()
	}
	return orDash(len(words) > 0, strings.Join(words, ","))
}

// Demo writes a demo's report, stock macvlan first.
func (v View) Demo(r *demo.Report) {
	v.legs(r, lab.PluginMacvlan, "Stock macvlan: the host can't reach its own pods")
	v.iscsi(r.StockISCSI)
	v.legs(r, lab.PluginLhstorage, "lhstorage: the same nodes, every leg")
	v.iscsi(r.ISCSI)
	v.mtu(r)
	v.waste(r)
	for _, fault := range r.Faults {
		fmt.Fprintf(v.W, "%s %s\n", v.paint(bad, "FAILS"), fault)
	}
	if r.Unmeasured == "" {
		fmt.Fprintf(v.W, "%s, in %.0f s\n", v.verdict(r.OK), r.Seconds)
	}
}

func (v View) legs(r *demo.Report, plugin, title string) {
	legs := r.LegsOf(plugin)
	if len(legs) == 0 {
		return
	}
	v.title("%s", title)
	v.Matrix(legs)
	fmt.Fprintln(v.W)
}

func (v View) iscsi(i demo.ISCSI) {
	if len(i.Steps) == 0 {
		return
	}
	v.title("iSCSI with %s: host %s to the target in its own pod %s", i.Plugin, i.From, i.To)
	t := v.table(nil, "STEP", "", "SAYS")
	for _, step := range i.Steps {
		t.AppendRow(table.Row{step.Name, v.verdict(step.OK), step.Says})
	}
	v.render(t)
	fmt.Fprintln(v.W)
}

func (v View) mtu(r *demo.Report) {
	if len(r.FullMTULegs) == 0 {
		return
	}
	failed := len(lab.Failed(r.FullMTULegs))
	v.title("Full MTU, without fragments")
	fmt.Fprintf(v.W, "%d of %d legs carry it: %s\n", len(r.FullMTULegs)-failed, len(r.FullMTULegs), v.verdict(failed == 0))
	if r.MTU > 0 {
		fmt.Fprintf(v.W, "%d bytes pass; one byte more is refused: %s\n", r.MTU, r.OneMoreError)
	}
	fmt.Fprintln(v.W)
}

func (v View) waste(r *demo.Report) {
	if len(r.Stream.Links) == 0 {
		return
	}
	v.title("Bytes per link while one stream runs, at %.1f Gbit/s", r.Stream.Rate/1e9)
	t := v.table([]int{2, 3}, "LINK", "LEARNING (lhstorage)", "NOLEARNING (source design)", "")
	flooded := map[string]uint64{}
	for _, link := range r.FloodStream.Links {
		flooded[link.From+link.To] = link.Bytes
	}
	for _, link := range r.Stream.Links {
		note := "uninvolved"
		if link.OnWay {
			note = "on the way"
		}
		without := "-"
		if bytes, ok := flooded[link.From+link.To]; ok {
			without = megabytes(bytes)
		}
		t.AppendRow(table.Row{link.From + " to " + link.To, megabytes(link.Bytes), without, note})
	}
	v.render(t)
	fmt.Fprintf(v.W, "wasted on uninvolved links: %.3f %% of the carried bytes with learning, %.1f %% without\n\n", 100*r.WasteRatio, 100*r.FloodRatio)
}

func megabytes(n uint64) string { return fmt.Sprintf("%.3f MB", float64(n)/1e6) }
