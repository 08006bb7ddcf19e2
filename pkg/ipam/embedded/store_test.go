package embedded

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
)

func open(t *testing.T) *Store {
	s, err := Open(t.TempDir(), "one")
	require.NoError(t, err)
	return s
}

var pool = newPool("10.0.0.0/16")

func newPool(whole string) ipam.Pool {
	p, _, err := ipam.NewPool("", false, netip.MustParsePrefix(whole), netip.Addr{}, netip.Addr{})
	if err != nil {
		panic(err)
	}
	return p
}

var (
	first  = ipam.Owner{Network: "net", Node: "n1", PodRef: "ns/pod", ContainerID: "c1", IfName: "net1"}
	second = ipam.Owner{Network: "net", Node: "n1", PodRef: "ns/pod", ContainerID: "c2", IfName: "net1"}
	other  = ipam.Owner{Network: "net", Node: "n1", PodRef: "ns/other", ContainerID: "c3", IfName: "net1"}
)

func claim(addr string, owner ipam.Owner) ipam.Claim {
	return pool.NewClaim(netip.MustParseAddr(addr), owner)
}

// files counts what the store holds.
func (s *Store) files(t *testing.T) (claims, drafts int) {
	c, err := list(s.claims())
	require.NoError(t, err)
	d, err := list(s.drafts())
	require.NoError(t, err)
	return len(c), len(d)
}

func snapshot(t *testing.T, s *Store, owner ipam.Owner) ipam.Snapshot {
	seen, err := s.Snapshot(t.Context(), pool, owner)
	require.NoError(t, err)
	return seen
}

func TestCreateIsTheLock(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	err := s.Create(t.Context(), pool, claim("10.0.0.1", other))
	var taken *ipam.TakenError
	require.ErrorAs(t, err, &taken)
	assert.Equal(t, first, taken.Holder.Owner)
	require.EqualError(t, err, "10.0.0.1 is held by interface net1 of pod ns/pod (container c1) on node n1")
	assert.Equal(t, "one", taken.Holder.BootID)
	assert.WithinDuration(t, time.Now(), taken.Holder.Created, time.Minute)

	seen := snapshot(t, s, second)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, seen.Taken)
	require.Len(t, seen.Own, 1)
	assert.Equal(t, first, seen.Own[0].Owner)
	sibling := second
	sibling.IfName = "net2"
	seen = snapshot(t, s, sibling)
	assert.Empty(t, seen.Own)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, seen.Pod)
}

