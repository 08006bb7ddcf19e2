package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
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
