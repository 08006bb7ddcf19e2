package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

func with(p *netconf.Plan, change func(*netconf.Plan)) *netconf.Plan {
	change(p)
	return p
}

// place is what is on disk about a network.
func (w *world) place(plan *netconf.Plan) string {
	r := &run{Ensurer: w.e, plan: plan}
	data, err := os.ReadFile(r.placePath())
	require.NoError(w.t, err)
	return strings.TrimSpace(string(data))
}

// reboot leaves the state directory, and nothing in the kernel or in /run.
func (w *world) reboot() {
	require.NoError(w.t, os.RemoveAll(w.e.Node.RunDir))
	w.f = host()
	w.e.Kernel, w.e.Neighbours = w.f, quietNeighbours{w.f}
}

func TestStateOfEnsure(t *testing.T) {
	w := newWorld(t, host(), 2)
	state, err := w.e.Ensure(context.Background(), vxlan())
	require.NoError(t, err)
	assert.Equal(t, shim, state.Shim)
	assert.Equal(t, prefixes("10.100.1.2/24"), state.Addrs)
	assert.Equal(t, vx, state.Parent.Name)
	assert.Equal(t, 1450, state.Parent.MTU)
	assert.Equal(t, addrs("10.100.100.1", "10.100.100.3"), state.Place.Peers)
	assert.Contains(t, state.Changed, Change{"parent.create", "create vxlan parent vxlan-storage"})
	assert.JSONEq(t, `{"index":2,"vtep":"10.100.100.2","shim":["10.100.1.2"],"peers":["10.100.100.1","10.100.100.3"],"mtu":1450}`, w.place(vxlan()))
	again, err := w.e.Ensure(context.Background(), vxlan())
	require.NoError(t, err)
	state.Changed = nil
	assert.Equal(t, state, again)
}

// A network without a host range has a parent and no shim.
func TestWithoutAShim(t *testing.T) {
	plan := with(vxlan(), func(p *netconf.Plan) { p.HostShim = nil })
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(plan))
	assert.NotContains(t, w.f.Dump(), "macvlan")
	w.quiet(plan)
}

// Look tells what would be done first, and does nothing.
func TestLook(t *testing.T) {
	w := newWorld(t, host(), 2)
	_, pending, err := w.e.Look(context.Background(), vxlan())
	require.NoError(t, err)
	assert.Contains(t, pending, "make dummy0 for the VTEP 10.100.100.2")
	assert.Empty(t, w.f.Log)
	assert.NoDirExists(t, w.e.Node.RunDir)
	assert.NoDirExists(t, w.e.Node.StateDir)
	require.NoError(t, w.ensure(vxlan()))
	state, pending, err := w.e.Look(context.Background(), vxlan())
	require.NoError(t, err)
	assert.Empty(t, pending)
	assert.Equal(t, vx, state.Parent.Name)
}

// The lock is waited for, but not for ever, and the error says which it is.
func TestLock(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, os.MkdirAll(w.e.Node.RunDir, 0o700))
	path := filepath.Join(w.e.Node.RunDir, "lock")
	held := flock.New(path)
	require.NoError(t, held.Lock())
	w.e.LockWait = 50 * time.Millisecond
	begun := time.Now()
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err), err)
	require.ErrorContains(t, err, path)
	assert.Less(t, time.Since(begun), 5*time.Second)
	assert.Empty(t, w.f.Log, "nothing is done without the lock")

	w.e.LockWait = 10 * time.Second
	time.AfterFunc(30*time.Millisecond, func() { _ = held.Close() })
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, goldenVXLAN, w.f.Dump())
}

func TestTheDirectoryForTheLockCannotBeMade(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, os.WriteFile(w.e.Node.RunDir, nil, 0o600))
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err), err)
	assert.ErrorContains(t, err, w.e.Node.RunDir)
	assert.Empty(t, w.f.Log)
}

// stubborn is a kernel in which something else undoes a setting at once.
type stubborn struct {
	*kernel.Fake
	undone *int
}

func (k stubborn) SetSysctl(path, value string) error {
	*k.undone++
	if strings.HasSuffix(path, "rp_filter") {
		return nil
	}
	return k.Fake.SetSysctl(path, value)
}

