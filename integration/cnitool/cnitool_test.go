// Package cnitool runs the CNI project's own command-line tool on lhstorage, with
// the commands that the README shows.
package cnitool

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

const ifName = "lhnet1"

func TestStockPlugin(t *testing.T) {
	stock := tools.Build(t, "stock")
	life(t, newMachine(t, "stock.conflist", stock))
}

func TestWithHostLocal(t *testing.T) {
	stock, ours := tools.Build(t, "stock"), tools.Ours(t)
	m := newMachine(t, "host-local.conflist", ours, stock)
	m.reachable = true
	life(t, m)
}

func TestWithOurIPAM(t *testing.T) {
	stock, ours := tools.Build(t, "stock"), tools.Ours(t)
	m := newMachine(t, "lhstorage-ipam.conflist", ours, stock)
	m.reachable = true
	life(t, m)
}

// What the README tells people to paste is what is tested here.
func TestReadmeShowsWhatIsTested(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), "10-storage.conflist <<'EOF'\n")
	require.True(t, found, "the README writes no 10-storage.conflist")
	shown, _, _ := strings.Cut(rest, "\nEOF\n")
	tested, err := os.ReadFile(filepath.Join("testdata", "lhstorage-ipam.conflist"))
	require.NoError(t, err)
	require.JSONEq(t, string(tested), shown)
	for _, verb := range []string{"status", "add", "check", "del", "gc"} {
		require.Regexp(t, `(?m)^bin/cnitool `+verb+` +storage /run/netns/pod1`, string(readme))
	}
}

// life takes one pod through all that cnitool can do, and back to nothing.
func life(t *testing.T, m *machine) {
	t.Helper()
	m.must(t, "status", "storage", m.pod.Path())

	out := m.must(t, "add", "storage", m.pod.Path())
	addresses, err := storm.Addresses(out)
	require.NoError(t, err)
	kernel, err := testnode.Addresses(m.pod, ifName)
	require.NoError(t, err)
	require.Equal(t, addresses, kernel)
	m.must(t, "check", "storage", m.pod.Path())
	require.Equal(t, m.reachable, m.hostReaches(t, addresses[0]), "the host reaches its pod")

	// What CHECK finds right must be able to be wrong.
	require.NoError(t, m.pod.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(ifName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	_, err = m.run("check", "storage", m.pod.Path())
	require.ErrorContains(t, err, ifName)

	m.must(t, "del", "storage", m.pod.Path())
	m.requireNothingAttached(t)
	m.must(t, "del", "storage", m.pod.Path()) // a second time: no error

	// cnitool's GC takes all attachments that it knows for stale.
	m.must(t, "add", "storage", m.pod.Path())
	m.must(t, "gc", "storage", m.pod.Path())
	m.requireNothingAttached(t)
}

// machine is a node with one pod, on which cnitool is run.
type machine struct {
	node   *testnode.Node
	pod    ns.NetNS
	dirs   []string // of cnitool and the plugins
	varLib string   // in place of /var/lib, for cnitool's cache and host-local
	conf   string   // the directory of network configurations

	reachable bool // the host must reach the pod; with the stock plugin it can't
}

func newMachine(t *testing.T, conflist string, dirs ...string) *machine {
	t.Helper()
	testnode.RequireRoot(t)
	node, err := testnode.New(t.TempDir(), t.TempDir(), 2)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, node.Close()) })
	require.NoError(t, node.AddParent())
	pod, err := node.NewNetns()
	require.NoError(t, err)

	m := &machine{node: node, pod: pod, dirs: dirs, varLib: t.TempDir(), conf: t.TempDir()}
	data, err := os.ReadFile(filepath.Join("testdata", conflist))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(m.conf, "10-storage.conflist"), data, 0o600))
	return m
}

// run runs cnitool in the host's netns. It can't be told where its cache is
// (/var/lib/cni), so it gets a mount namespace with another /var/lib.
func (m *machine) run(args ...string) ([]byte, error) {
	script := `mount --bind "$VARLIB" /var/lib && exec cnitool "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "cnitool"}, args...)...)
	path := strings.Join(m.dirs, ":")
	cmd.Env = append(os.Environ(), m.node.Env()...)
	cmd.Env = append(cmd.Env, "VARLIB="+m.varLib, "PATH="+path+":"+os.Getenv("PATH"),
		"CNI_PATH="+path, "NETCONFPATH="+m.conf, "CNI_IFNAME="+ifName)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := m.node.Host.Do(func(ns.NetNS) error { return cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("cnitool %s: %w: %s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

func (m *machine) must(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := m.run(args...)
	require.NoError(t, err)
	return out
}

func (m *machine) hostReaches(t *testing.T, address netip.Addr) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ping", "-c", "3", "-i", "0.2", "-W", "1", address.String())
	require.NoError(t, m.node.Host.Do(func(ns.NetNS) error { return cmd.Start() }))
	return cmd.Wait() == nil
}

// requireNothingAttached looks at the pod, at host-local's claims, at cnitool's
// cache and at our records.
func (m *machine) requireNothingAttached(t *testing.T) {
	t.Helper()
	links, err := testnode.Links(m.pod)
	require.NoError(t, err)
	require.Empty(t, links, "devices in the pod")
	left, err := testnode.Files(filepath.Join(m.varLib, "cni"))
	require.NoError(t, err)
	for _, name := range left {
		base := filepath.Base(name)
		require.True(t, base == "lock" || strings.HasPrefix(base, "last_reserved_ip"), "%s is left", name)
	}
	records, err := testnode.Files(filepath.Join(m.node.Run, "attachments"))
	require.NoError(t, err)
	require.Empty(t, records, "attachment records")
}
