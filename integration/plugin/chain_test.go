package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// hostExec executes plugins for libcni in a node's namespace.
type hostExec struct {
	invoke.RawExec
	version.PluginDecoder
	node *node
}

func (e *hostExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	err = e.node.netns.Do(func(ns.NetNS) error {
		out, err = e.RawExec.ExecPlugin(ctx, path, stdin, append(env, nodefile.PathEnv+"="+e.node.nodeFile()))
		return err
	})
	return out, err
}

// chain is a plugin list and the library that runtimes run it with.
type chain struct {
	lib  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func (n *node) chain(t *testing.T, plugins ...conf) chain {
	t.Helper()
	data := conf{"cniVersion": "1.1.0", "name": "chained", "plugins": plugins}.json()
	list, err := libcni.NetworkConfFromBytes(data)
	require.NoError(t, err)
	lib := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(n.bin), t.TempDir(), &hostExec{node: n})
	return chain{lib, list}
}

func (c chain) add(t *testing.T, p *pod) (*types100.Result, error) {
	t.Helper()
	result, err := c.lib.AddNetworkList(t.Context(), c.list, p.runtimeConf())
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(result)
	require.NoError(t, err)
	for _, ip := range r.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		p.addrs = append(p.addrs, addr.Unmap())
	}
	return r, nil
}

func (c chain) check(t *testing.T, p *pod) error {
	t.Helper()
	return c.lib.CheckNetworkList(t.Context(), c.list, p.runtimeConf())
}

func (c chain) del(t *testing.T, p *pod) {
	t.Helper()
	require.NoError(t, c.lib.DelNetworkList(t.Context(), c.list, p.runtimeConf()))
}

func (p *pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: p.container, NetNS: p.netns.Path(), IfName: p.ifName}
}

// stockMacvlan is a NAD as it was before lhstorage came.
func (n *node) stockMacvlan() conf {
	return conf{"cniVersion": "1.1.0", "name": "chained", "type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": n.flat()["ipam"]}
}

var hostAccess = conf{"cniVersion": "1.1.0", "name": "chained", "type": "lhstorage", "hostShim": map[string]any{"range": "192.168.77.16/28"}}

func TestChainedAfterStockMacvlan(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1, n2 := onLAN(t, lan, 1), onLAN(t, lan, 2)
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	c1, c2 := n1.chain(t, n1.stockMacvlan(), hostAccess), n2.chain(t, n2.stockMacvlan(), hostAccess.with("master", "eth0"))
	for _, p := range []*pod{a, beside} {
		_, err := c1.add(t, p)
		require.NoError(t, err)
	}
	_, err := c2.add(t, b)
	require.NoError(t, err)
	requireLegs(t, append(legsOf(n1, n2, flatShim(1), flatShim(2), a, beside, b),
		leg{"host-NIC of the other host", n1.space, nicAddr(2)},
		leg{"pod-NIC of the other host", b.space, nicAddr(1)})...)

	at := n1.record(t, a)
	assert.True(t, at.Chained)
	assert.Equal(t, "eth0", at.Parent)
	assert.Empty(t, at.IPAM, "the address is stock macvlan's to release")

	require.NoError(t, c1.check(t, a))
	n1.sh(t, "ip link del lhnet1-host")
	require.ErrorContains(t, c1.check(t, a), "lhnet1-host")

	c1.del(t, a)
	n1.requireNothingOf(t, a)
	c1.del(t, a)
	requireLegs(t, leg{"the other pod's leg", b.space, beside.addr()})
}

