package kernel

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Learning and source address change in place, and nothing else with them: MAC,
// MTU, ageing, checksum flags and ports of a script's device stay.
func TestInPlaceChangesTouchNothingElse(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name, local string
		change      Change
		want        []string
	}{
		{"learning", "10.9.0.1", Change{Learning: new(true)}, []string{"learning: off -> true"}},
		{"source", "10.9.0.1", Change{Local: new(netip.MustParseAddr("10.9.0.2"))}, []string{"local: 10.9.0.1 -> 10.9.0.2"}},
		{"IPv6 source", "fd00::1", Change{Local: new(netip.MustParseAddr("fd00::2"))}, []string{"local6: fd00::1 -> fd00::2"}},
		{"both", "10.9.0.1", Change{Learning: new(true), Local: new(netip.MustParseAddr("10.9.0.2"))},
			[]string{"learning: off -> true", "local: 10.9.0.1 -> 10.9.0.2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := newNetns(t)
			ip(t, host, "link", "add", "vx0", "mtu", "1333", "txqueuelen", "77", "address", "02:00:00:00:00:07", "type", "vxlan",
				"id", "100", "dstport", "4790", "local", c.local, "nolearning", "ageing", "99", "ttl", "9", "noudpcsum", "udp6zerocsumrx", "l2miss")
			ip(t, host, "link", "add", "link", "vx0", "name", "kid0", "type", "macvlan", "mode", "bridge")
			k := open(t, host)
			before := details(t, host)
			require.NoError(t, k.SetLink(index(t, k, "vx0"), c.change))
			var got []string
			after := details(t, host)
			for key := range union(before, after) {
				was, is := cmp.Or(before[key], "off"), cmp.Or(after[key], "off")
				if was != is {
					got = append(got, fmt.Sprintf("%s: %s -> %s", key[strings.LastIndex(key, ".")+1:], was, is))
				}
			}
			assert.ElementsMatch(t, c.want, got)
		})
	}
}

// details is `ip -d -j link`, flattened: path to value.
func details(t *testing.T, n ns.NetNS) map[string]string {
	var links any
	require.NoError(t, json.Unmarshal(ip(t, n, "-d", "-j", "link"), &links))
	flat := flat{}
	flat.add("", links)
	return flat
}

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

type flat map[string]string

func (f flat) add(path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, member := range v {
			f.add(path+"."+key, member)
		}
	case []any:
		for i, member := range v {
			f.add(fmt.Sprint(path, ".", i), member)
		}
	case bool: // iproute2 leaves a flag out when it is off
		if v {
			f[path] = "true"
		}
	default:
		f[path] = fmt.Sprint(v)
	}
}

func ip(t *testing.T, n ns.NetNS, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("ip")
	if err != nil {
		path = "/usr/sbin/ip"
	}
	var out []byte
	inside(t, n, func() {
		out, err = exec.Command(path, args...).CombinedOutput()
	})
	require.NoError(t, err, "ip %v: %s", args, out)
	return out
}

// What a killed process left of a guarded deletion doesn't stand in the way of
// the next one.
func TestGuardedDeletionAfterAKill(t *testing.T) {
	w := realWorld(t)
	require.NoError(t, w.vxlan("vx0", 100, 4789, "10.9.0.1"))
	i := w.at("vx0")
	require.NoError(t, w.macvlan(fmt.Sprintf("lhsdel%d", i), "vx0", "passthru", 1))
	require.NoError(t, w.k.DelChildless(i))
	_, err := w.k.Link("vx0")
	assert.True(t, IsNotFound(err), err)
	links, err := w.k.Links()
	require.NoError(t, err)
	assert.Len(t, links, 3, "lo and the veth pair: the guard is gone too")
}

// A refused deletion leaves no guard behind, and the children as they were.
func TestRefusedDeletionChangesNothing(t *testing.T) {
	w := realWorld(t)
	require.NoError(t, w.vxlan("vx0", 100, 4789, "10.9.0.1"))
	require.NoError(t, w.macvlan("shim0", "vx0", "bridge", 1))
	before := state(w)
	require.ErrorIs(t, w.k.DelChildless(w.at("vx0")), ErrHasChildren)
	assert.Equal(t, before, state(w))
}

