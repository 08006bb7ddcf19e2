package longhorn

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// steps are all of a forward run, Harvester's aside.
var steps = []longhorn.Step{
	longhorn.StepNetwork, longhorn.StepNodes, longhorn.StepStop, longhorn.StepDetach, longhorn.StepSetting,
	longhorn.StepPods, longhorn.StepVerify, longhorn.StepStart, longhorn.StepSettle, longhorn.StepClean,
}

func TestWorkflow(t *testing.T) {
	b := newBed(t)
	t.Run("there and back", func(t *testing.T) { thereAndBack(t, b) })
	t.Run("crash anywhere, go on", func(t *testing.T) { crashAndResume(t, b) })
	t.Run("crash anywhere, go back", func(t *testing.T) { crashAndRollBack(t, b) })
	t.Run("crash on the way back, go on", func(t *testing.T) { crashBack(t, b) })
}

func thereAndBack(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()))
	w.enabled(t)

	w.dieAfter(t, 0)
	require.NoError(t, w.workflow(t).Resume(t.Context()), "nothing is left to do")
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()), "a second time")
	assert.Empty(t, w.writes.log, "all is as wanted: nothing is written")

	require.NoError(t, w.workflow(t).Run(t.Context(), longhorn.Request{}), "disable")
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t), "the network was made by us, so it went")

	require.NoError(t, w.workflow(t).Rollback(t.Context()), "of the disable: the network comes back, as it was")
	w.enabled(t)
	require.ErrorContains(t, w.workflow(t).Rollback(t.Context()), "nothing to go back from")
}

// enabled checks that all is as an enable leaves it.
func (w *world) enabled(t *testing.T) {
	t.Helper()
	w.waitHealthy(t, w.ns+"/storage")
	state := w.state(t)
	assert.Contains(t, state, "web=3 db=2 log=map[] report=false")
	assert.Equal(t, len(nodes), strings.Count(state, annotationFor(w.ns+"/storage")))
	assert.Contains(t, state, "network storage ")
	assert.Contains(t, state, "faulted: []")
}

// crashes calls try with each number of writes after which a run can die, until one got through; it must have died at each step.
func crashes(t *testing.T, want []longhorn.Step, try func(n int) error) {
	var seen []longhorn.Step
	for n := 1; n < 100; n++ {
		err := try(n)
		if err == nil {
			for _, step := range want {
				assert.Contains(t, seen, step, "no run died at this step")
			}
			t.Logf("died after each of %d writes, at %v", n-1, slices.Compact(seen))
			return
		}
		stopped, ok := errors.AsType[*longhorn.StoppedError](err)
		require.True(t, ok, "%v", err)
		seen = append(seen, stopped.Step)
	}
	t.Fatal("it never gets through")
}

func crashAndResume(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	crashes(t, steps, func(n int) error {
		died := w.workflow(t).Run(w.dieAfter(t, n), w.request())
		if died != nil {
			require.NoError(t, w.workflow(t).Resume(t.Context()), "after write %d", n)
		}
		w.enabled(t)
		require.NoError(t, w.workflow(t).Rollback(t.Context()))
		w.waitHealthy(t, "")
		require.Equal(t, before, w.state(t))
		return died
	})
}

func crashAndRollBack(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	crashes(t, steps, func(n int) error {
		died := w.workflow(t).Run(w.dieAfter(t, n), w.request())
		require.NoError(t, w.workflow(t).Rollback(t.Context()), "after write %d", n)
		w.waitHealthy(t, "")
		require.Equal(t, before, w.state(t), "after write %d", n)
		return died
	})
}

func crashBack(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	want := slices.DeleteFunc(slices.Clone(steps), func(s longhorn.Step) bool { return s == longhorn.StepNodes || s == longhorn.StepVerify })
	crashes(t, want, func(n int) error {
		require.NoError(t, w.workflow(t).Run(t.Context(), w.request()))
		died := w.workflow(t).Rollback(w.dieAfter(t, n))
		if died != nil {
			require.NoError(t, w.workflow(t).Resume(t.Context()), "after write %d", n)
		}
		w.waitHealthy(t, "")
		require.Equal(t, before, w.state(t), "after write %d", n)
		return died
	})
}
