package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i // descending: it must sort
	}
	for _, tt := range []struct {
		values []int
		p      float64
		want   int
	}{
		{nil, 50, 0},
		{[]int{7}, 50, 7},
		{[]int{7}, 99, 7},
		{[]int{3, 1, 2}, 50, 2},
		{[]int{4, 3, 2, 1}, 50, 2},
		{[]int{1, 2}, 99, 2},
		{[]int{1, 2}, 0, 1},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
	} {
		assert.Equal(t, tt.want, percentile(tt.values, tt.p), "%v %v", tt.values, tt.p)
	}
	assert.Equal(t, 100, hundred[0], "the values themselves stay in order")
}

// turn is a report of two calls that took ms and 3·ms.
func turn(ms int, failures ...error) storm.Report {
	at := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	a := netip.MustParseAddr("10.0.0.1")
	return storm.Report{
		Wall: at(4 * ms),
		Outcomes: []cniexec.Outcome{
			{Wall: at(ms), CPU: at(1)},
			{Wall: at(3 * ms), CPU: at(2)},
		},
		Failures:  failures,
		Addresses: [][]netip.Addr{{a}, {a}},
	}
}

func TestResultOfSeveralTurns(t *testing.T) {
	var s sample
	s.add(turn(10))
	s.add(turn(20, errors.New("no address")))
	s.add(turn(30))
	r := &report{}
	r.add("ours", "theirs", "ADD", 2, s)
	assert.Equal(t, result{
		Case: "ours", N: 2, Op: "ADD", P50: 30, P99: 90, Wall: 0.08, CPU: 1,
		Failures: 1, Duplicates: 3, Turns: 3, baseline: "theirs",
	}, r.Results[0])
	require.ErrorContains(t, r.verdict(), "ours, 2 ADD at once: 1 failed, 3 addresses given twice")
	require.ErrorContains(t, r.verdict(), "no address")
}

func TestRatioAndVerdict(t *testing.T) {
	one := func(ms int) (s sample) {
		r := turn(ms)
		r.Addresses = nil
		s.add(r)
		return s
	}
	r := &report{Machine: "a machine"}
	r.add("theirs", "", "ADD", 1, one(10))
	r.add("ours", "theirs", "ADD", 1, one(15))
	r.add("ours", "theirs", "ADD", 50, one(15)) // nothing to hold it against
	require.NoError(t, r.verdict())
	assert.Empty(t, r.ratio(r.Results[0]))
	assert.Equal(t, "1.50×", r.ratio(r.Results[1]))
	assert.Empty(t, r.ratio(r.Results[2]))

	var out bytes.Buffer
	r.print(&out)
	assert.Contains(t, out.String(), "1.50×")
	assert.Contains(t, out.String(), "a machine")

	path := filepath.Join(t.TempDir(), "bench.json")
	require.NoError(t, r.write(path))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(data, &got))
	rows, ok := got["results"].([]any)
	require.True(t, ok)
	require.Len(t, rows, 3)
	row, ok := rows[1].(map[string]any)
	require.True(t, ok)
	for _, key := range []string{"case", "n", "op", "p50_ms", "p99_ms", "wall_s", "cpu_ms", "rss_mb", "failures", "duplicates"} {
		assert.Contains(t, row, key)
	}
	assert.InDelta(t, 15, row["p50_ms"], 1e-9)
}

// Each case has its baseline in the list, of the same kind.
func TestCasesHaveBaselines(t *testing.T) {
	byName := map[string]testCase{}
	for _, c := range cases {
		assert.NotContains(t, byName, c.name, "named twice")
		byName[c.name] = c
	}
	for _, c := range cases {
		if c.baseline == "" {
			continue
		}
		require.Contains(t, byName, c.baseline)
		assert.Equal(t, c.vxlan, byName[c.baseline].vxlan, c.name)
		conf, err := c.conf("/data")
		require.NoError(t, err)
		assert.True(t, json.Valid(conf))
	}
}
