package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// answersFor says whether a failed call of the case is for lhstorage, or for this
// benchmark, to answer for. Only what whereabouts itself fails at isn't: in a big
// enough crowd it gives up, and its macvlan then finds the interface that it left.
// Under our plugin that is what our plugin says that the IPAM plugin refused.
func (c testCase) answersFor(failure error) bool {
	if c.ipam != "whereabouts" {
		return true
	}
	if c.plugin != "lhstorage" {
		return false
	}
	var said *types.Error
	return !errors.As(failure, &said) || !strings.HasPrefix(said.Msg, "IPAM plugin whereabouts, ")
}

// fault adds a failed call of a case to the verdict.
func (r *report) fault(c testCase, failure error) {
	if c.answersFor(failure) {
		r.failures = append(r.failures, failure)
	}
}

// blame adds to the verdict what failed in a case.
func (r *report) blame(t *tally, n int) {
	for _, of := range []struct {
		verb string
		sample
	}{{"ADD", t.add}, {"DEL", t.del}} {
		var ours []error
		for _, failure := range of.failures {
			if t.answersFor(failure) {
				ours = append(ours, failure)
			}
		}
		if len(ours) > 0 {
			r.failures = append(r.failures, fmt.Errorf("%s, %d %s at once: %d failed, the first: %w", t.name, n, of.verb, len(ours), ours[0]))
		}
	}
	if t.ipam == "whereabouts" {
		return // addresses are its affair
	}
	if t.add.duplicates > 0 {
		r.failures = append(r.failures, fmt.Errorf("%s, %d ADD at once: %d addresses were given twice", t.name, n, t.add.duplicates))
	}
	if held := t.left.held; len(held) > 0 {
		r.failures = append(r.failures, fmt.Errorf("%s, after the last of %d DEL at once: %d objects are left, the first: %s", t.name, n, len(held), held[0]))
	}
}
