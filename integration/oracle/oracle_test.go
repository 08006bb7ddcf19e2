package oracle

import "testing"

// All on one cluster: it takes longer to start than most tests to run.
func TestBesideWhereabouts(t *testing.T) {
	b := newBed(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"cases", cases},
		{"divergences", divergences},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, b) })
	}
}
