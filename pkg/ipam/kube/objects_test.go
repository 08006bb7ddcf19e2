package kube

import (
	"math/big"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct{ base, addr, key string }{
		{"10.0.0.0", "10.0.0.1", "1"},
		{"10.0.0.0", "10.0.1.0", "256"},
		{"192.168.2.224", "192.168.2.225", "1"},
		{"fd00:1::", "fd00:1::1", "1"},
		{"fd00:1::", "fd00:1::ffff:ffff:ffff:ffff", "18446744073709551615"},
		{"fd00::", "fd00::1:0:0:0:0", "18446744073709551616"},
	} {
		base, addr := netip.MustParseAddr(c.base), netip.MustParseAddr(c.addr)
		assert.Equal(t, c.key, keyOf(base, addr))
		back, ok := addressAt(base, c.key)
		assert.True(t, ok)
		assert.Equal(t, addr, back)
	}
	for _, key := range []string{"", "-1", "x", "1.5", "0x1", "99999999999999999999999999999999999999999999999"} {
		for _, base := range []string{"10.0.0.0", "fd00::"} {
			_, ok := addressAt(netip.MustParseAddr(base), key)
			assert.False(t, ok, "%s %s", base, key)
		}
	}
	_, ok := addressAt(netip.MustParseAddr("255.255.255.0"), "256")
	assert.False(t, ok)
}

// The quick way for IPv4 gives what the plain one does.
func TestAnyKey(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(rt, "base")))
		n := rapid.Uint64().Draw(rt, "key") >> rapid.IntRange(0, 63).Draw(rt, "shift")
		sum := new(big.Int).Add(number(base), new(big.Int).SetUint64(n))
		got, ok := addressAt(base, new(big.Int).SetUint64(n).String())
		require.Equal(rt, sum.BitLen() <= 32, ok)
		if ok {
			require.Equal(rt, sum, number(got))
		}
	})
}

func TestClaimsAndObjects(t *testing.T) {
	pool, _, err := ipam.NewPool("blue", false, netip.MustParsePrefix("fd00:1::/64"), netip.Addr{}, netip.Addr{})
	require.NoError(t, err)
	claim := pool.NewClaim(netip.MustParseAddr("fd00:1::1"), ipam.Owner{
		Network: "net", Node: "node1", PodRef: "ns/pod", PodUID: "uid", ContainerID: "c1", IfName: "net1", MAC: "02:00:00:00:00:01",
	})
	object := objectOf(pool, claim)
	assert.Equal(t, claim, claimOf(object))
	assert.Equal(t, "blue-fd00-1--1", object.Name)
	assert.Equal(t, "blue-fd00-1--1", reservationName(object.Spec))
	assert.Equal(t, "fd00:1::/64", object.Spec.Range)
	assert.True(t, live(object))
	now := time.Now()
	object.Spec.Declined = &v1alpha1.Declined{MAC: "x", Until: metav1.NewTime(now)}
	assert.False(t, live(object))
	assert.True(t, over(object, now))
	assert.False(t, over(object, now.Add(-time.Second)))
	object.Spec.Address = "nonsense"
	assert.False(t, claimOf(object).Address.IsValid())
	assert.Empty(t, reservationName(object.Spec))
}

func TestLeaseFresh(t *testing.T) {
	now := time.Now()
	at := func(age time.Duration, holder string) bool {
		renewed := metav1.NewMicroTime(now.Add(-age))
		return Lease{Spec: LeaseSpec{HolderIdentity: holder, RenewTime: &renewed}}.Fresh(now)
	}
	assert.True(t, at(29*time.Second, "a"))
	assert.False(t, at(31*time.Second, "a"))
	assert.False(t, at(time.Second, ""))
	assert.False(t, Lease{Spec: LeaseSpec{HolderIdentity: "a"}}.Fresh(now))
}

func TestJournal(t *testing.T) {
	j := journal{dir: t.TempDir()}
	one := ipam.Owner{PodRef: "ns/pod", ContainerID: "c1", IfName: "net1"}
	two := one
	two.IfName = "net2"
	newer := one
	newer.ContainerID = "c2"
	for _, o := range []ipam.Owner{one, two, newer} {
		require.NoError(t, j.note(o, noted{Name: "claim-" + o.ContainerID + o.IfName, Address: netip.MustParseAddr("10.0.0.1")}))
	}
	require.NoError(t, j.note(one, noted{Name: "second"}))
	require.NoError(t, j.note(one, noted{Name: "second", Recorded: "7"}))
	pages, err := j.pod(one)
	require.NoError(t, err)
	assert.Len(t, pages, 3)
	p, err := j.sandbox(ipam.Owner{ContainerID: "c1", IfName: "net1"})
	require.NoError(t, err)
	require.Len(t, p.Claims, 2, "whatever the runtime says of the pod by then")
	n, err := j.noted(one, "second")
	require.NoError(t, err)
	assert.Equal(t, "7", n.Recorded)
	require.NoError(t, j.forget(one, "second"))
	require.NoError(t, j.forget(one, "claim-c1net1"))
	p, err = j.sandbox(one)
	require.NoError(t, err)
	assert.Empty(t, p.Claims)
	require.NoError(t, j.close(two))
	pages, err = j.pod(one)
	require.NoError(t, err)
	require.Len(t, pages, 1)
	assert.Equal(t, newer, pages[0].Owner)
}

// The processes of a node share addresses out; what the recorder has yet to remove is for nobody but the pod that had it.
func TestHeld(t *testing.T) {
	j := journal{dir: t.TempDir(), lingering: true}
	one := ipam.Owner{PodRef: "ns/one", ContainerID: "c1", IfName: "net1"}
	two := ipam.Owner{PodRef: "ns/two", ContainerID: "c2", IfName: "net1"}
	again := ipam.Owner{PodRef: "ns/one", ContainerID: "c3", IfName: "net1"}
	hold := func(want bool, o ipam.Owner) {
		t.Helper()
		got, err := j.hold(o, "10.0.0.1")
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	age := func() {
		t.Helper()
		past := unix.NsecToTimespec(time.Now().Add(-time.Minute).UnixNano())
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(j.dir, heldDir, "10.0.0.1"), []unix.Timespec{past, past}, unix.AT_SYMLINK_NOFOLLOW))
	}
	hold(true, one)
	hold(true, one)
	age()
	hold(false, two)
	assert.True(t, j.held(two)["10.0.0.1"])
	assert.False(t, j.held(one)["10.0.0.1"])

	require.NoError(t, j.note(one, noted{Name: "10.0.0.1"}))
	require.NoError(t, j.forget(one, "10.0.0.1"))
	assert.True(t, j.held(two)["10.0.0.1"], "the recorder hasn't seen it yet")
	assert.False(t, j.held(again)["10.0.0.1"], "the same pod")
	hold(true, again)

	require.NoError(t, j.close(again), "without a page")
	age()
	assert.Empty(t, j.held(two), "a recorder that takes longer leaves it to the API server")
	hold(true, two)

	j.lingering = false
	require.NoError(t, j.close(two))
	assert.Empty(t, j.held(one))

	// What a newer sandbox took over goes with that one, though the older one hasn't been given up yet.
	hold(true, one)
	require.NoError(t, j.note(one, noted{Name: "10.0.0.1"}))
	require.NoError(t, j.takeOver(again, "10.0.0.1"))
	require.NoError(t, j.note(again, noted{Name: "10.0.0.1"}))
	require.NoError(t, j.close(again))
	assert.Empty(t, j.held(two))
}
