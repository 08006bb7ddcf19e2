package node

import (
	"context"
	"math/rand/v2"
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
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	vx   = "vxlan-storage"
	shim = "lhnet1-host"
)

// world is a node: a fake kernel, and directories in place of /run and /var/lib.
type world struct {
	t *testing.T
	f *kernel.Fake
	e *Ensurer
}

func newWorld(t *testing.T, f *kernel.Fake, index int) *world {
	dir := t.TempDir()
	f.Log = nil
	w := &world{t: t, f: f}
	w.e = &Ensurer{
		Kernel: f, Neighbours: quietNeighbours{f},
		Node: nodefile.File{
			NodeName: "node2", Index: index,
			RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		},
		LockWait: time.Minute,
	}
	return w
}

func (w *world) ensure(plan *netconf.Plan) error {
	_, err := w.e.Ensure(context.Background(), plan)
	return err
}

// quiet: a second run changes nothing and takes no lock, so it succeeds while
// somebody else has it.
func (w *world) quiet(plan *netconf.Plan) {
	w.t.Helper()
	calls := len(w.f.Log)
	require.NoError(w.t, os.MkdirAll(w.e.Node.RunDir, 0o700))
	held := flock.New(filepath.Join(w.e.Node.RunDir, "lock"))
	require.NoError(w.t, held.Lock())
	defer func() { require.NoError(w.t, held.Close()) }()
	defer func(wait time.Duration) { w.e.LockWait = wait }(w.e.LockWait)
	w.e.LockWait = time.Millisecond
	state, err := w.e.Ensure(context.Background(), plan)
	require.NoError(w.t, err)
	assert.Empty(w.t, state.Changed)
	assert.Equal(w.t, []string{}, append([]string{}, w.f.Log[calls:]...), "a second run changes nothing")
}

// quietNeighbours finds no duplicates and notes its calls in the kernel's log,
// where they may fail too.
type quietNeighbours struct{ f *kernel.Fake }

func (n quietNeighbours) note(call, where string) error {
	if n.f.Fail != nil {
		if err := n.f.Fail(call + " on " + where); err != nil {
			return err
		}
	}
	n.f.Log = append(n.f.Log, call+" on "+where)
	return nil
}

func (n quietNeighbours) Probe(_ context.Context, l kernel.Link, a netip.Addr) error {
	return n.note("probe "+a.String(), l.Name)
}

func (n quietNeighbours) Announce(l kernel.Link, _ []netip.Addr) error {
	return n.note("announce", l.Name)
}

func (n quietNeighbours) Settle(_ context.Context, l kernel.Link, a netip.Addr) error {
	if err := n.note("settle "+a.String(), l.Name); err != nil {
		return err
	}
	n.f.DAD(a.String(), false, false)
	return nil
}

