// Package report shows a storage network as one HTML file for people: topology, matrix, pools, findings. It is a pure function of [Data]; the page is
// whole in itself, needs no script and no other file, follows the reader's light or dark, and can be printed.
package report

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

// Data is what a report shows.
type Data struct {
	Cluster string // what its user calls it
	Version string // of the program
	Time    time.Time
	Result  verify.Result
	Nodes   []Node
	Links   []Link
	Pools   []snapshot.Pool
}

// Node as the topology shows it.
type Node struct {
	Name         string
	Answered     bool
	VTEP         string
	Parent       string // with kind and MTU, in words
	Shim         string // its addresses; empty: there is none
	WantsShim    bool
	Pods         []Pod
	Milliseconds int64
}

// Pod on the storage network.
type Pod struct {
	Name, Address string
	Reached       bool // by its own host
}

// Link between two nodes, the worse of its directions.
type Link struct {
	A, B         string
	OK           bool
	Measured     bool
	Microseconds int64
}

// From makes data of what was verified and of how full the ranges are.
func From(in verify.Input, result verify.Result, pools []snapshot.Pool) Data {
	d := Data{Result: result, Pools: pools}
	answers := map[string]v1alpha1.VerificationStatus{}
	for _, a := range in.Answers {
		answers[a.Spec.Node] = a.Status
	}
	for _, n := range result.Nodes {
		d.Nodes = append(d.Nodes, node(n, answers[n.Name], in.HostShims))
	}
	slices.SortStableFunc(d.Nodes, func(a, b Node) int { return natural(a.Name, b.Name) })
	d.Links = links(result)
	return d
}

// natural compares names as people count: worker-2 comes before worker-10.
func natural(a, b string) int {
	stem, other := strings.TrimRight(a, "0123456789"), strings.TrimRight(b, "0123456789")
	if stem != other {
		return strings.Compare(a, b)
	}
	return cmp.Or(cmp.Compare(len(strings.TrimLeft(a[len(stem):], "0")), len(strings.TrimLeft(b[len(stem):], "0"))), strings.Compare(a, b))
}

func node(n verify.Node, a v1alpha1.VerificationStatus, shims []v1alpha1.HostShim) Node {
	v := Node{Name: n.Name, Answered: n.Answered, Milliseconds: n.Milliseconds}
	for _, s := range shims {
		if s.Spec.Node != n.Name {
			continue
		}
		v.VTEP = cmp.Or(v.VTEP, s.Spec.VTEP)
		for _, net := range s.Spec.Networks {
			v.WantsShim = v.WantsShim || len(net.Addresses) > 0
		}
	}
	var parents, addresses []string
	for _, net := range a.Networks {
		parent := net.Parent + " is missing"
		if net.ParentKind != "" {
			parent = fmt.Sprintf("%s, %s, MTU %d", net.Parent, net.ParentKind, net.ParentMTU)
		}
		if !slices.Contains(parents, parent) {
			parents = append(parents, parent)
		}
		for _, address := range net.ShimAddresses {
			addresses = append(addresses, string(address))
		}
	}
	v.Parent, v.Shim = strings.Join(parents, "; "), strings.Join(addresses, ", ")
	for _, p := range a.Pods {
		pod := Pod{Name: p.Pod, Reached: true}
		var list []string
		for _, address := range p.Addresses {
			list = append(list, string(address))
		}
		pod.Address = strings.Join(list, ", ")
		for _, l := range a.Legs {
			if l.Kind == v1alpha1.LegHostLocal && l.Pod == p.Pod && l.Small.Lost > 0 {
				pod.Reached = false
			}
		}
		v.Pods = append(v.Pods, pod)
	}
	return v
}

// links joins all cells between two nodes; the round-trip time is the underlay's, else the shims'.
func links(r verify.Result) []Link {
	type ends struct{ a, b string }
	all := map[ends]*Link{}
	for i, a := range r.Nodes {
		for _, b := range r.Nodes[i+1:] {
			all[ends{a.Name, b.Name}] = &Link{A: a.Name, B: b.Name, OK: true}
		}
	}
	for _, c := range r.Matrix {
		l := all[ends{min(c.From, c.To), max(c.From, c.To)}]
		if l == nil {
			continue
		}
		l.Measured = true
		l.OK = l.OK && c.OK()
		if c.Kind == v1alpha1.LegUnderlay || l.Microseconds == 0 {
			l.Microseconds = max(l.Microseconds, c.Microseconds)
		}
	}
	list := make([]Link, 0, len(all))
	for _, l := range all {
		list = append(list, *l)
	}
	slices.SortFunc(list, func(a, b Link) int { return cmp.Or(cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B)) })
	return list
}

// percent is a part of a whole, for people and style sheets.
func percent(part float64) float64 { return min(100, 100*part) }

//go:embed report.html.tmpl
var text string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"bytes": inWords, "percent": percent, "title": heading, "sentence": sentence,
}).Parse(text))

// Write writes the page.
func (d Data) Write(w io.Writer) error {
	return page.Execute(w, struct {
		Data
		Topology topology
		Maps     []heatMap
		Faults   []verify.Finding
		Warnings []verify.Finding
	}{d, d.topology(), d.heatMaps(), d.findings(verify.Fault), d.findings(verify.Warning)})
}

func (d Data) findings(s verify.Severity) []verify.Finding {
	return slices.DeleteFunc(slices.Clone(d.Result.Findings), func(f verify.Finding) bool { return f.Severity != s })
}

// sentence begins with a capital letter.
func sentence(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	if size == 0 {
		return ""
	}
	return string(unicode.ToUpper(first)) + text[size:]
}

// inWords writes a number of bytes for people.
func inWords(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.0f MB", float64(n)/1e6)
}

// titles of the kinds of leg.
var titles = map[v1alpha1.LegKind]string{
	v1alpha1.LegUnderlay: "Underlay: VTEP to VTEP", v1alpha1.LegHostShim: "Host to host shim", v1alpha1.LegHostLocal: "Host to its own pods",
	v1alpha1.LegHostRemote: "Host to pods elsewhere", v1alpha1.LegPodLocal: "Pod to pod on a node", v1alpha1.LegPodRemote: "Pod to pod elsewhere",
}

func heading(k v1alpha1.LegKind) string { return titles[k] }
