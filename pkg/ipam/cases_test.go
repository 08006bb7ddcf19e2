package ipam_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/embedded"
)

func open(t require.TestingT, dir string) *embedded.Store {
	store, err := embedded.Open(dir, "this-boot")
	require.NoError(t, err)
	return store
}

// allocator is what a call of the plugin would use.
func allocator(t require.TestingT, store ipam.Store, conf string, owner ipam.Owner, args ...string) (ipam.Allocator, ipam.Config) {
	cfg, err := ipam.Parse(ipam.Input{
		NetConf: fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "net", "ipam": %s}`, conf), Args: strings.Join(args, ";"),
	})
	require.NoError(t, err)
	owner.Network, owner.Node = cfg.Network, "node1"
	return ipam.Allocator{Store: store, Pools: cfg.Pools, Order: cfg.Order, Owner: owner}, cfg
}

func who(podRef, container, ifName string) ipam.Owner {
	return ipam.Owner{PodRef: podRef, ContainerID: container, IfName: ifName}
}

var pod1 = who("default/pod1", "cid1", "net1")

// held is the store's claims: address and container.
func held(t *testing.T, store ipam.Store, pools []ipam.Pool) map[string]string {
	claims := map[string]string{}
	for _, pool := range pools {
		seen, err := store.Snapshot(t.Context(), pool, ipam.Owner{ContainerID: "nobody"})
		require.NoError(t, err)
		for _, a := range seen.Taken {
			err := store.Create(t.Context(), pool, pool.NewClaim(a, ipam.Owner{ContainerID: "nobody"}))
			var taken *ipam.TakenError
			require.ErrorAs(t, err, &taken)
			claims[a.String()] = taken.Holder.ContainerID
		}
	}
	return claims
}

// hold makes claims for others, as "address container ifname podref".
func hold(t *testing.T, store ipam.Store, pool ipam.Pool, claims ...string) {
	for _, c := range claims {
		f := strings.Fields(c)
		owner := who(f[3], f[1], f[2])
		require.NoError(t, store.Create(t.Context(), pool, pool.NewClaim(netip.MustParseAddr(f[0]), owner)), c)
	}
}

func span(prefix string, from, to int) []string {
	var list []string
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprintf("%s%d x eth0 other/pod%d", prefix, i, i))
	}
	return list
}

// The cases are those of Whereabouts' behaviour, seen with its own binary, as far as a
// store without its objects can show them.
func TestWhereaboutsCases(t *testing.T) {
	case1 := []string{"10.0.0.1 cid1 net1 default/pod1"}
	case2 := []string{"10.0.0.1 cid2 net1 default/pod1"}
	for _, c := range []struct {
		nr     int
		conf   string
		before []string
		owner  ipam.Owner
		del    bool
		args   string
		want   string
		after  string // "address container" of all claims, sorted as fmt prints a map
		fault  string
	}{
		{nr: 1, conf: `{"range": "10.0.0.0/24"}`, owner: pod1, want: "10.0.0.1/24", after: "map[10.0.0.1:cid1]"},
		{nr: 2, conf: `{"range": "10.0.0.0/24"}`, before: case1, owner: who("default/pod1", "cid2", "net1"), want: "10.0.0.1/24", after: "map[10.0.0.1:cid2]"},
		{nr: 3, conf: `{"range": "10.0.0.0/24"}`, before: case2, owner: pod1, del: true, after: "map[10.0.0.1:cid2]"},
		{nr: 4, conf: `{"range": "10.0.0.0/24"}`, before: case2, owner: who("default/pod1", "cid2", "net2"), del: true, after: "map[10.0.0.1:cid2]"},
		{nr: 5, conf: `{"range": "10.0.0.0/24"}`, before: case2, owner: who("default/pod1", "cid2", "net1"), del: true, after: "map[]"},
		{nr: 6, conf: `{"range": "192.168.2.225/28"}`, owner: pod1, want: "192.168.2.225/28"},
		{nr: 7, conf: `{"range": "192.168.2.225-192.168.2.230/28"}`, before: span("192.168.2.", 225, 225), owner: pod1, want: "192.168.2.226/28"},
		{nr: 8, conf: `{"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.50"}`, owner: pod1, want: "10.0.0.5/24"},
		{nr: 9, conf: `{"range": "10.0.0.0/24", "range_start": "10.0.9.5", "range_end": "10.0.10.1"}`, owner: pod1, want: "10.0.0.1/24"},
		{nr: 10, conf: `{"range": "10.0.0.0/30"}`, before: span("10.0.0.", 1, 2), owner: pod1,
			fault: "error at storage engine: Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.2 / range: 10.0.0.0/30 / excludeRanges: []"},
		{nr: 11, conf: `{"range": "192.168.1.0/24", "exclude": ["192.168.1.0/28", "192.168.1.16/28"]}`, owner: pod1, want: "192.168.1.32/24"},
		{nr: 12, conf: `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1", "10.0.0.2/32"]}`, owner: pod1, want: "10.0.0.3/24"},
		// 13 is a fault of the configuration: TestParseFaults.
		{nr: 14, conf: `{"range": "10.0.0.0/23"}`, before: span("10.0.0.", 1, 255), owner: pod1, want: "10.0.1.0/23"},
		{nr: 15, conf: `{"range": "10.0.0.5-10.0.0.9/24"}`, before: []string{"10.0.0.77 cid0 net1 default/pod1"}, owner: pod1, want: "10.0.0.77/24", after: "map[10.0.0.77:cid1]"},
		{nr: 16, conf: `{"range": "10.0.0.0/24"}`, before: []string{"10.0.0.1 cid1 net2 default/pod1"}, owner: pod1, want: "10.0.0.2/24"},
		{nr: 17, conf: `{"range": "10.0.0.0/24"}`, before: []string{"10.0.0.1 x net1 other/pod"}, owner: pod1, want: "10.0.0.2/24"},
		{nr: 18, conf: `{"range": "fd00:1::/64"}`, owner: pod1, want: "fd00:1::1/64", after: "map[fd00:1::1:cid1]"},
		{nr: 19, conf: `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00:1::/64"}]}`, owner: pod1, want: "10.0.0.1/24 fd00:1::1/64"},
		{nr: 20, conf: `{"range": "10.0.0.0/24"}`, args: "IP=10.0.0.9/24", owner: pod1, want: "10.0.0.1/24 10.0.0.9/24", after: "map[10.0.0.1:cid1]"},
	} {
		t.Run(fmt.Sprint(c.nr), func(t *testing.T) {
			store := open(t, t.TempDir())
			alloc, cfg := allocator(t, store, c.conf, c.owner, c.args)
			hold(t, store, alloc.Pools[0], c.before...)
			if c.del {
				require.NoError(t, alloc.Del(t.Context()))
			} else {
				grant, err := alloc.Add(t.Context())
				if c.fault != "" {
					require.ErrorContains(t, err, c.fault)
					assert.Equal(t, cnierr.Exhausted, cnierr.CodeOf(err))
					assert.ErrorContains(t, err, "2 of 2 addresses are held")
					return
				}
				require.NoError(t, err)
				var result struct {
					IPs []struct{ Address string }
				}
				data, err := json.Marshal(cfg.Result(grant.Addresses))
				require.NoError(t, err)
				require.NoError(t, json.Unmarshal(data, &result))
				var got []string
				for _, ip := range result.IPs {
					got = append(got, ip.Address)
				}
				assert.Equal(t, c.want, strings.Join(got, " "))
			}
			if c.after != "" {
				assert.Equal(t, c.after, fmt.Sprint(held(t, store, alloc.Pools)))
			}
		})
	}
}

