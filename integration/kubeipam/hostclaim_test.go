package kubeipam

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
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
	answers       bool         // whatever address is asked
	answering     []netip.Addr // that these do
}

func (c claimer) claim(t *testing.T, conf string) (string, error) {
	plan, err := netconf.Parse(netconf.Add, []byte(conf), "")
	require.NoError(t, err)
	claimer := hostclaim.Claimer{
		API: c.client(t, ""), Node: nodefile.File{NodeName: c.node, Index: c.index}, MachineID: c.machine,
		Answers: func(_ context.Context, a netip.Addr) bool { return c.answers || slices.Contains(c.answering, a) },
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
	atTheSameMoment(t, b)
	notYetClaimed(t, b)
}

// A fresh node leaves alone what a scripted node has that had no pod yet, be it the VTEP or the shim's address; when nothing else
// is left it says so.
func notYetClaimed(t *testing.T, b *bed) {
	b.wipeShims(t)
	conf := strings.Replace(storageNet, "10.100.1.0/28", "10.100.1.0/30", 1)
	fresh := claimer{bed: b, node: "d", answering: addrs("10.100.100.1", "10.100.1.2")}
	got, err := fresh.claim(t, conf)
	require.NoError(t, err)
	assert.Equal(t, "3 [10.100.1.3] 10.100.100.3 []", got)
	got, err = claimer{bed: b, node: "a", seen: place.Seen{OnParent: addrs("10.100.1.1"), Local: addrs("10.100.1.1", "10.100.100.1")}, answers: true}.claim(t, conf)
	require.NoError(t, err)
	assert.Equal(t, "1 [10.100.1.1] 10.100.100.1 [10.100.100.3]", got)
	fresh.node = "e"
	_, err = fresh.claim(t, conf)
	require.ErrorContains(t, err, "index 2 is nobody's, but 10.100.1.2 answers")
	// Its own VTEP may answer as it likes.
	got, err = claimer{bed: b, node: "e", seen: place.Seen{Local: addrs("10.100.100.2")}, answering: addrs("10.100.100.2")}.claim(t, conf)
	require.NoError(t, err)
	assert.Equal(t, "2 [10.100.1.2] 10.100.100.2 [10.100.100.1 10.100.100.3]", got)
}

// Two nodes that claimed one VTEP under different indexes, each before it could see the other: the first has it.
func atTheSameMoment(t *testing.T, b *bed) {
	b.wipeShims(t)
	conf := strings.Replace(storageNet, "10.100.100.0/28", "192.168.7.0/24", 1)
	for i, node := range []string{"a", "b"} {
		require.NoError(t, b.api.Create(t.Context(), hostclaim.Shims, v1alpha1.HostShim{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
			ObjectMeta: metav1.ObjectMeta{Name: hostclaim.Name("vxlan-storage", i+1), Labels: map[string]string{v1alpha1.LabelParent: "vxlan-storage", v1alpha1.LabelNode: node}},
			Spec:       v1alpha1.HostShimSpec{Node: node, Parent: "vxlan-storage", Index: i + 1, VTEP: "192.168.7.2"},
		}, nil))
	}
	for _, c := range []struct {
		who  claimer
		want string
	}{
		{claimer{bed: b, node: "a", seen: place.Seen{Local: addrs("192.168.7.2")}}, "1 [10.100.1.1] 192.168.7.2 []"},
		{claimer{bed: b, node: "b"}, "3 [10.100.1.3] 192.168.7.3 [192.168.7.2]"},
		{claimer{bed: b, node: "a", seen: place.Seen{Local: addrs("192.168.7.2")}}, "1 [10.100.1.1] 192.168.7.2 [192.168.7.3]"},
	} {
		got, err := c.who.claim(t, conf)
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	assert.NotContains(t, b.shims(t), "vxlan-storage-2")
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
	past := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	missed := []kubeapi.Op{kubeapi.Add("/metadata/annotations", map[string]string{"lhstorage.io/node-gone": past})}
	require.NoError(t, b.api.Patch(t.Context(), hostclaim.Shims, "vxlan-storage-4", missed, nil))
	_, err = late.claim(t, conf)
	require.ErrorContains(t, err, "no node has left")
	assert.Empty(t, b.shims(t)["vxlan-storage-4"].Annotations, "it is back: the next time it leaves its grace begins anew")
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
	require.NoError(t, b.api.Patch(t.Context(), hostclaim.Shims, gone, missed, nil))
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

// hostShim runs the program's verb.
func (m *machine) hostShim(t *testing.T, env ...string) (answer hostclaim.Answer, err error) {
	var out, stderr bytes.Buffer
	err = m.Do(func() error {
		cmd := exec.Command(m.binary, "host-shim")
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(storageNet), &out, &stderr
		return cmd.Run()
	})
	if err != nil {
		return answer, fmt.Errorf("%w: %s%s", err, &out, &stderr)
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &answer), "%s", &out)
	return answer, nil
}

// A node that is killed, or refused, at any point of a claim or of its move to another index has one place in the end.
func placesInterrupted(t *testing.T, b *bed) {
	const folder = "pkg/hostclaim"
	w := b.ward(t, "sync")
	pin := func(index string) {
		_, err := b.Kubectl(t.Context(), "annotate", "--overwrite", "node", "node1", v1alpha1.IndexAnnotation+index)
		require.NoError(t, err)
	}
	defer pin("-")
	var covered []string
	for _, c := range []struct {
		name    string
		from    string
		to      string
		index   int
		passing []string
	}{
		{"a fresh node", "", "-", 1, []string{"hostclaim.created"}},
		{"a move up", "-", "=7", 7, []string{"hostclaim.created", "hostclaim.move"}},
		{"a move down", "=7", "=2", 2, []string{"hostclaim.created", "hostclaim.move"}},
	} {
		for _, point := range c.passing {
			covered = append(covered, point)
			for _, how := range []string{"kill", "error"} {
				t.Run(fmt.Sprintf("%s, %s at %s", c.name, how, point), func(t *testing.T) {
					b.wipeShims(t)
					if c.from != "" {
						pin(c.from)
						_, err := w.hostShim(t)
						require.NoError(t, err)
					}
					pin(c.to)
					_, err := w.hostShim(t, "LHSTORAGE_FAULT="+point+"="+how)
					require.Error(t, err)
					answer, err := w.hostShim(t)
					require.NoError(t, err)
					assert.Equal(t, c.index, answer.Index)
					assert.Empty(t, answer.Peers, "the place that it had is no peer's")
					assert.Len(t, b.shims(t), 1)
					assert.Contains(t, b.shims(t), hostclaim.Name("vxlan-storage", c.index))
				})
			}
		}
	}
	slices.Sort(covered)
	assert.Equal(t, faultPoints(t, folder), slices.Compact(covered), "the table covers each point of %s", folder)
}

// The program, with the rights of its account.
func hostShimVerb(t *testing.T, b *bed) {
	b.wipeShims(t)
	for i, name := range []string{"node1", "node2"} {
		m := b.machine(t, name, "sync")
		answer, err := m.hostShim(t)
		require.NoError(t, err)
		assert.Equal(t, i+1, answer.Index)
		assert.NotNil(t, answer.Peers)
		assert.Len(t, answer.Peers, i)
		assert.Equal(t, []netip.Addr{m.Address}, answer.Kubernetes, "what the node must never move")
		assert.Equal(t, m.MachineID, b.shims(t)[fmt.Sprintf("vxlan-storage-%d", i+1)].Spec.MachineID)
	}
}