// Kinds of device that this kernel may lack; the fake has its word for both.
func TestOptionalKinds(t *testing.T) {
	for kind, script := range map[string][]op{
		"vlan": {
			{"make", func(w *world) error {
				return w.k.AddLink(Link{Name: "vlan5", Kind: "vlan", Lower: w.at("under0"), VLAN: 5})
			}, ok},
			{"the same id again", func(w *world) error {
				return w.k.AddLink(Link{Name: "other5", Kind: "vlan", Lower: w.at("under0"), VLAN: 5})
			}, IsExists},
			{"up", func(w *world) error { return w.up("vlan5") }, ok},
			{"child", func(w *world) error { return w.macvlan("shim0", "vlan5", "bridge", 1) }, ok},
			{"guarded deletion is refused", func(w *world) error { return w.k.DelChildless(w.at("vlan5")) }, hasChildren},
		},
		"dummy": {
			{"make", func(w *world) error { return w.k.AddLink(Link{Name: "dummy7", Kind: "dummy"}) }, ok},
			{"again", func(w *world) error { return w.k.AddLink(Link{Name: "dummy7", Kind: "dummy"}) }, IsExists},
			{"address", func(w *world) error { return w.addAddr("dummy7", "10.100.100.1/32") }, ok},
			{"up", func(w *world) error { return w.up("dummy7") }, ok},
		},
	} {
		t.Run(kind, func(t *testing.T) {
			play(fakeWorld(t), script)
			lacking := fakeWorld(t)
			lacking.k.(*Fake).NoVLAN, lacking.k.(*Fake).NoDummy = true, true
			assert.True(t, IsNotSupported(script[0].do(lacking)))
			t.Run("real", func(t *testing.T) {
				if err := script[0].do(realWorld(t)); IsNotSupported(err) {
					t.Skipf("this kernel makes no %s devices: %v", kind, err)
				}
				model, kernel := play(fakeWorld(t), script), play(realWorld(t), script)
				for i, o := range script {
					require.Equal(t, model[i], kernel[i], o.text)
				}
			})
		})
	}
}

// Faults that a caller can make are errors on both kernels.
func TestUnknownKindsAndModes(t *testing.T) {
	w := realWorld(t)
	require.ErrorContains(t, w.k.AddLink(Link{Name: "x0", Kind: "macvlan", Lower: w.at("under0"), Macvlan: Macvlan{Mode: "odd"}}), `unknown mode "odd"`)
	require.ErrorContains(t, w.k.AddLink(Link{Name: "x0", Kind: "tun"}), `no devices of kind "tun"`)
}

func TestErrorPredicates(t *testing.T) {
	wrapped := func(n syscall.Errno) error { return fmt.Errorf("outer: %w", n) }
	for _, c := range []struct {
		err                            error
		notFound, exists, notSupported bool
	}{
		{wrapped(syscall.ENODEV), true, false, false},
		{wrapped(syscall.ENXIO), true, false, false},
		{wrapped(syscall.ESRCH), true, false, false},
		{wrapped(syscall.ENOENT), true, false, false},
		{wrapped(syscall.EADDRNOTAVAIL), true, false, false},
		{wrapped(syscall.EEXIST), false, true, false},
		{wrapped(syscall.EOPNOTSUPP), false, false, true},
		{wrapped(syscall.EAFNOSUPPORT), false, false, true},
		{wrapped(syscall.EPROTONOSUPPORT), false, false, true},
		{wrapped(syscall.EINVAL), false, false, false},
		{nil, false, false, false},
	} {
		assert.Equal(t, c.notFound, IsNotFound(c.err), "not found: %v", c.err)
		assert.Equal(t, c.exists, IsExists(c.err), "exists: %v", c.err)
		assert.Equal(t, c.notSupported, IsNotSupported(c.err), "not supported: %v", c.err)
	}
}

// Apply stops at the first step that fails, says which it was, and what was done.
func TestApplyStopsAtTheFirstFault(t *testing.T) {
	f := NewFake()
	var ran []string
	step := func(name string, err error) Step {
		return Step{Name: name, Text: "do " + name, Do: func(Kernel) error { ran = append(ran, name); return err }}
	}
	done, err := Apply(f, []Step{step("one", nil), step("two", syscall.EPERM), step("three", nil)})
	assert.Equal(t, []string{"do one"}, done)
	require.ErrorIs(t, err, syscall.EPERM)
	require.ErrorContains(t, err, "do two")
	assert.Equal(t, []string{"one", "two"}, ran)
}

// The host's kernel is the namespace of the process.
func TestHost(t *testing.T) {
	k, err := Host()
	require.NoError(t, err)
	defer k.Close()
	lo, err := k.Link("lo")
	require.NoError(t, err)
	assert.Equal(t, 1, lo.Index)
	_, err = k.Sysctl("net/ipv4/ip_forward")
	assert.NoError(t, err)
}

// A thousand routes are more answers than a socket's buffer holds; those that lead nowhere are left out.
func TestThousandRoutes(t *testing.T) {
	w := realWorld(t)
	require.NoError(t, w.addAddr("under0", "10.9.0.1/22"))
	var asked []netip.Addr
	for i := range 1500 {
		asked = append(asked, netip.AddrFrom4([4]byte{10, 9, byte(i / 250), byte(2 + i%250)}), netip.AddrFrom4([4]byte{10, 77, byte(i / 250), byte(i % 250)}))
	}
	routes, err := w.k.RoutesTo(asked)
	require.NoError(t, err)
	require.Len(t, routes, 1000)
	for i, r := range routes {
		require.Equal(t, Route{Dst: netip.PrefixFrom(asked[2*i], 32), Link: w.at("under0"), Src: netip.MustParseAddr("10.9.0.1")}, r)
	}
}
