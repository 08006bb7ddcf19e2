package netconf_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

const docsFile = "../../docs/netconf.md"

// Every example of the documentation parses, and the schema takes it.
func TestDocumentedExamples(t *testing.T) {
	schema := netconf.SchemaValidator(t)
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(read(t, docsFile)), -1)
	require.GreaterOrEqual(t, len(blocks), 8)
	for _, block := range blocks {
		stdin := []byte(block[1])
		var list struct {
			CNIVersion string                       `json:"cniVersion"`
			Name       string                       `json:"name"`
			Plugins    []map[string]json.RawMessage `json:"plugins"`
		}
		require.NoError(t, json.Unmarshal(stdin, &list), block[1])
		if len(list.Plugins) > 0 {
			stdin = asRuntime(t, list.CNIVersion, list.Name, list.Plugins[len(list.Plugins)-1])
		}
		plan, err := netconf.Parse(netconf.Add, stdin, "")
		require.NoError(t, err, block[1])
		assert.Equal(t, len(list.Plugins) > 0, plan.Chained)
		assert.Equal(t, "lhstorage", plan.Type)
		assert.True(t, netconf.SchemaAccepts(schema, stdin), block[1])
	}
}

// asRuntime is what a runtime gives to the last plugin of a list.
func asRuntime(t *testing.T, version, name string, plugin map[string]json.RawMessage) []byte {
	plugin["cniVersion"], _ = json.Marshal(version)
	plugin["name"], _ = json.Marshal(name)
	plugin["prevResult"] = json.RawMessage(`{"cniVersion":"` + version + `","interfaces":[{"name":"lhnet1","sandbox":"/run/netns/a"}],"ips":[{"interface":0,"address":"10.100.1.20/24"}]}`)
	stdin, err := json.Marshal(plugin)
	require.NoError(t, err)
	return stdin
}

// Every key of the schema is written about.
func TestEveryKeyIsDocumented(t *testing.T) {
	docs := string(read(t, docsFile))
	var walk func(node map[string]any)
	walk = func(node map[string]any) {
		properties, _ := node["properties"].(map[string]any)
		for key, sub := range properties {
			assert.Contains(t, docs, "`"+key+"`", "%s isn't documented", key)
			if m, ok := sub.(map[string]any); ok && !strings.Contains("dns runtimeConfig args", key) {
				walk(m)
			}
		}
	}
	var schema map[string]any
	require.NoError(t, json.Unmarshal(read(t, "../../docs/netconf.schema.json"), &schema))
	walk(schema)
}

func TestPositionOfASyntaxError(t *testing.T) {
	_, err := netconf.Parse(netconf.Add, read(t, "testdata/bad/not-json.json"), "")
	require.Error(t, err)
	assert.Contains(t, err.Error(), "line 2, column 11")
}

func BenchmarkParse(b *testing.B) {
	stdin := read(b, "testdata/good/source-design.json")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := netconf.Parse(netconf.Add, stdin, "IgnoreUnknown=1;K8S_POD_NAME=a"); err != nil {
			b.Fatal(err)
		}
	}
}
