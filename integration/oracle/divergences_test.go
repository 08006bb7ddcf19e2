package oracle

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Where ours is meant to differ. Each shows what whereabouts does, so that a version of it that does better is noticed, and
// what we do.
func divergences(t *testing.T, b *bed) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, theirs, ours *side)
	}{
		{"DEL without the right to write", swallowed},
		{"DEL and another pod's reservation", otherReservation},
		{"pool write refused", hiddenFailure},
		{"two ranges of one CIDR", oneCIDR},
		{"two networks of one pod", twoNetworks},
		{"DEL of several ranges", partialDel},
		{"reservations of several ranges", skippedReservation},
		{"exclude and node slices", slicesExclude},
		{"no node slice pool", noSlices},
		{"lease settings", leaseSettings},
		{"no flat file", noFlatFile},
		{"unparsable range_start", unparsable},
		{"keys that can't be read", oddKeys},
		{"a stale lease", staleLease},
		{"API server down", apiDown},
		{"address excluded by now", excludedNow},
		{"gateway of the other family", otherGateway},
		{"lowest address and another range", otherRange},
		{"DEL with a configuration that can't be read", delUnreadable},
	} {
		t.Run(test.name, func(t *testing.T) {
			theirs, ours := b.twins(t)
			test.run(t, theirs, ours)
		})
	}
}

const (
	entry1       = "entry 10.0.0.0-24 of 10.0.0.0/24 1 cid1 default/pod1 net1"
	reservation1 = "reservation 10.0.0.1 default/pod1 net1"
	whole1       = entry1 + "\n" + reservation1
)

// as gives a side another account's kubeconfig, with all rights but some of whereabouts' objects.
func (s *side) as(t *testing.T, account string, rules ...rbacv1.PolicyRule) func() {
	meta := metav1.ObjectMeta{Name: s.space + "-" + account}
	_, err := s.Kube.CoreV1().ServiceAccounts(s.space).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	require.NoError(t, err)
	all := []string{"*"}
	rules = append(rules,
		rbacv1.PolicyRule{APIGroups: []string{"coordination.k8s.io", "lhstorage.io"}, Resources: all, Verbs: all},
		rbacv1.PolicyRule{APIGroups: all, Resources: all, Verbs: []string{"get", "list", "watch"}})
	_, err = s.Kube.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = s.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: s.space, Name: account}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	content, err := s.ServiceAccountKubeconfig(t.Context(), s.space, account, "")
	require.NoError(t, err)
	return s.swap(t, content)
}

// swap replaces a side's kubeconfig and returns what brings the old one back.
func (s *side) swap(t *testing.T, content []byte) func() {
	old, err := os.ReadFile(s.kubeconfig)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.kubeconfig, content, 0o600))
	return func() { require.NoError(t, os.WriteFile(s.kubeconfig, old, 0o600)) }
}

// Theirs says that all is well and forgets it. Ours keeps the release on disk, says so, and carries it out with the next call.
func swallowed(t *testing.T, theirs, ours *side) {
	pod2 := attachment{"default/pod2", "cid2", "net1"}
	for _, s := range []*side{theirs, ours} {
		require.NoError(t, s.add(t, small, pod1).err)
		back := s.as(t, "reader")
		out, err := s.run(t.Context(), "DEL", small, pod1)
		require.NoError(t, err)
		require.Equal(t, whole1, s.objects(t, s.space))
		if s == ours {
			assert.Contains(t, string(out.Stderr), "queued on disk")
		}
		back()
		require.NoError(t, s.add(t, small, pod2).err)
	}
	assert.Contains(t, theirs.objects(t, theirs.space), "default/pod1")
	assert.NotContains(t, ours.objects(t, ours.space), "default/pod1")
}

func otherReservation(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		s.makePool(t, "10.0.0.0-24", "10.0.0.0/24", entry{key: "1", id: "cid1", pod: "default/pod1", ifName: "net1"})
		s.reserve(t, "10.0.0.1", "other/pod", "net1")
		require.NoError(t, s.del(t, small, pod1))
	}
	assert.Empty(t, theirs.objects(t, theirs.space))
	assert.Equal(t, "reservation 10.0.0.1 other/pod net1", ours.objects(t, ours.space))
}

