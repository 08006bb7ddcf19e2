package agent

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/node"
)

func TestWhoIsMissing(t *testing.T) {
	member := func(name string, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	shim := func(node, vtep string) *v1alpha1.HostShim {
		return &v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{Node: node, VTEP: vtep}}
	}
	storage := map[string]string{"storage": "true"}
	nodes := []*corev1.Node{member("a", storage), member("b", storage), member("control", nil)}
	selected := labels.SelectorFromSet(storage)
	for _, c := range []struct {
		name     string
		shims    []*v1alpha1.HostShim
		members  labels.Selector
		departed map[netip.Addr]bool
		complete bool
	}{
		{"none has its place", nil, selected, map[netip.Addr]bool{}, false},
		{"one lacks it", []*v1alpha1.HostShim{shim("a", "10.0.0.1")}, selected, map[netip.Addr]bool{}, false},
		{"all have it", []*v1alpha1.HostShim{shim("a", "10.0.0.1"), shim("b", "10.0.0.2")}, selected, map[netip.Addr]bool{}, true},
		{"all but one that may take part", []*v1alpha1.HostShim{shim("a", "10.0.0.1"), shim("b", "10.0.0.2")}, labels.Everything(), map[netip.Addr]bool{}, false},
		{"one has left", []*v1alpha1.HostShim{shim("a", "10.0.0.1"), shim("b", "10.0.0.2"), shim("c", "10.0.0.3")}, selected, map[netip.Addr]bool{netip.MustParseAddr("10.0.0.3"): true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			departed, complete := judge(nodes, c.shims, c.members)
			assert.Equal(t, c.departed, departed)
			assert.Equal(t, c.complete, complete)
		})
	}
}

func TestMissing(t *testing.T) {
	ours := map[string]bool{"longhorn-system/storage": true, "longhorn-system/backup": true}
	for _, c := range []struct {
		name, networks, status string
		want                   []string
		fails                  bool
	}{
		{"asks for nothing", "", "", nil, false},
		{"somebody else's", `[{"name": "other"}]`, "", nil, false},
		{"has it", `[{"namespace": "longhorn-system", "name": "storage", "interface": "lhnet1"}]`, `[{"name": "cluster"}, {"name": "longhorn-system/storage"}]`, nil, false},
		{"no status", `[{"name": "storage"}]`, "", []string{"longhorn-system/storage"}, false},
		{"status without it", `storage`, `[{"name": "cluster"}]`, []string{"longhorn-system/storage"}, false},
		{"names with commas", `longhorn-system/storage@lhnet1, backup`, `[{"name": "longhorn-system/storage"}]`, []string{"longhorn-system/backup"}, false},
		{"twice, has one", `storage,storage@lhnet2`, `[{"name": "longhorn-system/storage"}]`, []string{"longhorn-system/storage"}, false},
		{"can't be read", `[{"name": `, "", nil, true},
		{"status can't be read", `storage`, `{`, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "longhorn-system", Annotations: map[string]string{nad.NetworksAnnotation: c.networks, nad.StatusAnnotation: c.status}}}
			got, err := Missing(pod, ours)
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.fails, err != nil, "%v", err)
		})
	}
}

func FuzzMissing(f *testing.F) {
	f.Add(`[{"namespace": "a", "name": "b"}]`, `[{"name": "a/b"}]`)
	f.Add(`a/b@c,d`, ``)
	f.Fuzz(func(t *testing.T, networks, status string) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Annotations: map[string]string{nad.NetworksAnnotation: networks, nad.StatusAnnotation: status}}}
		missing, err := Missing(pod, map[string]bool{"a/b": true})
		if err != nil && missing != nil {
			t.Error("an unreadable annotation says nothing")
		}
	})
}

