package plugin

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Every change that the kernel can't make in place would cost the pods their
// interfaces: it is refused, and they don't notice.
func TestDestructiveChangesAreRefused(t *testing.T) {
	t.Parallel()
	n1, n2 := twoNodes(t)
	a, beside, b := n1.pod(t, "a"), n1.pod(t, "beside"), n2.pod(t, "b")
	n1.add(t, a, n1.vxlan())
	n1.add(t, beside, n1.vxlan())
	n2.add(t, b, n2.vxlan())
	flows := []*flow{
		a.flow(t, "pod to pod of one node", beside.addr()),
		b.flow(t, "pod to remote pod", a.addr()),
		n1.flow(t, "host to local pod", a.addr()),
	}
	vlan := n1.vxlan().with("parent", map[string]any{"type": "vlan", "name": "vxlan-storage", "device": "to-node2", "vlan": 100})
	for _, tt := range []struct {
		name  string
		conf  conf
		words []string
	}{
		{"VNI", n1.vxlan().with("parent.vni", 101), []string{"VNI", "100", "101"}},
		{"port", n1.vxlan().with("parent.port", 8472), []string{"port", "4789", "8472"}},
		{"both", n1.vxlan().with("parent.vni", 7, "parent.port", 8472), []string{"VNI", "port", "7", "8472"}},
		{"kind", vlan, []string{"vxlan", "vlan"}},
		{"tunnel's family", n1.vxlan().overIPv6(), []string{"IPv4", "IPv6"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := n1.pod(t, "refused")
			// A network of its own name, and one of the first's, which its attachments speak for.
			for _, name := range []string{"storage", "another"} {
				_, err := n1.run(t, "ADD", p, tt.conf.with("name", name))
				requireRefusal(t, err, cnierr.IncompatibleParent, append(tt.words, "vxlan-storage")...)
				n1.requireNothingOf(t, p)
			}
		})
	}
	requireLossless(t, flows...)
	assert.Empty(t, n1.sh(t, "ip link show type macvlan | grep lhsdel || true"), "no guard is left")
}

// A parent without children is made again.
func TestChildlessParentIsMadeAgain(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.vxlan().with("hostShim", nil)
	p := n1.pod(t, "a")
	n1.add(t, p, c)
	n1.must(t, "DEL", p, c)
	n1.add(t, p, c.with("parent.vni", 101, "parent.port", 8472))
	data := n1.link(t, "vxlan-storage")["linkinfo"].(map[string]any)["info_data"].(map[string]any)
	assert.EqualValues(t, 101, data["id"])
	assert.EqualValues(t, 8472, data["port"])
}

// mtus are those of parent and shim, and of pods.
func mtus(t *testing.T, n *node, pods ...*pod) []int {
	t.Helper()
	list := []int{n.mtu(t, "vxlan-storage"), n.mtu(t, "lhnet1-host")}
	for _, p := range pods {
		list = append(list, p.mtu(t, p.ifName))
	}
	return list
}

func TestMTUFollowsTheParentUp(t *testing.T) {
	t.Parallel()
	n1, _ := twoNodes(t)
	c := n1.vxlan()
	a, small := n1.pod(t, "a"), n1.pod(t, "small")
	n1.add(t, a, c)
	n1.add(t, small, c.with("mtu", 1200))
	require.Equal(t, []int{8950, 8950, 8950, 1200}, mtus(t, n1, a, small))

	inside := n1.pod(t, "inside") // whose master is its own, of the same name as the host's
	inside.sh(t, "ip link add vxlan-storage mtu 1500 type veth peer name far")
	n1.add(t, inside, parse(`{"cniVersion": "1.1.0", "name": "inside", "type": "lhstorage", "master": "vxlan-storage", "linkInContainer": true}`))

	flow := n1.flow(t, "host to local pod", a.addr())
	for _, step := range []struct {
		mtu  int
		want []int
	}{
		{4000, []int{4000, 4000, 4000, 1200}},
		{1000, []int{1000, 1000, 1000, 1000}},
		{6000, []int{6000, 6000, 6000, 1200}},
		{0, []int{8950, 8950, 8950, 1200}}, // worked out again
	} {
		p := n1.pod(t, "other")
		n1.add(t, p, c.with("parent.mtu", step.mtu))
		assert.Equal(t, step.want, mtus(t, n1, a, small), "parent.mtu %d", step.mtu)
		n1.must(t, "DEL", p, c)
	}
	requireLossless(t, flow)
	assert.Equal(t, 1500, inside.mtu(t, "lhnet1"))

	_, err := n1.run(t, "ADD", n1.pod(t, "large"), c.with("mtu", 8951))
	requireRefusal(t, err, cnierr.MTUMismatch, "8951", "8950", "vxlan-storage")
}

// A process that is killed while it raises the MTU leaves a note, and the next ADD
// ends its work.
func TestInterruptedRaiseIsMended(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"ensure.parent.mtu=kill", "ensure.shim.mtu=kill"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			n1, _ := twoNodes(t, "faultpoints")
			c := n1.vxlan()
			a := n1.pod(t, "a")
			n1.add(t, a, c.with("parent.mtu", 1400))
			require.Equal(t, []int{1400, 1400, 1400}, mtus(t, n1, a))
			_, err := n1.run(t, "ADD", n1.pod(t, "killed"), c, faulty(fault))
			require.ErrorContains(t, err, "signal: killed")
			require.Equal(t, 1400, a.mtu(t, "lhnet1"))
			n1.add(t, n1.pod(t, "next"), c)
			assert.Equal(t, []int{8950, 8950, 8950}, mtus(t, n1, a))
		})
	}
}