// Theirs gives an address that no pool records.
func hiddenFailure(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		s.makePool(t, "10.0.0.0-24", "10.0.0.0/24")
		back := s.as(t, "reserver", rbacv1.PolicyRule{APIGroups: []string{"whereabouts.cni.cncf.io"}, Resources: []string{"overlappingrangeipreservations"}, Verbs: []string{"*"}})
		defer back()
		got := s.add(t, small, pod1)
		if s == theirs {
			require.NoError(t, got.err)
			assert.Equal(t, "10.0.0.1/24", got.addresses)
			assert.Equal(t, reservation1, s.objects(t, s.space))
			continue
		}
		require.Error(t, got.err)
		assert.Contains(t, said(got.err), "forbidden")
		assert.Empty(t, s.objects(t, s.space))
		assert.Empty(t, live(s.claims(t)))
	}
}

func oneCIDR(t *testing.T, theirs, ours *side) {
	section := `"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.0.0/24"}]`
	got := theirs.add(t, section, pod1)
	require.NoError(t, got.err)
	assert.Equal(t, "10.0.0.1/24, 10.0.0.1/24", got.addresses)
	for range 2 {
		got = ours.add(t, section, pod1)
		require.NoError(t, got.err)
		assert.Equal(t, "10.0.0.1/24, 10.0.0.2/24", got.addresses)
	}
	require.NoError(t, ours.del(t, section, pod1))
	assert.Empty(t, ours.objects(t, ours.space))
}

func twoNetworks(t *testing.T, theirs, ours *side) {
	wide, second := `"range": "10.0.0.0/16"`, attachment{pod1.pod, pod1.container, "net2"}
	for s, want := range map[*side]string{theirs: "10.0.0.1/16", ours: "10.0.0.2/16"} {
		require.NoError(t, s.add(t, small, pod1).err)
		got := s.add(t, wide, second)
		require.NoError(t, got.err)
		assert.Equal(t, want, got.addresses, s.kind)
	}
	require.NoError(t, ours.del(t, wide, second))
	assert.Equal(t, whole1, ours.objects(t, ours.space))
}

// Theirs stops at the first range that has nothing of the container.
func partialDel(t *testing.T, theirs, ours *side) {
	section := `"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.1.0/24"}]`
	rest := []string{"entry 10.0.1.0-24 of 10.0.1.0/24 1 cid1 default/pod1 net1", "reservation 10.0.1.1 default/pod1 net1"}
	for _, s := range []*side{theirs, ours} {
		require.NoError(t, s.add(t, section, pod1).err)
		patch := `[{"op": "remove", "path": "/spec/allocations/1"}]`
		s.patch(t, "10.0.0.0-24", patch)
		require.NoError(t, s.del(t, section, pod1))
	}
	assert.Contains(t, theirs.objects(t, theirs.space), rest[0])
	assert.Contains(t, theirs.objects(t, theirs.space), rest[1])
	assert.Empty(t, ours.objects(t, ours.space))
}

// Theirs takes the reservation that the pod has in one range for those of all further ones: another range of the same
// addresses may give them once more.
func skippedReservation(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		s.makePool(t, "10.0.0.0-24", "10.0.0.0/24", entry{key: "1", id: "earlier", pod: pod1.pod, ifName: pod1.ifName})
		s.reserve(t, "10.0.0.1", pod1.pod, pod1.ifName)
		got := s.add(t, `"ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.7.0.0/24"}]`, pod1)
		require.NoError(t, got.err)
		assert.Equal(t, "10.0.0.1/24, 10.7.0.1/24", got.addresses)
	}
	const second = "reservation 10.7.0.1 default/pod1 net1"
	assert.NotContains(t, theirs.objects(t, theirs.space), second)
	assert.Contains(t, ours.objects(t, ours.space), second)
}