func TestLate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	old := metav1.NewTime(now.Add(-time.Hour))
	for name, c := range map[string]struct {
		pod  corev1.Pod
		want bool
	}{
		"old":      {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: old}}, true},
		"young":    {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now)}}, false},
		"waited":   {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: old}, Status: corev1.PodStatus{StartTime: new(metav1.NewTime(now))}}, false},
		"over":     {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: old}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, false},
		"ending":   {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: old, DeletionTimestamp: &old}}, false},
		"the host": {corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: old}, Spec: corev1.PodSpec{HostNetwork: true}}, false},
	} {
		assert.Equal(t, c.want, late(&c.pod, now, time.Minute), name)
	}
}

// The same repair again and again is a contest; others, or few in a long time, aren't.
func TestContest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	mtu := []node.Change{{Step: "parent.mtu", Text: "set the MTU"}}
	var c contest
	for i := range 20 {
		assert.False(t, c.repaired(mtu, now.Add(time.Duration(i)*15*time.Second)), "four a minute")
	}
	c = contest{}
	for i := range contestCount - 1 {
		assert.False(t, c.repaired(mtu, now), i)
		assert.False(t, c.repaired([]node.Change{{Step: "shim.up", Text: strings.Repeat("x", i)}}, now))
	}
	require.True(t, c.repaired(mtu, now))
	assert.True(t, c.holds(now.Add(firstTruce/2)))
	assert.False(t, c.holds(now.Add(firstTruce)))
	assert.Contains(t, c.reason, "set the MTU")
	require.True(t, c.repaired(mtu, now.Add(firstTruce)))
	assert.True(t, c.holds(now.Add(firstTruce+2*firstTruce-1)), "ever longer")
	c.quiet(now.Add(10 * time.Second))
	assert.NotZero(t, c.truce, "it may come again")
	c.quiet(now.Add(2 * contestWindow))
	assert.Zero(t, c.truce)
}

// What a pass looked at is what counts afterwards.
func TestObserved(t *testing.T) {
	seen := &observed{}
	assert.True(t, seen.concerns("any", 7), "nothing is known yet")
	f := kernel.NewFake()
	require.NoError(t, f.AddLink(kernel.Link{Name: "vx", Kind: "dummy"}))
	link, err := f.Link("vx")
	require.NoError(t, err)
	k := observing{f, seen}
	seen.begin()
	_, err = k.Link("vx")
	require.NoError(t, err)
	_, err = k.Link("missing")
	require.True(t, kernel.IsNotFound(err))
	require.NoError(t, k.SetSysctl("net/ipv4/conf/vx/arp_ignore", "8"))
	assert.True(t, seen.concerns("", link.Index))
	assert.True(t, seen.concerns("missing", 99), "when it comes")
	assert.False(t, seen.concerns("veth1", 98))
	assert.Empty(t, seen.changed(f))
	require.NoError(t, f.SetSysctl("net/ipv4/conf/vx/arp_ignore", "0"))
	assert.Equal(t, "net/ipv4/conf/vx/arp_ignore", seen.changed(f))
}

func TestIsFlood(t *testing.T) {
	zero, learned := make([]byte, 6), []byte{2, 0, 0, 0, 0, 1}
	assert.True(t, isFlood(netlink.Neigh{Family: unix.AF_BRIDGE, HardwareAddr: zero}))
	assert.False(t, isFlood(netlink.Neigh{Family: unix.AF_BRIDGE, HardwareAddr: learned}))
	assert.False(t, isFlood(netlink.Neigh{Family: unix.AF_INET, HardwareAddr: zero}))
}

func TestFaultsAreToldOfOnce(t *testing.T) {
	fault := Fault{Definition{Namespace: "ns", Name: "a", UID: "1"}, ReasonInvalidNetwork, errors.New("one")}
	told, news := fresh([]Fault{fault}, nil)
	assert.Len(t, news, 1)
	told, news = fresh([]Fault{fault}, told)
	assert.Empty(t, news)
	fault.Err = errors.New("two")
	told, news = fresh([]Fault{fault}, told)
	assert.Len(t, news, 1)
	told, news = fresh(nil, told)
	assert.Empty(t, news)
	assert.Empty(t, told)
}