func TestOneCIDRTwice(t *testing.T) {
	for _, overlap := range []string{"true", "false"} {
		store := open(t, t.TempDir())
		conf := `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.0.0/24"}, {"range": "10.0.0.0/16"}], "enable_overlapping_ranges": ` + overlap + `}`
		for _, container := range []string{"cid1", "cid1", "cid2"} {
			alloc, _ := allocator(t, store, conf, who("default/pod1", container, "net1"))
			grant, err := alloc.Add(t.Context())
			require.NoError(t, err)
			assert.Equal(t, "[10.0.0.1/24 10.0.0.2/24 10.0.0.3/16]", fmt.Sprint(grant.Addresses))
		}
	}
}

func TestRangesOfOneCIDRKeepTheirOrder(t *testing.T) {
	store := open(t, t.TempDir())
	for _, container := range []string{"cid1", "cid2"} {
		alloc, _ := allocator(t, store, `{"ipRanges": [{"range": "10.0.0.10-10.0.0.30/24"}, {"range": "10.0.0.1-10.0.0.20/24"}]}`, who("default/pod1", container, "net1"))
		grant, err := alloc.Add(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "[10.0.0.10/24 10.0.0.1/24]", fmt.Sprint(grant.Addresses))
	}
}

// Two networks of one pod must not have one address, isolated or not; two pods of isolated networks may.
func TestTwoNetworksOfOnePod(t *testing.T) {
	store := open(t, t.TempDir())
	blue := `{"range": "10.0.0.0/24", "network_name": "blue", "enable_overlapping_ranges": false}`
	red := `{"range": "10.0.0.0/24", "network_name": "red", "enable_overlapping_ranges": false}`
	for _, c := range []struct {
		conf  string
		owner ipam.Owner
		want  string
	}{
		{blue, who("default/pod1", "cid1", "net1"), "10.0.0.1/24"},
		{red, who("default/pod1", "cid1", "net2"), "10.0.0.2/24"},
		{red, who("default/pod2", "cid2", "net1"), "10.0.0.1/24"},
		{blue, who("", "cid3", "net1"), "10.0.0.2/24"},
		{red, who("", "cid3", "net2"), "10.0.0.3/24"},
	} {
		alloc, _ := allocator(t, store, c.conf, c.owner)
		grant, err := alloc.Add(t.Context())
		require.NoError(t, err)
		assert.Equal(t, c.want, grant.Addresses[0].String(), "%+v", c.owner)
	}
}

