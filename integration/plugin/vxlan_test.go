package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

func TestLegsOverVXLAN(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	n1.add(t, a, n1.vxlan())
	n1.add(t, beside, n1.vxlan())
	n2.add(t, b, n2.vxlan())
	requireLegs(t, legsOf(n1, n2, shimAddr(1), shimAddr(2), a, beside, b)...)

	assert.Equal(t, 8950, a.mtu(t, "lhnet1"), "the link's 9000 less VXLAN's 50")
	assert.Empty(t, n1.addrs(t, "vxlan-storage"), "the parent has no address")
}

// dump is all of a node that an ADD could change, but for what comes with a child:
// the parent's promiscuity and what is learned from traffic.
func (n *node) dump(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, l := range n.listing(t, "ip -d -j link") {
		delete(l, "promiscuity")
		fmt.Fprintln(&b, l)
	}
	b.WriteString(n.sh(t, `ip -o addr; ip route show table all; ip -6 route show table all
		bridge fdb show dev vxlan-storage | grep 00:00:00:00:00:00
		for d in vxlan-storage lhnet1-host; do for f in ipv4 ipv6; do grep -H . /proc/sys/net/$f/conf/$d/* 2>/dev/null || true; done; done`))
	return b.String()
}

func TestSecondAddChangesNothingOnTheNode(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	n1.add(t, n1.pod(t, "a"), n1.vxlan())

	// The fast path takes no lock: it doesn't mind that another has it.
	lock := flock.New(filepath.Join(n1.file.RunDir, "lock"))
	held, err := lock.TryLock()
	require.NoError(t, err)
	require.True(t, held)
	before := n1.dump(t)
	out := n1.must(t, "ADD", n1.pod(t, "b"), n1.vxlan())
	assert.Equal(t, before, n1.dump(t))
	assert.Empty(t, string(out.Stderr), "what was changed is said on stderr")

	// One that has something to change does, for a bounded time.
	n1.sh(t, "ip link del lhnet1-host")
	c := n1.pod(t, "c")
	_, err = n1.run(t, "ADD", c, n1.vxlan())
	requireRefusal(t, err, cnierr.TryAgain, lock.Path())
	n1.requireNothingOf(t, c)
	require.NoError(t, lock.Close())
	n1.add(t, c, n1.vxlan())
}

func TestResult(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	p := n1.pod(t, "a")
	result := n1.add(t, p, n1.vxlan())
	require.Len(t, result.Interfaces, 1, "Multus counts sandboxed interfaces")
	assert.Equal(t, &types100.Interface{Name: "lhnet1", Mac: p.mac(t, "lhnet1"), Mtu: 8950, Sandbox: p.netns.Path()}, result.Interfaces[0])
	require.Len(t, result.IPs, 1)
	assert.Equal(t, types100.Int(0), result.IPs[0].Interface)
	assert.Equal(t, []string{result.IPs[0].Address.String()}, p.space.addrs(t, "lhnet1"))

	at := n1.record(t, p)
	assert.Equal(t, "default/container-a", at.PodRef)
	assert.Equal(t, p.addr().String(), at.ISCSIDial)
	assert.Equal(t, result.Interfaces[0].Mac, at.MAC)
}

func TestVersions(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			p, c := n1.pod(t, v), n1.vxlan().with("cniVersion", v)
			if strings.HasPrefix(v, "0.1") || strings.HasPrefix(v, "0.2") {
				_, err := n1.run(t, "ADD", p, c)
				requireRefusal(t, err, cnierr.InvalidConfig, "hostShim.range", "0.3.0")
				n1.requireNothingOf(t, p)
				c = c.with("hostShim", nil, "name", "old")
			}
			out := n1.must(t, "ADD", p, c)
			assert.Equal(t, v, parse("%s", out.Stdout)["cniVersion"])
			result := decode(t, v, out.Stdout)
			require.Len(t, result.IPs, 1)
			assert.Equal(t, []string{result.IPs[0].Address.String()}, p.space.addrs(t, "lhnet1"))
			n1.must(t, "DEL", p, c)
			n1.requireNothingOf(t, p)
		})
	}
}

func TestAddRefusesAnInterfaceThatIsThere(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	p := n1.pod(t, "a")
	n1.add(t, p, n1.vxlan())
	before := n1.record(t, p)
	_, err := n1.run(t, "ADD", p, n1.vxlan())
	requireRefusal(t, err, cnierr.InvalidEnvironment, "CNI_IFNAME", "lhnet1")
	assert.Equal(t, []string{"lhnet1"}, p.interfaces(t), "the first attachment stays")
	assert.Equal(t, before, n1.record(t, p))
	requireLegs(t, leg{"host-local", n1.space, p.addr()})

	// A foreign interface of the name stays too, also after the DEL that follows a failed ADD.
	q := n1.pod(t, "q")
	q.sh(t, "ip link add lhnet1 type bridge")
	_, err = n1.run(t, "ADD", q, n1.vxlan())
	requireRefusal(t, err, cnierr.InvalidEnvironment, "CNI_IFNAME", "lhnet1")
	n1.must(t, "DEL", q, n1.vxlan())
	assert.Equal(t, []string{"lhnet1"}, q.interfaces(t))
}

