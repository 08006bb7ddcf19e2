package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// environment makes a getenv.
func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name     string
		env      map[string]string
		cases    []string // nil: all
		n        []int
		stages   int
		versions int
		pods     int
		cluster  bool
	}{
		{name: "full", n: []int{1, 10, 50, 100, 200}, stages: len(stages), versions: len(versionCases), pods: len(podCases), cluster: true},
		{
			name: "quick", env: map[string]string{"BENCH_QUICK": "1"},
			cases: []string{
				"macvlan+host-local", "lhstorage+host-local", "ipam:host-local", "macvlan+whereabouts", "lhstorage+whereabouts", "lhstorage+sync", "lhstorage+agent",
				"ipam:whereabouts", "ipam:sync", "ipam:agent", "ipam:agent/return",
			},
			n: []int{1, 10, 50}, versions: len(versionCases), cluster: true,
		},
		{
			name: "quick, but asked for", env: map[string]string{"BENCH_QUICK": "1", "BENCH_CASES": "^lhstorage.agent/"},
			cases: []string{"lhstorage+agent/probing"}, n: []int{1, 10, 50}, cluster: true,
		},
		{
			name: "one comparison", env: map[string]string{"BENCH_CASES": "^ipam:(whereabouts|sync)$", "BENCH_N": "200"},
			cases: []string{"ipam:whereabouts", "ipam:sync"}, n: []int{200}, cluster: true,
		},
		{
			name: "without a cluster", env: map[string]string{"BENCH_CASES": `^[a-z]+\+host-local$`, "BENCH_N": "50, 1,50", "BENCH_QUICK": "1"},
			cases: []string{"macvlan+host-local", "lhstorage+host-local"}, n: []int{1, 50},
		},
		{name: "a full pool", env: map[string]string{"BENCH_CASES": "fill=9"}, cases: []string{}, n: []int{1, 10, 50, 100, 200}, stages: 2, cluster: true},
		{name: "whole pods", env: map[string]string{"BENCH_CASES": "^pods:"}, cases: []string{}, n: []int{1, 10, 50, 100, 200}, pods: len(podCases)},
		{name: "start-up", env: map[string]string{"BENCH_CASES": "^version:"}, cases: []string{}, n: []int{1, 10, 50, 100, 200}, versions: len(versionCases)},
		{
			name: "no probing at once", env: map[string]string{"BENCH_CASES": "lhstorage.sync", "BENCH_N": "10"},
			cases: []string{"lhstorage+sync"}, n: []int{10}, cluster: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := settingsFrom(environment(tt.env))
			require.NoError(t, err)
			p, err := s.plan()
			require.NoError(t, err)
			want := tt.cases
			if want == nil {
				want = names(cases)
			}
			assert.Equal(t, want, names(p.cases))
			assert.Equal(t, tt.n, s.n)
			assert.Len(t, p.stages, tt.stages)
			assert.Len(t, p.versions, tt.versions)
			assert.Len(t, p.pods, tt.pods)
			assert.Equal(t, tt.cluster, p.needCluster())
		})
	}
}

func TestSettingsThatMakeNoSense(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want []string
	}{
		{map[string]string{"BENCH_CASES": "(", "BENCH_N": "ten"}, []string{"BENCH_CASES", "missing closing )", `BENCH_N=ten: "ten" is no number`}},
		{map[string]string{"BENCH_N": "1,,2"}, []string{`"" is no number`}},
		{map[string]string{"BENCH_N": "0"}, []string{"from 1 to"}},
		{map[string]string{"BENCH_N": "100000"}, []string{"from 1 to"}},
		{map[string]string{"BENCH_FSYNC": "no"}, []string{"BENCH_FSYNC=no"}},
		{map[string]string{"BENCH_CASES": "nothing"}, []string{"BENCH_CASES=nothing", "macvlan+whereabouts"}},
		{map[string]string{"BENCH_CASES": "version:", "BENCH_N": "10"}, []string{"leave nothing to measure"}},
		{map[string]string{"BENCH_CASES": "^pods:", "BENCH_N": "50"}, []string{"leave nothing to measure", "pods:lhstorage"}},
		{map[string]string{"BENCH_CASES": "fill=", "BENCH_QUICK": "1"}, []string{"leave nothing to measure"}},
	} {
		s, err := settingsFrom(environment(tt.env))
		if err == nil {
			_, err = s.plan()
		}
		for _, want := range tt.want {
			assert.ErrorContains(t, err, want, "%v", tt.env)
		}
	}
}

// Each case has its baseline in the list, of the same kind, and a configuration.
func TestCasesHaveBaselines(t *testing.T) {
	all := cases
	for _, s := range stages {
		all = append(all[:len(all):len(all)], s.cases...)
	}
	byName := map[string]testCase{}
	for _, c := range all {
		assert.NotContains(t, byName, c.name, "named twice")
		byName[c.name] = c
	}
	for _, c := range all {
		conf, err := c.conf("/data")
		require.NoError(t, err)
		assert.True(t, json.Valid(conf))
		if c.baseline == "" {
			continue
		}
		require.Contains(t, byName, c.baseline)
		assert.Equal(t, c.vxlan, byName[c.baseline].vxlan, c.name)
		assert.Equal(t, c.pool().Bits(), byName[c.baseline].pool().Bits(), c.name)
	}
}
