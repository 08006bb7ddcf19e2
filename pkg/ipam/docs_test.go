package ipam

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	jsonBlock = regexp.MustCompile("(?s)```json\n(.*?)```")
	tableKeys = regexp.MustCompile("`([A-Za-z_*]+)`")
)

// The page's examples work as they are, and each key of its table is known.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/ipam.md")
	require.NoError(t, err)
	examples := jsonBlock.FindAllSubmatch(page, -1)
	require.NotEmpty(t, examples)
	for _, e := range examples {
		cfg, err := Parse(Input{NetConf: e[1]})
		require.NoError(t, err)
		assert.Empty(t, cfg.Warnings)
	}

	_, table, _ := strings.Cut(string(page), "## Keys of `ipam`")
	table, _, _ = strings.Cut(table, "\nOther keys")
	documented := map[string]bool{}
	for line := range strings.SplitSeq(table, "\n") {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range tableKeys.FindAllStringSubmatch(first, -1) {
			if m[1] == "etcd_*" {
				continue
			}
			documented[strings.ToLower(m[1])] = true
			cfg, _ := Parse(Input{NetConf: netConf(`{"` + m[1] + `": null, "` + m[1] + `x": 1}`)})
			assert.NotContains(t, strings.Join(cfg.Warnings, "\n"), "ipam."+m[1]+" ", "documented and not known")
		}
	}
	for _, key := range accepted {
		if !strings.HasPrefix(key, "etcd_") && !strings.HasPrefix(key, "pod") && key != "name" {
			assert.True(t, documented[key], "%s is accepted and not documented", key)
		}
	}
	for _, key := range []string{"range", "range_start", "range_end", "exclude", "ipranges", "host_shim_range", "allocation", "gateway", "routes", "dns",
		"addresses", "network_name", "enable_overlapping_ranges", "timeout", "kubernetes", "node_slice_size"} {
		assert.True(t, documented[key], "%s isn't documented", key)
	}
}
