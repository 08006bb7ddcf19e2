package plugin

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, n *node, p *pod)
		words  []string
		mended bool // by the next ADD
	}{
		{"interface down", inPod("ip link set lhnet1 down"), []string{"lhnet1 is down"}, false},
		{"interface gone", inPod("ip link del lhnet1"), []string{"lhnet1"}, false},
		{"address gone", inPod("ip addr flush dev lhnet1"), []string{"lhnet1", "address 10.100.1.16/24"}, false},
		{"route gone", inPod("ip route del 10.55.0.0/16"), []string{"route to 10.55.0.0/16"}, false},
		{"other MAC", inPod("ip link set lhnet1 address 02:00:00:00:00:99"), []string{"lhnet1 has MAC 02:00:00:00:00:99"}, false},
		{"parent down", onNode("ip link set vxlan-storage down"), []string{"parent vxlan-storage is down"}, true},
		{"parent gone", onNode("ip link del vxlan-storage"), []string{"vxlan-storage"}, false},
		{"shim gone", onNode("ip link del lhnet1-host"), []string{"host shim lhnet1-host"}, true},
		{"shim without its address", onNode("ip addr flush dev lhnet1-host"), []string{"lhnet1-host", "10.100.1.1/24"}, true},
		{"peer gone", onNode("bridge fdb del 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.2"), []string{"peer 10.100.100.2"}, true},
		{"sysctl changed", onNode("echo 0 > /proc/sys/net/ipv4/conf/vxlan-storage/arp_ignore"), []string{"arp_ignore", "vxlan-storage"}, true},
		{"claim gone", func(t *testing.T, n *node, _ *pod) { require.NoError(t, os.RemoveAll(n.hostLocal())) }, []string{"host-local"}, false},
		{"record gone", func(t *testing.T, n *node, _ *pod) {
			require.NoError(t, os.RemoveAll(filepath.Join(n.file.RunDir, "attachments")))
		}, []string{"record"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n1, _ := twoNodes(t)
			c := n1.vxlan().with("ipam.routes", []any{map[string]any{"dst": "10.55.0.0/16"}})
			p := n1.pod(t, "a")
			result := n1.add(t, p, c)
			require.NoError(t, n1.check(t, p, c, result), "right after ADD")
			p.sh(t, "ip route add 10.66.0.0/16 dev lhnet1")
			require.NoError(t, n1.check(t, p, c, result), "with what a later plugin has added")
			tt.damage(t, n1, p)
			requireRefusal(t, n1.check(t, p, c, result), cnierr.InvalidConfig, tt.words...)
			if tt.mended {
				n1.add(t, n1.pod(t, "b"), c)
				require.NoError(t, n1.check(t, p, c, result), "after the next ADD")
			}
		})
	}
}

func inPod(script string) func(*testing.T, *node, *pod) {
	return func(t *testing.T, _ *node, p *pod) { p.sh(t, "%s", script) }
}

func onNode(script string) func(*testing.T, *node, *pod) {
	return func(t *testing.T, n *node, _ *pod) { n.sh(t, "%s", script) }
}

func (n *node) status(t *testing.T, c conf) error {
	t.Helper()
	out, err := n.run(t, "STATUS", nil, c)
	if err == nil {
		assert.Empty(t, out.Stdout, "STATUS says nothing when all is well")
	}
	return err
}

func TestStatus(t *testing.T) {
	t.Parallel()
	t.Run("a fresh node", func(t *testing.T) {
		t.Parallel()
		n1, _ := twoNodes(t)
		require.NoError(t, n1.status(t, n1.vxlan()))
		_, err := n1.try("ip link show vxlan-storage")
		require.Error(t, err, "STATUS changes nothing")
		n1.add(t, n1.pod(t, "a"), n1.vxlan())
		require.NoError(t, n1.status(t, n1.vxlan()))
	})
	t.Run("missing device", func(t *testing.T) {
		t.Parallel()
		n1 := newNode(t, 1)
		requireRefusal(t, n1.status(t, n1.flat()), cnierr.NotAvailable, "eth0")
	})
	t.Run("no identity", func(t *testing.T) {
		t.Parallel()
		n1, _ := twoNodes(t)
		n1.identify(t, nodefile.File{NodeName: "nobody"})
		requireRefusal(t, n1.status(t, n1.vxlan()), cnierr.NotAvailable, "nobody", "index")
	})
	t.Run("device is down", func(t *testing.T) {
		t.Parallel()
		n1 := onLAN(t, newLAN(t), 1)
		n1.sh(t, "ip link set eth0 down")
		requireRefusal(t, n1.status(t, n1.flat()), cnierr.NotAvailable, "eth0", "down")
		n1.sh(t, "ip link set eth0 up")
		n1.add(t, n1.pod(t, "a"), n1.flat())
		n1.sh(t, "ip link set eth0 down")
		requireRefusal(t, n1.status(t, n1.flat()), cnierr.Limited, "eth0", "down")
	})
	t.Run("parent is gone with pods", func(t *testing.T) {
		t.Parallel()
		n1, _ := twoNodes(t)
		p := n1.pod(t, "a")
		n1.add(t, p, n1.vxlan())
		n1.sh(t, "ip link del vxlan-storage")
		requireRefusal(t, n1.status(t, n1.vxlan()), cnierr.Limited, "vxlan-storage")
		n1.must(t, "DEL", p, n1.vxlan())
		require.NoError(t, n1.status(t, n1.vxlan()), "without pods it is made again")
	})
	t.Run("no address is left", func(t *testing.T) {
		t.Parallel()
		n1, _ := twoNodes(t)
		c := n1.own("10.100.1.30").with("ipam.range_end", "10.100.1.30")
		require.NoError(t, n1.status(t, c))
		n1.add(t, n1.pod(t, "a"), c)
		requireRefusal(t, n1.status(t, c), cnierr.NotAvailable)
	})
}

