package kubeipam

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
)

// lease makes nodes with `record: agent` rely on a recorder that there isn't: what it would do within a
// fraction of a second is not done at all until the test says so.
func (b *bed) lease(t *testing.T) (release func()) {
	remove := func() {
		err := b.api.Delete(context.Background(), kube.Leases(metav1.NamespaceSystem), kube.RecorderLease, "", "")
		if !apierrors.IsNotFound(err) { // recorders of other tests leave theirs, without a holder
			require.NoError(t, err)
		}
	}
	remove()
	now := metav1.NewMicroTime(time.Now().Add(time.Hour))
	require.NoError(t, b.api.Create(t.Context(), kube.Leases(metav1.NamespaceSystem), kube.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Name: kube.RecorderLease, Namespace: metav1.NamespaceSystem},
		Spec:       kube.LeaseSpec{HolderIdentity: "nobody", RenewTime: &now, AcquireTime: &now},
	}, nil))
	return remove
}

// A pod that comes back before the recorder has seen that it went gets an address, though nothing of its old claim is
// written or removed yet.
func backAtOnce(t *testing.T, b *bed) {
	const conf = `{"range": "10.0.0.0/24"}`
	for _, c := range []struct{ name, conf, next string }{
		{"the same container", conf, "cid1"},
		{"a new container", conf, "cid2"},
		{"sticky, the same container", `{"range": "10.0.0.0/24", "allocation": "sticky"}`, "cid1"},
		{"sticky, a new container", `{"range": "10.0.0.0/24", "allocation": "sticky"}`, "cid2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.wipe(t)
			defer b.lease(t)()
			n := b.node(t, "node1")
			n.agent = true
			first, err := n.add(t, c.conf, pod1)
			require.NoError(t, err)
			require.NoError(t, n.del(t, c.conf, pod1))
			second, err := n.add(t, c.conf, who(pod1.PodRef, c.next, pod1.IfName))
			require.NoError(t, err)
			assert.NotEmpty(t, second)
			t.Logf("%s, then %s", first, second)
			require.NoError(t, n.del(t, c.conf, who(pod1.PodRef, c.next, pod1.IfName)))
		})
	}
}

// A pod that comes back under its name, in the same sandbox or a new one, as fast as it can: at each moment of what the recorder does for
// the sandbox before.
func backAgain(t *testing.T, b *bed) {
	b.recorder(t)
	n := b.node(t, "node1")
	n.agent = true
	for _, section := range []string{`{"range": "10.0.0.0/29"}`, `{"range": "10.0.1.0/29", "allocation": "sticky"}`} {
		for i := range 30 {
			owner := who("default/pod1", fmt.Sprint("cid", i/2), "net1") // each sandbox twice
			_, err := n.add(t, section, owner)
			require.NoError(t, err, "%s, round %d", section, i)
			require.NoError(t, n.del(t, section, owner))
		}
		owner := who("default/pod1", "last", "net1")
		got, err := n.add(t, section, owner)
		require.NoError(t, err)
		addr, _, _ := cut(got)
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			assert.Equal(t, 1, b.settled(t))
			assert.Contains(t, b.objects(t), "claim "+addr+" last default/pod1 net1")
		}, callTime, 50*time.Millisecond)
		require.NoError(t, n.del(t, section, owner))
		b.eventually(t, "")
	}
}