// A fight with something else is given up after a bounded number of rounds, with
// what it was about.
func TestSomethingElseUndoesWhatIsSet(t *testing.T) {
	w := newWorld(t, host(), 2)
	undone := 0
	w.e.Kernel = stubborn{w.f, &undone}
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.Kernel, cnierr.CodeOf(err), err)
	for _, text := range []string{"doesn't stay as it is set", "rp_filter from 0 to 2", "NetworkManager", vx} {
		assert.ErrorContains(t, err, text)
	}
	assert.Less(t, undone, 3*maxRounds)
	w.e.Kernel = w.f
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, goldenVXLAN, w.f.Dump())
}

// A torn or foreign place file is no answer: it is found anew and written.
func TestTornPlaceFile(t *testing.T) {
	for _, text := range []string{"", "{", `{"index":2,"vt`, "null", "[]", "\x00\x00\x00", `{"index":"two"}`, `{"vtep":"10.100"}`} {
		w := newWorld(t, host(), 2)
		require.NoError(t, w.ensure(vxlan()))
		want := w.place(vxlan())
		r := &run{Ensurer: w.e, plan: vxlan()}
		require.NoError(t, os.WriteFile(r.placePath(), []byte(text), 0o600))
		calls := len(w.f.Log)
		require.NoError(t, w.ensure(vxlan()), "%q", text)
		assert.Len(t, w.f.Log, calls, "the kernel was right: %q", text)
		assert.Equal(t, want, w.place(vxlan()), "%q", text)
		w.quiet(vxlan())
	}
}

// A place file that can't be read isn't overlooked: it may say who the node is.
func TestUnreadablePlaceFile(t *testing.T) {
	w := newWorld(t, host(), 2)
	r := &run{Ensurer: w.e, plan: vxlan()}
	require.NoError(t, os.MkdirAll(r.placePath(), 0o700))
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.IO, cnierr.CodeOf(err))
	assert.ErrorContains(t, err, r.placePath())
	assert.Empty(t, w.f.Log)
}

// After a reboot the node is who it was, though nothing in kernel or node file
// says so: an adopted one's address and VTEP are in no relation to an index.
func TestReboot(t *testing.T) {
	w := newWorld(t, prepared(
		func(f *kernel.Fake) {
			f.Have(kernel.Link{Name: "dummy0", Kind: "dummy", Up: true})
			f.AddrOn("dummy0", "10.100.100.77/32")
			f.Have(kernel.Link{Name: vx, Kind: "vxlan", MTU: 1400, Up: true, VXLAN: kernel.VXLAN{VNI: 100, Port: 4789, Local: addrs("10.100.100.77")[0]}})
			f.AddrOn(vx, "10.100.1.9/24")
		})(), 0)
	require.NoError(t, w.ensure(vxlan()))
	before := w.place(vxlan())
	w.reboot()
	require.NoError(t, w.ensure(vxlan()))
	assert.Contains(t, w.f.Dump(), "  address 10.100.1.9/24\n")
	assert.Contains(t, w.f.Dump(), "local 10.100.100.77 ")
	assert.Equal(t, strings.ReplaceAll(before, "}", ""), strings.ReplaceAll(w.place(vxlan()), "}", ""))
}

func TestTheOperatorMovesTheNode(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(vxlan()))
	w.e.Node.Index = 5
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, goldenVXLAN, w.f.Dump(), "what is held stays")
	w.quiet(vxlan())
	w.reboot()
	require.NoError(t, w.ensure(vxlan()), "the held addresses were noted with the new index")
	assert.Contains(t, w.f.Dump(), "  address 10.100.1.2/24\n")

	w.reboot()
	w.e.Node.Index = 6
	require.NoError(t, w.ensure(vxlan()))
	assert.Contains(t, w.f.Dump(), "  address 10.100.1.6/24\n")
	assert.Contains(t, w.f.Dump(), "local 10.100.100.6 ")
}

// A childless parent that must be made again takes the node's only address with
// it; the node keeps it.
func TestRemakingAParentKeepsTheAddress(t *testing.T) {
	w := newWorld(t, prepared(scriptParent, on(vx, "10.100.1.9/24"))(), 2)
	plan := with(vxlan(), func(p *netconf.Plan) { p.Parent.VNI = 200 })
	require.NoError(t, w.ensure(plan))
	assert.Contains(t, w.f.Dump(), "vni 200")
	assert.Contains(t, w.f.Dump(), "  address 10.100.1.9/24\n")
	w.quiet(plan)
}

