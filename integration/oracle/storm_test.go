package oracle

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// patient leaves calls the time that a hundred of them at once need on a machine that has other things to do.
const patient = shared + `, "timeout": "1m"`

// A killed ADD of either holds no more than its repetition finds again, and its DEL takes all of it away. A killed whereabouts
// keeps the others of its kind waiting for its lease, no more.
func sideBySideKilled(t *testing.T, b *bed) {
	theirs, ours := b.mixed(t)
	g := &given{holder: map[string]attachment{}, failed: map[attachment]string{}}
	var killed [2]atomic.Int32
	began := time.Now()
	atOnce(2*perSide, func(i int) {
		s, who, kills, seconds := ours, podNr("ours", i), 2, 1
		if i%2 == 0 {
			s, who, kills, seconds = theirs, podNr("theirs", i), min(i%10/2, 1), 5
		}
		for range kills {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond+rand.N(time.Duration(seconds)*time.Second))
			_, err := s.run(ctx, "ADD", patient, who)
			cancel()
			if err != nil && strings.Contains(err.Error(), "signal: killed") {
				killed[i%2].Add(1)
			}
		}
		if s == ours && i%3 == 0 { // its pod never comes back
			assert.NoError(t, ours.del(t, patient, who))
			return
		}
		g.add(t, s, patient, who)
	})
	g.report(t, began)
	t.Logf("killed: %d of ours, %d of theirs", killed[1].Load(), killed[0].Load())
	require.NotZero(t, killed[0].Load())
	require.NotZero(t, killed[1].Load())
	g.recorded(t, ours)
	b.emptied(t, theirs, ours, g)
}

// Whereabouts' reconciler takes entries and reservations away that are no live pod's, and by its own races some that are. Ours
// keeps each address for its pod all the same, and what is missing comes back with the pod's next ADD.
func sideBySideReconciled(t *testing.T, b *bed) {
	theirs, ours := b.mixed(t)
	stop := b.reconcile(t, ours.space)
	defer stop()
	who := func(i int) (*side, attachment) {
		if i%2 == 0 {
			return theirs, podNr("theirs", i)
		}
		return ours, podNr("ours", i)
	}
	for i := range 2 * perSide {
		_, a := who(i)
		b.createPod(t, a)
		defer b.deletePod(t, a)
	}
	b.reconciled(t, ours)
	g := &given{holder: map[string]attachment{}, failed: map[attachment]string{}}
	began := time.Now()
	atOnce(2*perSide, func(i int) {
		s, a := who(i)
		if addresses, ok := g.add(t, s, patient, a); ok {
			b.writeStatus(t, a, addresses)
		}
	})
	g.report(t, began)
	b.reconciled(t, ours)
	b.reconciled(t, ours)
	assert.Len(t, live(b.claims(t)), perSide-g.late)
	lost, objects := 0, b.objects(t, ours.space)+"\n"
	for addresses, a := range g.holder {
		if !whole(objects, addresses, a) {
			lost++
		}
		if strings.HasPrefix(a.container, "ours") {
			assert.Equal(t, addresses, ours.add(t, patient, a).addresses, "%s again", a.pod)
		}
	}
	t.Logf("of %d addresses the reconciler took entry or reservation of %d away", len(g.holder), lost)
	// A run that began before the pods had their status may still be taking away, five objects a second, what it saw then: its runs overlap.
	require.Eventually(t, func() bool {
		objects, missing := b.objects(t, ours.space)+"\n", 0
		for addresses, a := range g.holder {
			if strings.HasPrefix(a.container, "ours") && !whole(objects, addresses, a) {
				missing++
				assert.Equal(t, addresses, ours.add(t, patient, a).addresses, "%s again", a.pod)
			}
		}
		return missing == 0
	}, callTime, time.Second, "entries and reservations of live claims come back with the next ADD")
	b.emptied(t, theirs, ours, g)
}

// whole says that an address has its entry and its reservation.
func whole(objects, addresses string, a attachment) bool {
	return strings.Contains(objects, entryOf(addresses, a)) && strings.Contains(objects, reservationOf(addresses, a))
}

// reconcile starts whereabouts' daemon, which in a cluster runs its reconciler once a day, with a run each second.
func (b *bed) reconcile(t *testing.T, space string) (stop func()) {
	node := b.Nodes[1]
	before, err := node.ReadFile(flatFile)
	require.NoError(t, err)
	var conf map[string]any
	require.NoError(t, json.Unmarshal(before, &conf))
	conf["reconciler_cron_expression"] = "@every 1s"
	with, err := json.Marshal(conf)
	require.NoError(t, err)
	require.NoError(t, node.WriteFile(flatFile, with))
	p, err := node.StartDaemon(t.Context(), controlplane.Daemon{
		Name: "ip-control-loop", ServiceAccount: metav1.NamespaceSystem + "/whereabouts",
		Args: []string{filepath.Join(tools.Build(t, "whereabouts"), "ip-control-loop")},
		Env:  []string{"NODENAME=" + node.Name, "WHEREABOUTS_NAMESPACE=" + space},
	})
	require.NoError(t, err)
	return func() {
		require.NoError(t, p.Kill())
		require.NoError(t, node.WriteFile(flatFile, before))
	}
}

// reconciled waits until a whole run of the reconciler has begun and ended: one that takes away what is recorded for a pod that there
// isn't.
func (b *bed) reconciled(t *testing.T, s *side) {
	const name = "10.250.0.1"
	s.reserve(t, name, "default/gone", "net1")
	require.Eventually(t, func() bool {
		return !strings.Contains(b.list(t, s.space), "reservation "+name+" ")
	}, callTime, 100*time.Millisecond, "is ip-control-loop running?")
}

func (b *bed) createPod(t *testing.T, a attachment) {
	space, name, _ := strings.Cut(a.pod, "/")
	_, err := b.CreatePod(t.Context(), b.Nodes[0].Name, space, name)
	require.NoError(t, err)
}

func (b *bed) deletePod(t *testing.T, a attachment) {
	space, name, _ := strings.Cut(a.pod, "/")
	require.NoError(t, b.DeletePod(context.Background(), space, name))
}

// writeStatus does what Multus does when a pod has its interface.
func (b *bed) writeStatus(t *testing.T, a attachment, addresses string) {
	space, name, _ := strings.Cut(a.pod, "/")
	addr, _, _ := strings.Cut(addresses, "/")
	status, err := json.Marshal([]controlplane.NetworkStatus{{Name: "default/net", Interface: a.ifName, IPs: []string{addr}}})
	require.NoError(t, err)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{controlplane.NetworkStatusAnnotation: string(status)}}})
	require.NoError(t, err)
	_, err = b.Kube.CoreV1().Pods(space).Patch(context.Background(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	assert.NoError(t, err)
}