// gc runs GC with the given pods as those that the runtime knows.
func (n *node) gc(t *testing.T, c conf, valid ...*pod) error {
	t.Helper()
	list := []any{}
	for _, p := range valid {
		list = append(list, map[string]any{"containerID": p.container, "ifname": p.ifName})
	}
	c = c.with()
	c["cni.dev/valid-attachments"] = list
	_, err := n.run(t, "GC", nil, c)
	return err
}

func TestGC(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.vxlan()
	other := c.with("name", "other", "ipam", map[string]any{"type": "static", "addresses": []any{map[string]any{"address": "10.100.1.60/24"}}})
	kept, stale, gone, foreign := n1.pod(t, "kept"), n1.pod(t, "stale"), n1.pod(t, "gone"), n1.pod(t, "foreign")
	for _, p := range []*pod{kept, stale, gone} {
		n1.add(t, p, c)
	}
	n1.add(t, foreign, other)
	gone.sh(t, "ip link del lhnet1")

	n1.must(t, "GC", nil, c) // without a list
	for _, p := range []*pod{kept, stale, gone, foreign} {
		n1.record(t, p)
	}
	require.NoError(t, n1.gc(t, c, kept))
	for _, p := range []*pod{stale, gone} {
		n1.requireNothingOf(t, p)
	}
	n1.record(t, kept)
	n1.record(t, foreign)
	requireLegs(t, leg{"kept", n1.space, kept.addr()}, leg{"of another network", n1.space, foreign.addr()})

	require.NoError(t, n1.gc(t, c)) // an empty list
	n1.requireNothingOf(t, kept)
	n1.record(t, foreign)
}

// The path by which a record names its sandbox (/proc/PID/ns/net, say) may lead into another pod's by now: that one
// keeps its interface, and its MTU.
func TestAPathThatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.vxlan()
	stale, kept := n1.pod(t, "stale"), n1.pod(t, "kept")
	path := filepath.Join(n1.dir, "netns")
	require.NoError(t, os.Symlink(stale.netns.Path(), path))
	n1.add(t, stale, c.with("mtu", 1300), netnsPath(path))
	n1.add(t, kept, c)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink(kept.netns.Path(), path))
	n1.add(t, n1.pod(t, "raised"), c.with("parent.mtu", 9000-100))
	require.Equal(t, 8900, kept.mtu(t, "lhnet1"))
	require.NoError(t, n1.gc(t, c, kept))
	assert.NoFileExists(t, filepath.Join(n1.file.RunDir, "attachments", stale.container+"@lhnet1.json"))
	n1.record(t, kept)
	requireLegs(t, leg{"kept", n1.space, kept.addr()})
}

// What the IPAM plugin alone knows of is its to collect.
func TestGCForwardsToIPAM(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.own("10.100.1.30").with("ipam.range_end", "10.100.1.31")
	kept, leaked, next := n1.pod(t, "kept"), n1.pod(t, "leaked"), n1.pod(t, "next")
	n1.add(t, kept, c)
	n1.must(t, "ADD", leaked, conf{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage-ipam", "ipam": c["ipam"]})
	_, err := n1.run(t, "ADD", next, c)
	requireRefusal(t, err, cnierr.Exhausted)
	n1.requireNothingOf(t, next)

	require.NoError(t, n1.gc(t, c, kept))
	n1.add(t, next, c)
	assert.Equal(t, netip.MustParseAddr("10.100.1.31"), next.addr())
	n1.record(t, kept)
}

func TestGCGoesOnPastErrors(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	stubborn := filepath.Join(n1.dir, "stubborn")
	n1.ipamScript(t, "flaky", `
		case $CNI_COMMAND in
		ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.99/24"}]}' ;;
		DEL) test ! -e `+stubborn+` || { echo '{"cniVersion": "1.1.0", "code": 11, "msg": "not now"}'; exit 1; } ;;
		esac`)
	flaky := n1.vxlan().with("hostShim", nil, "ipam", map[string]any{"type": "flaky"})
	first, second, third := n1.pod(t, "1"), n1.pod(t, "2"), n1.pod(t, "3")
	n1.add(t, first, n1.vxlan())
	n1.add(t, second, flaky)
	n1.add(t, third, n1.vxlan())
	require.NoError(t, os.WriteFile(stubborn, nil, 0o600))
	requireRefusal(t, n1.gc(t, n1.vxlan()), cnierr.TryAgain, second.container, "not now")
	n1.requireNothingOf(t, first)
	n1.requireNothingOf(t, third)
	n1.record(t, second)
	require.NoError(t, os.Remove(stubborn))
	require.NoError(t, n1.gc(t, n1.vxlan()))
	n1.requireNothingOf(t, second)
}

// ipamScript makes a shell script an IPAM plugin of the node.
func (n *node) ipamScript(t *testing.T, name, script string) {
	t.Helper()
	dir := filepath.Join(n.dir, "bin")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	n.bin = dir + ":" + n.bin
}