// Each destructive change is refused through the whole of Ensure, and pods'
// interfaces and addresses stay as they are.
func TestDestructiveChangesAreRefused(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(vxlan()))
	w.f.ForeignChild(vx, 1450)
	for text, change := range map[string]func(*netconf.Plan){
		"its VNI is 100, not 200":                func(p *netconf.Plan) { p.Parent.VNI, p.Parent.MTU = 200, 1300 },
		"its UDP port is 4789, not 8472":         func(p *netconf.Plan) { p.Parent.Port, p.Parent.MTU = 8472, 1300 },
		"it is a vxlan, not a vlan":              func(p *netconf.Plan) { p.Parent = vlan().Parent; p.Parent.Name = vx },
		"its tunnel's family is IPv4, not IPv6":  func(p *netconf.Plan) { p.Parent.VTEP.CIDR, p.Parent.Peers = prefixes("fd09::/64")[0], nil },
		"it is a child of vxlan-storage, not of": func(p *netconf.Plan) { p.Parent = device().Parent },
	} {
		plan := with(vxlan(), change)
		err := w.ensure(plan)
		assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
		require.ErrorContains(t, err, text)
		assert.Equal(t, []int{1450}, w.f.ForeignMTUs(vx), text)
		require.NoError(t, w.ensure(vxlan()), "the network goes on as it was after %q", text)
	}
}

// pods stands for the pods' interfaces: RestoreMTU writes down what it was told.
type pods struct {
	told []int
	err  error
}

func (p *pods) restore(parent kernel.Link) error {
	if p.err != nil {
		return p.err
	}
	p.told = append(p.told, parent.MTU)
	return nil
}

func TestPodsMTUIsRestored(t *testing.T) {
	p := &pods{}
	w := newWorld(t, host(), 2)
	w.e.RestoreMTU = p.restore
	require.NoError(t, w.ensure(vxlan()))
	assert.Empty(t, p.told, "a new parent has no children")
	jumbo := with(vxlan(), func(p *netconf.Plan) { p.Parent.MTU = 8950 })
	require.NoError(t, w.ensure(jumbo))
	assert.Equal(t, []int{8950}, p.told)
	w.quiet(jumbo)
	assert.Equal(t, []int{8950}, p.told)
}

// The note survives a death between parent and children, on either side of the
// parent's change.
func TestPodsMTUIsRestoredAfterACrash(t *testing.T) {
	jumbo := with(vxlan(), func(p *netconf.Plan) { p.Parent.MTU = 8950 })
	for name, crash := range map[string]func(w *world, p *pods) (mended func()){
		"before the parent": func(w *world, _ *pods) func() {
			w.f.Fail = func(call string) error {
				if call == "set vxlan-storage mtu=8950" {
					return assert.AnError
				}
				return nil
			}
			return func() { w.f.Fail = nil }
		},
		"after the parent": func(w *world, _ *pods) func() {
			w.f.Fail = func(call string) error {
				if call == "set lhnet1-host mtu=8950" {
					return assert.AnError
				}
				return nil
			}
			return func() { w.f.Fail = nil }
		},
		"among the children": func(_ *world, p *pods) func() {
			p.err = errors.New("pod gone mad")
			return func() { p.err = nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &pods{}
			w := newWorld(t, host(), 2)
			w.e.RestoreMTU = p.restore
			require.NoError(t, w.ensure(vxlan()))
			mended := crash(w, p)
			err := w.ensure(jumbo)
			assert.Equal(t, cnierr.Kernel, cnierr.CodeOf(err), err)
			assert.Empty(t, p.told)
			note := (&run{Ensurer: w.e, plan: jumbo}).restorePath()
			require.FileExists(t, note)
			mended()
			require.NoError(t, w.ensure(jumbo))
			assert.Equal(t, []int{8950}, p.told)
			assert.NoFileExists(t, note)
			w.quiet(jumbo)
		})
	}
}

// Networks that share a parent don't take turns in changing it: each is quiet
// after the other, with shims and addresses of its own.
func TestNetworksShareAParent(t *testing.T) {
	for name, change := range map[string]func(*netconf.Plan){
		"a shim of its own":   func(p *netconf.Plan) { p.HostShim.Name = "lhnet2-host" },
		"the same shim":       func(*netconf.Plan) {},
		"no shim":             func(p *netconf.Plan) { p.HostShim = nil },
		"a shim and its pins": func(p *netconf.Plan) { p.HostShim.Name, p.HostShim.Addresses = "lhnet2-host", addrs("10.200.1.9") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, host(), 2)
			w.e.InUse = func(string, string) bool { return true }
			first := vxlan()
			second := vxlan()
			second.Name = "second/network"
			second.HostShim.Ranges, second.HostShim.Networks = prefixes("10.200.1.0/28"), prefixes("10.200.1.0/24")
			change(second)
			require.NoError(t, w.ensure(first))
			require.NoError(t, w.ensure(second))
			dump := w.f.Dump()
			for range 2 {
				w.quiet(first)
				w.quiet(second)
			}
			assert.Equal(t, dump, w.f.Dump())
			assert.Contains(t, dump, "  address 10.100.1.2/24\n")
			if second.HostShim != nil {
				assert.Contains(t, dump, fmt.Sprintf("  address %s/24\n", w.placeOf(second)))
			}
		})
	}
}

