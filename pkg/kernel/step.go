package kernel

import (
	"fmt"

	"github.com/lhstorage/lhstorage/pkg/fault"
)

// Step is one change that brings the kernel nearer to what is wanted. Diffs
// return steps as data, so that a caller can ask whether anything must change
// before it takes a lock.
type Step struct {
	Name string // the fault point is "ensure." + Name
	Text string // what it does, for logs and errors
	Do   func(k Kernel) error
}

// Apply runs steps in order and stops at the first that fails. It returns the
// texts of those that were done.
func Apply(k Kernel, steps []Step) (done []string, err error) {
	for _, s := range steps {
		if err := fault.At("ensure." + s.Name); err != nil {
			return done, err
		}
		if err := s.Do(k); err != nil {
			return done, fmt.Errorf("%s: %w", s.Text, err)
		}
		done = append(done, s.Text)
	}
	return done, nil
}

// Setting is a sysctl and the value that it must have.
type Setting struct{ Path, Value string }

// SysctlSteps sets each setting that reads otherwise. One that this kernel
// doesn't have (IPv6 switched off at boot) is left out.
func SysctlSteps(k Kernel, name string, settings ...Setting) ([]Step, error) {
	var steps []Step
	for _, s := range settings {
		have, err := k.Sysctl(s.Path)
		if IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read sysctl %s: %w", s.Path, err)
		}
		if have != s.Value {
			steps = append(steps, Step{
				Name: name, Text: fmt.Sprintf("set sysctl %s from %s to %s", s.Path, have, s.Value),
				Do: func(k Kernel) error { return k.SetSysctl(s.Path, s.Value) },
			})
		}
	}
	return steps, nil
}
