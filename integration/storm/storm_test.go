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

const (
	pods         = 300
	storageRange = "10.100.0.0/22"
)

func TestStockPlugins(t *testing.T) {
	stock := tools.Build(t, "stock")
	node := newNode(t)
	dir := filepath.Join(node.Dir, "host-local")
	ride(t, setup{
		node: node, plugin: filepath.Join(stock, "macvlan"), path: stock,
		hostLinks: []string{"eth0", "eth0-peer"},
		claims:    hostLocalClaims(filepath.Join(dir, "storm")),
		conf: map[string]any{
			"cniVersion": "1.1.0", "name": "storm", "type": "macvlan", "master": testnode.Parent, "ipam": hostLocal(dir),
		},
	})
}

func TestWithHostLocal(t *testing.T) {
	stock, ours := tools.Build(t, "stock"), tools.Ours(t)
	node := newNode(t)
	dir := filepath.Join(node.Dir, "host-local")
	ride(t, setup{
		node: node, plugin: filepath.Join(ours, "lhstorage"), path: stock,
		hostLinks: ourLinks,
		claims:    hostLocalClaims(filepath.Join(dir, "storm")),
		conf:      ourConf(hostLocal(dir)),
	})
}

func TestWithOurIPAM(t *testing.T) {
	ours := tools.Ours(t)
	node := newNode(t)
	ride(t, setup{
		node: node, plugin: filepath.Join(ours, "lhstorage"), path: ours,
		hostLinks: ourLinks,
		claims:    embeddedClaims(node.StateDir()),
		conf:      ourConf(map[string]any{"type": "lhstorage-ipam", "range": storageRange}),
	})
}

// ourLinks are the host's devices once the first ADD has made the shim.
var ourLinks = []string{"eth0", "eth0-peer", "lhnet1-host"}

func ourConf(ipam map[string]any) map[string]any {
	return map[string]any{
		"cniVersion": "1.1.0", "name": "storm", "type": "lhstorage",
		"parent":   map[string]any{"type": "device", "name": testnode.Parent},
		"hostShim": map[string]any{"name": "lhnet1-host", "range": "10.100.0.0/28"},
		"ipam":     ipam,
	}
}

// setup is what a storm is made on.
type setup struct {
	node         *testnode.Node
	plugin, path string
	conf         map[string]any
	hostLinks    []string                  // the host's devices when no pod is attached any more
	claims       func(*testing.T) []string // the files that stand for addresses in use
}

// ride attaches and detaches all pods, in two ways, and checks what is left.
func ride(t *testing.T, on setup) {
	t.Helper()
	data, err := json.Marshal(on.conf)
	require.NoError(t, err)
	s, err := New(on.node, on.plugin, on.path, data, pods)
	require.NoError(t, err)

	attached := s.Attach(t.Context())
	requireNone(t, "ADD", attached.Failures)
	assert.Empty(t, attached.Duplicates())
	require.Len(t, on.claims(t), pods, "claims; the test must know where they are")
	for i, pod := range s.Pods {
		kernel, err := testnode.Addresses(pod, IfName)
		require.NoError(t, err, "pod %d", i)
		require.Equal(t, attached.Addresses[i], kernel, "pod %d", i)
	}
	detached := s.Detach(t.Context())
	requireNone(t, "DEL", detached.Failures)
	t.Logf("%d at once: ADD %s, DEL %s", len(s.Pods), attached.Wall, detached.Wall)
	requireClean(t, s, on)

	requireNone(t, "ADD or DEL", s.Churn(t.Context()).Failures)
	requireClean(t, s, on)
}

func requireClean(t *testing.T, s *Storm, on setup) {
	t.Helper()
	for i, pod := range s.Pods {
		links, err := testnode.Links(pod)
		require.NoError(t, err)
		require.Empty(t, links, "devices left in pod %d", i)
	}
	links, err := testnode.Links(on.node.Host)
	require.NoError(t, err)
	require.ElementsMatch(t, on.hostLinks, links, "devices in the host")
	require.Empty(t, on.claims(t), "claims left")
	records, err := testnode.Files(filepath.Join(on.node.Run, "attachments"))
	require.NoError(t, err)
	require.Empty(t, records, "attachment records left")
	requireNoLockHeld(t, on.node.Dir)
	requireNoLockHeld(t, on.node.Run)
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

func hostLocal(dir string) map[string]any {
	return map[string]any{"type": "host-local", "dataDir": dir, "ranges": [][]map[string]any{{{"subnet": storageRange}}}}
}

// hostLocalClaims are the files named after addresses.
func hostLocalClaims(dir string) func(*testing.T) []string {
	return filesWhere(dir, func(name string) bool {
		return name != "lock" && !strings.HasPrefix(name, "last_reserved_ip")
	})
}

// embeddedClaims are the claims in a store of package embedded.
func embeddedClaims(dir string) func(*testing.T) []string {
	return filesWhere(dir, func(name string) bool { return strings.Contains(name, "/claims/") })
}

func filesWhere(dir string, wanted func(name string) bool) func(*testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		files, err := testnode.Files(dir)
		require.NoError(t, err)
		return slices.DeleteFunc(files, func(name string) bool { return !wanted(name) })
	}
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
	node, err := testnode.New(t.TempDir(), t.TempDir(), 1)
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
