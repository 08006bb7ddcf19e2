package kubeipam

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// All on one cluster: it takes longer to start than a test to run.
func TestOnARealAPIServer(t *testing.T) {
	b := newBed(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"whereabouts' cases", cases},
		{"records of whereabouts", foreign},
		{"strangers", strangers},
		{"an interrupted ADD", interrupted},
		{"quarantine", quarantine},
		{"exhaustion", exhaustion},
		{"collection", collection},
		{"an entry that somebody else removed", removedByAnother},
		{"schemas", schemas},
		{"verbs", verbs},
		{"many at once", many},
		{"as many pods as addresses", exact},
		{"record: agent", agentMode},
		{"sticky with record: agent", stickyAgent},
		{"places", places},
		{"identity", identity},
		{"full host range", fullRange},
		{"families", families},
		{"host-shim", hostShimVerb},
		{"places, interrupted", placesInterrupted},
		{"probe reports", probeReports},
		{"beside whereabouts", beside},
		{"each call fails", eachCall},
		{"each call goes wrong on the wire", throughAProxy},
		{"API server away", away},
		{"kill -9 at each point", killed},
		{"two hundred at once", crowds},
		{"back at once", backAtOnce},
		{"back again, with a recorder", backAgain},
		{"overtaken release, record: sync", overtaken("sync")},
		{"overtaken release, record: agent", overtaken("agent")},
		{"leaks, record: sync", leaks("sync")},
		{"leaks, record: agent", leaks("agent")},
		{"API server killed in a storm, record: sync", serverKilled("sync")},
		{"API server killed in a storm, record: agent", serverKilled("agent")},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.wipe(t)
			test.run(t, b)
		})
	}
}

