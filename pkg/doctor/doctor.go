// Package doctor says what is wrong with a cluster's storage networks, where, why it matters and which command mends it.
//
// It judges a [snapshot.Snapshot] and does no I/O. Each check has a code that never changes its meaning; all stand in
// one table (Checks), from which docs/doctor.md is made. A check of what only a node can see runs when the snapshot has that node
// (Snapshot.Local), one of the cluster when it has the cluster.
//
// Explain goes the other way: from a text that a person found in an event or a log to its cause.
package doctor

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// Severity says what a finding does to the storage network.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // something doesn't work, or will not the next time
	Warning Severity = "warning" // it works, at a risk or a cost
	Info    Severity = "info"    // it may be meant so
)

var rank = map[Severity]int{Error: 0, Warning: 1, Info: 2}

// Check is one thing that is looked for.
type Check struct {
	Code     string   `json:"code"`     // LHS and three digits
	Severity Severity `json:"severity"` // of its findings
	Title    string   `json:"title"`    // what is wrong, in a few words
	Why      string   `json:"why"`      // what it does to volumes and nodes
	Fix      string   `json:"fix"`      // what to do, with the command

	look func(*view) []hit
}

// hit is a place at which a check found something. An empty fix is the check's own; what stands in it for a device is replaced by the
// device's name where that is known.
type hit struct {
	where, what, fix string
	parent, shim     string
}

// remedy is what to do, with the names of the devices that it is about.
func (h hit) remedy(c Check) string {
	fix := cmp.Or(h.fix, c.Fix)
	if h.parent != "" {
		fix = strings.ReplaceAll(fix, "PARENT", h.parent)
	}
	if h.shim != "" {
		fix = strings.ReplaceAll(fix, netconf.DefaultShimName, h.shim)
	}
	return fix
}

// Finding is something that is wrong.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Where    string   `json:"where"`
	What     string   `json:"what"`
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`
}

// Checks are all checks, in the order of their codes.
func Checks() []Check {
	return slices.Concat(networkChecks, addressChecks, nodeChecks, legChecks, podChecks, longhornChecks, installChecks, parentChecks, shimChecks, attachmentChecks)
}

// Find is the check with a code.
func Find(code string) (Check, bool) {
	all := Checks()
	i := slices.IndexFunc(all, func(c Check) bool { return c.Code == code })
	if i < 0 {
		return Check{}, false
	}
	return all[i], true
}

// Diagnose runs all checks. Errors come first.
func Diagnose(s *snapshot.Snapshot) []Finding {
	v := newView(s)
	var found []Finding
	for _, c := range Checks() {
		for _, h := range c.look(v) {
			found = append(found, Finding{c.Code, c.Severity, c.Title, h.where, h.what, c.Why, h.remedy(c)})
		}
	}
	slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return found
}

// Failed says whether findings are reason for a failing exit code: one of them is an error.
func Failed(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == Error })
}
