// Package terminal writes text for people: aligned tables, in colour on a terminal.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// Screen writes to W. Nothing may depend on colour: each verdict is a word as well.
type Screen struct {
	W     io.Writer
	Color bool
}

// To makes a screen of w, in colour if w is a terminal and NO_COLOR (no-color.org) isn't set.
func To(w io.Writer) Screen {
	file, ok := w.(*os.File)
	color := ok && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return Screen{W: w, Color: color}
}

// The colours that there are.
var (
	Good   = text.Colors{text.FgGreen}
	Bad    = text.Colors{text.FgRed, text.Bold}
	Doubt  = text.Colors{text.FgYellow}
	Strong = text.Colors{text.Bold}
	Faint  = text.Colors{text.Faint}
)

// Paint colours a text where there is colour.
func (s Screen) Paint(c text.Colors, words string) string {
	if !s.Color || words == "" {
		return words
	}
	// The library's own switch is global and looks at the process's streams.
	return c.EscapeSeq() + words + text.Reset.EscapeSeq()
}

// Title writes a line that stands out.
func (s Screen) Title(format string, args ...any) {
	fmt.Fprintf(s.W, "%s\n", s.Paint(Strong, fmt.Sprintf(format, args...)))
}

// Table starts a table; right names the columns, from 1, that hold numbers.
func (s Screen) Table(right []int, header ...any) table.Writer {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.AppendHeader(header)
	var columns []table.ColumnConfig
	for _, n := range right {
		columns = append(columns, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	return t
}

// Render writes a table, without blanks at the ends of its lines.
func (s Screen) Render(t table.Writer) {
	for line := range strings.SplitSeq(t.Render(), "\n") {
		fmt.Fprintln(s.W, strings.TrimRight(line, " "))
	}
}
