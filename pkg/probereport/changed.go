package probereport

import (
	"slices"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// floor is the round-trip time, in microseconds, below which times count as
// equal: on a busy node they double and halve by themselves.
const floor = 250

// class of a loss.
type class int

const (
	none class = iota
	some       // less than half
	most
	all
)

func classOf(l v1alpha1.ProbeLeg) class {
	switch {
	case l.Lost <= 0 || l.Sent == 0:
		return none
	case l.Lost >= l.Sent:
		return all
	case 2*l.Lost >= l.Sent:
		return most
	}
	return some
}

// Changed says whether a report differs from an earlier one in substance: a leg
// loses packets that didn't, or no longer does, or loses them otherwise; a
// round-trip time has more than doubled or halved; a node is reached in a way in
// which none of it was before; Longhorn dials another address; or the cluster has grown over what one round can
// ask, or shrunk again. Other legs without loss may come and go.
func Changed(before, now v1alpha1.ProbeReportStatus) bool {
	if before.Sampled != now.Sampled || !slices.Equal(before.ISCSI, now.ISCSI) {
		return true
	}
	old, cur := byKey(before.Legs), byKey(now.Legs)
	for k, l := range cur {
		o, was := old[k]
		if classOf(l) != classOf(o) || was && slower(o.RTT, l.RTT) || !was && first(old, k) {
			return true
		}
	}
	for k, o := range old {
		if _, is := cur[k]; !is && classOf(o) != none {
			return true
		}
	}
	return false
}

// first says that no leg of before is of the same kind to the same node.
func first(before map[key]v1alpha1.ProbeLeg, k key) bool {
	for o := range before {
		if o.kind == k.kind && o.network == k.network && o.node == k.node {
			return false
		}
	}
	return true
}

func slower(a, b *v1alpha1.ProbeRTT) bool {
	if a == nil || b == nil {
		return false // then nothing came back, which is a class of loss
	}
	x, y := max(a.Median, floor), max(b.Median, floor)
	return x > 2*y || y > 2*x
}

// byKey keeps the worst leg of each key.
func byKey(legs []v1alpha1.ProbeLeg) map[key]v1alpha1.ProbeLeg {
	m := map[key]v1alpha1.ProbeLeg{}
	for _, l := range legs {
		k := keyOf(l.Kind, l.Network, l.Node, l.Address)
		if o, ok := m[k]; !ok || l.Lost*o.Sent > o.Lost*l.Sent {
			m[k] = l
		}
	}
	return m
}
