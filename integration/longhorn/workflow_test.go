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

// deaths are the steps at which runs died that were killed after their first write, their second, and so on.
type deaths struct {
	at      []longhorn.Step
	through bool // one got to its end
}

// note takes in how the next run ended, and says whether it died.
func (d *deaths) note(t *testing.T, err error) bool {
	if err == nil {
		d.through = true
		return false
	}
	stopped, ok := errors.AsType[*longhorn.StoppedError](err)
	require.True(t, ok, "%v", err)
	d.at = append(d.at, stopped.Step)
	return true
}

// check fails unless runs died at each of the steps.
func (d *deaths) check(t *testing.T, want []longhorn.Step) {
	for _, step := range want {
		assert.Contains(t, d.at, step, "no run died at this step")
	}
	t.Logf("died after each of %d writes, at %v", len(d.at), slices.Compact(d.at))
}

// crashAndResume kills runs, there and back, and lets others go on.
func crashAndResume(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	var there, back deaths
	for n := 1; !there.through || !back.through; n++ {
		if there.note(t, w.workflow(t).Run(w.dieAfter(t, n), w.request())) {
			require.NoError(t, w.workflow(t).Resume(t.Context()), "after write %d", n)
		}
		w.enabled(t)
		if back.note(t, w.workflow(t).Rollback(w.dieAfter(t, n))) {
			require.NoError(t, w.workflow(t).Resume(t.Context()), "back, after write %d", n)
		}
		w.waitHealthy(t, "")
		require.Equal(t, before, w.state(t), "back, after write %d", n)
	}
	there.check(t, steps)
	back.check(t, slices.DeleteFunc(slices.Clone(steps), func(s longhorn.Step) bool { return s == longhorn.StepNodes || s == longhorn.StepVerify }))
}

// crashAndRollBack kills runs, and lets others go back.
func crashAndRollBack(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	var there deaths
	for n := 1; !there.through; n++ {
		there.note(t, w.workflow(t).Run(w.dieAfter(t, n), w.request()))
		require.NoError(t, w.workflow(t).Rollback(t.Context()), "after write %d", n)
		w.waitHealthy(t, "")
		require.Equal(t, before, w.state(t), "after write %d", n)
	}
	there.check(t, steps)
}
