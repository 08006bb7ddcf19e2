// Package plugin runs the lhstorage plugin as a runtime does, on the real kernel:
// nodes and pods are fresh network namespaces, binaries are executed, and what
// counts is the traffic between them.
package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// space is a network namespace that a test made.
type space struct{ netns ns.NetNS }

func newSpace(t *testing.T) space {
	t.Helper()
	testnode.RequireRoot(t)
	netns, err := testutils.NewNS()
	require.NoError(t, err)
	s := space{netns}
	t.Cleanup(func() {
		assert.NoError(t, netns.Close())
		// Detached: a mount namespace that another program has just made holds a copy.
		assert.NoError(t, unix.Unmount(netns.Path(), unix.MNT_DETACH))
		assert.NoError(t, os.Remove(netns.Path()))
	})
	s.sh(t, "ip link set lo up")
	return s
}

// name is what `ip` calls the namespace.
func (s space) name() string { return filepath.Base(s.netns.Path()) }

func (s space) try(format string, args ...any) (string, error) {
	script := fmt.Sprintf(format, args...)
	var stdout, stderr strings.Builder
	err := s.netns.Do(func(ns.NetNS) error {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		return cmd.Run()
	})
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", script, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// sh runs a shell script in the namespace and returns its output.
func (s space) sh(t testing.TB, format string, args ...any) string {
	t.Helper()
	out, err := s.try(format, args...)
	require.NoError(t, err)
	return out
}

// listing runs a command that prints a JSON list, such as `ip -j link`.
func (s space) listing(t testing.TB, format string, args ...any) []map[string]any {
	t.Helper()
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(s.sh(t, format, args...)), &list))
	return list
}

// link is `ip -d -j link` of one device.
func (s space) link(t testing.TB, device string) map[string]any {
	t.Helper()
	list := s.listing(t, "ip -d -j link show dev %s", device)
	require.Len(t, list, 1)
	return list[0]
}

func (s space) mtu(t testing.TB, device string) int {
	t.Helper()
	mtu, ok := s.link(t, device)["mtu"].(float64)
	require.True(t, ok)
	return int(mtu)
}

func (s space) mac(t testing.TB, device string) string {
	t.Helper()
	return fmt.Sprint(s.link(t, device)["address"])
}

// addrs are a device's addresses that are neither link-local nor the loopback's.
func (s space) addrs(t testing.TB, device string) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(s.sh(t, "ip -o addr show dev %s", device)) {
		fields := strings.Fields(line)
		if p, err := netip.ParsePrefix(fields[3]); err == nil && p.Addr().IsGlobalUnicast() {
			list = append(list, fields[3])
		}
	}
	return list
}

func (s space) sysctl(t testing.TB, path, value string) {
	t.Helper()
	s.sh(t, "echo %s > /proc/sys/net/%s", value, path)
}

// node is a simulated node: a namespace and the files that a node has.
type node struct {
	space
	file nodefile.File
	dir  string // of all its files
	bin  string // CNI_PATH
}

// newNode makes a node that knows its index; 0 for one that doesn't.
func newNode(t *testing.T, index int, tags ...string) *node {
	t.Helper()
	n := &node{space: newSpace(t), dir: t.TempDir(), bin: binaries(t, tags...)}
	n.identify(t, nodefile.File{NodeName: fmt.Sprintf("node%d", index), Index: index})
	return n
}

// identify writes the node file.
func (n *node) identify(t testing.TB, f nodefile.File) {
	t.Helper()
	f.StateDir, f.RunDir = filepath.Join(n.dir, "lib"), filepath.Join(n.dir, "run")
	n.file = f
	data, err := json.Marshal(f)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(n.nodeFile(), data, 0o600))
}

func (n *node) nodeFile() string { return filepath.Join(n.dir, "node.json") }

// reboot gives the node an empty kernel and an empty /run.
func (n *node) reboot(t *testing.T) {
	t.Helper()
	require.NoError(t, os.RemoveAll(n.file.RunDir))
	n.space = newSpace(t)
}

// record is the attachment record of a pod.
func (n *node) record(t testing.TB, p *pod) record.Attachment {
	t.Helper()
	at, found, err := record.Dir(filepath.Join(n.file.RunDir, "attachments")).Load(p.container, p.ifName)
	require.NoError(t, err)
	require.True(t, found, "no record of %s", p.container)
	return at
}

// requireNothingOf says that neither pod, records nor host-local know of an attachment.
func (n *node) requireNothingOf(t testing.TB, p *pod) {
	t.Helper()
	assert.Empty(t, p.interfaces(t), "devices in the pod")
	records, err := testnode.Files(filepath.Join(n.file.RunDir, "attachments"))
	require.NoError(t, err)
	for _, r := range records {
		assert.NotContains(t, r, p.container, "records")
	}
	claims, err := testnode.Files(n.hostLocal())
	require.NoError(t, err)
	for _, c := range claims {
		data, err := os.ReadFile(filepath.Join(n.hostLocal(), c))
		require.NoError(t, err)
		assert.NotContains(t, string(data), p.container, "host-local's claim %s", c)
	}
}

// hostLocal is where host-local keeps its claims.
func (n *node) hostLocal() string { return filepath.Join(n.dir, "host-local") }

// pod is a pod's namespace and what an ADD gave it.
type pod struct {
	space
	container, ifName string
	addrs             []netip.Addr
}

// pod makes a pod that isn't attached yet.
func (n *node) pod(t *testing.T, name string) *pod {
	t.Helper()
	return &pod{space: newSpace(t), container: "container-" + name, ifName: "lhnet1"}
}

// addr is the pod's first address on the storage network.
func (p *pod) addr() netip.Addr { return p.addrs[0] }

// interfaces are the pod's devices but lo.
func (p *pod) interfaces(t testing.TB) []string {
	t.Helper()
	links, err := testnode.Links(p.netns)
	require.NoError(t, err)
	return links
}

// connect links two nodes by a veth pair with point-to-point addresses.
func connect(t testing.TB, a, b *node, addrA, addrB string) {
	t.Helper()
	a.sh(t, "ip link add to-%[1]s mtu 9000 type veth peer name to-%[2]s mtu 9000 netns %[3]s", b.file.NodeName, a.file.NodeName, b.name())
	a.sh(t, "ip addr add %s dev to-%s nodad; ip link set to-%[2]s up", addrA, b.file.NodeName)
	b.sh(t, "ip addr add %s dev to-%s nodad; ip link set to-%[2]s up", addrB, a.file.NodeName)
}

// twoNodes are nodes 1 and 2, joined by a /31 link and nothing else.
func twoNodes(t *testing.T, tags ...string) (n1, n2 *node) {
	t.Helper()
	n1, n2 = newNode(t, 1, tags...), newNode(t, 2, tags...)
	connect(t, n1, n2, "10.100.0.0/31", "10.100.0.1/31")
	return n1, n2
}
