package plugin

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
)

// Ways in which a cluster's network gives a pod its eth0.
var eth0 = map[string]func(t *testing.T, n *node, p *pod){
	"made inside": func(t *testing.T, n *node, p *pod) {
		p.sh(t, "ip link add eth0 index 2 type veth peer name veth-%s netns %s", p.container[len(p.container)-4:], n.name())
	},
	"moved in": func(t *testing.T, n *node, p *pod) {
		n.sh(t, "ip link add moving index 5000 type veth peer name veth-%s; ip link set moving netns %s name eth0", p.container[len(p.container)-4:], p.name())
	},
}

const podIP = "10.42.0.7"

// dialled is what Longhorn's initiator finds: the first global unicast address that
// Go's own list has.
func dialled(t *testing.T, p *pod) string {
	t.Helper()
	var first string
	require.NoError(t, p.netns.Do(func(ns.NetNS) error {
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() && first == "" {
				first = prefix.Addr().String()
			}
		}
		return err
	}))
	return first
}

// kernelOrder is the order in which the running kernel dumps addresses.
func kernelOrder(t *testing.T) iscsipath.Order {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	order := iscsipath.OrderOf(unix.ByteSliceToString(u.Release[:]))
	if os.Getenv(testnode.InsideVM) != "" {
		require.Equal(t, iscsipath.Legacy, order, "the VM is there for the old order")
	}
	return order
}

func TestISCSIPath(t *testing.T) {
	t.Parallel()
	const storage = "the storage address"
	// An index of 256 dumps before all others where only its last eight bits count.
	foremost, foremostAuto := "", podIP
	if kernelOrder(t) == iscsipath.Legacy {
		foremost, foremostAuto = storage, storage
	}
	for _, tt := range []struct {
		eth0, policy string
		shim         bool
		want         string // empty: refused
	}{
		{"made inside", "pod-ip", true, podIP},
		{"made inside", "storage-ip", true, foremost},
		{"made inside", "auto", true, foremostAuto}, // where it can't be had, that is noted
		{"made inside", "auto", false, podIP},
		{"moved in", "pod-ip", true, podIP},
		{"moved in", "storage-ip", true, storage},
		{"moved in", "auto", true, storage},
		{"moved in", "auto", false, podIP},
	} {
		name := tt.eth0 + ", " + tt.policy
		if !tt.shim {
			name += ", no shim"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n1, _ := twoNodes(t)
			p := n1.pod(t, "pods")
			eth0[tt.eth0](t, n1, p)
			p.sh(t, "ip addr add %s/24 dev eth0; ip link set eth0 up", podIP)
			c := n1.vxlan().with("iscsiPath", tt.policy)
			if !tt.shim {
				c = c.with("hostShim", nil)
			}
			if tt.want == "" {
				_, err := n1.run(t, "ADD", p, c)
				requireRefusal(t, err, cnierr.InvalidConfig, "iscsiPath", tt.policy, "eth0 wins with "+podIP)
				assert.Equal(t, []string{"eth0"}, p.interfaces(t))
				return
			}
			n1.add(t, p, c)
			want := tt.want
			if want == storage {
				want = p.addr().String()
			}
			at := n1.record(t, p)
			assert.Equal(t, want, at.ISCSIDial, "by the record")
			assert.Equal(t, want, dialled(t, p), "by Go")
			assert.Equal(t, tt.policy == "auto" && tt.shim && want == podIP, at.ISCSINote != "", "note %q", at.ISCSINote)
		})
	}
}

// A name that Longhorn prefers decides whatever the order.
func TestISCSIPathByName(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	p := n1.pod(t, "pods")
	eth0["made inside"](t, n1, p)
	p.sh(t, "ip addr add %s/24 dev eth0; ip link set eth0 up", podIP)
	p.ifName = "eth1"
	n1.add(t, p, n1.vxlan().with("iscsiPath", "storage-ip"))
	assert.Equal(t, p.addr().String(), n1.record(t, p).ISCSIDial)
}
