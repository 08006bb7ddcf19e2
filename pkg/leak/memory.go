package leak

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Settings are the times of the rule.
type Settings struct {
	Interval  time.Duration // between two passes; 0: a minute
	MinAge    time.Duration // of a claim that may be collected; 0: five minutes
	NodeGrace time.Duration // for which a Node must be missing before its claims count as leaked; 0: five minutes
}

func (s *Settings) setDefaults() {
	for value, standard := range map[*time.Duration]time.Duration{&s.Interval: time.Minute, &s.MinAge: 5 * time.Minute, &s.NodeGrace: 5 * time.Minute} {
		if *value == 0 {
			*value = standard
		}
	}
}

// Memory is what passes know of those before them. A new one makes everything wait once more, which does no harm.
type Memory struct {
	suspects map[types.UID]suspect
	missed   map[types.UID]suspect // claims whose Node is missing
}

// suspect is a claim of which something was found, as it was then.
type suspect struct {
	since   time.Time
	version string
}

// Pass judges all claims. leaked are those that count as leaked now, and due the ones among them that were found so before, some time
// ago, and haven't changed since. at is this machine's clock.
func (m *Memory) Pass(s Settings, at time.Time, seen *Cluster) (leaked, due []Verdict) {
	s.setDefaults()
	j := judgement{Settings: s, Cluster: seen, missing: m.miss(at, seen), siblings: map[interfaceOf][]v1alpha1.AddressClaim{}}
	for _, c := range seen.Claims {
		if c.Spec.Declined == nil && !c.Spec.Released {
			j.siblings[siblingsOf(c)] = append(j.siblings[siblingsOf(c)], c)
		}
	}
	before := m.suspects
	m.suspects = map[types.UID]suspect{}
	for _, c := range seen.Claims {
		reason, why := j.judge(c)
		if reason == Held {
			continue
		}
		v := Verdict{c, reason, why}
		leaked = append(leaked, v)
		now := suspect{at, c.ResourceVersion}
		if old, ok := before[c.UID]; ok && old.version == now.version {
			now.since = old.since
			if at.Sub(old.since) >= s.Interval/2 { // a pass may come a little early after one that was late
				due = append(due, v)
			}
		}
		m.suspects[c.UID] = now
	}
	return leaked, due
}

// miss notes of which claims the Node is missing, and returns for how long. It counts from the claim's last change: between two
// passes a node may have come back, made that change, and gone again.
func (m *Memory) miss(at time.Time, seen *Cluster) map[types.UID]time.Duration {
	before, missing := m.missed, map[types.UID]time.Duration{}
	m.missed = map[types.UID]suspect{}
	for _, c := range seen.Claims {
		if _, there := seen.Nodes[c.Spec.Node]; there || c.Spec.Node == "" {
			continue
		}
		now := suspect{at, c.ResourceVersion}
		if old, ok := before[c.UID]; ok && old.version == now.version {
			now = old
		}
		m.missed[c.UID], missing[c.UID] = now, at.Sub(now.since)
	}
	return missing
}
