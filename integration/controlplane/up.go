package controlplane

import (
	"context"
	"testing"
	"time"

	"github.com/lhstorage/lhstorage/integration/testnode"
)

// Up starts a cluster for a test and stops it at its end. Without root the test is
// skipped, or fails where CI is set. If the test fails, the ends of the cluster's
// logs are shown.
func Up(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	testnode.RequireRoot(tb)
	begin := time.Now()
	// Not the test's context: that ends before the clean-up.
	c, err := Start(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("%s with %d nodes after %s: %s", c.Name, len(c.Nodes), time.Since(begin).Round(10*time.Millisecond), c.Conditions())
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("%s", c.Logs())
		}
		if err := c.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return c
}
