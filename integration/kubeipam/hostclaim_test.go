package kubeipam

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
)

const storageNet = `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
 "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/28"}},
 "hostShim": {"range": "10.100.1.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`

func (b *bed) addNode(t *testing.T, name string, annotations map[string]string) {
	_, err := b.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { b.removeNode(t, name) })
}

func (b *bed) removeNode(t *testing.T, name string) {
	err := b.Kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	require.True(t, err == nil || apierrors.IsNotFound(err), "%v", err)
}

// claimer is a node that wants a place.
type claimer struct {
	*bed
	node, machine string
	index         int
	seen          place.Seen
	last          place.Place
	answers       bool
}

func (c claimer) claim(t *testing.T, conf string) (string, error) {
	plan, err := netconf.Parse(netconf.Add, []byte(conf), "")
	require.NoError(t, err)
	claimer := hostclaim.Claimer{
		API: c.client(t, ""), Node: nodefile.File{NodeName: c.node, Index: c.index}, MachineID: c.machine,
		Answers: func(context.Context, netip.Addr) bool { return c.answers },
	}
	got, err := claimer.Claim(t.Context(), plan, c.seen, c.last)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %v %s %v", got.Index, got.Addresses, got.VTEP, got.Peers), nil
}

func (b *bed) shims(t *testing.T) map[string]v1alpha1.HostShim {
	var list v1alpha1.HostShimList
	require.NoError(t, b.api.List(t.Context(), hostclaim.Shims, &list))
	shims := map[string]v1alpha1.HostShim{}
	for _, h := range list.Items {
		shims[h.Name] = h
	}
	return shims
}

func (b *bed) wipeShims(t *testing.T) {
	for name := range b.shims(t) {
		require.NoError(t, b.api.Delete(t.Context(), hostclaim.Shims, name, "", ""))
	}
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// Nodes that a script set up keep what they have, whatever the order in which they come; then fresh ones get the lowest
// free places.
func places(t *testing.T, b *bed) {
	b.wipeShims(t)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		b.addNode(t, name, nil)
	}
	at := func(name, n string) claimer {
		return claimer{bed: b, node: name, seen: place.Seen{OnParent: addrs("10.100.1." + n), Local: addrs("10.100.1."+n, "10.100.100."+n)}}
	}
	for _, c := range []struct {
		who  claimer
		want string
	}{
		{at("c", "3"), "3 [10.100.1.3] 10.100.100.3 []"},
		{claimer{bed: b, node: "d"}, "1 [10.100.1.1] 10.100.100.1 [10.100.100.3]"},
		{at("b", "2"), "2 [10.100.1.2] 10.100.100.2 [10.100.100.1 10.100.100.3]"},
		{claimer{bed: b, node: "e"}, "4 [10.100.1.4] 10.100.100.4 [10.100.100.1 10.100.100.2 10.100.100.3]"},
		{claimer{bed: b, node: "b"}, "2 [10.100.1.2] 10.100.100.2 [10.100.100.1 10.100.100.3 10.100.100.4]"}, // after a reboot
	} {
		for range 2 { // a second time changes nothing
			got, err := c.who.claim(t, storageNet)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		}
	}
	_, err := at("a", "1").claim(t, storageNet)
	require.ErrorContains(t, err, "node a can't have its place on vxlan-storage: index 1 and VTEP 10.100.100.1 and address 10.100.1.1 is node d's (HostShim vxlan-storage-1)")
	h := b.shims(t)["vxlan-storage-2"]
	assert.Equal(t, v1alpha1.HostShimSpec{Node: "b", Parent: "vxlan-storage", Index: 2, VTEP: "10.100.100.2", Address: "10.100.1.2", Networks: []v1alpha1.ShimNetwork{{Name: "storage", Addresses: []v1alpha1.ShimAddress{"10.100.1.2"}}}}, h.Spec)

	// Two networks on one parent share index and VTEP.
	other := strings.NewReplacer(`"storage"`, `"backup"`, "10.100.1.", "10.100.2.", "lhstorage-ipam", "host-local").Replace(storageNet)
	other = strings.Replace(other, `"type": "host-local", "range": "10.100.2.0/24"`, `"type": "host-local", "subnet": "10.100.2.0/24"`, 1)
	got, err := claimer{bed: b, node: "b"}.claim(t, other)
	require.NoError(t, err)
	assert.Equal(t, "2 [10.100.2.2] 10.100.100.2 [10.100.100.1 10.100.100.3 10.100.100.4]", got)
	shared := b.shims(t)["vxlan-storage-2"].Spec
	assert.Len(t, shared.Networks, 2)
	assert.Equal(t, "10.100.1.2,10.100.2.2", shared.Address)
	onALAN(t, b)
}

