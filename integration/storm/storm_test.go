package storm

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

const pods = 300

func TestStockPlugins(t *testing.T) {
	stock := tools.Build(t, "stock")
	node := newNode(t)
	claims := filepath.Join(node.Dir, "host-local")
	ride(t, node, filepath.Join(stock, "macvlan"), stock, []string{"eth0", "eth0-peer"}, map[string]any{
		"cniVersion": "1.1.0", "name": "storm", "type": "macvlan", "master": testnode.Parent,
		"ipam": map[string]any{"type": "host-local", "subnet": "10.100.0.0/22", "dataDir": claims},
	})
	assert.Empty(t, hostLocalClaims(t, filepath.Join(claims, "storm")))
}

// ride attaches and detaches all pods, twice in different ways, and checks what is left.
func ride(t *testing.T, node *testnode.Node, plugin, path string, hostLinks []string, conf map[string]any) {
	t.Helper()
	data, err := json.Marshal(conf)
	require.NoError(t, err)
	s, err := New(node, plugin, path, data, pods)
	require.NoError(t, err)

	attached := s.Attach(t.Context())
	requireNone(t, "ADD", attached.Failures)
	assert.Empty(t, attached.Duplicates())
	for i, pod := range s.Pods {
		kernel, err := testnode.Addresses(pod, IfName)
		require.NoError(t, err, "pod %d", i)
		require.Equal(t, attached.Addresses[i], kernel, "pod %d", i)
	}
	detached := s.Detach(t.Context())
	requireNone(t, "DEL", detached.Failures)
	t.Logf("%d at once: ADD %s, DEL %s", len(s.Pods), attached.Wall, detached.Wall)
	requireClean(t, s, hostLinks)

	requireNone(t, "ADD or DEL", s.Churn(t.Context()).Failures)
	requireClean(t, s, hostLinks)
}

func requireClean(t *testing.T, s *Storm, hostLinks []string) {
	t.Helper()
	for i, pod := range s.Pods {
		links, err := testnode.Links(pod)
		require.NoError(t, err)
		require.Empty(t, links, "devices left in pod %d", i)
	}
	links, err := testnode.Links(s.Node.Host)
	require.NoError(t, err)
	require.ElementsMatch(t, hostLinks, links, "devices in the host")
	records, err := testnode.Files(filepath.Join(s.Node.RunDir(), "attachments"))
	require.NoError(t, err)
	require.Empty(t, records, "attachment records left")
	requireNoLockHeld(t, s.Node.Dir)
}

// requireNoLockHeld takes the lock of every file of the node.
func requireNoLockHeld(t *testing.T, dir string) {
	t.Helper()
	files, err := testnode.Files(dir)
	require.NoError(t, err)
	for _, name := range files {
		lock := flock.New(filepath.Join(dir, name), flock.SetFlag(os.O_RDWR))
		free, err := lock.TryLock()
		require.NoError(t, err, name)
		require.True(t, free, "the lock of %s is held", name)
		require.NoError(t, lock.Close())
	}
}

// hostLocalClaims are the files named after addresses.
func hostLocalClaims(t *testing.T, dir string) []string {
	t.Helper()
	files, err := testnode.Files(dir)
	require.NoError(t, err)
	return slices.DeleteFunc(files, func(name string) bool {
		return name == "lock" || strings.HasPrefix(name, "last_reserved_ip")
	})
}

func requireNone(t *testing.T, verb string, failures []error) {
	t.Helper()
	if len(failures) > 0 {
		t.Fatalf("%d %s failed, the first with: %v", len(failures), verb, failures[0])
	}
}

func newNode(t *testing.T) *testnode.Node {
	t.Helper()
	testnode.RequireRoot(t)
	node, err := testnode.New(t.TempDir(), 1)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, node.Close()) })
	require.NoError(t, node.AddParent())
	return node
}

func TestDuplicates(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	r := Report{Addresses: [][]netip.Addr{{a}, {b}, {a}, nil, {a, b}}}
	assert.Equal(t, []netip.Addr{a, a, b}, r.Duplicates())
	assert.Empty(t, Report{Addresses: [][]netip.Addr{{a}, {b}}}.Duplicates())
}

func TestAddressesWantsAtLeastOne(t *testing.T) {
	_, err := Addresses([]byte(`{"cniVersion": "1.1.0"}`))
	require.ErrorContains(t, err, "no address")
	_, err = Addresses(nil)
	require.ErrorContains(t, err, "read the result")
}
