package attach

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/fault"
)

// undo is the explicit stack of what must be taken back if a later step fails. A
// step pushes its undo before it acts where a failed action can leave something
// behind, so every undo must be harmless when there is nothing to undo.
type undo struct {
	steps []undoStep
}

type undoStep struct {
	point string // its fault point
	text  string
	do    func() error
}

func (s undoStep) run() error {
	if err := fault.At(s.point); err != nil {
		return err
	}
	return s.do()
}

func (u *undo) push(s undoStep) { u.steps = append(u.steps, s) }

// run takes everything back, last first, whatever fails on the way.
func (u *undo) run() error {
	var faults []error
	for _, s := range slices.Backward(u.steps) {
		if err := s.run(); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", s.text, err))
		}
	}
	u.steps = nil
	return errors.Join(faults...)
}
