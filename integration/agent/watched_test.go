package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/tools"
)

var (
	metricName  = regexp.MustCompile(`lhstorage_[a-z_]+`)
	metricTyped = regexp.MustCompile(`(?m)^# TYPE (lhstorage_[a-z_]+) `)
)

// watched requires every metric that a rule or a panel names to be one that a running agent has: the name in the rule is compared with
// what is scraped, not with what some page says.
func watched(t *testing.T, s *site) {
	sh(t, s.Nodes[0], "ip link set "+shim+" down") // so that something has been repaired
	require.Eventually(t, func() bool { return metric(t, s.Nodes[0], "lhstorage_repairs_total", "shim.up") > 0 }, promise, 50*time.Millisecond)
	leads := func() bool {
		for _, n := range s.Nodes {
			if metric(t, n, "lhstorage_pool_addresses", "") > 0 {
				return true
			}
		}
		return false
	}
	require.Eventually(t, leads, 3*settle, time.Second, "one of them leads, and counts the pools' addresses")
	var there []string
	for _, n := range s.Nodes {
		code, body := get(n, "http://127.0.0.1:9810/metrics")
		require.Equal(t, 200, code, body)
		for _, m := range metricTyped.FindAllStringSubmatch(body, -1) {
			there = append(there, m[1])
		}
	}
	root, err := tools.Root()
	require.NoError(t, err)
	for _, file := range []string{"deploy/alerts/lhstorage.yaml", "deploy/dashboard/lhstorage.json"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		require.NoError(t, err)
		names := metricName.FindAllString(string(text), -1)
		require.NotEmpty(t, names, file)
		for _, name := range names {
			name = strings.TrimSuffix(name, "_bucket")
			assert.True(t, slices.Contains(there, name), "%s looks at %s, which no agent has", file, name)
		}
	}
}
