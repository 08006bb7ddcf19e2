package report

import (
	"fmt"
	"math"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

// topology is the drawing: nodes on a circle, a line for each pair.
type topology struct {
	Width, Height int
	Nodes         []drawnNode
	Lines         []drawnLine
	Left          int // lines that are well and aren't drawn, since there are too many
	Words         string
}

type drawnNode struct {
	Node
	X, Y, Size float64
	Labelled   bool
	LabelX     float64
	LabelY     float64
	Anchor     string
	ShimX      float64
	ShimY      float64
	Class      string // ok, bad, mute
	ShimClass  string
	Dots       []dot
	Short      string
	Title      string
	More       int // pods that have no dot
}

type dot struct {
	X, Y         float64
	Class, Title string
}

type drawnLine struct {
	X1, Y1, X2, Y2 float64
	Class, Title   string
}

const (
	width     = 700
	maxDots   = 8  // pods of a node
	manyNodes = 16 // above which only what fails is drawn and written
	longName  = 13 // characters of a name that are written
)

// topology places the nodes.
func (d Data) topology() topology {
	n := len(d.Nodes)
	radius := 88 + 4*math.Min(float64(n), 16)
	size := 24.0
	switch {
	case n < 2:
		radius = 0
	case n > manyNodes: // as many as find room
		radius, size = 200, math.Max(3, math.Min(12, 2*math.Pi*200/float64(n)/3))
	}
	t := topology{Width: width, Height: int(2*radius) + 206}
	at := map[string]drawnNode{}
	for i, node := range d.Nodes {
		angle := -math.Pi/2 + 2*math.Pi*float64(i)/float64(max(n, 1))
		if n == 2 {
			angle += math.Pi / 2
		}
		v := place(node, angle, radius, float64(t.Height)/2, size)
		v.Labelled = n <= manyNodes || v.Class != "ok"
		at[node.Name] = v
		t.Nodes = append(t.Nodes, v)
	}
	bad := 0
	for _, l := range d.Links {
		line := drawnLine{at[l.A].X, at[l.A].Y, at[l.B].X, at[l.B].Y, "ok", fmt.Sprintf("%s to %s: all legs pass, %s", l.A, l.B, milliseconds(l.Microseconds))}
		switch {
		case !l.Measured:
			line.Class, line.Title = "mute", fmt.Sprintf("%s to %s: not measured", l.A, l.B)
		case !l.OK:
			line.Class, line.Title = "bad", fmt.Sprintf("%s to %s: something is lost", l.A, l.B)
			bad++
		case n > manyNodes:
			t.Left++
			continue
		}
		t.Lines = append(t.Lines, line)
	}
	t.Words = fmt.Sprintf("%d nodes and %d links between them; %d of these lose something.", n, len(d.Links), bad)
	return t
}

func place(n Node, angle, radius, middle, size float64) drawnNode {
	cos, sin := math.Cos(angle), math.Sin(angle)
	v := drawnNode{Node: n, X: round(width/2 + radius*cos), Y: round(middle + radius*sin), Size: size, Class: "ok", ShimClass: "ok", Anchor: "middle"}
	reach := size + 32
	v.LabelX, v.LabelY = round(v.X+reach*cos), round(v.Y+reach*sin+4)
	switch {
	case cos > 0.3:
		v.Anchor = "start"
	case cos < -0.3:
		v.Anchor = "end"
	case sin <= 0:
		v.LabelY -= 22
	default:
		v.LabelY += 6
	}
	v.ShimX, v.ShimY = round(v.X-size*cos), round(v.Y-size*sin)
	switch {
	case !n.Answered:
		v.Class, v.ShimClass = "mute", "mute"
	case n.WantsShim && n.Shim == "":
		v.Class, v.ShimClass = "bad", "bad"
	case n.Shim == "":
		v.ShimClass = ""
	}
	if size > 12 {
		v.dots(angle)
	}
	v.Short = shorten(n.Name)
	v.Title = fmt.Sprintf("%s: VTEP %s, shim %s, %d pods", n.Name, or(n.VTEP, "none"), or(n.Shim, "none"), len(n.Pods))
	return v
}

// dots are the pods, on the outer side of their node.
func (v *drawnNode) dots(angle float64) {
	shown := min(len(v.Pods), maxDots)
	v.More = len(v.Pods) - shown
	for i, p := range v.Pods[:shown] {
		a := angle + 0.38*(float64(i)-float64(shown-1)/2)
		d := dot{round(v.X + (v.Size+13)*math.Cos(a)), round(v.Y + (v.Size+13)*math.Sin(a)), "ok", p.Name + " " + p.Address}
		if !p.Reached {
			d.Class, d.Title = "bad", d.Title+": its own host doesn't reach it"
		}
		v.Dots = append(v.Dots, d)
	}
}

func shorten(name string) string {
	runes := []rune(name)
	if len(runes) <= longName {
		return name
	}
	return string(runes[:longName-1]) + "…"
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func round(x float64) float64 { return math.Round(x*10) / 10 }

func milliseconds(us int64) string {
	if us == 0 {
		return "no answer"
	}
	return fmt.Sprintf("%.2f ms", float64(us)/1000)
}

// heatMap is one kind of leg.
type heatMap struct {
	Kind    v1alpha1.LegKind
	Columns []string
	Rows    []heatRow
	Single  bool // from nodes to themselves: one column
}

type heatRow struct {
	From  string
	Cells []heatCell
}

type heatCell struct {
	Class, Text, Title string
}

// heatMaps has one for each kind of leg that was measured.
func (d Data) heatMaps() []heatMap {
	cells := map[v1alpha1.LegKind]map[[2]string]verify.Cell{}
	for _, c := range d.Result.Matrix {
		if cells[c.Kind] == nil {
			cells[c.Kind] = map[[2]string]verify.Cell{}
		}
		cells[c.Kind][[2]string{c.From, c.To}] = c
	}
	var maps []heatMap
	for _, kind := range verify.Kinds {
		if cells[kind] == nil {
			continue
		}
		m := heatMap{Kind: kind, Single: kind == v1alpha1.LegHostLocal || kind == v1alpha1.LegPodLocal}
		for _, to := range d.Nodes {
			m.Columns = append(m.Columns, to.Name)
		}
		if m.Single {
			m.Columns = []string{"its own pods"}
		}
		for _, from := range d.Nodes {
			row := heatRow{From: from.Name}
			for _, to := range m.Columns {
				if m.Single {
					to = from.Name
				}
				c, there := cells[kind][[2]string{from.Name, to}]
				row.Cells = append(row.Cells, heat(c, there, from.Name == to && !m.Single))
			}
			m.Rows = append(m.Rows, row)
		}
		maps = append(maps, m)
	}
	return maps
}

func heat(c verify.Cell, there, itself bool) heatCell {
	switch {
	case itself:
		return heatCell{"self", "·", ""}
	case !there:
		return heatCell{"mute", "–", "not measured"}
	}
	v := heatCell{"heat-" + string(c.Class), milliseconds(c.Microseconds), fmt.Sprintf("%d legs, %d of %d packets lost; full size %d bytes, %d of %d lost, %d fragments", c.Legs, c.Lost, c.Sent, c.FullSize, c.FullLost, c.FullSent, c.Fragments)}
	switch {
	case c.Lost > 0:
		v.Class, v.Text = "bad", fmt.Sprintf("✕ %d/%d", c.Lost, c.Sent)
	case c.FullLost > 0:
		v.Class, v.Text = "bad", fmt.Sprintf("✕ %d B", c.FullSize)
	case c.HTTPFailed > 0:
		v.Class, v.Text = "bad", "✕ HTTP"
	case c.Silent > 0:
		v.Class, v.Text = "bad", "✕ TCP"
	case c.Fragments > 0:
		v.Class, v.Text = "warn", "! split"
	}
	return v
}