const sliced = `"range": "10.0.0.0/24", "node_slice_size": "/28", "exclude": ["10.0.0.16/30"]`

func slicesExclude(t *testing.T, theirs, ours *side) {
	for s, want := range map[*side]string{theirs: "10.0.0.17/24", ours: "10.0.0.20/24"} {
		_, err := s.Dynamic.Resource(controlplane.NodeSlicePools).Namespace(s.space).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "NodeSlicePool", "metadata": map[string]any{"name": "net"},
			"spec":   map[string]any{"range": "10.0.0.0/24", "sliceSize": "/28"},
			"status": map[string]any{"allocations": []any{map[string]any{"nodeName": "node1", "sliceRange": "10.0.0.16/28"}}},
		}}, metav1.CreateOptions{})
		require.NoError(t, err)
		got := s.add(t, sliced, pod1)
		require.NoError(t, got.err, s.kind)
		assert.Equal(t, want, got.addresses, s.kind)
		require.NoError(t, s.del(t, sliced, pod1), s.kind)
		assert.Empty(t, s.objects(t, s.space), s.kind)
	}
}

func noSlices(t *testing.T, theirs, ours *side) {
	got := theirs.add(t, sliced, pod1)
	require.ErrorContains(t, got.err, "panic")
	got = ours.add(t, sliced, pod1)
	require.Error(t, got.err)
	assert.Contains(t, said(got.err), "NodeSlicePool")
	assert.Empty(t, ours.claims(t))
}

func leaseSettings(t *testing.T, theirs, ours *side) {
	section := small + `, "leader_lease_duration": 100, "leader_renew_deadline": 1000`
	require.ErrorContains(t, theirs.add(t, section, pod1).err, "panic")
	require.NoError(t, ours.add(t, section, pod1).err)
	assert.Equal(t, whole1, ours.objects(t, ours.space))
}

const flatFile = "/etc/cni/net.d/whereabouts.d/whereabouts.conf"

func noFlatFile(t *testing.T, theirs, ours *side) {
	node := theirs.Nodes[1]
	before, err := node.ReadFile(flatFile)
	require.NoError(t, err)
	require.NoError(t, node.Do(func() error { return os.Remove(flatFile) }))
	defer func() { require.NoError(t, node.WriteFile(flatFile, before)) }()
	theirs.node, ours.node = 1, 1
	require.ErrorContains(t, theirs.add(t, small, pod1).err, "config file not found")
	require.NoError(t, ours.add(t, small, pod1).err)
}

func unparsable(t *testing.T, theirs, ours *side) {
	section := small + `, "range_start": "10.0.0.x"`
	got := theirs.add(t, section, pod1)
	require.NoError(t, got.err)
	assert.Equal(t, "10.0.0.1/24", got.addresses)
	got = ours.add(t, section, pod1)
	require.Error(t, got.err)
	assert.Contains(t, said(got.err), "ipam.range_start")
	assert.Contains(t, said(got.err), "10.0.0.x")
}

func oddKeys(t *testing.T, theirs, ours *side) {
	odd := []entry{{key: "99999999999999999999", id: "x", pod: "other/pod1", ifName: "eth0"}, {key: "notes", id: "y", pod: "other/pod2", ifName: "eth0"}}
	for _, s := range []*side{theirs, ours} {
		s.makePool(t, "10.0.0.0-24", "10.0.0.0/24", odd...)
		require.NoError(t, s.add(t, small, pod1).err)
	}
	assert.Equal(t, whole1, theirs.objects(t, theirs.space))
	assert.Contains(t, ours.objects(t, ours.space), " 99999999999999999999 x other/pod1 eth0")
	assert.Contains(t, ours.objects(t, ours.space), " notes y other/pod2 eth0")
	require.NoError(t, ours.del(t, small, pod1))
	assert.Len(t, strings.Split(ours.objects(t, ours.space), "\n"), 2)
}

