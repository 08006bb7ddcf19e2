package attach

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Everything is taken back, last first, whatever fails on the way; all that
// failed is told, and a second run does nothing.
func TestUndo(t *testing.T) {
	odd := errors.New("odd")
	for _, c := range []struct {
		name   string
		faults []error // of each step, in the order in which they were pushed
	}{
		{"nothing to undo", nil},
		{"all well", []error{nil, nil, nil}},
		{"the last fails", []error{nil, nil, io.EOF}},
		{"the first fails", []error{io.EOF, nil, nil}},
		{"all fail", []error{io.EOF, odd, io.EOF}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var u undo
			var ran, want []int
			for i, fault := range c.faults {
				u.push(undoStep{"undo.test", string(rune('a' + i)), func() error { ran = append(ran, i); return fault }})
				want = append([]int{i}, want...)
			}
			err := u.run()
			assert.Equal(t, want, ran)
			failed := false
			for i, fault := range c.faults {
				if fault != nil {
					failed = true
					require.ErrorIs(t, err, fault)
					assert.ErrorContains(t, err, string(rune('a'+i))+": "+fault.Error())
				}
			}
			assert.Equal(t, failed, err != nil)
			require.NoError(t, u.run())
			assert.Equal(t, want, ran, "a second run does nothing")
		})
	}
}