// A VTEP that is an address of a LAN is the node's, but it says nothing about its index: what it stands for may lie
// beyond the host range, or be another's.
func onALAN(t *testing.T, b *bed) {
	b.wipeShims(t)
	conf := strings.Replace(storageNet, "10.100.100.0/28", "192.168.7.0/24", 1)
	at := func(name, n string) claimer {
		return claimer{bed: b, node: name, seen: place.Seen{Local: addrs("192.168.7." + n)}}
	}
	for _, c := range []struct {
		who  claimer
		want string
	}{
		{at("a", "117"), "1 [10.100.1.1] 192.168.7.117 []"},
		{at("b", "2"), "2 [10.100.1.2] 192.168.7.2 [192.168.7.117]"},
		{at("c", "1"), "3 [10.100.1.3] 192.168.7.1 [192.168.7.2 192.168.7.117]"},
	} {
		for range 2 {
			got, err := c.who.claim(t, conf)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		}
	}
	_, err := at("d", "117").claim(t, conf)
	require.ErrorContains(t, err, "node d can't have its place on vxlan-storage: VTEP 192.168.7.117 is node a's (HostShim vxlan-storage-1)")
}

// What a node is when its Node object or its disk is another by now.
func identity(t *testing.T, b *bed) {
	b.wipeShims(t)
	b.addNode(t, "first", nil)
	b.addNode(t, "second", nil)
	first := claimer{bed: b, node: "first", machine: "m1"}
	second := claimer{bed: b, node: "second", machine: "m2"}
	for _, c := range []claimer{first, second} {
		_, err := c.claim(t, storageNet)
		require.NoError(t, err)
	}
	is := func(c claimer, want string) {
		t.Helper()
		got, err := c.claim(t, storageNet)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	// Deleted and registered again; rebuilt, with another machine id and nothing in the kernel.
	b.removeNode(t, "second")
	_, err := second.claim(t, storageNet)
	require.ErrorContains(t, err, `there is no Node "second"`)
	b.addNode(t, "second", nil)
	is(second, "2 [10.100.1.2] 10.100.100.2 [10.100.100.1]")
	second.machine = "m9"
	is(second, "2 [10.100.1.2] 10.100.100.2 [10.100.100.1]")
	// Renamed: the machine id tells, but only if no live Node owns it.
	b.addNode(t, "renamed", nil)
	is(claimer{bed: b, node: "renamed", machine: "m9"}, "3 [10.100.1.3] 10.100.100.3 [10.100.100.1 10.100.100.2]")
	b.wipeOne(t, "vxlan-storage-3")
	b.removeNode(t, "second")
	is(claimer{bed: b, node: "renamed", machine: "m9"}, "2 [10.100.1.2] 10.100.100.2 [10.100.100.1]")
	assert.Equal(t, "renamed", b.shims(t)["vxlan-storage-2"].Spec.Node)
	assert.Equal(t, "renamed", b.shims(t)["vxlan-storage-2"].Labels[v1alpha1.LabelNode])
	// Pinned, by annotation or node file.
	b.addNode(t, "pinned", map[string]string{v1alpha1.IndexAnnotation: "9"})
	is(claimer{bed: b, node: "pinned"}, "9 [10.100.1.9] 10.100.100.9 [10.100.100.1 10.100.100.2]")
	is(claimer{bed: b, node: "first", index: 7}, "7 [10.100.1.7] 10.100.100.7 [10.100.100.2 10.100.100.9]")
	assert.NotContains(t, b.shims(t), "vxlan-storage-1", "its former place is free")
	_, err = claimer{bed: b, node: "pinned", index: 4}.claim(t, storageNet)
	require.ErrorContains(t, err, "pinned to index 9 by its annotation lhstorage.io/index and to 4 by its node file")
	b.addNode(t, "badly", map[string]string{v1alpha1.IndexAnnotation: "nine"})
	_, err = claimer{bed: b, node: "badly"}.claim(t, storageNet)
	require.ErrorContains(t, err, `annotation lhstorage.io/index is "nine"`)
	b.addNode(t, "late", map[string]string{v1alpha1.IndexAnnotation: "9"})
	_, err = claimer{bed: b, node: "late"}.claim(t, storageNet)
	require.ErrorContains(t, err, "is node pinned's")
}

func (b *bed) wipeOne(t *testing.T, name string) {
	require.NoError(t, b.api.Delete(t.Context(), hostclaim.Shims, name, "", ""))
}

// As many nodes as there are places join at once; one more gets a place only when a node has been gone for long and
// nothing answers at its addresses.
func fullRange(t *testing.T, b *bed) {
	b.wipeShims(t)
	conf := strings.Replace(storageNet, "10.100.1.0/28", "10.100.1.0/29", 1)
	var names []string
	for i := range 8 {
		names = append(names, fmt.Sprint("n", i))
		b.addNode(t, names[i], nil)
	}
	got := make([]string, 7)
	atOnce(7, func(i int) {
		var err error
		got[i], err = claimer{bed: b, node: names[i]}.claim(t, conf)
		assert.NoError(t, err)
	})
	slices.Sort(got)
	for i, text := range got {
		assert.Equal(t, fmt.Sprint(i+1), strings.Fields(text)[0])
	}
	late := claimer{bed: b, node: "n7"}
	_, err := late.claim(t, conf)
	require.ErrorContains(t, err, "all 7 places on vxlan-storage that the host range and the VTEP range have are taken (no node has left)")
	gone := ""
	for name, h := range b.shims(t) {
		if h.Spec.Index == 4 {
			gone = name
			b.removeNode(t, h.Spec.Node)
		}
	}
	_, err = late.claim(t, conf)
	if err != nil && strings.Contains(err.Error(), "again") { // it has only just been noted
		_, err = late.claim(t, conf)
	}
	require.ErrorContains(t, err, "is gone, is kept for another")
	past := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	require.NoError(t, b.api.Patch(t.Context(), hostclaim.Shims, gone, []kubeapi.Op{kubeapi.Add("/metadata/annotations", map[string]string{"lhstorage.io/node-gone": past})}, nil))
	late.answers = true
	_, err = late.claim(t, conf)
	require.ErrorContains(t, err, "can't be reused: 10.100.100.4 still answers")
	late.answers = false
	text, err := late.claim(t, conf)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(text, "4 [10.100.1.4] 10.100.100.4 "), text)
}

