package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
)

// turn is a report of two calls that took ms and 3·ms, and all together 4·ms.
func turn(ms int, failures ...error) storm.Report {
	at := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	return storm.Report{
		Wall: at(4 * ms),
		Outcomes: []cniexec.Outcome{
			{Wall: at(ms), CPU: at(1)},
			{Wall: at(3 * ms), CPU: at(2)},
		},
		Failures:  failures,
		Addresses: [][]netip.Addr{{netip.MustParseAddr("10.0.0.1")}, {netip.MustParseAddr("10.0.0.2")}},
	}
}

// tallyOf is of a case with turns of ADD and none of DEL.
func tallyOf(c testCase, turns ...storm.Report) *tally {
	t := &tally{subject: &subject{testCase: c}}
	for _, r := range turns {
		t.add.add(r)
	}
	return t
}

func TestResultOfSeveralTurns(t *testing.T) {
	twice := turn(30)
	twice.Addresses[1] = twice.Addresses[0]
	r := &report{}
	r.enter(tallyOf(testCase{name: "ours", baseline: "theirs"}, turn(10), turn(20, errors.New("no address")), twice), 2)
	assert.Equal(t, []result{{
		Case: "ours", N: 2, Op: "ADD", P50: 30, P99: 90, Wall: 0.08, CPU: 1,
		Failures: 1, Duplicates: 1, turns: 3, baseline: "theirs",
	}}, r.Results, "and no line for a DEL that wasn't called")
}

func TestWhatIsLeftIsALine(t *testing.T) {
	r := &report{}
	one := tallyOf(testCase{name: "ours"}, turn(10))
	one.left = leftover{looked: true, last: 1500 * time.Millisecond}
	r.enter(one, 200)
	assert.Equal(t, result{Case: "ours", N: 200, Op: "CLEAR", P50: 1500, P99: 1500, Wall: 1.5, turns: 1}, r.Results[1])
	require.NoError(t, r.verdict())
}

// Only what whereabouts itself failed at is forgiven.
func TestVerdict(t *testing.T) {
	refused := fmt.Errorf("pod 7: /bin/lhstorage ADD: %w", &types.Error{Code: 11, Msg: "IPAM plugin whereabouts, ADD: context deadline exceeded"})
	ours := fmt.Errorf("pod 7: /bin/lhstorage ADD: %w", &types.Error{Code: 5, Msg: "make lhnet1: file exists", Details: "IPAM plugin whereabouts, DEL: timeout"})
	killed := errors.New("pod 7: /bin/lhstorage ADD: exit status 2, with no CNI error on stdout but \"IPAM plugin whereabouts, \"")
	byName := map[string]testCase{}
	for _, c := range cases {
		byName[c.name] = c
	}
	for _, tt := range []struct {
		name    string
		failure error
		want    string
	}{
		{"ipam:whereabouts", errors.New("timed out"), ""},
		{"macvlan+whereabouts", errors.New("exists already"), ""},
		{"lhstorage+whereabouts", refused, ""},
		{"lhstorage+whereabouts", ours, "lhstorage+whereabouts, 200 ADD at once: 1 failed, the first: pod 7"},
		{"lhstorage+whereabouts", killed, "lhstorage+whereabouts, 200 ADD at once: 1 failed, the first: pod 7"},
		{"lhstorage+sync", refused, "lhstorage+sync, 200 ADD at once: 1 failed"},
		{"macvlan+host-local", errors.New("exists already"), "macvlan+host-local, 200 ADD at once: 1 failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &report{}
			r.enter(tallyOf(byName[tt.name], turn(10, tt.failure)), 200)
			if tt.want == "" {
				require.NoError(t, r.verdict())
				return
			}
			require.ErrorContains(t, r.verdict(), tt.want)
		})
	}
}

func TestVerdictOnAddresses(t *testing.T) {
	for _, tt := range []struct {
		ipam string
		want []string
	}{
		{"whereabouts", nil},
		{"lhstorage-ipam", []string{"c, 50 ADD at once: 1 addresses were given twice", "c, after the last of 50 DEL at once: 2 objects are left, the first: claim 10.0.0.1"}},
	} {
		twice := turn(10)
		twice.Addresses[1] = twice.Addresses[0]
		one := tallyOf(testCase{name: "c", ipam: tt.ipam}, twice)
		one.left = leftover{looked: true, held: []string{"claim 10.0.0.1", "claim 10.0.0.2"}}
		r := &report{}
		r.enter(one, 50)
		if tt.want == nil {
			require.NoError(t, r.verdict())
		}
		for _, want := range tt.want {
			require.ErrorContains(t, r.verdict(), want)
		}
	}
}

