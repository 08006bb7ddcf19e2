//go:build !faultpoints

package fault

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
)

// The programs that users run have no fault points, whatever the environment says.
func TestOrdinaryBuildsHaveNoFaultPoints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trace")
	t.Setenv("LHSTORAGE_FAULT", "add.child=error")
	t.Setenv("LHSTORAGE_FAULT_TRACE", file)
	assert.False(t, Enabled)
	assert.NoError(t, At("add.child"))
	assert.NoFileExists(t, file)
}