func addrs(texts ...string) []netip.Addr {
	list := []netip.Addr{}
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// vxlan is the README's network.
func vxlan() *netconf.Plan {
	return &netconf.Plan{
		Name: "longhorn-storage",
		Parent: netconf.Parent{
			Type: netconf.ParentVXLAN, Name: vx, VNI: 100, Port: 4789,
			VTEP:  netconf.VTEP{CIDR: prefixes("10.100.100.0/24")[0], Interface: "dummy0"},
			Peers: addrs("10.100.100.1", "10.100.100.2", "10.100.100.3"),
		},
		HostShim: &netconf.HostShim{Name: shim, Ranges: prefixes("10.100.1.0/28"), Networks: prefixes("10.100.1.0/24")},
		Conflict: netconf.ConflictDetection{Enabled: true},
	}
}

func ipv6() *netconf.Plan {
	p := vxlan()
	p.Parent.VTEP.CIDR, p.Parent.Peers = prefixes("fd09::/64")[0], addrs("fd09::1", "fd09::3")
	p.HostShim.Ranges, p.HostShim.Networks = prefixes("fd00::/124"), prefixes("fd00::/64")
	return p
}

func dual() *netconf.Plan {
	p := vxlan()
	p.HostShim.Ranges, p.HostShim.Networks = prefixes("10.100.1.0/28", "fd00::/124"), prefixes("10.100.1.0/24", "fd00::/64")
	return p
}

func device() *netconf.Plan {
	p := vxlan()
	p.Parent = netconf.Parent{Type: netconf.ParentDevice, Name: "eth1", MTU: 1500}
	return p
}

func vlan() *netconf.Plan {
	p := vxlan()
	p.Parent = netconf.Parent{Type: netconf.ParentVLAN, Name: "eth1.5", Device: "eth1", VLAN: 5, MTU: 1500}
	return p
}

// host is a node with two NICs; peers are reached by the first.
func host() *kernel.Fake {
	f := kernel.NewFake()
	f.Have(kernel.Link{Name: "eth0", Kind: "device", Up: true})
	f.Have(kernel.Link{Name: "eth1", Kind: "device", Up: true})
	f.AddrOn("eth0", "192.168.7.2/24")
	f.RouteVia("0.0.0.0/0", "eth0", 0)
	f.RouteVia("::/0", "eth0", 0)
	return f
}

func prepared(do ...func(*kernel.Fake)) func() *kernel.Fake {
	return func() *kernel.Fake {
		f := host()
		for _, d := range do {
			d(f)
		}
		return f
	}
}

func index(f *kernel.Fake, name string) int {
	l, err := f.Link(name)
	if err != nil {
		panic(err)
	}
	return l.Index
}

// The source design's script, in parts.

func scriptParent(f *kernel.Fake) {
	f.Have(kernel.Link{Name: "dummy0", Kind: "dummy", Up: true})
	f.AddrOn("dummy0", "10.100.100.2/32")
	f.Have(kernel.Link{
		Name: vx, Kind: "vxlan", MTU: 1400, Up: true,
		VXLAN: kernel.VXLAN{VNI: 100, Port: 4789, Local: addrs("10.100.100.2")[0]},
	})
	f.FloodOn(vx, "10.100.100.1")
	f.FloodOn(vx, "10.100.100.3")
}

func scriptShim(f *kernel.Fake) {
	f.Have(kernel.Link{Name: shim, Kind: "macvlan", Lower: index(f, vx), Up: true, Macvlan: kernel.Macvlan{Mode: "bridge"}})
}

func on(device string, list ...string) func(*kernel.Fake) {
	return func(f *kernel.Fake) {
		for _, a := range list {
			f.AddrOn(device, a)
		}
	}
}

func down(device string) func(*kernel.Fake) {
	return func(f *kernel.Fake) { must(f.SetLink(index(f, device), kernel.Change{Up: new(false)})) }
}

func gone(device string) func(*kernel.Fake) {
	return func(f *kernel.Fake) { must(f.DelLink(index(f, device))) }
}

func flood(vtep string) func(*kernel.Fake) {
	return func(f *kernel.Fake) { f.FloodOn(vx, vtep) }
}

func mtu(device string, bytes int) func(*kernel.Fake) {
	return func(f *kernel.Fake) { must(f.SetLink(index(f, device), kernel.Change{MTU: &bytes})) }
}

func sysctl(path, value string) func(*kernel.Fake) {
	return func(f *kernel.Fake) { must(f.SetSysctl(path, value)) }
}

func unlearn(f *kernel.Fake) { must(f.SetLink(index(f, vx), kernel.Change{Learning: new(false)})) }

func both(first, second func(*kernel.Fake)) func(*kernel.Fake) {
	return func(f *kernel.Fake) { first(f); second(f) }
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// state is one that a family's node can be brought to: somebody disturbs it, the
// configuration says something else, and after Ensure the kernel's text is the
// family's golden one with each word pair of differs replaced.
type state struct {
	name    string
	disturb func(*kernel.Fake)
	change  func(*netconf.Plan)
	differs []string
}

// family is a kind of node and network, from different beginnings that all lead
// to the same golden state.
type family struct {
	name   string
	index  int // in the node file
	plan   func() *netconf.Plan
	starts map[string]func() *kernel.Fake
	golden string
	states []state
}

func (fam family) text(s state) string { return strings.NewReplacer(s.differs...).Replace(fam.golden) }

func (fam family) planFor(s state) *netconf.Plan {
	p := fam.plan()
	if s.change != nil {
		s.change(p)
	}
	return p
}

var asConfigured = state{name: "as configured"}

// onVXLAN are the states of a VXLAN parent of either origin.
var onVXLAN = []state{
	asConfigured,
	{"one peer more", nil, func(p *netconf.Plan) { p.Parent.Peers = append(p.Parent.Peers, addrs("10.100.100.4")...) },
		[]string{"  flood 10.100.100.3\n", "  flood 10.100.100.3\n  flood 10.100.100.4\n"}},
	{"one peer less", nil, func(p *netconf.Plan) { p.Parent.Peers = addrs("10.100.100.1", "10.100.100.2") },
		[]string{"  flood 10.100.100.3\n", ""}},
	{"alone", nil, func(p *netconf.Plan) { p.Parent.Peers = addrs("10.100.100.2") },
		[]string{"  flood 10.100.100.1\n", "", "  flood 10.100.100.3\n", ""}},
	{name: "stale flood entries", disturb: both(flood("10.100.100.77"), flood("192.168.7.9"))},
	{name: "nolearning", disturb: unlearn},
	{name: "address on the parent too", disturb: on(vx, "10.100.1.2/24")},
	{name: "the shim went", disturb: gone(shim)},
	{name: "the shim is down", disturb: down(shim)},
	{name: "the parent is down", disturb: down(vx)},
	{name: "the shim's rp_filter", disturb: sysctl("net/ipv4/conf/"+shim+"/rp_filter", "1")},
	{name: "the parent answers ARP", disturb: sysctl("net/ipv4/conf/"+vx+"/arp_ignore", "0")},
	{name: "the parent speaks IPv6", disturb: both(sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0"), on(vx, "fe80::1/64"))},
}

// The golden states, as Fake.Dump tells them.
const (
	goldenVXLAN = `dummy dummy0 mtu 1500 up
  address 10.100.100.2/32
device eth0 mtu 1500 up
  address 192.168.7.2/24
device eth1 mtu 1500 up
macvlan lhnet1-host mtu 1450 up on vxlan-storage mode bridge
  address 10.100.1.2/24
device lo mtu 65536 up
vxlan vxlan-storage mtu 1450 up vni 100 port 4789 local 10.100.100.2 learning true
  flood 10.100.100.1
  flood 10.100.100.3
sysctl net/ipv4/conf/lhnet1-host/arp_announce=2
sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/rp_filter=2
sysctl net/ipv4/conf/vxlan-storage/arp_ignore=8
sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1
`

	goldenIPv6 = `dummy dummy0 mtu 1500 up
  address fd09::2/128
device eth0 mtu 1500 up
  address 192.168.7.2/24
device eth1 mtu 1500 up
macvlan lhnet1-host mtu 1430 up on vxlan-storage mode bridge
  address fd00::2/64
device lo mtu 65536 up
vxlan vxlan-storage mtu 1430 up vni 100 port 4789 local fd09::2 learning true
  flood fd09::1
  flood fd09::3
sysctl net/ipv4/conf/lhnet1-host/arp_announce=2
sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/rp_filter=2
sysctl net/ipv4/conf/vxlan-storage/arp_ignore=8
sysctl net/ipv6/conf/lhnet1-host/keep_addr_on_down=1
sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1
`

	goldenDual = `dummy dummy0 mtu 1500 up
  address 10.100.100.2/32
device eth0 mtu 1500 up
  address 192.168.7.2/24
device eth1 mtu 1500 up
macvlan lhnet1-host mtu 1450 up on vxlan-storage mode bridge
  address 10.100.1.2/24
  address fd00::2/64
device lo mtu 65536 up
vxlan vxlan-storage mtu 1450 up vni 100 port 4789 local 10.100.100.2 learning true
  flood 10.100.100.1
  flood 10.100.100.3
sysctl net/ipv4/conf/lhnet1-host/arp_announce=2
sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/rp_filter=2
sysctl net/ipv4/conf/vxlan-storage/arp_ignore=8
sysctl net/ipv6/conf/lhnet1-host/keep_addr_on_down=1
sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1
`

	goldenNIC = `device eth0 mtu 1500 up
  address 192.168.7.2/24
device eth1 mtu 1500 up
  address 10.100.1.200/24
macvlan lhnet1-host mtu 1500 up on eth1 mode bridge
  address 10.100.1.2/32
device lo mtu 65536 up
route 10.100.1.128/25 dev lhnet1-host src 10.100.1.2
route 10.100.1.16/28 dev lhnet1-host src 10.100.1.2
route 10.100.1.32/27 dev lhnet1-host src 10.100.1.2
route 10.100.1.64/26 dev lhnet1-host src 10.100.1.2
sysctl net/ipv4/conf/eth1/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/arp_announce=2
sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/rp_filter=2
`

	goldenVLAN = `device eth0 mtu 1500 up
  address 192.168.7.2/24
device eth1 mtu 1500 up
vlan eth1.5 mtu 1500 up on eth1 id 5
macvlan lhnet1-host mtu 1500 up on eth1.5 mode bridge
  address 10.100.1.2/32
device lo mtu 65536 up
route 10.100.1.128/25 dev lhnet1-host src 10.100.1.2
route 10.100.1.16/28 dev lhnet1-host src 10.100.1.2
route 10.100.1.32/27 dev lhnet1-host src 10.100.1.2
route 10.100.1.64/26 dev lhnet1-host src 10.100.1.2
sysctl net/ipv4/conf/eth1.5/arp_ignore=8
sysctl net/ipv4/conf/lhnet1-host/arp_announce=2
sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1
sysctl net/ipv4/conf/lhnet1-host/rp_filter=2
sysctl net/ipv6/conf/eth1.5/disable_ipv6=1
`
)

var families = []family{
	{
		name: "VXLAN of ours", index: 2, plan: vxlan, golden: goldenVXLAN,
		starts: map[string]func() *kernel.Fake{"fresh": host},
		states: append([]state{
			{name: "an explicit MTU", change: func(p *netconf.Plan) { p.Parent.MTU = 1300 }, differs: []string{"mtu 1450", "mtu 1300"}},
			{name: "a greater one", change: func(p *netconf.Plan) { p.Parent.MTU = 8950 }, differs: []string{"mtu 1450", "mtu 8950"}},
			{name: "MTU changed by hand", disturb: mtu(vx, 1280)},
			{name: "the VTEP's device is down", disturb: down("dummy0")},
			{name: "the VTEP went", disturb: gone("dummy0")},
			{name: "everything went", disturb: both(gone("dummy0"), gone(vx))},
		}, onVXLAN...),
	},
	{
		name: "VXLAN of a script", plan: vxlan, golden: strings.ReplaceAll(goldenVXLAN, "mtu 1450", "mtu 1400"),
		starts: map[string]func() *kernel.Fake{
			"address on the parent":             prepared(scriptParent, on(vx, "10.100.1.2/24")),
			"shim without address":              prepared(scriptParent, on(vx, "10.100.1.2/24"), scriptShim),
			"shim without address, down":        prepared(scriptParent, on(vx, "10.100.1.2/24"), scriptShim, down(shim)),
			"shim with address":                 prepared(scriptParent, scriptShim, on(shim, "10.100.1.2/24")),
			"shim with address, down":           prepared(scriptParent, scriptShim, on(shim, "10.100.1.2/24"), down(shim)),
			"address on both":                   prepared(scriptParent, scriptShim, on(vx, "10.100.1.2/24"), on(shim, "10.100.1.2/24")),
			"address on both, the parent down":  prepared(scriptParent, scriptShim, on(vx, "10.100.1.2/24"), on(shim, "10.100.1.2/24"), down(vx)),
			"a stale peer":                      prepared(scriptParent, on(vx, "10.100.1.2/24"), flood("10.100.100.9")),
			"no address, the VTEP tells who":    prepared(scriptParent),
			"the VTEP alone tells, with a shim": prepared(scriptParent, scriptShim),
		},
		states: onVXLAN,
	},
	{
		name: "no dummies", index: 2, plan: vxlan,
		golden: strings.NewReplacer("dummy dummy0 mtu 1500 up\n  address 10.100.100.2/32\n", "", "device lo mtu 65536 up\n", "device lo mtu 65536 up\n  address 10.100.100.2/32\n").Replace(goldenVXLAN),
		starts: map[string]func() *kernel.Fake{"fresh": prepared(func(f *kernel.Fake) { f.NoDummy = true })},
		states: onVXLAN,
	},
	{
		name: "VTEP on the NIC", plan: vxlan,
		golden: strings.NewReplacer("dummy dummy0 mtu 1500 up\n  address 10.100.100.2/32\n", "", "  address 192.168.7.2/24\n", "  address 10.100.100.2/24\n  address 192.168.7.2/24\n").Replace(goldenVXLAN),
		starts: map[string]func() *kernel.Fake{"fresh": prepared(on("eth0", "10.100.100.2/24"))},
		states: onVXLAN,
	},
	{
		name: "IPv6", index: 2, plan: ipv6, golden: goldenIPv6,
		starts: map[string]func() *kernel.Fake{
			"fresh": host,
		},
		states: []state{
			asConfigured,
			{name: "address on the parent too", disturb: both(sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0"), on(vx, "fd00::2/64"))},
			{name: "address on the parent alone", disturb: both(both(gone(shim), sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0")), on(vx, "fd00::2/64"))},
			{name: "IPv6 off on the shim", disturb: sysctl("net/ipv6/conf/"+shim+"/disable_ipv6", "1")},
			{name: "found a duplicate, which is gone", disturb: func(f *kernel.Fake) { f.DAD("fd00::2", false, true) }},
			{name: "duplicate address detection is running", disturb: func(f *kernel.Fake) { f.DAD("fd00::2", true, false) }},
			{name: "the shim is down", disturb: down(shim)},
			{name: "the shim went", disturb: gone(shim)},
			{name: "one peer less", change: func(p *netconf.Plan) { p.Parent.Peers = addrs("fd09::1") }, differs: []string{"  flood fd09::3\n", ""}},
		},
	},
	{
		name: "dual stack", index: 2, plan: dual, golden: goldenDual,
		starts: map[string]func() *kernel.Fake{
			"fresh": host,
		},
		states: []state{
			asConfigured,
			{name: "both on the parent", disturb: both(sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0"), on(vx, "10.100.1.2/24", "fd00::2/64"))},
			{name: "both on the parent alone", disturb: both(both(gone(shim), sysctl("net/ipv6/conf/"+vx+"/disable_ipv6", "0")), on(vx, "10.100.1.2/24", "fd00::2/64"))},
			{name: "the shim is down", disturb: down(shim)},
			{name: "IPv4 went", disturb: func(f *kernel.Fake) {
				must(f.DelAddr(kernel.Addr{Link: index(f, shim), Prefix: prefixes("10.100.1.2/24")[0]}))
			}},
		},
	},
	{
		name: "dual stack of a script", plan: dual, golden: strings.ReplaceAll(goldenDual, "mtu 1450", "mtu 1400"),
		starts: map[string]func() *kernel.Fake{
			"IPv4 on the parent":  prepared(scriptParent, on(vx, "10.100.1.2/24")),
			"IPv6 on the parent":  prepared(scriptParent, on(vx, "fd00::2/64")),
			"both on the parent":  prepared(scriptParent, on(vx, "fd00::2/64", "10.100.1.2/24")),
			"one here, one there": prepared(scriptParent, scriptShim, on(shim, "fd00::2/64"), on(vx, "10.100.1.2/24")),
		},
		states: []state{asConfigured},
	},
	{
		name: "a NIC with its own address of the network", index: 2, plan: device, golden: goldenNIC,
		starts: map[string]func() *kernel.Fake{"fresh": prepared(on("eth1", "10.100.1.200/24"))},
		states: onNIC("eth1"),
	},
	{
		name: "a VLAN", index: 2, plan: vlan, golden: goldenVLAN,
		starts: map[string]func() *kernel.Fake{"fresh": host},
		states: append(onNIC("eth1.5"),
			state{name: "the VLAN went", disturb: gone("eth1.5")},
			state{name: "the VLAN is down", disturb: down("eth1.5")}),
	},
}

// onNIC are the states of a shim that stands beside its parent's addresses.
func onNIC(parent string) []state {
	return []state{
		asConfigured,
		{name: "the shim is down", disturb: down(shim)},
		{name: "the shim went", disturb: gone(shim)},
		{name: "a route went", disturb: func(f *kernel.Fake) {
			routes, err := f.Routes(kernel.RouteProtocol)
			must(err)
			must(f.DelRoute(routes[0]))
		}},
		{name: "a stale route", disturb: func(f *kernel.Fake) {
			must(f.AddRoute(kernel.Route{Dst: prefixes("10.9.0.0/24")[0], Link: index(f, shim), Protocol: kernel.RouteProtocol}))
		}},
		{name: "an explicit MTU", change: func(p *netconf.Plan) { p.Parent.MTU = 1400 }, differs: []string{
			parent + " mtu 1500", parent + " mtu 1400", shim + " mtu 1500", shim + " mtu 1400",
		}},
	}
}

// Each state is reached from each beginning, and from each other: they are
// visited in random order, and the kernel's text is the golden one every time.
func TestGoldenStates(t *testing.T) {
	for _, fam := range families {
		for start, build := range fam.starts {
			t.Run(fam.name+"/"+start, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				random := rand.New(rand.NewPCG(seed, 0))
				w := newWorld(t, build(), fam.index)
				require.NoError(t, w.ensure(fam.plan()))
				require.Equal(t, fam.golden, w.f.Dump())
				w.quiet(fam.plan())
				for range 3 {
					for _, i := range random.Perm(len(fam.states)) {
						s := fam.states[i]
						if s.disturb != nil {
							s.disturb(w.f)
						}
						require.NoError(t, w.ensure(fam.planFor(s)), s.name)
						require.Equal(t, fam.text(s), w.f.Dump(), s.name)
						w.quiet(fam.planFor(s))
					}
				}
			})
		}
	}
}

// A failure at every call, on every state's way and from every beginning: the
// error says so with a code, nothing is lost, and the next Ensure mends it to the
// same text.
func TestEveryCallMayFail(t *testing.T) {
	for _, fam := range families {
		var one func() *kernel.Fake
		for start, build := range fam.starts {
			one = build
			t.Run(fam.name+"/start "+start, func(t *testing.T) {
				failEach(t, fam, asConfigured, func() *world { return newWorld(t, build(), fam.index) })
			})
		}
		for _, s := range fam.states {
			if s.name == asConfigured.name {
				continue
			}
			t.Run(fam.name+"/"+s.name, func(t *testing.T) {
				failEach(t, fam, s, func() *world {
					w := newWorld(t, one(), fam.index)
					require.NoError(t, w.ensure(fam.plan()))
					if s.disturb != nil {
						s.disturb(w.f)
					}
					w.f.Log = nil
					return w
				})
			})
		}
	}
}

func failEach(t *testing.T, fam family, s state, fresh func() *world) {
	t.Parallel() // most of the time is spent on syncing files
	clean := fresh()
	require.NoError(t, clean.ensure(fam.planFor(s)))
	require.NotEmpty(t, clean.f.Log)
	for n, call := range clean.f.Log {
		w := fresh()
		calls := 0
		w.f.Fail = func(string) error {
			if calls++; calls > n {
				return assert.AnError
			}
			return nil
		}
		err := w.ensure(fam.planFor(s))
		require.ErrorIs(t, err, assert.AnError, call)
		require.Equal(t, cnierr.Kernel, cnierr.CodeOf(err), call)
		w.f.Fail = nil
		require.NoError(t, w.ensure(fam.planFor(s)), call)
		require.Equal(t, fam.text(s), w.f.Dump(), call)
		w.quiet(fam.planFor(s))
	}
}

// IPv6 is never switched off on a parent that still has an address to move.
func TestIPv6AddressSurvivesTheMove(t *testing.T) {
	f := prepared(scriptParent, on(vx, "10.100.1.2/24", "fd00::2/64"))()
	w := newWorld(t, f, 0)
	require.NoError(t, w.ensure(dual()))
	var order []string
	for _, call := range f.Log {
		if strings.Contains(call, "fd00::2") || strings.Contains(call, vx+"/disable_ipv6") {
			order = append(order, call)
		}
	}
	assert.Equal(t, []string{
		"add address fd00::2/64 to lhnet1-host", "del address fd00::2/64 from vxlan-storage",
		"sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1",
	}, order)
}

// Rule 4, through the whole of Ensure: sysctls of parent and shim, the address on
// the shim, announced, off the parent, announced again.
func TestOrderOfTheMove(t *testing.T) {
	f := prepared(scriptParent, on(vx, "10.100.1.2/24"), scriptShim)()
	w := newWorld(t, f, 0)
	require.NoError(t, w.ensure(vxlan()))
	assert.Equal(t, []string{
		"set vxlan-storage learning=true",
		"sysctl net/ipv4/conf/vxlan-storage/arp_ignore=8",
		"sysctl net/ipv6/conf/vxlan-storage/disable_ipv6=1",
		"sysctl net/ipv4/conf/lhnet1-host/arp_ignore=1",
		"sysctl net/ipv4/conf/lhnet1-host/arp_announce=2",
		"sysctl net/ipv4/conf/lhnet1-host/rp_filter=2",
		"add address 10.100.1.2/24 to lhnet1-host",
		"announce on lhnet1-host",
		"del address 10.100.1.2/24 from vxlan-storage",
		"announce on lhnet1-host",
	}, f.Log)
}
