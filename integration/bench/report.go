package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"
)

// report is what a run found.
type report struct {
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Results  []result          `json:"results"`

	sizes    map[string]float64 // of the binaries, in MB
	rss      map[string]float64 // of a case and verb, in MB
	failures []error
}

// result is one line: a case, a verb and a number of calls at once.
type result struct {
	Case       string  `json:"case"`
	N          int     `json:"n"`
	Op         string  `json:"op"`
	P50        float64 `json:"p50_ms"` // of one call
	P99        float64 `json:"p99_ms"`
	Wall       float64 `json:"wall_s"` // of all N, the median turn
	CPU        float64 `json:"cpu_ms"` // of one call, the median
	RSS        float64 `json:"rss_mb"` // of the largest process, the median call
	Failures   int     `json:"failures"`
	Duplicates int     `json:"duplicates"`

	turns    int
	baseline string
}

func newReport(p programs, conditions string) (*report, error) {
	r := &report{
		Machine:  machine(),
		Versions: map[string]string{"go": runtime.Version(), "lhstorage": os.Getenv("VERSION")},
		sizes:    map[string]float64{},
	}
	r.Versions["conditions"] = conditions
	for part := range strings.SplitSeq(conditions, ", ") {
		if name, version, _ := strings.Cut(part, " "); strings.HasPrefix(version, "v") {
			r.Versions[name] = version
		}
	}
	for _, v := range versionCases {
		info, err := os.Stat(p.find(v.plugin))
		if err != nil {
			return nil, fmt.Errorf("a program that should have been built: %w", err)
		}
		r.sizes[v.plugin] = mega(info.Size())
	}
	build, err := buildinfo.ReadFile(p.find("macvlan"))
	if err != nil {
		return nil, fmt.Errorf("read the version of the stock plugins: %w", err)
	}
	for _, dep := range append(build.Deps, &build.Main) {
		if name, ok := strings.CutPrefix(dep.Path, "github.com/containernetworking/"); ok {
			r.Versions[name] = dep.Version
		}
	}
	return r, nil
}

// machine says what the figures were measured on.
func machine() string {
	model := "unknown processor"
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	kernel := "unknown"
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%d × %s, Linux %s", runtime.NumCPU(), model, kernel)
}

// enter adds what a case's calls have cost, n at once, and what they left behind.
func (r *report) enter(t *tally, n int) {
	r.add(t.name, t.baseline, "ADD", n, t.add)
	r.add(t.name, t.baseline, "DEL", n, t.del)
	r.blame(t, n)
	if !t.left.looked {
		return
	}
	last := milli(t.left.last)
	r.Results = append(r.Results, result{
		Case: t.name, N: n, Op: "CLEAR", P50: last, P99: last, Wall: t.left.last.Seconds(), Failures: len(t.left.held), turns: 1,
	})
}

// add adds one line, unless there is nothing to say.
func (r *report) add(name, baseline, op string, n int, s sample) {
	if len(s.walls) == 0 {
		return
	}
	r.Results = append(r.Results, result{
		Case: name, N: n, Op: op, baseline: baseline,
		P50: milli(percentile(s.latencies(), 50)), P99: milli(percentile(s.latencies(), 99)),
		Wall: percentile(s.walls, 50).Seconds(), CPU: milli(percentile(s.cpu(), 50)),
		RSS: r.rss[name+" "+op], Failures: len(s.failures), Duplicates: s.duplicates, turns: len(s.walls),
	})
}

// setRSS puts the peak memory of one call, in bytes, into all results of a case and
// verb, those that are yet to come too.
func (r *report) setRSS(name, op string, bytes int64) {
	if r.rss == nil {
		r.rss = map[string]float64{}
	}
	r.rss[name+" "+op] = mega(bytes)
	for i := range r.Results {
		if r.Results[i].Case == name && r.Results[i].Op == op {
			r.Results[i].RSS = mega(bytes)
		}
	}
}

// verdict is an error when something failed that is for lhstorage to answer for, see
// [testCase.answersFor]. How fast something is makes no verdict.
func (r *report) verdict() error { return errors.Join(r.failures...) }

// ratio holds a result against its baseline's: one call's median, or of many at
// once the time for all.
func (r *report) ratio(of result) string {
	for _, base := range r.Results {
		if base.Case != of.baseline || base.N != of.N || base.Op != of.Op {
			continue
		}
		if of.N > 1 {
			return fmt.Sprintf("%.2f×", of.Wall/base.Wall)
		}
		return fmt.Sprintf("%.2f×", of.P50/base.P50)
	}
	return ""
}

// print is for people.
func (r *report) print(w io.Writer) {
	r.printResults(w)
	if len(r.sizes) > 0 {
		t := newTable(w, "Sizes")
		t.AppendHeader(table.Row{"program", "MB"})
		for _, name := range slices.Sorted(maps.Keys(r.sizes)) {
			t.AppendRow(table.Row{name, f1(r.sizes[name])})
		}
		t.Render()
	}
	r.printTargets(w)
}

func (r *report) printResults(w io.Writer) {
	t := newTable(w, strings.TrimSuffix(r.Machine+"\n"+r.Versions["conditions"], "\n")+"\n"+legend)
	t.AppendHeader(table.Row{"case", "op", "at once", "turns", "p50 ms", "p99 ms", "wall s", "CPU ms", "RSS MB", "failed", "twice", "ratio", "to"})
	group := ""
	for _, res := range r.Results {
		if g := res.group(); g != group {
			t.AppendSeparator()
			group = g
		}
		t.AppendRow(table.Row{
			res.Case, res.Op, res.N, res.turns, measured(res.P50), measured(res.P99), fmt.Sprintf("%.2f", res.Wall), measured(res.CPU), measured(res.RSS),
			res.Failures, res.Duplicates, r.ratio(res), res.baseline,
		})
	}
	t.Render()
}

// legend says what isn't plain.
const legend = "wall: of all at once, the median turn. ratio: p50, or wall of many at once, over that of the other case.\n" +
	"CLEAR: for how long after its last DEL a case was seen to hold addresses; failed: what it held in the end."

// group is what lines belong together by.
func (r result) group() string {
	kind, _, _ := strings.Cut(r.Case, ":")
	_, on, _ := strings.Cut(r.Case, "/")
	if !strings.ContainsRune(on, '=') {
		on = ""
	}
	return fmt.Sprint(r.N, kind == "version", on)
}

func newTable(w io.Writer, title string) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetTitle("%s", title)
	t.Style().Title.Align = text.AlignLeft
	return t
}

// measured leaves what wasn't measured out.
func measured(v float64) string {
	if v == 0 {
		return ""
	}
	return f1(v)
}

func (r *report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the figures (BENCH_OUT): %w", err)
	}
	return nil
}

func milli(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func mega(bytes int64) float64 { return float64(bytes) / 1e6 }

func f1(v float64) string { return fmt.Sprintf("%.1f", v) }