// The cases are those of Whereabouts' behaviour, seen with its own binary.
func cases(t *testing.T, b *bed) {
	case1 := []string{"1 cid1 default/pod1 net1"}
	case2 := []string{"1 cid2 default/pod1 net1"}
	for _, c := range []struct {
		nr           int
		conf         string
		pool, whole  string
		before       []string // entries
		reservations []string // "name podref ifname"
		owner        ipam.Owner
		del          bool
		want, fault  string
		after        []string
	}{
		{nr: 1, conf: `{"range": "10.0.0.0/24"}`, owner: pod1, want: "10.0.0.1/24",
			after: []string{"claim 10.0.0.1 cid1 default/pod1 net1", "entry 10.0.0.0-24 1 cid1 default/pod1 net1", "reservation 10.0.0.1 cid1 default/pod1 net1"}},
		{nr: 2, conf: `{"range": "10.0.0.0/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: case1, reservations: []string{"10.0.0.1 default/pod1 net1"},
			owner: who("default/pod1", "cid2", "net1"), want: "10.0.0.1/24",
			after: []string{"claim 10.0.0.1 cid2 default/pod1 net1", "entry 10.0.0.0-24 1 cid2 default/pod1 net1", "reservation 10.0.0.1 cid2 default/pod1 net1"}},
		{nr: 3, conf: `{"range": "10.0.0.0/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: case2, reservations: []string{"10.0.0.1 default/pod1 net1"},
			owner: pod1, del: true, after: []string{"entry 10.0.0.0-24 1 cid2 default/pod1 net1", "reservation 10.0.0.1  default/pod1 net1"}},
		{nr: 4, conf: `{"range": "10.0.0.0/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: case2, reservations: []string{"10.0.0.1 default/pod1 net1"},
			owner: who("default/pod1", "cid2", "net2"), del: true, after: []string{"entry 10.0.0.0-24 1 cid2 default/pod1 net1", "reservation 10.0.0.1  default/pod1 net1"}},
		{nr: 5, conf: `{"range": "10.0.0.0/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: case2, reservations: []string{"10.0.0.1 default/pod1 net1"},
			owner: who("default/pod1", "cid2", "net1"), del: true, after: []string{""}},
		{nr: 6, conf: `{"range": "192.168.2.225/28"}`, owner: pod1, want: "192.168.2.225/28",
			after: []string{"claim 192.168.2.225 cid1 default/pod1 net1", "entry 192.168.2.224-28 1 cid1 default/pod1 net1", "reservation 192.168.2.225 cid1 default/pod1 net1"}},
		{nr: 7, conf: `{"range": "192.168.2.225-192.168.2.230/28"}`, pool: "192.168.2.224-28", whole: "192.168.2.224/28", before: span(1, 1), owner: pod1, want: "192.168.2.226/28"},
		{nr: 8, conf: `{"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.50"}`, owner: pod1, want: "10.0.0.5/24"},
		{nr: 9, conf: `{"range": "10.0.0.0/24", "range_start": "10.0.9.5", "range_end": "10.0.10.1"}`, owner: pod1, want: "10.0.0.1/24"},
		{nr: 10, conf: `{"range": "10.0.0.0/30"}`, pool: "10.0.0.0-30", whole: "10.0.0.0/30", before: span(1, 2), owner: pod1,
			fault: "error at storage engine: Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.2 / range: 10.0.0.0/30 / excludeRanges: []"},
		{nr: 11, conf: `{"range": "192.168.1.0/24", "exclude": ["192.168.1.0/28", "192.168.1.16/28"]}`, owner: pod1, want: "192.168.1.32/24"},
		{nr: 12, conf: `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1", "10.0.0.2/32"]}`, owner: pod1, want: "10.0.0.3/24"},
		{nr: 14, conf: `{"range": "10.0.0.0/23"}`, pool: "10.0.0.0-23", whole: "10.0.0.0/23", before: span(1, 255), owner: pod1, want: "10.0.1.0/23"},
		{nr: 15, conf: `{"range": "10.0.0.5-10.0.0.9/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: []string{"77 cid0 default/pod1 net1"}, owner: pod1, want: "10.0.0.77/24",
			after: []string{"claim 10.0.0.77 cid1 default/pod1 net1", "entry 10.0.0.0-24 77 cid1 default/pod1 net1", "reservation 10.0.0.77 cid1 default/pod1 net1"}},
		{nr: 16, conf: `{"range": "10.0.0.0/24"}`, pool: "10.0.0.0-24", whole: "10.0.0.0/24", before: []string{"1 cid1 default/pod1 net2"}, owner: pod1, want: "10.0.0.2/24"},
		{nr: 17, conf: `{"range": "10.0.0.0/24"}`, reservations: []string{"10.0.0.1 other/pod net1"}, owner: pod1, want: "10.0.0.2/24",
			after: []string{"claim 10.0.0.2 cid1 default/pod1 net1", "entry 10.0.0.0-24 2 cid1 default/pod1 net1", "reservation 10.0.0.1  other/pod net1", "reservation 10.0.0.2 cid1 default/pod1 net1"}},
		{nr: 18, conf: `{"range": "fd00:1::/64"}`, owner: pod1, want: "fd00:1::1/64",
			after: []string{"claim fd00-1--1 cid1 default/pod1 net1", "entry fd00-1---64 1 cid1 default/pod1 net1", "reservation fd00-1--1 cid1 default/pod1 net1"}},
		{nr: 19, conf: `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00:1::/64"}]}`, owner: pod1, want: "10.0.0.1/24 fd00:1::1/64"},
		{nr: 21, conf: `{"range": "10.0.0.0/24", "network_name": "blue"}`, owner: pod1, want: "10.0.0.1/24",
			after: []string{"claim blue-10.0.0.1 cid1 default/pod1 net1", "entry blue-10.0.0.0-24 1 cid1 default/pod1 net1", "reservation blue-10.0.0.1 cid1 default/pod1 net1"}},
		{nr: 22, conf: `{"range": "10.0.0.0/24", "enable_overlapping_ranges": false}`, owner: pod1, want: "10.0.0.1/24",
			after: []string{"claim 10.0.0.0-24-10.0.0.1 cid1 default/pod1 net1", "entry 10.0.0.0-24 1 cid1 default/pod1 net1"}},
	} {
		t.Run(fmt.Sprint(c.nr), func(t *testing.T) {
			b.wipe(t)
			n := b.node(t, "node1")
			if c.pool != "" {
				b.makePool(t, c.pool, c.whole, c.before...)
			}
			for _, r := range c.reservations {
				f := strings.Fields(r)
				b.reserve(t, f[0], f[1], f[2])
			}
			if c.del {
				require.NoError(t, n.del(t, c.conf, c.owner))
			} else {
				got, err := n.add(t, c.conf, c.owner)
				if c.fault != "" {
					require.ErrorContains(t, err, c.fault)
					assert.Equal(t, cnierr.Exhausted, cnierr.CodeOf(err))
					return
				}
				require.NoError(t, err)
				assert.Equal(t, c.want, got)
			}
			if c.after != nil {
				assert.Equal(t, strings.Join(c.after, "\n"), b.objects(t))
			}
			// What it added the DEL takes away, and nothing else.
			require.NoError(t, n.del(t, c.conf, c.owner))
			assert.NotContains(t, b.objects(t), " "+c.owner.ContainerID+" "+c.owner.PodRef+" "+c.owner.IfName)
			assert.Empty(t, n.pages(t))
		})
	}
}

// What a real Whereabouts recorded is taken over by the pod's next sandbox, and released with it, also after a
// reboot.
func foreign(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/24"}`
	b.makePool(t, "10.0.0.0-24", "10.0.0.0/24", "1 cid1 default/pod1 net1", "2 cid2 default/pod2 net1")
	b.reserve(t, "10.0.0.1", "default/pod1", "net1")
	b.reserve(t, "10.0.0.2", "default/pod2", "net1")
	require.NoError(t, n.del(t, conf, pod1))
	assert.Equal(t, "entry 10.0.0.0-24 2 cid2 default/pod2 net1\nreservation 10.0.0.2  default/pod2 net1", b.objects(t))

	newer := who("default/pod2", "cid3", "net1")
	got, err := n.add(t, conf, newer)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.2/24", got)
	require.NoError(t, n.del(t, conf, who("default/pod2", "cid2", "net1")), "of the older sandbox")
	assert.Equal(t, "claim 10.0.0.2 cid3 default/pod2 net1\nentry 10.0.0.0-24 2 cid3 default/pod2 net1\nreservation 10.0.0.2 cid3 default/pod2 net1", b.objects(t))

	n.dir = t.TempDir() // a reboot
	require.NoError(t, n.del(t, conf, newer))
	assert.Empty(t, b.objects(t))
}

// An address that is recorded for somebody without a claim is passed over, and what was claimed in vain is given back.
func strangers(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/24"}`
	for i := 1; i <= 5; i++ {
		b.reserve(t, fmt.Sprintf("10.0.0.%d", i), "other/pod", "net1")
	}
	got, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.6/24", got)
	assert.Equal(t, 7, len(strings.Split(b.objects(t), "\n"))-1, "%s", b.objects(t))
	require.NoError(t, n.del(t, conf, pod1))
	assert.NotContains(t, b.objects(t), "cid1")
}

// What a killed ADD claimed its repetition finds again, and so does its DEL.
func interrupted(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/24"}`
	claimed := func() { // as a process that is killed right after its claim leaves it
		alloc, _ := n.call(t, conf, pod1)
		pool := alloc.Pools[0]
		claim := pool.NewClaim(addr("10.0.0.9"), alloc.Owner)
		blocked := n.client(t, "")
		_, store := n.callBy(t, blocked, conf, pod1)
		require.NoError(t, store.Create(t.Context(), pool, claim))
		require.NoError(t, b.api.Patch(t.Context(), kube.Pools("kube-system"), "10.0.0.0-24", []kubeapi.Op{kubeapi.Remove("/spec/allocations/9")}, nil))
		require.NoError(t, b.api.Delete(t.Context(), kube.Reservations("kube-system"), "10.0.0.9", "", ""))
		require.Equal(t, "claim 10.0.0.9 cid1 default/pod1 net1", b.objects(t))
	}
	b.makePool(t, "10.0.0.0-24", "10.0.0.0/24")
	claimed()
	for range 2 {
		got, err := n.add(t, conf, pod1)
		require.NoError(t, err)
		assert.Equal(t, "10.0.0.9/24", got)
		assert.Equal(t, 1, b.whole(t, false))
	}
	require.NoError(t, n.del(t, conf, pod1))
	require.Empty(t, b.objects(t))
	claimed()
	require.NoError(t, n.del(t, conf, pod1))
	require.Empty(t, b.objects(t))
	claimed()
	got, err := n.add(t, conf, who("default/pod1", "cid2", "net1"))
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.9/24", got, "a newer sandbox on the same node")
	require.NoError(t, n.del(t, conf, pod1))
	assert.Equal(t, 1, b.whole(t, false))
}

func quarantine(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/24"}`
	_, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	alloc, _ := n.call(t, conf, pod1)
	for range 2 {
		require.NoError(t, alloc.Decline(t.Context(), addr("10.0.0.1"), "02:00:00:00:00:09"))
	}
	assert.Equal(t, "claim 10.0.0.1 cid1 default/pod1 net1 declined", b.objects(t))
	got, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.2/24", got)
	other := b.node(t, "node2")
	got, err = other.add(t, conf, who("default/pod2", "cid2", "net1"))
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.3/24", got, "for all nodes")
	require.NoError(t, n.del(t, conf, pod1))
	require.NoError(t, other.del(t, conf, who("default/pod2", "cid2", "net1")))
	assert.Equal(t, "claim 10.0.0.1 cid1 default/pod1 net1 declined", b.objects(t), "the quarantine outlives the pod")

	past := []kubeapi.Op{kubeapi.Add("/spec/declined/until", time.Now().Add(-time.Second).UTC().Format(time.RFC3339))}
	require.NoError(t, b.api.Patch(t.Context(), kube.Claims, "10.0.0.1", past, nil))
	require.Eventually(t, func() bool { // the server's memory follows its disk
		got, err = n.add(t, conf, pod1)
		require.NoError(t, err)
		return got == "10.0.0.1/24" || n.del(t, conf, pod1) != nil
	}, 5*time.Second, 20*time.Millisecond)
	assert.Equal(t, "10.0.0.1/24", got)
}

func exhaustion(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/30"}`
	for _, owner := range []ipam.Owner{pod1, who("default/pod2", "cid2", "net1")} {
		_, err := n.add(t, conf, owner)
		require.NoError(t, err)
	}
	_, err := n.add(t, conf, who("default/pod3", "cid3", "net1"))
	assert.Equal(t, cnierr.Exhausted, cnierr.CodeOf(err))
	require.ErrorContains(t, err, "Pool 10.0.0.0-30 of network \"net\": 2 of 2 addresses are held")
	assert.Equal(t, 2, b.whole(t, false))
	assert.Len(t, n.pages(t), 2)

	// A DEL that was killed after its mark doesn't keep the address from the next.
	mark := []kubeapi.Op{kubeapi.Add("/spec/released", true), kubeapi.Add("/metadata/labels/"+kubeapi.Escape(v1alpha1.LabelState), v1alpha1.StateReleased)}
	require.NoError(t, b.api.Patch(t.Context(), kube.Claims, "10.0.0.1", mark, nil))
	got, err := n.add(t, conf, who("default/pod3", "cid3", "net1"))
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1/30", got)
	require.NoError(t, n.del(t, conf, pod1))
	assert.Equal(t, 2, b.whole(t, false))
}

func collection(t *testing.T, b *bed) {
	conf := `{"range": "10.0.0.0/24"}`
	one, two := b.node(t, "node1"), b.node(t, "node2")
	for i, n := range []*node{one, one, two} {
		_, err := n.add(t, conf, who(fmt.Sprint("default/pod", i), fmt.Sprint("cid", i), "net1"))
		require.NoError(t, err)
	}
	alloc, _ := one.call(t, conf, pod1)
	require.NoError(t, alloc.Collect(t.Context(), nil))
	assert.Equal(t, 3, b.whole(t, false))
	require.NoError(t, alloc.Collect(t.Context(), &[]ipam.Attachment{{ContainerID: "cid1", IfName: "net1"}}))
	assert.Equal(t, 2, b.whole(t, false))
	other := alloc
	other.Owner.Network = "another"
	require.NoError(t, other.Collect(t.Context(), &[]ipam.Attachment{}))
	assert.Equal(t, 2, b.whole(t, false))
	require.NoError(t, alloc.Collect(t.Context(), &[]ipam.Attachment{}))
	assert.Contains(t, b.objects(t), "claim 10.0.0.3 cid2 default/pod2 net1")
	assert.Equal(t, 1, b.whole(t, false))
}

// A DEL whose entry somebody else has removed notes in the pool all the same that its claim was given up: a patch for all that is under
// way, by a list from before, must fail by that, or it would bring the entry back.
func removedByAnother(t *testing.T, b *bed) {
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/24"}`
	_, err := n.add(t, conf, pod1)
	require.NoError(t, err)
	require.NoError(t, b.api.Patch(t.Context(), kube.Pools("kube-system"), "10.0.0.0-24", []kubeapi.Op{kubeapi.Remove("/spec/allocations/1")}, nil))
	var claim v1alpha1.AddressClaim
	require.NoError(t, b.api.Get(t.Context(), kube.Claims, "10.0.0.1", &claim))
	require.NoError(t, n.del(t, conf, pod1))
	require.Empty(t, b.objects(t))
	var pool whereabouts.IPPool
	require.NoError(t, b.api.Get(t.Context(), kube.Pools("kube-system"), "10.0.0.0-24", &pool))
	noted, _, _ := strings.Cut(pool.Annotations[v1alpha1.Group+"/given-up"], ".")
	asOf, err := strconv.ParseUint(noted, 10, 64)
	require.NoError(t, err, "the annotation is %q", noted)
	listed, err := strconv.ParseUint(claim.ResourceVersion, 10, 64)
	require.NoError(t, err)
	assert.Greater(t, asOf, listed, "a list with the claim as a live one is as of %d", listed)
}

func many(t *testing.T, b *bed) {
	const pods = 100
	nodes := []*node{b.node(t, "node1"), b.node(t, "node2")}
	conf := `{"range": "10.0.0.0/22"}`
	owner := func(i int) ipam.Owner { return who(fmt.Sprint("default/pod", i), fmt.Sprint("cid", i), "net1") }
	var mu sync.Mutex
	seen := map[string]bool{}
	b.counted()
	took := atOnce(pods, func(i int) {
		got, err := nodes[i%2].add(t, conf, owner(i))
		assert.NoError(t, err)
		mu.Lock()
		defer mu.Unlock()
		assert.False(t, seen[got], "%s was given twice", got)
		seen[got] = true
	})
	t.Logf("%d ADDs at once in %s: %s", pods, took.Round(time.Millisecond), b.counted())
	require.Equal(t, pods, b.whole(t, false))
	took = atOnce(pods, func(i int) { assert.NoError(t, nodes[i%2].del(t, conf, owner(i))) })
	t.Logf("%d DELs at once in %s: %s", pods, took.Round(time.Millisecond), b.counted())
	require.Empty(t, b.objects(t))
	// ADDs and DELs at once.
	took = atOnce(pods, func(i int) {
		for range 3 {
			_, err := nodes[i%2].add(t, conf, owner(i))
			assert.NoError(t, err)
			assert.NoError(t, nodes[i%2].del(t, conf, owner(i)))
		}
	})
	t.Logf("%d times 3 ADDs and DELs at once in %s: %s", pods, took.Round(time.Millisecond), b.counted())
	require.Empty(t, b.objects(t))
}

// Exactly as many pods as there are addresses get one each.
func exact(t *testing.T, b *bed) {
	const pods = 62
	n := b.node(t, "node1")
	conf := `{"range": "10.0.0.0/26"}`
	took := atOnce(pods, func(i int) {
		_, err := n.add(t, conf, who(fmt.Sprint("default/pod", i), fmt.Sprint("cid", i), "net1"))
		assert.NoError(t, err)
	})
	t.Logf("%d ADDs of all addresses in %s", pods, took.Round(time.Millisecond))
	assert.Equal(t, pods, b.whole(t, false))
}
