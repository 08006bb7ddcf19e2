package verify

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// longTable is the number of cells above which only those that fail are written.
const longTable = 200

// Write writes a result for people.
func (r Result) Write(w io.Writer) {
	r.writeMatrix(w)
	r.writeWaste(w)
	if len(r.Findings) > 0 {
		fmt.Fprintln(w)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s %s: %s\n", strings.ToUpper(string(f.Severity)), f.Kind, f.where())
		fmt.Fprintf(w, "  seen  %s\n  mend  %s\n", f.Text, f.Mend)
	}
	fmt.Fprintf(w, "\nHost shim: %s. %s.\n", r.Shim.Verdict, sentence(r.Shim.Why))
	fmt.Fprintln(w, r.Summary())
}

// String is the finding in a line.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s; mend: %s", f.Kind, f.where(), f.Text, f.Mend)
}

// where names nodes and leg.
func (f Finding) where() string {
	text := f.Node
	if f.Peer != "" {
		text += " → " + f.Peer
	}
	if f.Leg != "" {
		text += ", leg " + string(f.Leg)
	}
	if f.Address != "" {
		text += ", " + f.Address
	}
	return text
}

func sentence(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	if size == 0 {
		return ""
	}
	return string(unicode.ToUpper(first)) + text[size:]
}

// Summary is the result in a line.
func (r Result) Summary() string {
	legs, bad, faults, answered := 0, 0, 0, 0
	for _, c := range r.Matrix {
		legs += c.Legs
		if !c.OK() {
			bad++
		}
	}
	for _, f := range r.Findings {
		if f.Severity == Fault {
			faults++
		}
	}
	for _, n := range r.Nodes {
		if n.Answered {
			answered++
		}
	}
	verdict := "ok"
	if !r.OK {
		verdict = "FAILS"
	}
	return fmt.Sprintf("%s: %d of %s answered; %s, %d of %d cells of the matrix lose something; %s, %s", verdict, answered, count(len(r.Nodes), "node"),
		count(legs, "leg"), bad, len(r.Matrix), count(faults, "fault"), count(len(r.Findings)-faults, "warning"))
}

func (r Result) writeMatrix(w io.Writer) {
	t := plain(4, 5, 6, 7)
	t.AppendHeader(table.Row{"LEG", "FROM", "TO", "LEGS", "LOST", "RTT", "FULL SIZE", "TCP", "HTTP", ""})
	rows := 0
	for _, c := range r.Matrix {
		if len(r.Matrix) > longTable && c.OK() {
			continue
		}
		t.AppendRow(table.Row{c.Kind, c.From, c.To, c.Legs, fmt.Sprintf("%d/%d", c.Lost, c.Sent), c.rtt(), c.full(), c.tcp(), c.http(), verdict(c.OK())})
		rows++
	}
	if rows > 0 {
		render(w, t)
	}
}

func (r Result) writeWaste(w io.Writer) {
	if len(r.Waste) == 0 {
		return
	}
	t := plain(3, 4, 5, 6)
	t.AppendHeader(table.Row{"NODE", "PARENT", "DEVICES SENT", "PARENT SENT", "RATIO", "FOR NOBODY HERE", "MANAGEMENT"})
	for _, x := range r.Waste {
		ratio, management := "-", "-"
		if x.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", x.Ratio)
		}
		if x.Management != "" {
			management = fmt.Sprintf("%s %d", x.Management, x.ManagementSent)
		}
		t.AppendRow(table.Row{x.Node, x.Parent, x.ChildrenSent, x.Sent, ratio, x.ReceivedForNobody, management})
	}
	fmt.Fprintln(w, "\nBytes while full-size packets were sent to other nodes")
	render(w, t)
}

func (c Cell) rtt() string {
	if c.Microseconds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms %s", float64(c.Microseconds)/1000, c.Class)
}

func (c Cell) full() string {
	if c.FullSent == 0 {
		return "-"
	}
	text := fmt.Sprintf("%d ok", c.FullSize)
	if c.FullLost > 0 {
		text = fmt.Sprintf("%d %d/%d lost", c.FullSize, c.FullLost, c.FullSent)
	}
	if c.Fragments > 0 {
		text += fmt.Sprintf(", %d fragments", c.Fragments)
	}
	return text
}

func (c Cell) tcp() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{c.Open, "open"}, {c.Refused, "refused"}, {c.Silent, "silent"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, ", ")
}

func (c Cell) http() string {
	if c.HTTP == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", c.HTTP-c.HTTPFailed, c.HTTP)
}

func verdict(ok bool) string {
	if ok {
		return "ok"
	}
	return "FAILS"
}

// plain is a table without lines; right names the columns, from 1, that hold numbers.
func plain(right ...int) table.Writer {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	var columns []table.ColumnConfig
	for _, n := range right {
		columns = append(columns, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	return t
}

func render(w io.Writer, t table.Writer) {
	for line := range strings.SplitSeq(t.Render(), "\n") {
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}
