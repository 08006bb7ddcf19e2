package oracle

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// step is one call, and the answer that both programs have to give.
type step struct {
	verb, section string
	who           attachment
	args          []string
	want          string // addresses
	fault         string // a part of the refusal
}

// prior is what is there before a case's calls.
type prior struct {
	pool, whole string
	entries     []entry
	reserved    [][3]string // name, pod, interface
}

const small = `"range": "10.0.0.0/24"`

// Whereabouts' behaviour, case by case, as its own binary shows it. Each says what both answer, and the
// objects have to be equal after each call.
func cases(t *testing.T, b *bed) {
	cid2 := attachment{"default/pod1", "cid2", "net1"}
	again := []step{{verb: "ADD", section: small, who: pod1, want: "10.0.0.1/24"}, {verb: "ADD", section: small, who: cid2, want: "10.0.0.1/24"}}
	dels := []step{
		{verb: "DEL", section: small, who: pod1}, {verb: "DEL", section: small, who: attachment{"default/pod1", "cid2", "net2"}}, {verb: "DEL", section: small, who: cid2},
	}
	one := func(section, want string) []step {
		return []step{{verb: "ADD", section: section, who: pod1, want: want}}
	}
	refused := func(section, fault string) []step {
		return []step{{verb: "ADD", section: section, who: pod1, fault: fault}}
	}
	for _, c := range []struct {
		nr     string
		before prior
		steps  []step
		after  string // objects
	}{
		{nr: "1", steps: again[:1], after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid1 default/pod1 net1\nreservation 10.0.0.1 default/pod1 net1"},
		{nr: "2", steps: again, after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid2 default/pod1 net1\nreservation 10.0.0.1 default/pod1 net1"},
		{nr: "3", steps: append(again[:2:2], dels[:1]...), after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid2 default/pod1 net1\nreservation 10.0.0.1 default/pod1 net1"},
		{nr: "4", steps: append(again[:2:2], dels[:2]...), after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid2 default/pod1 net1\nreservation 10.0.0.1 default/pod1 net1"},
		{nr: "5", steps: append(again[:2:2], dels...)},
		{nr: "6", steps: one(`"range": "192.168.2.225/28"`, "192.168.2.225/28"),
			after: "entry 192.168.2.224-28 of 192.168.2.224/28 1 cid1 default/pod1 net1\nreservation 192.168.2.225 default/pod1 net1"},
		{nr: "7", before: prior{pool: "192.168.2.224-28", whole: "192.168.2.224/28", entries: strangers(1, 1)},
			steps: one(`"range": "192.168.2.225-192.168.2.230/28"`, "192.168.2.226/28")},
		{nr: "8", steps: one(`"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.50"`, "10.0.0.5/24")},
		{nr: "9", steps: one(`"range": "10.0.0.0/24", "range_start": "10.0.9.5", "range_end": "10.0.10.1"`, "10.0.0.1/24")},
		{nr: "10", before: prior{pool: "10.0.0.0-30", whole: "10.0.0.0/30", entries: strangers(1, 2)}, steps: refused(`"range": "10.0.0.0/30"`,
			"error at storage engine: Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.2 / range: 10.0.0.0/30 / excludeRanges: []")},
		{nr: "11", steps: one(`"range": "192.168.1.0/24", "exclude": ["192.168.1.0/28", "192.168.1.16/28"]`, "192.168.1.32/24")},
		{nr: "12", steps: one(small+`, "exclude": ["10.0.0.1", "10.0.0.2/32"]`, "10.0.0.3/24")},
		{nr: "13", steps: refused(small+`, "exclude": ["nope"]`, "nope")},
		{nr: "14", before: prior{pool: "10.0.0.0-23", whole: "10.0.0.0/23", entries: strangers(1, 255)}, steps: one(`"range": "10.0.0.0/23"`, "10.0.1.0/23")},
		{nr: "15", before: prior{pool: "10.0.0.0-24", whole: "10.0.0.0/24", entries: []entry{{key: "77", id: "cid0", pod: "default/pod1", ifName: "net1"}}},
			steps: one(`"range": "10.0.0.5-10.0.0.9/24"`, "10.0.0.77/24"), after: "entry 10.0.0.0-24 of 10.0.0.0/24 77 cid1 default/pod1 net1\nreservation 10.0.0.77 default/pod1 net1"},
		{nr: "16", before: prior{pool: "10.0.0.0-24", whole: "10.0.0.0/24", entries: []entry{{key: "1", id: "cid1", pod: "default/pod1", ifName: "net2"}}}, steps: one(small, "10.0.0.2/24")},
		{nr: "17", before: prior{reserved: [][3]string{{"10.0.0.1", "other/pod", "net1"}}}, steps: one(small, "10.0.0.2/24")},
		{nr: "18", steps: one(`"range": "fd00:1::/64"`, "fd00:1::1/64"), after: "entry fd00-1---64 of fd00:1::/64 1 cid1 default/pod1 net1\nreservation fd00-1--1 default/pod1 net1"},
		{nr: "19", steps: one(`"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00:1::/64"}]`, "10.0.0.1/24, fd00:1::1/64")},
		{nr: "20", steps: []step{{verb: "ADD", section: small, who: pod1, args: []string{"IP=10.0.0.9/24"}, want: "10.0.0.1/24, 10.0.0.9/24"}},
			after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid1 default/pod1 net1\nreservation 10.0.0.1 default/pod1 net1"},
		{nr: "named", steps: one(small+`, "network_name": "blue"`, "10.0.0.1/24"),
			after: "entry blue-10.0.0.0-24 of 10.0.0.0/24 1 cid1 default/pod1 net1\nreservation blue-10.0.0.1 default/pod1 net1"},
		{nr: "isolated", steps: one(small+`, "enable_overlapping_ranges": false`, "10.0.0.1/24"), after: "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid1 default/pod1 net1"},
		{nr: "gateway", steps: one(small+`, "gateway": "10.0.0.254", "addresses": [{"address": "10.9.0.1/16"}]`, "10.0.0.1/24 via 10.0.0.254, 10.9.0.1/16")},
		{nr: "too small", steps: refused(`"range": "10.0.0.0/31"`, "has no usable IP addresses, it is too small")},
		{nr: "range start outside", steps: refused(`"range": "192.168.1.5-192.168.2.25/28"`, "192.168.1.5")},
	} {
		t.Run(c.nr, func(t *testing.T) {
			theirs, ours := b.twins(t)
			for _, s := range []*side{theirs, ours} {
				s.prepare(t, c.before)
			}
			before := b.objects(t, ours.space)
			for _, call := range c.steps {
				theirs.takes(t, call)
				ours.takes(t, call)
				require.Equal(t, b.objects(t, theirs.space), b.objects(t, ours.space))
			}
			if c.after != "" {
				assert.Equal(t, c.after, b.objects(t, ours.space))
			}
			last := c.steps[len(c.steps)-1]
			for _, call := range c.steps {
				require.NoError(t, ours.del(t, call.section, call.who))
				if err := theirs.del(t, call.section, call.who); call.fault == "" {
					require.NoError(t, err) // of a configuration that it can't read it refuses the DEL, too
				}
			}
			assert.Equal(t, b.objects(t, theirs.space), b.objects(t, ours.space))
			if last.fault != "" {
				assert.Equal(t, before, b.objects(t, ours.space))
			}
			assert.Empty(t, b.claims(t))
		})
	}
}

func (s *side) prepare(t *testing.T, p prior) {
	if p.pool != "" {
		s.makePool(t, p.pool, p.whole, p.entries...)
	}
	for _, r := range p.reserved {
		s.reserve(t, r[0], r[1], r[2])
	}
}

// takes makes a call and checks the answer.
func (s *side) takes(t *testing.T, c step) {
	got := s.call(t, callTime, c.verb, c.section, c.who, c.args...)
	if c.fault == "" {
		require.NoError(t, got.err, s.kind)
		require.Equal(t, c.want, got.addresses, s.kind)
		return
	}
	require.Error(t, got.err, s.kind)
	require.Contains(t, said(got.err), c.fault, s.kind)
}

// strangers are entries of other pods with the keys from to to.
func strangers(from, to int) []entry {
	var list []entry
	for i := from; i <= to; i++ {
		list = append(list, entry{key: strconv.Itoa(i), id: "x", pod: fmt.Sprintf("other/pod%d", i), ifName: "eth0"})
	}
	return list
}