// One entry more in the NAD gives a cluster that the source design's script has set
// up its host access, and leaves the script's devices as they are.
func TestChainedOnAScriptedParent(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ name, addresses, shim1, shim2 string }{
		{"address on the parent", onParent, "10.100.1.1", "10.100.1.2"},
		{"address on the shim", onShim, scriptHost, otherHost},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			n1, n2 := twoNodes(t)
			n1.scripted(t, "10.100.0.1", scriptVTEP, otherVTEP, fmt.Sprintf(v.addresses, scriptHost))
			n2.scripted(t, "10.100.0.0", otherVTEP, scriptVTEP, fmt.Sprintf(v.addresses, otherHost))
			before := n1.adopted(t, "vxlan-storage")
			a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
			for _, p := range []*pod{a, beside, b} {
				n := n1
				if p == b {
					n = n2
				}
				stock := conf{"type": "macvlan", "master": "vxlan-storage", "ipam": n.vxlan()["ipam"]}
				_, err := n.chain(t, stock, hostAccess.with("hostShim.range", "10.100.1.0/28")).add(t, p)
				require.NoError(t, err)
			}
			requireLegs(t, legsOf(n1, n2, netip.MustParseAddr(v.shim1), netip.MustParseAddr(v.shim2), a, beside, b)...)
			requireLegs(t, leg{"pod-the script's address", b.space, netip.MustParseAddr(scriptHost)})
			assert.Equal(t, before, n1.adopted(t, "vxlan-storage"))
		})
	}
}

func TestChainedResult(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1 := onLAN(t, lan, 1)
	p := n1.pod(t, "a")
	stock := n1.must(t, "ADD", p, n1.stockMacvlan())
	before := p.link(t, "lhnet1")
	out := n1.must(t, "ADD", p, hostAccess.with("prevResult", parse("%s", stock.Stdout)))
	assert.JSONEq(t, string(stock.Stdout), string(out.Stdout))
	assert.Equal(t, before, p.link(t, "lhnet1"))

	// Our DEL takes nothing that stock macvlan made.
	n1.must(t, "DEL", p, hostAccess.with("prevResult", parse("%s", stock.Stdout)))
	assert.Equal(t, []string{"lhnet1"}, p.interfaces(t))
	n1.must(t, "DEL", p, n1.stockMacvlan())
	n1.requireNothingOf(t, p)
}

func TestChainedRefusals(t *testing.T) {
	t.Parallel()
	lan := newLAN(t)
	n1 := onLAN(t, lan, 1)
	n1.sh(t, "ip link add eth1 type veth peer name eth1-peer; ip link set eth1 up")
	bridge := conf{"type": "bridge", "bridge": "br0", "ipam": n1.flat()["ipam"]}
	for _, tt := range []struct {
		name  string
		first conf
		ours  conf
		words []string
	}{
		{"another master", n1.stockMacvlan(), hostAccess.with("master", "eth1"), []string{"master", "eth1", "eth0"}},
		{"another kind", bridge, hostAccess, []string{"lhnet1", "veth", "macvlan"}},
		{"another mode", n1.stockMacvlan().with("mode", "private"), hostAccess, []string{"private", "bridge"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, c := n1.pod(t, "a"), n1.chain(t, tt.first, tt.ours)
			_, err := c.add(t, p)
			requireRefusal(t, err, cnierr.InvalidConfig, tt.words...)
			_, err = n1.try("ip link show lhnet1-host")
			require.Error(t, err, "no shim is made")
			c.del(t, p)
			n1.requireNothingOf(t, p)
		})
	}
}

func TestBeforeTuning(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.chain(t, n1.vxlan(), conf{"type": "tuning", "sysctl": map[string]any{"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400})
	p := n1.pod(t, "a")
	result, err := c.add(t, p)
	require.NoError(t, err)
	require.Len(t, result.Interfaces, 1)
	assert.Equal(t, "1", p.sh(t, "cat /proc/sys/net/ipv4/conf/lhnet1/arp_filter"))
	assert.Equal(t, 1400, p.mtu(t, "lhnet1"))
	requireLegs(t, leg{"host-local", n1.space, p.addr()})
	require.NoError(t, c.check(t, p))
	c.del(t, p)
	n1.requireNothingOf(t, p)
}