// A process that was killed holds theirs up; ours has no lease.
func staleLease(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		now := metav1.NewMicroTime(time.Now())
		_, err := s.Kube.CoordinationV1().Leases(s.space).Create(t.Context(), &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "whereabouts"},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To("other/killed"), LeaseDurationSeconds: ptr.To[int32](30), AcquireTime: &now, RenewTime: &now},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	const patience = 4 * time.Second
	require.ErrorContains(t, theirs.call(t, patience, "ADD", small, pod1).err, "killed")
	require.NoError(t, ours.call(t, patience, "ADD", small, pod1).err)
}

// Theirs hangs for two minutes, of which the test waits for a part.
func apiDown(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		cfg, err := clientcmd.LoadFromFile(s.kubeconfig)
		require.NoError(t, err)
		for _, cluster := range cfg.Clusters {
			cluster.Server = "https://127.0.0.1:1"
		}
		content, err := clientcmd.Write(*cfg)
		require.NoError(t, err)
		defer s.swap(t, content)()
	}
	section := small + `, "timeout": "2s"`
	var hung error
	atOnce(2, func(i int) {
		if i == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			_, hung = theirs.run(ctx, "ADD", section, pod1)
			return
		}
		began := time.Now()
		got := ours.call(t, callTime, "ADD", section, pod1)
		assert.Less(t, time.Since(began), 6*time.Second)
		assert.ErrorContains(t, got.err, "is the API server up")
		assert.Equal(t, cnierr.TryAgain, code(got.err))
		assert.NoError(t, ours.del(t, section, pod1), "queued on disk")
		assert.Less(t, time.Since(began), 8*time.Second)
	})
	require.ErrorContains(t, hung, "killed")
}

// An address that the administrator keeps from the pods by now is another's soon: ours gives it back.
func excludedNow(t *testing.T, theirs, ours *side) {
	for s, want := range map[*side]string{theirs: "10.0.0.1/24", ours: "10.0.0.16/24"} {
		require.NoError(t, s.add(t, small, pod1).err)
		got := s.add(t, small+`, "exclude": ["10.0.0.0/28"]`, pod1)
		require.NoError(t, got.err)
		assert.Equal(t, want, got.addresses, s.kind)
	}
	assert.Equal(t, strings.NewReplacer(" 1 cid1", " 16 cid1", "10.0.0.1 ", "10.0.0.16 ").Replace(whole1), ours.objects(t, ours.space))
}

func delUnreadable(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		require.NoError(t, s.add(t, small, pod1).err)
	}
	broken := small + `, "ipRanges": [{"range": "10.0.0.0/240"}]`
	require.Error(t, theirs.del(t, broken, pod1))
	assert.Equal(t, whole1, theirs.objects(t, theirs.space))
	require.NoError(t, ours.del(t, broken, pod1))
	assert.Empty(t, ours.objects(t, ours.space))
}

func otherGateway(t *testing.T, theirs, ours *side) {
	section := small + `, "ipRanges": [{"range": "fd00:7::/64"}], "gateway": "10.0.0.254"`
	for s, want := range map[*side]string{theirs: "10.0.0.1/24 via 10.0.0.254, fd00:7::1/64 via 10.0.0.254", ours: "10.0.0.1/24 via 10.0.0.254, fd00:7::1/64"} {
		got := s.add(t, section, pod1)
		require.NoError(t, got.err)
		assert.Equal(t, want, got.addresses, s.kind)
	}
}

// Addresses that another range's pods hold are met one by one: theirs goes on with the next, ours away from the crowd.
func otherRange(t *testing.T, theirs, ours *side) {
	for _, s := range []*side{theirs, ours} {
		require.NoError(t, s.add(t, `"range": "10.0.0.0/28"`, pod1).err)
		got := s.add(t, small, attachment{"default/pod2", "cid2", "net1"})
		require.NoError(t, got.err)
		assert.NotEqual(t, "10.0.0.1/24", got.addresses)
		if s == theirs {
			assert.Equal(t, "10.0.0.2/24", got.addresses)
		}
	}
	assert.Len(t, live(ours.claims(t)), 2)
}
