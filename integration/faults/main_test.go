package faults

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs more tests at once than there are processors: most of their time
// they wait, for a probe's window or for the kernel's duplicate address detection.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8")
	}
	os.Exit(m.Run())
}
