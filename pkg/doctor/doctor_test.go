package doctor

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHealthyHasNoFindings(t *testing.T) {
	assert.Empty(t, Diagnose(healthy(t).snapshot()))
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	last := ""
	for _, c := range Checks() {
		assert.Regexp(t, `^LHS\d{3}$`, c.Code)
		assert.Greater(t, c.Code, last, "in order, each once")
		last = c.Code
		seen[c.Code] = true
		assert.Contains(t, rank, c.Severity, c.Code)
		for _, text := range []string{c.Title, c.Why, c.Fix} {
			assert.NotEmpty(t, text, c.Code)
			assert.NotContains(t, text, "\n", c.Code)
		}
		assert.Contains(t, breakages, c.Code, "no test breaks what this check looks for")
	}
	assert.GreaterOrEqual(t, len(seen), 35)
	for code := range breakages {
		assert.True(t, seen[code], "%s is broken by a test and is no check", code)
	}
}

// Each breakage is found, and nothing else is.
func TestEachBreakageIsFound(t *testing.T) {
	for _, c := range Checks() {
		t.Run(c.Code, func(t *testing.T) {
			w := healthy(t)
			breakages[c.Code](w)
			found := Diagnose(w.snapshot())
			require.NotEmpty(t, found, c.Title)
			for _, f := range found {
				assert.Equal(t, c.Code, f.Code, "%s: %s", f.Where, f.What)
				assert.NotEmpty(t, f.Where)
				assert.NotEmpty(t, f.What)
				assert.NotEmpty(t, f.Fix)
			}
			assert.Equal(t, c.Severity == Error, Failed(found))
		})
	}
}

func TestDocumentIsFresh(t *testing.T) {
	data, err := os.ReadFile("../../docs/doctor.md")
	require.NoError(t, err)
	if Markdown() != string(data) { // as a diff it is longer than a screen
		t.Error("docs/doctor.md isn't fresh: run make generate")
	}
}
