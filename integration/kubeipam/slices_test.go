package kubeipam

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
)

// sliced is a network with node slices.
func sliced(kind string) string {
	return `{"cniVersion": "1.0.0", "name": "sliced", "type": "macvlan", "master": "eth0", "ipam": {"type": "` + kind + `", "range": "10.5.0.0/26", "node_slice_size": "/28"}}`
}

// nodeSlices are the slices that Whereabouts' controller gave, by node.
func (b *bed) nodeSlices(t *testing.T) map[string]string {
	out, err := b.Kubectl(t.Context(), "-n", metav1.NamespaceSystem, "get", "nodeslicepools", "-o",
		`jsonpath={range .items[?(@.metadata.name=="sliced")].status.allocations[*]}{.nodeName}={.sliceRange}{"\n"}{end}`)
	require.NoError(t, err)
	given := map[string]string{}
	for line := range strings.Lines(out) {
		if name, slice, _ := strings.Cut(strings.TrimSpace(line), "="); name != "" {
			given[name] = slice
		}
	}
	return given
}

// poolOf is what the pool of a node's slice holds, each as "key podref".
func (b *bed) poolOf(t *testing.T, node, slice string) []string {
	var pool whereabouts.IPPool
	name := node + "-" + strings.ReplaceAll(slice, "/", "-")
	require.NoError(t, b.api.Get(t.Context(), kube.Pools(metav1.NamespaceSystem), name, &pool))
	assert.Equal(t, slice, pool.Spec.Range)
	var entries []string
	for key, e := range pool.Spec.Allocations {
		entries = append(entries, key+" "+e.PodRef)
	}
	slices.Sort(entries)
	return entries
}

// theirs is the real whereabouts on the same node.
func (m *machine) theirs() *machine { return &machine{m.Node, whereaboutsBinary} }

// at is an address of a slice, with the network's length.
func at(slice, host string) string {
	first, _, _ := strings.Cut(slice, "/")
	octets := strings.Split(first, ".")
	var base, n int
	_, _ = fmt.Sscan(octets[3], &base)
	_, _ = fmt.Sscan(host, &n)
	return fmt.Sprintf("10.5.0.%d/26", base+n)
}

// Whereabouts' own controller gives the nodes their slices; both programs allocate from them, in the same pools.
func nodeSlices(t *testing.T, b *bed) {
	one, two := b.machine(t, "node1", "sync"), b.machine(t, "node2", "sync")
	require.NoError(t, b.CreateNetwork(t.Context(), metav1.NamespaceDefault, "sliced", sliced("whereabouts")))
	controller, err := one.StartDaemon(t.Context(), controlplane.Daemon{
		Name: "node-slice-controller", ServiceAccount: metav1.NamespaceSystem + "/whereabouts",
		Args: []string{"/opt/cni/bin/node-slice-controller"}, Env: []string{"WHEREABOUTS_NAMESPACE=" + metav1.NamespaceSystem},
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, controller.Stop()) })
	require.Eventually(t, func() bool { return len(b.nodeSlices(t)) == 2 }, callTime, 100*time.Millisecond)

	given := b.nodeSlices(t)
	require.NotEqual(t, given["node1"], given["node2"])
	for _, m := range []*machine{one, two} {
		slice := given[m.Name]
		got, _, err := m.theirs().call(t, "ADD", "t1", "theirs-"+m.Name, sliced("whereabouts"))
		require.NoError(t, err)
		require.Equal(t, at(slice, "1"), got)
		got, _, err = m.call(t, "ADD", "o1", "ours-"+m.Name, sliced("lhstorage-ipam"))
		require.NoError(t, err)
		require.Equal(t, at(slice, "2"), got)
		assert.Equal(t, []string{"1 ns/theirs-" + m.Name, "2 ns/ours-" + m.Name}, b.poolOf(t, m.Name, slice))
	}

	// What is kept for hosts lies in the whole range; a full slice is full, though others have room.
	hosts := strings.Replace(sliced("lhstorage-ipam"), `"range"`, `"host_shim_range": "`+strings.TrimSuffix(at(given["node1"], "8"), "/26")+`/30", "range"`, 1)
	last := ""
	for i := 3; ; i++ {
		got, _, err := one.call(t, "ADD", fmt.Sprint("more", i), fmt.Sprint("more", i), hosts)
		if err != nil {
			assert.Equal(t, cnierr.Exhausted, cnierr.CodeOf(err), "%v", err)
			assert.ErrorContains(t, err, "Could not allocate IP in range: ip: ")
			assert.Equal(t, 11, i, "14 addresses, 4 of them hosts'")
			break
		}
		last = got
	}
	assert.Equal(t, at(given["node1"], "14"), last)
	got, _, err := two.call(t, "ADD", "room", "room", hosts)
	require.NoError(t, err)
	assert.Equal(t, at(given["node2"], "3"), got)

	for _, m := range []*machine{one, two} {
		for i := 3; i < 11; i++ {
			_, _, err = m.call(t, "DEL", fmt.Sprint("more", i), fmt.Sprint("more", i), hosts)
			require.NoError(t, err)
		}
		_, _, err = m.call(t, "DEL", "room", "room", hosts)
		require.NoError(t, err)
		_, _, err = m.theirs().call(t, "DEL", "t1", "theirs-"+m.Name, sliced("whereabouts"))
		require.NoError(t, err)
		_, _, err = m.call(t, "DEL", "o1", "ours-"+m.Name, sliced("lhstorage-ipam"))
		require.NoError(t, err)
		assert.Empty(t, b.poolOf(t, m.Name, given[m.Name]))
	}
	assert.Empty(t, b.objects(t))
	nameFile(t, two, given["node1"])
	joining(t, b, one)
}

