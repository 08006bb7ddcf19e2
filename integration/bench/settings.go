package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mostAtOnce is the highest N: more pods than that don't fit into the networks of
// the cases with room to spare.
const mostAtOnce = 500

// size of a run.
type size struct {
	repeats int   // of each single call
	rounds  int   // of each number at once
	n       []int // calls at once, ascending; 1: one by one
	fill    bool  // whether calls on pools of several sizes and fills are measured
	weighed int   // calls whose peak memory is measured: it hardly varies
	brief   bool  // only what a quick run has time for
}

var (
	full  = size{repeats: 60, rounds: 3, n: []int{1, 10, 50, 100, 200}, fill: true, weighed: 3}
	quick = size{repeats: 20, rounds: 1, n: []int{1, 10, 50}, weighed: 1, brief: true}
)

// atOnce are the numbers of calls at once above one.
func (s size) atOnce() []int {
	return slices.DeleteFunc(slices.Clone(s.n), func(n int) bool { return n == 1 })
}

func (s size) oneByOne() bool { return slices.Contains(s.n, 1) }

func (s size) most() int { return slices.Max(s.n) }

// settings are what the environment asks for.
type settings struct {
	size
	cases *regexp.Regexp // those whose name it matches are measured
	out   string         // a file for the figures as JSON; empty: none

	noFsync bool // etcd answers before its data are on disk
}

// settingsFrom reads the BENCH_ variables by getenv. An error names all that can't
// be understood.
func settingsFrom(getenv func(string) string) (settings, error) {
	s := settings{size: full, out: getenv("BENCH_OUT")}
	if getenv("BENCH_QUICK") != "" {
		s.size = quick
	}
	var faults []error
	var err error
	if s.cases, err = regexp.Compile(getenv("BENCH_CASES")); err != nil {
		faults = append(faults, fmt.Errorf("BENCH_CASES is to be a regular expression for the names of cases: %w", err))
	}
	switch value := getenv("BENCH_FSYNC"); value {
	case "", "on":
	case "off":
		s.noFsync = true
	default:
		faults = append(faults, fmt.Errorf("BENCH_FSYNC=%s: it is on or off", value))
	}
	if getenv("BENCH_CASES") != "" {
		s.brief = false // who asks for a case has the time
	}
	if list := getenv("BENCH_N"); list != "" {
		if s.n, err = numbers(list); err != nil {
			faults = append(faults, fmt.Errorf("BENCH_N=%s: %w", list, err))
		}
		s.fill = getenv("BENCH_QUICK") == "" && s.oneByOne()
	}
	return s, errors.Join(faults...)
}

// numbers reads a list such as 1,50,200.
func numbers(list string) ([]int, error) {
	var all []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > mostAtOnce {
			return nil, fmt.Errorf("%q is no number of calls at once: write a list of numbers from 1 to %d, such as 1,50,200", text, mostAtOnce)
		}
		all = append(all, n)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// plan is what is to be measured.
type plan struct {
	cases    []testCase
	stages   []stage
	versions []versionCase
	pods     []podCase
}

// plan applies the settings to all cases there are. An error says that nothing is
// left.
func (s settings) plan() (plan, error) {
	p := plan{cases: s.casesOf(cases)}
	if len(s.atOnce()) == len(s.n) {
		p.cases = slices.DeleteFunc(p.cases, func(c testCase) bool { return !c.inCrowds() })
	}
	if s.oneByOne() {
		p.versions = slices.DeleteFunc(slices.Clone(versionCases), func(v versionCase) bool { return !s.cases.MatchString(v.name()) })
	}
	if s.fill {
		for _, st := range stages {
			if st.cases = s.casesOf(st.cases); len(st.cases) > 0 {
				p.stages = append(p.stages, st)
			}
		}
	}
	if !s.brief && s.most() >= podsAtOnce {
		p.pods = slices.DeleteFunc(slices.Clone(podCases), func(c podCase) bool { return !s.cases.MatchString(c.name) })
	}
	if len(p.cases)+len(p.stages)+len(p.versions)+len(p.pods) == 0 {
		return p, fmt.Errorf("BENCH_CASES=%s, BENCH_N and BENCH_QUICK leave nothing to measure: the cases are %s, those with a slash one by one only; "+
			"without BENCH_QUICK fillings such as ipam:sync/fill=90; one by one version:lhstorage and the like; with BENCH_N of 100 or more pods:lhstorage and pods:macvlan+whereabouts", s.cases, strings.Join(names(cases), " "))
	}
	return p, nil
}

// casesOf are those of all that are to be measured.
func (s settings) casesOf(all []testCase) []testCase {
	return slices.DeleteFunc(slices.Clone(all), func(c testCase) bool { return !s.cases.MatchString(c.name) || s.brief && c.thorough })
}

// inCrowds says whether the case is measured with many calls at once, too. In a
// quick run our plugin isn't measured waiting for whereabouts: that takes as long as
// the stock plugin's waiting, which is measured.
func (s settings) inCrowds(c testCase) bool {
	return c.inCrowds() && (!s.brief || c.name != "lhstorage+whereabouts")
}

// needCluster says whether anything keeps its addresses in Kubernetes.
func (p plan) needCluster() bool {
	return len(p.stages) > 0 || slices.ContainsFunc(p.cases, func(c testCase) bool { return c.network > 0 })
}

func names(all []testCase) []string {
	return each(all, func(c testCase) string { return c.name })
}
