package main

import (
	"fmt"
	"io"

	"github.com/jedib0t/go-pretty/v6/table"
)

// Verbs of a pod's life.
var attachAndDetach = []string{"ADD", "DEL"}

// target is what lhstorage sets out to reach: a bound for a value, or for that of
// one case over that of another.
type target struct {
	what  string
	ops   []string
	of    string // a case
	over  string // another; empty: the bound is for the value itself
	n     int    // 0: any
	value func(result) float64
	unit  string
	least bool // the bound is from below
	bound float64
}

func wall(r result) float64 { return r.Wall }
func p50(r result) float64  { return r.P50 }
func rss(r result) float64  { return r.RSS }

// targets are all but the one for the size of a binary.
var targets = []target{
	{what: "IPAM alone, 200 at once, record: agent", ops: attachAndDetach, of: "ipam:whereabouts", over: "ipam:agent", n: 200, value: wall, least: true, bound: 11},
	{what: "IPAM alone, 200 at once, record: sync", ops: attachAndDetach, of: "ipam:whereabouts", over: "ipam:sync", n: 200, value: wall, least: true, bound: 4.5},
	{what: "whole attachment, 200 at once, record: agent", ops: attachAndDetach, of: "macvlan+whereabouts", over: "lhstorage+agent", n: 200, value: wall, least: true, bound: 5},
	{what: "whole attachment, 200 at once, record: sync", ops: attachAndDetach, of: "macvlan+whereabouts", over: "lhstorage+sync", n: 200, value: wall, least: true, bound: 3.3},
	{what: "whole attachment, alone, record: sync", ops: []string{"ADD"}, of: "lhstorage+sync", over: "macvlan+whereabouts", n: 1, value: p50, bound: 0.4},
	{what: "whole attachment, alone, host-local", ops: []string{"ADD"}, of: "lhstorage+host-local", over: "macvlan+host-local", n: 1, value: p50, bound: 1.5},
	{what: "250 entries against none, record: sync", ops: attachAndDetach, of: "ipam:sync/entries=250", over: "ipam:sync/fill=0", n: 1, value: p50, bound: 2},
	{what: "250 entries against none, record: agent", ops: attachAndDetach, of: "ipam:agent/entries=250", over: "ipam:agent/fill=0", n: 1, value: p50, bound: 2},
	{what: "/20 filled to 90 %, record: sync, against whereabouts", ops: attachAndDetach, of: "ipam:sync/fill=90", over: "ipam:whereabouts/fill=90", n: 1, value: p50, bound: 0.8},
	{what: "/20 filled to 90 % against empty, record: agent", ops: attachAndDetach, of: "ipam:agent/fill=90", over: "ipam:agent/fill=0", n: 1, value: p50, bound: 4},
	{what: "/20 filled to 90 % against empty, agent, sticky", ops: attachAndDetach, of: "ipam:agent+sticky/fill=90", over: "ipam:agent+sticky/fill=0", n: 1, value: p50, bound: 1.5},
	{what: "peak memory of lhstorage-ipam, record: sync", ops: attachAndDetach, of: "ipam:sync", value: rss, unit: " MB", bound: 20},
	{what: "peak memory of lhstorage-ipam, record: agent", ops: attachAndDetach, of: "ipam:agent", value: rss, unit: " MB", bound: 20},
	{what: "start-up of lhstorage-ipam", ops: []string{"VERSION"}, of: "version:lhstorage-ipam", n: 1, value: p50, unit: " ms", bound: 6},
	{what: "start-up of lhstorage", ops: []string{"VERSION"}, of: "version:lhstorage", n: 1, value: p50, unit: " ms", bound: 5},
}

// sizeTargets are the programs' bounds in MB.
var sizeTargets = []struct {
	program string
	most    float64
}{{"lhstorage", 8}, {"lhstorage-ipam", 14}}

// score is a target beside what was measured.
type score struct {
	what, op string
	bound    string
	found    string
	reached  bool
}

// scores are of the targets whose values were measured.
func (r *report) scores() []score {
	var all []score
	for _, t := range targets {
		for _, op := range t.ops {
			if found, ok := r.find(t, op); ok {
				all = append(all, t.score(op, found))
			}
		}
	}
	for _, t := range sizeTargets {
		if size, ok := r.sizes[t.program]; ok {
			all = append(all, target{what: "size of " + t.program, unit: " MB", bound: t.most}.score("", size))
		}
	}
	return all
}

// find is a target's value, if it was measured.
func (r *report) find(t target, op string) (float64, bool) {
	of, ok := r.line(t.of, op, t.n)
	if !ok || t.value(of) == 0 || t.over == "" {
		return t.value(of), ok && t.value(of) > 0
	}
	over, ok := r.line(t.over, op, t.n)
	if !ok || t.value(over) == 0 {
		return 0, false
	}
	return t.value(of) / t.value(over), true
}

func (r *report) line(name, op string, n int) (result, bool) {
	for _, res := range r.Results {
		if res.Case == name && res.Op == op && (n == 0 || res.N == n) {
			return res, true
		}
	}
	return result{}, false
}

func (t target) score(op string, found float64) score {
	sign, reached := "≤", found <= t.bound
	if t.least {
		sign, reached = "≥", found >= t.bound
	}
	unit := t.unit
	if unit == "" {
		unit = "×"
	}
	return score{what: t.what, op: op, bound: fmt.Sprintf("%s %g%s", sign, t.bound, unit), found: fmt.Sprintf("%.2f%s", found, unit), reached: reached}
}

func (r *report) printTargets(w io.Writer) {
	scores := r.scores()
	if len(scores) == 0 {
		return
	}
	t := newTable(w, "Targets, as far as they were measured")
	t.AppendHeader(table.Row{"", "op", "target", "found", ""})
	for _, s := range scores {
		verdict := "ok"
		if !s.reached {
			verdict = "MISSED"
		}
		t.AppendRow(table.Row{s.what, s.op, s.bound, s.found, verdict})
	}
	t.Render()
}
