package main

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
)

// sample gathers what one case and verb cost in all its turns.
type sample struct {
	walls      []time.Duration // by turn
	outcomes   []cniexec.Outcome
	failures   []error
	duplicates int
}

func (s *sample) add(r storm.Report) {
	s.walls = append(s.walls, r.Wall)
	s.outcomes = append(s.outcomes, r.Outcomes...)
	s.failures = append(s.failures, r.Failures...)
	s.duplicates += len(r.Duplicates())
}

func (s *sample) latencies() []time.Duration {
	return each(s.outcomes, func(o cniexec.Outcome) time.Duration { return o.Wall })
}

func (s *sample) cpu() []time.Duration {
	return each(s.outcomes, func(o cniexec.Outcome) time.Duration { return o.CPU })
}

func each[A, B any](list []A, f func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}

// percentile is the smallest value that at least p percent of the values don't
// exceed (nearest rank); of no values it is zero.
func percentile[T cmp.Ordered](values []T, p float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
