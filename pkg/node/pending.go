package node

import (
	"context"
	"errors"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// StepClaim is the Step of what Pending reports where the cluster was never asked for this node's place.
const StepClaim = "claim"

// Pending lists, for people, all that Ensure would do next, and all that stands in its way, without changing anything. Look
// stops at the first; here each part of the node is looked at though another is amiss, and the MTU is worked out anew.
func (e *Ensurer) Pending(ctx context.Context, plan *netconf.Plan) (state State, changes []Change, faults []error) {
	r := &run{Ensurer: e, plan: plan, passive: true, fresh: true}
	if err := r.load(); err != nil {
		faults = append(faults, err)
	}
	switch err := r.resolve(ctx); {
	case errors.Is(err, errUnclaimed):
		return r.state, []Change{{StepClaim, err.Error()}}, faults
	case err != nil:
		return r.state, nil, append(faults, err)
	}
	for _, stage := range r.stages() {
		steps, err := stage(ctx)
		if err != nil {
			faults = append(faults, err)
		}
		for _, s := range steps {
			changes = append(changes, Change{s.Name, s.Text})
		}
	}
	if r.restoring() {
		changes = append(changes, Change{"restore", "restore the MTU of pods' interfaces"})
	}
	_ = r.observe() // a parent that isn't there is among the changes
	return r.state, changes, faults
}
