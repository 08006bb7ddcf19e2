package longhorn

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSteps holds for each journal there can be.
func TestSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := &Journal{Version: journalVersion, Direction: Forward, Harvester: rapid.Bool().Draw(t, "harvester")}
		if rapid.Bool().Draw(t, "enable") {
			j.New = Network{Ref: Ref{"ns", "new"}}
		}
		j.Step = rapid.SampledFrom(j.Steps()).Draw(t, "step")
		// The setting isn't touched before this step, and always has been behind it.
		at, change := slices.Index(whole, j.Step), slices.Index(whole, StepAdopt)
		j.Switched = at > slices.Index(whole, StepSetting) || at >= change && rapid.Bool().Draw(t, "switched")

		left := j.Left()
		require.Equal(t, j.Step, left[0], "the step that was begun is done again")
		require.Equal(t, StepClean, left[len(left)-1])
		require.Equal(t, j.Harvester, slices.Contains(j.Steps(), StepAdopt))

		back := j.Turned()
		require.Equal(t, Forward, j.Direction, "the journal itself is as it was")
		require.Equal(t, back.Steps(), back.Left(), "the way back is gone as a whole")
		require.Equal(t, back.Wanted(), j.Old)
		require.Contains(t, back.Left(), StepStart, "what was stopped is started on any way")
		require.Equal(t, j.Switched, slices.Contains(back.Left(), StepSetting), "the setting is changed back if it may have been changed")
		if j.Switched {
			require.Less(t, slices.Index(back.Left(), StepDetach), slices.Index(back.Left(), StepSetting), "never with a volume attached")
		}
		require.Equal(t, back, back.Turned(), "back of back is no third way")

		data, err := json.Marshal(back)
		require.NoError(t, err)
		var again Journal
		require.NoError(t, json.Unmarshal(data, &again))
		require.Equal(t, *back, again, "another process reads the same")
	})
}

func TestFinished(t *testing.T) {
	j := &Journal{Direction: Forward, Step: StepClean, Finished: true, Switched: true}
	assert.Empty(t, j.Left())
	assert.Equal(t, StepNetwork, j.Turned().Left()[0], "what is done can be undone")
}

func TestRemember(t *testing.T) {
	a, b := Workload{Deployment, "ns", "a", 3}, Workload{StatefulSet, "ns", "b", 2}
	known := []Workload{a}
	assert.Equal(t, []Workload{a, b}, remember(known, []Workload{b}), "a is stopped already: its number stays")
	a.Replicas = 5
	assert.Equal(t, []Workload{a}, remember(known, []Workload{a}), "somebody started it again")
	assert.Equal(t, int32(3), known[0].Replicas, "what was known isn't written to")
}

func TestHolderText(t *testing.T) {
	v := volume{}
	v.Name, v.Status.State, v.Status.Node = "v1", "attached", "n1"
	var a attachment
	a.Spec.Volume, a.Spec.Tickets = "v1", map[string]ticket{
		"1": {Type: "csi-attacher", Node: "n1"}, "2": {Type: "longhorn-api", Node: "n1"}, "3": {Type: "share-manager-controller"}, "4": {Type: "backup-controller", Node: "n2"},
	}
	text := holdersOf([]volume{v}, []attachment{a})[0].String()
	for _, want := range []string{"volume v1 is attached to n1", "through CSI", "by hand: detach it in Longhorn's UI", "stop the pods that mount the claim", "backup works with it on n2: wait"} {
		assert.Contains(t, text, want)
	}
	assert.Contains(t, holdersOf([]volume{v}, nil)[0].String(), "nobody asks for it any more")
	v.Status.State = stateDetached
	assert.Empty(t, holdersOf([]volume{v}, nil))
	assert.Len(t, holdersOf([]volume{v}, []attachment{a}), 1, "detached, but about to be attached")
}