func TestOverlappingRangesOfTwoNetworks(t *testing.T) {
	store := open(t, t.TempDir())
	wide, _ := allocator(t, store, `{"range": "10.0.0.0/16"}`, pod1)
	narrow, _ := allocator(t, store, `{"range": "10.0.0.0/24"}`, who("default/pod2", "cid2", "net1"))
	for _, c := range []struct {
		alloc ipam.Allocator
		want  string
	}{{wide, "10.0.0.1/16"}, {narrow, "10.0.0.2/24"}} {
		grant, err := c.alloc.Add(t.Context())
		require.NoError(t, err)
		assert.Equal(t, c.want, grant.Addresses[0].String())
	}
}

// A claim inside of what is kept for hosts by now is given back and another one chosen.
func TestClaimInTheHostRangeIsChosenAnew(t *testing.T) {
	store := open(t, t.TempDir())
	before, _ := allocator(t, store, `{"range": "10.0.0.0/24"}`, pod1)
	_, err := before.Add(t.Context())
	require.NoError(t, err)
	after, _ := allocator(t, store, `{"range": "10.0.0.0/24", "host_shim_range": "10.0.0.0/28"}`, who("default/pod1", "cid2", "net1"))
	grant, err := after.Add(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.16/24", grant.Addresses[0].String())
	assert.Equal(t, "map[10.0.0.16:cid2]", fmt.Sprint(held(t, store, after.Pools)))
}

// All ranges give an address or none is held.
func TestAllOrNothing(t *testing.T) {
	store := open(t, t.TempDir())
	alloc, _ := allocator(t, store, `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.1.0/30"}]}`, pod1)
	hold(t, store, alloc.Pools[1], span("10.0.1.", 1, 2)...)
	_, err := alloc.Add(t.Context())
	require.ErrorContains(t, err, "Could not allocate IP in range")
	assert.Equal(t, "map[10.0.1.1:x 10.0.1.2:x]", fmt.Sprint(held(t, store, alloc.Pools)))
	assert.Equal(t, cnierr.NotAvailable, cnierr.CodeOf(alloc.Status(t.Context())))
	assert.ErrorContains(t, alloc.Status(t.Context()), "Could not allocate IP in range")
}

// Del needs no pool: the configuration may have changed or be broken.
func TestDelWithoutPools(t *testing.T) {
	store := open(t, t.TempDir())
	alloc, _ := allocator(t, store, `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/64"}]}`, pod1)
	_, err := alloc.Add(t.Context())
	require.NoError(t, err)
	require.NoError(t, ipam.Allocator{Store: store, Owner: ipam.Owner{ContainerID: "cid1", IfName: "net1"}}.Del(t.Context()))
	assert.Empty(t, held(t, store, alloc.Pools))
}

func TestDecline(t *testing.T) {
	store := open(t, t.TempDir())
	alloc, _ := allocator(t, store, `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/64"}]}`, pod1)
	_, err := alloc.Add(t.Context())
	require.NoError(t, err)
	for range 2 { // to repeat it is no error
		require.NoError(t, alloc.Decline(t.Context(), netip.MustParseAddr("10.0.0.1"), "02:00:00:00:00:09"))
	}
	grant, err := alloc.Add(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.2/24 fd00::1/64]", fmt.Sprint(grant.Addresses))
	require.NoError(t, alloc.Del(t.Context()))
	other, _ := allocator(t, store, `{"range": "10.0.0.0/24"}`, who("default/pod2", "cid2", "net1"))
	grant, err = other.Add(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.2/24", grant.Addresses[0].String(), "the quarantine outlives the attachment")
	for _, foreign := range []string{"10.0.0.2", "10.0.0.3", "10.9.0.1"} {
		assert.ErrorContains(t, alloc.Decline(t.Context(), netip.MustParseAddr(foreign), "x"), "no range of network \"net\" has it claimed for interface net1 of pod default/pod1")
	}
}

func TestCheck(t *testing.T) {
	store := open(t, t.TempDir())
	alloc, _ := allocator(t, store, `{"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::/64"}]}`, pod1)
	grant, err := alloc.Add(t.Context())
	require.NoError(t, err)
	require.NoError(t, alloc.Check(t.Context(), grant.Addresses))
	more := append(slices.Clone(grant.Addresses), netip.MustParsePrefix("10.0.0.7/24"), netip.MustParsePrefix("192.168.0.1/24"))
	require.EqualError(t, alloc.Check(t.Context(), more), "address 10.0.0.7 of a pool isn't claimed for interface net1 of pod default/pod1 (container cid1) on node node1")
	require.ErrorContains(t, alloc.Check(t.Context(), grant.Addresses[:1]), "pool fd00---64: none of the addresses")
	require.NoError(t, alloc.Del(t.Context()))
	assert.ErrorContains(t, alloc.Check(t.Context(), grant.Addresses), "address fd00::1 of a pool isn't claimed")
}

func TestCollect(t *testing.T) {
	store := open(t, t.TempDir())
	alloc, _ := allocator(t, store, `{"range": "10.0.0.0/24"}`, pod1)
	for i, owner := range []ipam.Owner{pod1, who("default/pod2", "cid2", "net1"), who("", "cid3", "net1")} {
		a, _ := allocator(t, store, `{"range": "10.0.0.0/24"}`, owner)
		switch i {
		case 1:
			a.Owner.Network = "another"
		case 2:
			a.Owner.Node = "node2"
		}
		_, err := a.Add(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, alloc.Collect(t.Context(), nil))
	require.NoError(t, alloc.Collect(t.Context(), &[]ipam.Attachment{{ContainerID: "cid1", IfName: "net1"}}))
	assert.Equal(t, "map[10.0.0.1:cid1 10.0.0.2:cid2 10.0.0.3:cid3]", fmt.Sprint(held(t, store, alloc.Pools)))
	require.NoError(t, alloc.Collect(t.Context(), &[]ipam.Attachment{{ContainerID: "cid1", IfName: "net2"}}))
	assert.Equal(t, "map[10.0.0.2:cid2 10.0.0.3:cid3]", fmt.Sprint(held(t, store, alloc.Pools)))
}
