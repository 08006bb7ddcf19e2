package attach

import (
	"errors"
	"fmt"
	"slices"
)

// undo is the explicit stack of what must be taken back if a later step fails. A
// step pushes its undo before it acts where a failed action can leave something
// behind, so every undo must be harmless when there is nothing to undo.
type undo struct {
	steps []undoStep
}

type undoStep struct {
	text string
	do   func() error
}

func (u *undo) push(text string, do func() error) {
	u.steps = append(u.steps, undoStep{text, do})
}

// run takes everything back, last first, whatever fails on the way.
func (u *undo) run() error {
	var faults []error
	for _, s := range slices.Backward(u.steps) {
		if err := s.do(); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", s.text, err))
		}
	}
	u.steps = nil
	return errors.Join(faults...)
}