// Both families, and a parent without a VTEP.
func families(t *testing.T, b *bed) {
	b.wipeShims(t)
	b.addNode(t, "dual", nil)
	dual := `{"cniVersion": "1.1.0", "name": "dual", "type": "lhstorage", "parent": {"type": "device", "name": "eth1"},
 "hostShim": {"range": ["10.100.1.0/28", "fd00:100::/120"]}, "ipam": {"type": "lhstorage-ipam", "ipRanges": [{"range": "10.100.1.0/24"}, {"range": "fd00:100::/64"}]}}`
	got, err := claimer{bed: b, node: "dual", seen: place.Seen{OnShim: addrs("fd00:100::5")}}.claim(t, dual)
	require.NoError(t, err)
	assert.Equal(t, "5 [10.100.1.5 fd00:100::5] invalid IP []", got)
	assert.Contains(t, b.shims(t), "eth1-5")
	requireColumns(t, b, "hostshims", "NAME NODE PARENT ADDRESS VTEP READY AGE", "eth1-5 dual eth1 10.100.1.5,fd00:100::5")
	got, err = claimer{bed: b, node: "dual"}.claim(t, strings.Replace(dual, `"eth1"`, `"Bond_0.x"`, 1))
	require.NoError(t, err)
	assert.Equal(t, "1 [10.100.1.1 fd00:100::1] invalid IP []", got)
	_, err = b.Kubectl(t.Context(), "patch", "hostshim", "eth1-5", "--type=merge", "-p", `{"spec": {"index": 6}}`)
	assert.ErrorContains(t, err, "a place's parent and index don't change")
	_, err = b.Kubectl(t.Context(), "patch", "hostshim", "eth1-5", "--type=merge", "-p", `{"spec": {"networks": [{"name": "dual", "addresses": ["10.100.1.6"]}]}}`)
	assert.ErrorContains(t, err, "address lacks an address of networks")
}

// requireColumns checks what kubectl shows of objects: the headings, and how one line begins.
func requireColumns(t *testing.T, b *bed, kind, headings, line string) {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "get", kind)
	require.NoError(t, err)
	var lines []string
	for text := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(text), " "))
	}
	assert.Equal(t, headings, lines[0])
	assert.True(t, slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, line+" ") }), "%s\nlacks %s", out, line)
}

// The program, with the rights of its account.
func hostShimVerb(t *testing.T, b *bed) {
	b.wipeShims(t)
	for i, name := range []string{"node1", "node2"} {
		m := b.machine(t, name, "sync")
		var out, stderr bytes.Buffer
		require.NoError(t, m.Do(func() error {
			cmd := exec.Command(m.binary, "host-shim")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(storageNet), &out, &stderr
			return cmd.Run()
		}), "%s%s", &out, &stderr)
		var answer hostclaim.Answer
		require.NoError(t, json.Unmarshal(out.Bytes(), &answer))
		assert.Equal(t, i+1, answer.Index, "%s", &out)
		assert.NotNil(t, answer.Peers)
		assert.Len(t, answer.Peers, i)
		assert.Equal(t, []netip.Addr{m.Address}, answer.Kubernetes, "what the node must never move")
		assert.Equal(t, m.MachineID, b.shims(t)[fmt.Sprintf("vxlan-storage-%d", i+1)].Spec.MachineID)
	}
}