func TestRatioAndFile(t *testing.T) {
	r := &report{Machine: "a machine", Versions: map[string]string{"conditions": "etcd fsync on"}}
	r.enter(tallyOf(testCase{name: "theirs"}, turn(10)), 1)
	r.enter(tallyOf(testCase{name: "ours", baseline: "theirs"}, turn(15)), 1)
	r.enter(tallyOf(testCase{name: "ours", baseline: "theirs"}, turn(15)), 50) // nothing to hold it against
	assert.Empty(t, r.ratio(r.Results[0]))
	assert.Equal(t, "1.50×", r.ratio(r.Results[1]))
	assert.Empty(t, r.ratio(r.Results[2]))

	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{"1.50×", "a machine", "etcd fsync on"} {
		assert.Contains(t, out.String(), want)
	}

	path := filepath.Join(t.TempDir(), "bench.json")
	require.NoError(t, r.write(path))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var got struct {
		Results []map[string]any `json:"results"`
	}
	require.NoError(t, json.Unmarshal(data, &got))
	require.Len(t, got.Results, 3)
	assert.Equal(t, map[string]any{
		"case": "ours", "n": 1.0, "op": "ADD", "p50_ms": 15.0, "p99_ms": 45.0, "wall_s": 0.06, "cpu_ms": 1.0, "rss_mb": 0.0, "failures": 0.0, "duplicates": 0.0,
	}, got.Results[1])
	var top map[string]any
	require.NoError(t, json.Unmarshal(data, &top))
	assert.Len(t, top, 3, "machine, versions and results")
}

func TestMemoryIsInAllOfACasesLines(t *testing.T) {
	r := &report{}
	r.enter(tallyOf(testCase{name: "ours"}, turn(10)), 1)
	r.setRSS("ours", "ADD", 14_000_000)
	r.setRSS("ours", "DEL", 15_000_000)
	r.enter(tallyOf(testCase{name: "ours"}, turn(10)), 50)
	r.enter(tallyOf(testCase{name: "theirs"}, turn(10)), 50)
	assert.Equal(t, []float64{14, 14, 0}, each(r.Results, func(one result) float64 { return one.RSS }))
}

// A pod that returns has its old name, but never its old sandbox; and no pod has the name of another case's.
func TestWhoIsAttachedNext(t *testing.T) {
	stays, goes := &subject{testCase: testCase{name: "ipam:a/return", returns: true}}, &subject{testCase: testCase{name: "ipam:a+b/fill=9"}}
	for _, want := range []string{"-1", "-2"} {
		calls := stays.next(nil)
		assert.Equal(t, []string{"-ipam-a-return", want}, []string{calls.PodSuffix, calls.ContainerSuffix})
		calls = goes.next(nil)
		assert.Equal(t, []string{"-ipam-a-b-fill-9" + want, want}, []string{calls.PodSuffix, calls.ContainerSuffix})
	}
}

func TestScores(t *testing.T) {
	r := &report{sizes: map[string]float64{"lhstorage-ipam": 14.5}}
	assert.Equal(t, []score{{what: "size of lhstorage-ipam", bound: "≤ 14 MB", found: "14.50 MB"}}, r.scores(), "of what was measured alone")

	r.Results = []result{
		{Case: "ipam:whereabouts", N: 200, Op: "ADD", Wall: 24},
		{Case: "ipam:sync", N: 200, Op: "ADD", Wall: 4},
		{Case: "ipam:agent", N: 200, Op: "ADD", Wall: 3},
		{Case: "ipam:agent", N: 200, Op: "DEL", Wall: 3}, // nothing to hold it against
		{Case: "lhstorage+sync", N: 1, Op: "ADD", P50: 40},
		{Case: "macvlan+whereabouts", N: 1, Op: "ADD", P50: 100},
		{Case: "ipam:sync", N: 50, Op: "DEL", RSS: 21},
	}
	delete(r.sizes, "lhstorage-ipam")
	assert.Equal(t, []score{
		{what: "IPAM alone, 200 at once, record: agent", op: "ADD", bound: "≥ 11×", found: "8.00×"},
		{what: "IPAM alone, 200 at once, record: sync", op: "ADD", bound: "≥ 4.5×", found: "6.00×", reached: true},
		{what: "whole attachment, alone, record: sync", op: "ADD", bound: "≤ 0.4×", found: "0.40×", reached: true},
		{what: "peak memory of lhstorage-ipam, record: sync", op: "DEL", bound: "≤ 20 MB", found: "21.00 MB"},
	}, r.scores())
	var out bytes.Buffer
	r.print(&out)
	assert.Contains(t, out.String(), "MISSED")
}

// A target whose case is misspelt would never be shown.
func TestTargetsAreOfCases(t *testing.T) {
	known := map[string]bool{}
	for _, c := range cases {
		known[c.name] = true
	}
	for _, s := range stages {
		for _, c := range s.cases {
			known[c.name] = true
		}
	}
	for _, v := range versionCases {
		known[v.name()] = true
	}
	for _, target := range targets {
		assert.True(t, known[target.of], target.of)
		assert.True(t, target.over == "" || known[target.over], target.over)
	}
}
