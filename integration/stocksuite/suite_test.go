package stocksuite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// noMaster is in the names of the specs that leave out the master.
const noMaster = "without master config"

func TestStockPluginPassesItsOwnSuite(t *testing.T) {
	stock := tools.Build(t, "stock")
	specs := runSuite(t, filepath.Join(stock, "macvlan"), "macvlan", stock)
	require.Len(t, specs, Specs)
	assert.Empty(t, failed(specs))
}

// The suite must be able to fail: a plugin that does nothing passes no spec.
func TestNothingPassesWithoutAPlugin(t *testing.T) {
	specs := runSuite(t, "/bin/false", "false", tools.Build(t, "stock"))
	require.Len(t, specs, Specs)
	assert.Len(t, failed(specs), Specs)
}

// Of the stock suite our plugin refuses one thing only: to guess the parent from
// the default route. For a storage network that would be a trap.
func TestOurPluginPassesAllButTheGuessedMaster(t *testing.T) {
	stock, ours := tools.Build(t, "stock"), tools.Ours(t)
	plugin := filepath.Join(ours, "lhstorage")
	if _, err := os.Stat(plugin); os.IsNotExist(err) {
		t.Fatalf("%s: the plugin isn't built; plugins/lhstorage is missing", plugin)
	}
	specs := runSuite(t, plugin, "lhstorage", stock, ours)
	require.Len(t, specs, Specs)
	var refused int
	for _, s := range specs {
		if !strings.Contains(s.Name, noMaster) {
			assert.True(t, s.Passed, "%s\nmacvlan_test.go:%d\n%s\n%s", s.Name, s.Line, s.Failure, s.Said)
			continue
		}
		refused++
		assert.False(t, s.Passed, "%s: passed, so the parent was guessed", s.Name)
		assert.Contains(t, s.Said, "set parent, or master", "%s: the error must say what to set", s.Name)
	}
	assert.Equal(t, 21, refused)
}

// runSuite compiles the suite for the plugin's type and runs it with a node file
// of its own.
func runSuite(t *testing.T, plugin, pluginType string, path ...string) []Spec {
	t.Helper()
	testnode.RequireRoot(t)
	dir := t.TempDir()
	suite := filepath.Join(dir, "suite.test")
	if built, ok := tools.Built("suite"); ok {
		require.True(t, kernelHasDummy(t), "the suite was built for its own dummy links")
		suite = filepath.Join(built, pluginType+".test")
	} else {
		require.NoError(t, Compile(t.Context(), dir, suite, pluginType, kernelHasDummy(t)))
	}
	nodeFile := filepath.Join(dir, "node.json")
	content := `{"nodeName": "stocksuite", "runDir": "` + dir + `/run", "stateDir": "` + dir + `/state"}`
	require.NoError(t, os.WriteFile(nodeFile, []byte(content), 0o600))
	start := time.Now()
	specs, err := Run(t.Context(), suite, plugin, strings.Join(path, ":"), "LHSTORAGE_NODE_FILE="+nodeFile)
	require.NoError(t, err)
	t.Logf("%d of %d specs passed on %s in %s", len(specs)-len(failed(specs)), len(specs), plugin, time.Since(start).Round(time.Millisecond))
	return specs
}

func failed(specs []Spec) []string {
	var names []string
	for _, s := range specs {
		if !s.Passed {
			names = append(names, s.Name+": "+s.Failure)
		}
	}
	return names
}

// kernelHasDummy tries in a netns of its own.
func kernelHasDummy(t *testing.T) bool {
	t.Helper()
	netns, err := testutils.NewNS()
	require.NoError(t, err)
	defer func() {
		assert.NoError(t, netns.Close())
		assert.NoError(t, testutils.UnmountNS(netns))
	}()
	has := false
	require.NoError(t, netns.Do(func(ns.NetNS) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe"
		has = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}) == nil
		return nil
	}))
	return has
}

func TestApplyNoticesAnotherSuite(t *testing.T) {
	_, err := apply("nothing of the kind", setType("lhstorage"))
	require.ErrorContains(t, err, "in 0 places, not in 7")
	got, err := apply("a &netlink.Dummy{} b &netlink.Dummy{}", useBridges)
	require.NoError(t, err)
	assert.Equal(t, "a &netlink.Bridge{} b &netlink.Bridge{}", got)
}

func TestParseReportRefusesOtherInput(t *testing.T) {
	_, err := parseReport([]byte("FAIL"))
	require.ErrorContains(t, err, "ginkgo's report")
}
