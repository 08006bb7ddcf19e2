package oracle

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

const shared = `"range": "10.0.0.0/24"`

// mixed are both programs on one pool. No claim of an earlier test is left.
func (b *bed) mixed(t *testing.T) (theirs, ours *side) {
	b.wipe(t)
	space := b.space(t)
	return b.whereabouts(t, space), b.lhstorage(t, space)
}

func podNr(kind string, i int) attachment {
	return attachment{fmt.Sprintf("default/%s%d", kind, i), fmt.Sprintf("%s%d", kind, i), "net1"}
}

// given collects who was given what, and fails the test where two were given the same.
type given struct {
	mu     sync.Mutex
	holder map[string]attachment
	failed map[attachment]string // and why
	late   int                   // those of them that are ours
}

// add makes an ADD and notes what came of it. Ours may fail for one reason alone: it ran out of time.
func (g *given) add(t *testing.T, s *side, section string, who attachment) (addresses string, ok bool) {
	got := s.add(t, section, who)
	if got.err == nil {
		g.note(t, got.addresses, who)
		return got.addresses, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed[who] = said(got.err)
	if s.plugin == s.ours {
		g.late++
		assert.Equal(t, cnierr.TryAgain, code(got.err), "%v", got.err)
	}
	return "", false
}

// report says how many failed, and that few of ours did.
func (g *given) report(t *testing.T, began time.Time) {
	t.Logf("%d ADDs of each at once in %s; %d failed, %d of ours: %s", perSide, time.Since(began).Round(time.Millisecond), len(g.failed), g.late, reasons(g.failed))
	assert.Zero(t, g.late)
}

func (g *given) note(t *testing.T, addresses string, who attachment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if other, twice := g.holder[addresses]; twice && other.pod != who.pod {
		t.Errorf("%s was given to %s and to %s", addresses, other.pod, who.pod)
	}
	g.holder[addresses] = who
}

// recorded checks that each given address has its entry and reservation, in the holder's name.
func (g *given) recorded(t *testing.T, s *side) {
	objects := s.objects(t, s.space)
	for addresses, who := range g.holder {
		assert.Contains(t, objects+"\n", entryOf(addresses, who))
		assert.Contains(t, objects+"\n", reservationOf(addresses, who))
	}
}

// entryOf and reservationOf are the lines of a list of objects that an address in use has.
func entryOf(addresses string, who attachment) string {
	addr, _, _ := strings.Cut(addresses, "/")
	return fmt.Sprintf("entry 10.0.0.0-24 of 10.0.0.0/24 %s %s %s %s\n", addr[strings.LastIndex(addr, ".")+1:], who.container, who.pod, who.ifName)
}

func reservationOf(addresses string, who attachment) string {
	addr, _, _ := strings.Cut(addresses, "/")
	return fmt.Sprintf("reservation %s %s %s\n", addr, who.pod, who.ifName)
}

// perSide is how many processes of each program are at it at once. Either may run out of its time, for both write one object:
// such failures are counted, and few of ours may be.
const perSide = 50

func sideBySide(t *testing.T, b *bed) {
	theirs, ours := b.mixed(t)
	g := &given{holder: map[string]attachment{}, failed: map[attachment]string{}}
	began := time.Now()
	atOnce(2*perSide, func(i int) {
		s, who := ours, podNr("ours", i)
		if i%2 == 0 {
			s, who = theirs, podNr("theirs", i)
		}
		g.add(t, s, patient, who)
	})
	g.report(t, began)
	g.recorded(t, ours)
	assert.Len(t, live(b.claims(t)), perSide-g.late)
	b.emptied(t, theirs, ours, g)
}

// reasons are the different texts of failures.
func reasons(failed map[attachment]string) []string {
	var texts []string
	for _, text := range failed {
		if text = text[:min(len(text), 100)]; !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return texts
}

// emptied deletes all that was given, each by the program that gave it, and what ADDs that failed may have left by ours, as a runtime
// does, and checks that nothing is there any more.
func (b *bed) emptied(t *testing.T, theirs, ours *side, g *given) {
	for who := range g.failed {
		assert.NoError(t, ours.del(t, shared, who))
	}
	began := time.Now()
	var mu sync.Mutex
	holders := make([]attachment, 0, len(g.holder))
	for _, who := range g.holder {
		holders = append(holders, who)
	}
	failures := 0
	atOnce(len(holders), func(i int) {
		s := ours
		if strings.HasPrefix(holders[i].container, "theirs") {
			s = theirs
		}
		if err := s.del(t, shared, holders[i]); err != nil {
			mu.Lock()
			defer mu.Unlock()
			failures++
			assert.NotSame(t, ours, s, "%v", err)
		}
	})
	t.Logf("%d DELs at once in %s, %d failed", len(holders), time.Since(began).Round(time.Millisecond), failures)
	for _, line := range strings.Split(b.objects(t, ours.space), "\n") {
		assert.NotContains(t, line, "default/ours")
	}
	assert.Empty(t, b.claims(t))
	// A DEL of theirs that ran out of time said that all was well: a runtime that asks again gets the rest.
	for _, who := range holders {
		if strings.Contains(b.list(t, ours.space), " "+who.pod+" ") {
			require.NoError(t, ours.del(t, shared, who))
		}
	}
	assert.Empty(t, b.objects(t, ours.space))
}

// What one program added the other can delete.
func handOver(t *testing.T, b *bed) {
	theirs, ours := b.mixed(t)
	for _, c := range []struct{ adds, dels *side }{{theirs, ours}, {ours, theirs}} {
		require.NoError(t, c.adds.add(t, shared, pod1).err)
		require.Equal(t, whole1, b.objects(t, ours.space))
		require.NoError(t, c.dels.del(t, shared, pod1))
		assert.Empty(t, b.objects(t, ours.space), "ADD by %s", c.adds.kind)
	}
	// Theirs knows no claims. The pod's next sandbox gets the address again, with all that belongs to it.
	got := ours.add(t, shared, attachment{pod1.pod, "cid2", pod1.ifName})
	require.NoError(t, got.err)
	assert.Equal(t, "10.0.0.1/24", got.addresses)
	assert.Equal(t, strings.ReplaceAll(whole1, "cid1", "cid2"), b.objects(t, ours.space))
	assert.Len(t, live(b.claims(t)), 1)
}

func exhaustion(t *testing.T, b *bed) {
	section := `"range": "10.0.0.0/29", "exclude": ["10.0.0.4/30"]`
	theirs, ours := b.mixed(t)
	for i, s := range []*side{theirs, ours, theirs} {
		require.NoError(t, s.add(t, section, podNr("pod", i)).err)
	}
	before := b.objects(t, ours.space)
	text := said(theirs.add(t, section, podNr("pod", 9)).err)
	require.Contains(t, text, "error at storage engine: Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.6 / range: 10.0.0.0/29 / excludeRanges: [10.0.0.4/30]")
	err := ours.add(t, section, podNr("pod", 9)).err
	require.Error(t, err)
	assert.Contains(t, said(err), text)
	assert.Equal(t, cnierr.Exhausted, code(err))
	for _, more := range []string{`Pool 10.0.0.0-29 of network "net": 3 of 3 addresses are held`, "Widen the range"} {
		assert.Contains(t, said(err), more)
	}
	assert.Equal(t, before, b.objects(t, ours.space))
	assert.Len(t, live(b.claims(t)), 1)
}

// The release that waits for the API server is of the old sandbox. What the pod's next one has stays.
func awayAtDel(t *testing.T, b *bed) {
	_, ours := b.mixed(t)
	section := small + `, "timeout": "2s"`
	c1, c2 := attachment{"default/pod1", "c1", "net1"}, attachment{"default/pod1", "c2", "net1"}
	require.NoError(t, ours.add(t, section, c1).err)
	require.NoError(t, b.KillAPIServer())
	out, err := ours.run(t.Context(), "DEL", section, c1)
	require.NoError(t, err)
	assert.Contains(t, string(out.Stderr), "queued on disk")
	require.NoError(t, b.StartAPIServer(t.Context()))
	got := ours.add(t, shared, c2)
	require.NoError(t, got.err)
	for range 2 { // replays, if the ADD didn't
		require.NoError(t, ours.add(t, shared, attachment{"default/pod2", "c3", "net1"}).err)
		require.NoError(t, ours.del(t, shared, attachment{"default/pod2", "c3", "net1"}))
	}
	addr, _, _ := strings.Cut(got.addresses, "/")
	key := addr[strings.LastIndex(addr, ".")+1:]
	assert.Equal(t, fmt.Sprintf("entry 10.0.0.0-24 of 10.0.0.0/24 %s c2 default/pod1 net1\nreservation %s default/pod1 net1", key, addr), b.objects(t, ours.space))
	assert.Equal(t, []string{addr}, live(b.claims(t)))
	require.NoError(t, ours.del(t, shared, c2))
	assert.Empty(t, b.objects(t, ours.space))
	assert.Empty(t, b.claims(t))
}