func TestAddNeedsAPodOfItsOwn(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	host := &pod{space: n1.space, container: "host", ifName: "lhnet1"}
	_, err := n1.run(t, "ADD", host, n1.vxlan())
	requireRefusal(t, err, cnierr.HostNetns, host.netns.Path())
	gone := n1.pod(t, "gone")
	_, err = n1.run(t, "ADD", gone, n1.vxlan(), netnsPath("/run/netns/is-not-there"))
	requireRefusal(t, err, cnierr.UnknownContainer, "/run/netns/is-not-there")
	_, err = n1.try("ip link show vxlan-storage")
	assert.Error(t, err, "nothing is created for a pod that isn't there")
}

func TestDel(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.vxlan()
	attached := func(t *testing.T) *pod {
		t.Helper()
		p := n1.pod(t, strings.ReplaceAll(filepath.Base(t.Name()), "_", "-"))
		n1.add(t, p, c)
		return p
	}
	emptyRun := func(t *testing.T) { require.NoError(t, os.RemoveAll(n1.file.RunDir)) }

	t.Run("twice", func(t *testing.T) {
		p := attached(t)
		n1.must(t, "DEL", p, c)
		n1.requireNothingOf(t, p)
		n1.must(t, "DEL", p, c)
	})
	t.Run("without a netns", func(t *testing.T) {
		p := attached(t)
		n1.must(t, "DEL", p, c, withoutNetns)
		p.sh(t, "ip link del lhnet1") // as the kernel does with the pod
		n1.requireNothingOf(t, p)
	})
	t.Run("netns is gone", func(t *testing.T) {
		p := attached(t)
		n1.must(t, "DEL", p, c, netnsPath("/run/netns/is-not-there"))
		p.sh(t, "ip link del lhnet1")
		n1.requireNothingOf(t, p)
	})
	t.Run("without a record", func(t *testing.T) {
		p := attached(t)
		require.NoError(t, os.RemoveAll(filepath.Join(n1.file.RunDir, "attachments")))
		n1.must(t, "DEL", p, c)
		n1.requireNothingOf(t, p)
	})
	t.Run("never added", func(t *testing.T) {
		p := n1.pod(t, "never")
		n1.must(t, "DEL", p, c)
		n1.requireNothingOf(t, p)
	})
	t.Run("broken config", func(t *testing.T) {
		p := attached(t)
		n1.must(t, "DEL", p, c, stdin(`{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage", "parent": 5, "mtu": "x", "ipam": []}`))
		n1.requireNothingOf(t, p)
	})
	t.Run("stripped config", func(t *testing.T) {
		p := attached(t)
		n1.must(t, "DEL", p, c, stdin(`{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage"}`))
		n1.requireNothingOf(t, p)
	})
	t.Run("run was emptied", func(t *testing.T) {
		p := attached(t)
		emptyRun(t)
		n1.must(t, "DEL", p, c)
		n1.requireNothingOf(t, p)
	})
	t.Run("run was emptied and no netns", func(t *testing.T) {
		p := attached(t)
		emptyRun(t)
		n1.must(t, "DEL", p, c, withoutNetns)
		p.sh(t, "ip link del lhnet1")
		n1.requireNothingOf(t, p)
	})
	t.Run("parent is gone", func(t *testing.T) {
		p := attached(t)
		n1.sh(t, "ip link del vxlan-storage")
		n1.must(t, "DEL", p, c)
		n1.requireNothingOf(t, p)
	})
}

func TestReboot(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	n1.add(t, n1.pod(t, "a"), n1.vxlan())
	b := n2.pod(t, "b")
	n2.add(t, b, n2.vxlan())
	require.Equal(t, []string{"10.100.1.1/24"}, n1.addrs(t, "lhnet1-host"))
	mac := n1.mac(t, "lhnet1-host")

	n1.sh(t, "ip link del to-node2") // a veth's other end goes with it, a cable's would only lose its carrier
	n1.reboot(t)
	connect(t, n1, n2, "10.100.0.0/31", "10.100.0.1/31")
	after := n1.pod(t, "after")
	n1.add(t, after, n1.vxlan())
	assert.Equal(t, []string{"10.100.1.1/24"}, n1.addrs(t, "lhnet1-host"))
	assert.Contains(t, n1.sh(t, "ip -o addr show to 10.100.100.0/24"), " 10.100.100.1/32 ", "the VTEP, on a dummy or on lo")
	assert.Equal(t, mac, n1.mac(t, "lhnet1-host"))
	n2.add(t, n2.pod(t, "c"), n2.vxlan()) // its link came back with the peer: the route to it too
	requireLegs(t, leg{"host-remote", n1.space, b.addr()}, leg{"pod-pod", after.space, b.addr()})
}