// nameFile: of the places where Whereabouts looks for the node's name, the file counts before the node's own name.
func nameFile(t *testing.T, m *machine, slice string) {
	const dir = "/etc/cni/net.d/whereabouts.d"
	flat := `{"kubernetes": {"kubeconfig": "` + dir + `/whereabouts.kubeconfig"}, "configuration_path": "` + dir + `"}`
	require.NoError(t, m.WriteFile(dir+"/whereabouts.conf", []byte(flat)))
	require.NoError(t, m.WriteFile(dir+"/nodename", []byte("node1\n")))
	got, _, err := m.theirs().call(t, "ADD", "t2", "theirs", sliced("whereabouts"))
	require.NoError(t, err)
	require.Equal(t, at(slice, "1"), got)
	got, _, err = m.call(t, "ADD", "o2", "ours", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	require.Equal(t, at(slice, "2"), got)
	_, _, err = m.theirs().call(t, "DEL", "t2", "theirs", sliced("whereabouts"))
	require.NoError(t, err)
	_, _, err = m.call(t, "DEL", "o2", "ours", sliced("lhstorage-ipam"))
	require.NoError(t, err)
}

// joining: a node that comes later gets a slice, too; until then an ADD says what it lacks. There are four slices.
func joining(t *testing.T, b *bed, m *machine) {
	rename := func(name string) {
		require.NoError(t, m.WriteFile("/etc/cni/net.d/whereabouts.d/nodename", []byte(name)))
		require.NoError(t, m.WriteFile(nodeFile, fmt.Appendf(nil, `{"nodeName": %q, "kubeconfig": %q}`, name, kubeconfig)))
	}
	rename("late")
	_, _, err := m.call(t, "ADD", "l1", "late", sliced("lhstorage-ipam"))
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "NodeSlicePool kube-system/sliced has no slice for node late (2 of 4 slices are given)")
	b.addNode(t, "late", nil)
	require.Eventually(t, func() bool { return b.nodeSlices(t)["late"] != "" }, callTime, 100*time.Millisecond)
	got, _, err := m.call(t, "ADD", "l1", "late", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	assert.Equal(t, at(b.nodeSlices(t)["late"], "1"), got)
	_, _, err = m.call(t, "DEL", "l1", "late", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	rename(m.Name)

	// A network whose type has changed keeps the slices that are given. Whereabouts' controller gives no more then: it
	// wants all networks of a cluster to be of its own type.
	before := b.nodeSlices(t)
	b.setNetwork(t, "sliced", sliced("lhstorage-ipam"))
	require.Eventually(t, func() bool {
		log, err := os.ReadFile(filepath.Join(b.Dir, "node1-node-slice-controller.log"))
		return err == nil && strings.Contains(string(log), "error syncing 'default/sliced'")
	}, callTime, 100*time.Millisecond)
	got, _, err = m.call(t, "ADD", "l2", "changed", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	assert.Equal(t, at(before[m.Name], "1"), got)
	_, _, err = m.call(t, "DEL", "l2", "changed", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	assert.Equal(t, before, b.nodeSlices(t))

	// The way out that the documentation names.
	rename("later")
	_, err = b.Kubectl(t.Context(), "-n", metav1.NamespaceSystem, "patch", "nodeslicepool", "sliced", "--type=json", "-p",
		`[{"op": "test", "path": "/status/allocations/3/nodeName", "value": ""}, {"op": "replace", "path": "/status/allocations/3/nodeName", "value": "later"}]`)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		got, _, err = m.call(t, "ADD", "l3", "later", sliced("lhstorage-ipam"))
		return err == nil
	}, callTime, 100*time.Millisecond, "the API server's memory is a moment late")
	assert.Equal(t, at(b.nodeSlices(t)["later"], "1"), got)
	_, _, err = m.call(t, "DEL", "l3", "later", sliced("lhstorage-ipam"))
	require.NoError(t, err)
	rename(m.Name)
}

// setNetwork changes the configuration of a network in the default namespace.
func (b *bed) setNetwork(t *testing.T, name, config string) {
	nads := b.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(metav1.NamespaceDefault)
	nad, err := nads.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	nad.Object["spec"] = map[string]any{"config": config}
	_, err = nads.Update(context.Background(), nad, metav1.UpdateOptions{})
	require.NoError(t, err)
}