// Of many that want one name at once exactly one gets it, whatever else goes on.
func TestOneWinner(t *testing.T) {
	s := open(t)
	var group sync.WaitGroup
	var mu sync.Mutex
	winners := map[string]int{}
	for i := range 40 {
		group.Go(func() {
			owner := ipam.Owner{ContainerID: fmt.Sprint(i), IfName: "net1"}
			for n := range 20 {
				c := claim(fmt.Sprintf("10.0.0.%d", n+1), owner)
				if s.Create(context.Background(), pool, c) == nil {
					mu.Lock()
					winners[c.Name]++
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	assert.Len(t, winners, 20)
	for name, n := range winners {
		assert.Equal(t, 1, n, name)
	}
	claims, drafts := s.files(t)
	assert.Equal(t, 20, claims)
	assert.Equal(t, 20, drafts)
}

// The DEL of an older sandbox comes after the ADD of a newer one and must change nothing.
func TestReown(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	read := snapshot(t, s, second).Own[0]
	require.NoError(t, s.Reown(t.Context(), pool, read, second))
	_, drafts := s.files(t)
	assert.Equal(t, 1, drafts, "the older one's is gone")
	require.ErrorIs(t, s.Reown(t.Context(), pool, read, other), ipam.ErrChanged)
	require.NoError(t, s.ReleaseAll(t.Context(), first))
	require.NoError(t, s.Release(t.Context(), read))
	assert.Equal(t, second, snapshot(t, s, second).Own[0].Owner)
	assert.Equal(t, read.Created.UTC(), snapshot(t, s, second).Own[0].Created)
	require.NoError(t, s.ReleaseAll(t.Context(), second))
	require.ErrorIs(t, s.Reown(t.Context(), pool, read, second), ipam.ErrChanged)
	claims, drafts := s.files(t)
	assert.Zero(t, claims+drafts)
}

// Two sandboxes that take over one claim at once: one does, the other is told.
func TestReownRace(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	read := snapshot(t, s, first).Own[0]
	errs := make([]error, 20)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() {
			owner := first
			owner.ContainerID = fmt.Sprint("new", i)
			errs[i] = s.Reown(context.Background(), pool, read, owner)
		})
	}
	group.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			require.ErrorIs(t, err, ipam.ErrChanged)
		}
	}
	assert.Equal(t, 1, won)
}

func TestReleaseIsOnlyOfOnesOwn(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	sibling := first
	sibling.IfName = "net2"
	for _, foreign := range []ipam.Owner{second, other, sibling} {
		require.NoError(t, s.Release(t.Context(), claim("10.0.0.1", foreign)))
		require.NoError(t, s.ReleaseAll(t.Context(), foreign))
		require.ErrorIs(t, s.Decline(t.Context(), claim("10.0.0.1", foreign), ipam.Declined{}), ipam.ErrChanged)
	}
	assert.Len(t, snapshot(t, s, first).Own, 1)
	require.NoError(t, s.Release(t.Context(), claim("10.0.0.1", first)))
	require.NoError(t, s.Release(t.Context(), claim("10.0.0.1", first)))
	assert.Empty(t, snapshot(t, s, first).Taken)
}

func TestQuarantine(t *testing.T) {
	s := open(t)
	now := time.Now()
	s.now = func() time.Time { return now }
	c := claim("10.0.0.1", first)
	require.NoError(t, s.Create(t.Context(), pool, c))
	why := ipam.Declined{MAC: "02:00:00:00:00:09", Until: now.Add(ipam.Quarantine)}
	require.NoError(t, s.Decline(t.Context(), c, why))
	require.NoError(t, s.Decline(t.Context(), c, why), "again")
	require.ErrorContains(t, s.Create(t.Context(), pool, claim("10.0.0.1", other)), "because 02:00:00:00:00:09 answered for it")
	require.NoError(t, s.ReleaseAll(t.Context(), first))
	require.NoError(t, s.Release(t.Context(), c))
	_, err := s.Collect(t.Context(), "net", "n1", nil)
	require.NoError(t, err)
	seen := snapshot(t, s, first)
	assert.Len(t, seen.Taken, 1, "nothing but time ends a quarantine")
	assert.Empty(t, seen.Own)

	now = now.Add(ipam.Quarantine - time.Second)
	assert.Len(t, snapshot(t, s, first).Taken, 1)
	now = now.Add(2 * time.Second)
	assert.Empty(t, snapshot(t, s, first).Taken)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", other)))
	claims, drafts := s.files(t)
	assert.Equal(t, [2]int{1, 1}, [2]int{claims, drafts})
}

func TestSweep(t *testing.T) {
	s := open(t)
	now := time.Now()
	s.now = func() time.Time { return now }
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.2", other)))
	require.NoError(t, s.Decline(t.Context(), claim("10.0.0.2", other), ipam.Declined{Until: now.Add(ipam.Quarantine)}))
	for _, left := range []string{"10.0.0.1", "10.0.0.3"} { // as by kill -9, one of a claim that another won
		_, err := s.writeDraft(claim(left, other))
		require.NoError(t, err)
	}
	require.NoError(t, s.ReleaseAll(t.Context(), second))
	_, drafts := s.files(t)
	assert.Equal(t, 4, drafts, "these may be of running processes")
	now = now.Add(ipam.Quarantine + time.Minute)
	require.NoError(t, s.ReleaseAll(t.Context(), second))
	claims, drafts := s.files(t)
	assert.Equal(t, [2]int{1, 1}, [2]int{claims, drafts}, "only the living claim is left")
	assert.Len(t, snapshot(t, s, first).Own, 1)
}

// A DEL that comes while a killed or slow ADD of the same sandbox is under way takes its draft away.
func TestDelRemovesAnUnfinishedClaim(t *testing.T) {
	s := open(t)
	draft, err := s.writeDraft(claim("10.0.0.1", first))
	require.NoError(t, err)
	require.NoError(t, s.ReleaseAll(t.Context(), first))
	err = s.link(draft, "10.0.0.1")
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err))
	require.ErrorContains(t, err, "a DEL for the same container and interface came while 10.0.0.1 was being claimed")
	claims, drafts := s.files(t)
	assert.Zero(t, claims+drafts)
}

// No sandbox outlives a boot, so no claim does; nor does a file that a power loss has torn.
func TestReboot(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	require.NoError(t, os.WriteFile(s.claimPath("10.0.0.2"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "note"), nil, 0o600))
	after, err := Open(s.dir, "two")
	require.NoError(t, err)
	assert.Empty(t, snapshot(t, after, first).Taken)
	require.NoError(t, after.Create(t.Context(), pool, claim("10.0.0.1", other)))
	assert.NoDirExists(t, s.boot)
	assert.FileExists(t, filepath.Join(s.dir, "note"), "what isn't ours stays")
}

