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
		{"random sequences", random},
		{"side by side", sideBySide},
		{"side by side, killed", sideBySideKilled},
		{"side by side, reconciled", sideBySideReconciled},
		{"ADD by one, DEL by the other", handOver},
		{"exhaustion", exhaustion},
		{"API server away at DEL", awayAtDel},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, b) })
	}
}