func (w *world) placeOf(plan *netconf.Plan) string {
	p, _, err := loadPlace((&run{Ensurer: w.e, plan: plan}).placePath())
	require.NoError(w.t, err)
	return p.Shim[0].String()
}

// The first network's word counts while it has pods; another that differs is
// refused with each difference in words, before anything is touched.
func TestNetworksThatDescribeAParentDifferently(t *testing.T) {
	w := newWorld(t, host(), 2)
	inUse := true
	w.e.InUse = func(network, parent string) bool { return inUse && network == "longhorn-storage" && parent == vx }
	require.NoError(t, w.ensure(vxlan()))
	second := with(vxlan(), func(p *netconf.Plan) { p.Name, p.Parent.MTU, p.Parent.Peers = "second", 1300, addrs("10.100.100.1") })
	calls, dump := len(w.f.Log), w.f.Dump()
	err := w.ensure(second)
	assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
	for _, text := range []string{`"longhorn-storage"`, `"second"`, vx, "mtu is 0 there and 1300 here", "peers is"} {
		assert.ErrorContains(t, err, text)
	}
	assert.Len(t, w.f.Log, calls)
	assert.Equal(t, dump, w.f.Dump())
	w.quiet(vxlan())

	changed := with(vxlan(), func(p *netconf.Plan) { p.Parent.MTU = 1300 })
	require.NoError(t, w.ensure(changed), "the first may change its mind")
	w.quiet(changed)

	inUse = false
	require.NoError(t, w.ensure(second), "nobody is left on the first")
	w.quiet(second)
}

// One shim name on two parents: the second is refused.
func TestOneShimNameOnTwoParents(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(vxlan()))
	second := with(device(), func(p *netconf.Plan) { p.Name = "second" })
	err := w.ensure(second)
	assert.Equal(t, cnierr.IncompatibleParent, cnierr.CodeOf(err), err)
	require.ErrorContains(t, err, "it is a child of vxlan-storage, not of eth1")
	w.quiet(vxlan())
}

// An address that is on another device of this host: code 100, and it stays there.
func TestTheAddressIsElsewhereOnThisHost(t *testing.T) {
	w := newWorld(t, prepared(on("eth1", "10.100.1.2/24"))(), 2)
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.DuplicateAddress, cnierr.CodeOf(err), err)
	require.ErrorContains(t, err, "10.100.1.2 is on eth1 of this node already")
	assert.Contains(t, w.f.Dump(), "device eth1 mtu 1500 up\n  address 10.100.1.2/24\n")
}

// Peers that aren't known leave flood entries and routes as they are; a list of
// none takes them away.
func TestPeersUnknownAndNone(t *testing.T) {
	static := func(p *netconf.Plan) {
		p.Parent.VTEP.Routes, p.Parent.VTEP.Via = true, map[string]string{"10.100.100.1": "192.168.7.1"}
	}
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(with(vxlan(), static)))
	dump := w.f.Dump()
	assert.Contains(t, dump, "route 10.100.100.1/32 via 192.168.7.1 dev eth0\n")
	unknown := with(with(vxlan(), static), func(p *netconf.Plan) { p.Parent.Peers = nil })
	require.NoError(t, w.ensure(unknown))
	assert.Equal(t, dump, w.f.Dump())
	w.quiet(unknown)
	none := with(with(vxlan(), static), func(p *netconf.Plan) { p.Parent.Peers = addrs("10.100.100.2") })
	require.NoError(t, w.ensure(none))
	assert.NotContains(t, w.f.Dump(), "flood")
	assert.NotContains(t, w.f.Dump(), "route")
	w.quiet(none)
}

// A new peer may have a narrower way, and its leaving gives the width back.
func TestAutoMTUIsWorkedOutAnewWithThePeers(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(vxlan()))
	w.f.RouteVia("10.100.100.4/32", "eth0", 1300)
	w.quiet(vxlan())
	more := with(vxlan(), func(p *netconf.Plan) { p.Parent.Peers = append(p.Parent.Peers, addrs("10.100.100.4")...) })
	require.NoError(t, w.ensure(more))
	assert.Contains(t, w.f.Dump(), "vxlan vxlan-storage mtu 1250 ")
	assert.Contains(t, w.f.Dump(), "macvlan lhnet1-host mtu 1250 ")
	w.quiet(more)
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, goldenVXLAN, w.f.Dump())
}