func TestUnreadableClaim(t *testing.T) {
	s := open(t)
	require.NoError(t, os.WriteFile(s.claimPath("10.0.0.1"), []byte("{"), 0o600))
	assert.Len(t, snapshot(t, s, first).Taken, 1, "it is never given out")
	err := s.Create(t.Context(), pool, claim("10.0.0.1", first))
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	require.ErrorContains(t, err, "remove the file if no pod of this node has the address")
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.2", first)))
	gone, err := s.Collect(t.Context(), "net", "n1", nil)
	require.ErrorContains(t, err, "10.0.0.1 can't be read")
	assert.Len(t, gone, 1, "and it goes on past the error")
}

func TestForgedClaims(t *testing.T) {
	for content, want := range map[string]string{
		`{"name": "10.0.0.1", "address": "10.0.0.1", "draft": "a.b.../../lock.c"}`: "isn't the name of a draft",
		`{"name": "10.0.0.1", "address": "10.0.0.1"}`:                              "isn't the name of a draft",
		`{"name": "10.0.0.2", "address": "10.0.0.1", "draft": "a.b.c.d"}`:          `it is of name "10.0.0.2"`,
		`{"name": "10.0.0.1", "draft": "a.b.c.d"}`:                                 "address invalid IP",
		``: "unexpected end of JSON input",
	} {
		_, err := decode("10.0.0.1", []byte(content))
		assert.ErrorContains(t, err, want)
	}
}

func TestLockIsWaitedForNoLongerThanAllowed(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.1", first)))
	holder := flock.New(filepath.Join(s.dir, "lock"))
	require.NoError(t, holder.Lock())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.ReleaseAll(ctx, first)
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, holder.Path())
	require.NoError(t, s.Create(t.Context(), pool, claim("10.0.0.2", other)), "a claim needs no lock")
	require.NoError(t, holder.Close())
	require.NoError(t, s.ReleaseAll(t.Context(), first), "the one who came too late has given the lock back")
}

func TestStoreThatCantBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(filepath.Join(file, "ipam"), "one")
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	require.ErrorContains(t, err, file)

	s := open(t)
	require.NoError(t, os.RemoveAll(s.drafts()))
	_, err = s.Snapshot(t.Context(), pool, first)
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	err = s.Create(t.Context(), pool, claim("10.0.0.1", first))
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	assert.NotErrorAs(t, err, new(*ipam.TakenError))
}

func TestBootID(t *testing.T) {
	id, err := BootID()
	require.NoError(t, err)
	assert.Len(t, id, 36)
}

// Long names of pods and networks must still make a legal file name.
func TestLongNames(t *testing.T) {
	s := open(t)
	long := fmt.Sprintf("%0100d", 1)
	p, _, err := ipam.NewPool(long, true, netip.MustParsePrefix("fd00:1111:2222:3333:4444:5555:6666:0/112"), netip.Addr{}, netip.Addr{})
	require.NoError(t, err)
	owner := ipam.Owner{PodRef: long + long + "/" + long + long, ContainerID: long, IfName: "abcdefghijklmno"}
	require.NoError(t, s.Create(t.Context(), p, p.NewClaim(netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777"), owner)))
}

func FuzzParseDraft(f *testing.F) {
	f.Add(draftOf(claim("10.0.0.1", first)).fileName())
	f.Add(draftOf(ipam.Claim{Name: "fd00--1", Declined: &ipam.Declined{Until: time.Unix(5, 0)}}).fileName())
	f.Add("stage")
	f.Fuzz(func(t *testing.T, name string) {
		d, ok := parseDraft(name)
		d.expired(time.Now())
		if !ok {
			return
		}
		again, ok := parseDraft(d.fileName())
		assert.True(t, ok)
		assert.Equal(t, d, again)
	})
}

func FuzzReadClaim(f *testing.F) {
	f.Add([]byte(`{"name": "10.0.0.1", "pool": "10.0.0.0-16", "address": "10.0.0.1", "containerID": "c1", "ifname": "net1", "draft": "x"}`))
	f.Add([]byte(`{"name": "10.0.0.1", "address": "10.0.0.1", "declined": {"until": "2020-01-01T00:00:00Z"}, "draft": "../../x"}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := Open(t.TempDir(), "one")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(s.claimPath("10.0.0.1"), content, 0o600))
		if c, err := s.read("10.0.0.1"); err == nil {
			assert.True(t, c.Address.IsValid())
		}
		_, _ = s.Snapshot(t.Context(), pool, first)
		_ = s.ReleaseAll(t.Context(), first)
		assert.DirExists(t, s.drafts())
	})
}