// Nothing is kept in memory of a pod or a Node but what is read.
func TestStripped(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{nad.NetworksAnnotation: "a", "big": strings.Repeat("x", 1000)}, Labels: map[string]string{longhornComponent: instanceManager, "app": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	kept, err := stripPod(pod)
	require.NoError(t, err)
	text, err := json.Marshal(kept)
	require.NoError(t, err)
	assert.Less(t, len(text), 400, "%s", text)
	assert.Contains(t, string(text), "Running")
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{v1alpha1.IndexAnnotation: "3", "big": "x"}}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeHostName, Address: "n"}}, Images: []corev1.ContainerImage{{Names: []string{"i"}}},
	}}
	kept, err = stripNode(n)
	require.NoError(t, err)
	assert.Equal(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{v1alpha1.IndexAnnotation: "3"}}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}},
	}}, kept)
}

func TestReadiness(t *testing.T) {
	var h health
	h.set("token", "")
	require.ErrorContains(t, h.ready(), "first pass")
	h.set(partNode, "the shim is gone")
	require.ErrorContains(t, h.ready(), "node: the shim is gone")
	h.set(partNode, "")
	require.NoError(t, h.ready())
}

func TestShorten(t *testing.T) {
	assert.Equal(t, "short", shorten("short"))
	assert.Len(t, []rune(shorten(strings.Repeat("ü", 3000))), maxReason)
}

// What a pass did itself is no reason for another one, once; the same done by another is, and so is its undoing.
func TestOwnFloodChanges(t *testing.T) {
	f := kernel.NewFake()
	index := f.Have(kernel.Link{Name: "vxlan-storage", Kind: "vxlan"})
	seen := &observed{}
	k := observing{f, seen}
	vtep := netip.MustParseAddr("10.0.0.7")
	come, gone := floodChange{index: index, vtep: vtep}, floodChange{index: index, vtep: vtep, gone: true}
	require.NoError(t, k.AddFlood(index, vtep))
	assert.False(t, seen.isOwn(gone), "somebody removed it")
	assert.True(t, seen.isOwn(come))
	assert.False(t, seen.isOwn(come), "somebody else added it")
	require.NoError(t, k.DelFlood(index, vtep))
	assert.True(t, seen.isOwn(gone))
	seen.made = map[floodChange]time.Time{come: time.Now().Add(-2 * messageTime)}
	assert.False(t, seen.isOwn(come), "its message came long ago")
}

func TestNextTurn(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	first, ok := nextTurn(kube.Lease{}, "node1", now)
	require.True(t, ok, "nobody has repaired yet")
	assert.Equal(t, "node1", first.Spec.HolderIdentity)
	_, ok = nextTurn(first, "node2", now.Add(turnTime-time.Second))
	assert.False(t, ok, "node1 repairs")
	_, ok = nextTurn(first, "node1", now.Add(time.Second))
	assert.True(t, ok, "it was started anew")
	second, ok := nextTurn(first, "node2", now.Add(turnTime))
	require.True(t, ok, "node1 was killed over it")
	assert.Equal(t, "2026-11-27T12:00:00Z,2026-11-27T12:05:00Z", second.Annotations[repairedNote])
	assert.Equal(t, "2026-11-27T12:00:00Z", first.Annotations[repairedNote], "what was read isn't changed")
	third, ok := nextTurn(second, "node3", now.Add(2*turnTime))
	require.True(t, ok)
	third.Spec.HolderIdentity = ""
	_, ok = nextTurn(third, "node4", now.Add(time.Hour))
	assert.False(t, ok, "three in an hour")
	fourth, ok := nextTurn(third, "node4", now.Add(time.Hour+time.Second))
	require.True(t, ok)
	assert.Len(t, repairs(fourth, now.Add(time.Hour+time.Second)), 3)
	fourth.Annotations[repairedNote] = "yesterday,,"
	assert.Empty(t, repairs(fourth, now), "somebody else wrote it")
}