// asked counts the questions that a thousand peers make dear.
type asked struct {
	kernel.Kernel

	routes, devices int
}

func (k *asked) RoutesTo(dsts []netip.Addr) ([]kernel.Route, error) {
	k.routes += len(dsts)
	return k.Kernel.RoutesTo(dsts)
}

func (k *asked) LinkByIndex(index int) (kernel.Link, error) {
	k.devices++
	return k.Kernel.LinkByIndex(index)
}

// The way to each peer is asked for once when one of a thousand comes, and not at all when none does.
func TestManyPeers(t *testing.T) {
	const many = 1000
	crowd := func(n int) *netconf.Plan {
		return with(vxlan(), func(p *netconf.Plan) {
			p.Parent.VTEP.CIDR, p.Parent.Peers = netip.MustParsePrefix("10.100.0.0/16"), nil
			for i := range n {
				p.Parent.Peers = append(p.Parent.Peers, netip.AddrFrom4([4]byte{10, 100, byte(110 + i/250), byte(1 + i%250)}))
			}
		})
	}
	w := newWorld(t, host(), 2)
	k := &asked{Kernel: w.e.Kernel}
	w.e.Kernel = k
	require.NoError(t, w.ensure(crowd(many)))
	for _, c := range []struct {
		peers, routes int
	}{{many, 0}, {many + 1, many + 1}, {many + 1, 0}, {many, many}} {
		k.routes, k.devices = 0, 0
		require.NoError(t, w.ensure(crowd(c.peers)))
		assert.LessOrEqual(t, k.routes, c.routes, "%d peers", c.peers)
		assert.LessOrEqual(t, k.devices, 30, "%d peers", c.peers)
	}
}

func TestWhoCannotBeTold(t *testing.T) {
	w := newWorld(t, host(), 0)
	err := w.ensure(vxlan())
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	require.ErrorContains(t, err, "set index in the node file")
	assert.Empty(t, w.f.Log)
	assert.NoDirExists(t, w.e.Node.RunDir)
}

// Pending names everything at once, and does nothing.
func TestPending(t *testing.T) {
	w := newWorld(t, host(), 2)
	require.NoError(t, w.ensure(vxlan()))
	_, changes, faults := w.e.Pending(context.Background(), vxlan())
	assert.Empty(t, changes)
	assert.Empty(t, faults)

	link, err := w.f.Link(vx)
	require.NoError(t, err)
	require.NoError(t, w.f.DelFlood(link.Index, addrs("10.100.100.3")[0]))
	w.f.Alter(vx, func(l *kernel.Link) { l.VXLAN.Learning, l.MTU = false, 1300 })
	require.NoError(t, w.f.SetSysctl(kernel.ConfPath("ipv4", shim, "rp_filter"), "1"))
	calls := len(w.f.Log)
	state, changes, faults := w.e.Pending(context.Background(), vxlan())
	assert.Empty(t, faults)
	assert.Equal(t, vx, state.Parent.Name)
	var steps []string
	for _, c := range changes {
		steps = append(steps, c.Step)
	}
	assert.Equal(t, []string{"parent.mtu", "parent.learning", "parent.flood.add", "shim.sysctl", "shim.mtu"}, steps)
	assert.Len(t, w.f.Log, calls, "nothing is done")

	w.f.Alter(vx, func(l *kernel.Link) { l.VXLAN.VNI = 7 })
	w.f.Alter(shim, func(l *kernel.Link) { l.Macvlan.Mode = "private" })
	_, changes, faults = w.e.Pending(context.Background(), vxlan())
	assert.Equal(t, Change{"parent.recreate", "delete the childless parent vxlan-storage to make it again"}, changes[0])
	require.Len(t, faults, 1, "the shim is looked at though the parent is amiss")
	assert.ErrorContains(t, faults[0], "its mode is private")

	w.e.Claim = func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
		t.Error("the cluster is asked")
		return place.Place{}, nil
	}
	require.NoError(t, os.RemoveAll(w.e.Node.StateDir))
	_, changes, faults = w.e.Pending(context.Background(), vxlan())
	assert.Empty(t, faults)
	require.Len(t, changes, 1)
	assert.Equal(t, StepClaim, changes[0].Step)
}
