package vm

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// digest shows of the verbose output of tests how each ended, as it comes, and keeps
// the rest until it is known whether anybody needs it.
type digest struct {
	to   io.Writer
	all  bool // show everything at once
	held bytes.Buffer
	part string // of a line

	skipped, empty []string // lines that say so
}

var (
	result  = regexp.MustCompile(`^\s*--- |^(PASS|FAIL)$`)
	skipped = regexp.MustCompile(`^\s*--- SKIP: `)
	empty   = regexp.MustCompile(`^testing: warning: no tests to run`)
)

func (d *digest) Write(p []byte) (int, error) {
	lines := strings.SplitAfter(d.part+string(p), "\n")
	d.part = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		text := strings.TrimSuffix(line, "\n")
		if skipped.MatchString(text) {
			d.skipped = append(d.skipped, text)
		}
		if empty.MatchString(text) {
			d.empty = append(d.empty, text)
		}
		if d.all || result.MatchString(text) {
			fmt.Fprint(d.to, line)
		}
		if !d.all {
			d.held.WriteString(line)
		}
	}
	return len(p), nil
}

// tell shows all that was held back.
func (d *digest) tell() {
	if d.held.Len() > 0 {
		fmt.Fprintf(d.to, "--- all that the tests in the VM said:\n%s%s\n", d.held.Bytes(), d.part)
	}
	d.held.Reset()
}

func TestDigestHoldsBackNothingThatCounts(t *testing.T) {
	const output = "--- in the VM: a\n=== RUN   TestA\n    a_test.go:1: detail\n--- PASS: TestA (1.0s)\n    --- SKIP: TestA/b (0s)\nPASS\n" +
		"testing: warning: no tests to run\npan"
	for chunk := range slices.Chunk([]int{1, 7, len(output)}, 1) {
		var out bytes.Buffer
		d := &digest{to: &out}
		for part := range slices.Chunk([]byte(output), chunk[0]) {
			_, _ = d.Write(part)
		}
		assert.Equal(t, "--- in the VM: a\n--- PASS: TestA (1.0s)\n    --- SKIP: TestA/b (0s)\nPASS\n", out.String())
		assert.Len(t, d.skipped, 1)
		assert.Len(t, d.empty, 1)
		out.Reset()
		d.tell()
		assert.Contains(t, out.String(), output, "with the line that was not ended")
	}
}
