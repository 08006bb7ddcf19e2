package netconf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const schemaFile = "../../docs/netconf.schema.json"

type schemaNode struct {
	Description string
	Default     any
	Properties  map[string]*schemaNode
}

func readSchema(t *testing.T) *schemaNode {
	data, err := os.ReadFile(schemaFile)
	require.NoError(t, err)
	node := &schemaNode{}
	require.NoError(t, json.Unmarshal(data, node))
	return node
}

// SchemaValidator gives the tests outside this package the compiled schema.
func SchemaValidator(t testing.TB) *jsonschema.Schema {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaFile)
	require.NoError(t, err)
	return s
}

// The parser and the schema know the same keys, and each has a description.
func TestSchemaAndParserKnowTheSameKeys(t *testing.T) {
	var compare func(path string, fields []field, node *schemaNode)
	compare = func(path string, fields []field, node *schemaNode) {
		var parser, schema []string
		for _, f := range fields {
			parser = append(parser, f.key)
		}
		for key, n := range node.Properties {
			schema = append(schema, key)
			assert.NotEmpty(t, n.Description, "%s.%s", path, key)
		}
		assert.ElementsMatch(t, parser, schema, "keys of %q", path)
		for _, f := range fields {
			if f.sub != nil && node.Properties[f.key] != nil {
				compare(join(path, f.key), f.sub, node.Properties[f.key])
			}
		}
	}
	schema := readSchema(t)
	compare("", new(conf).fields(), schema)
	compare("ipam", new(ipamConf).fields(), schema.Properties["ipam"])
}

// The schema's defaults are those that the parser fills in.
func TestSchemaDefaults(t *testing.T) {
	plan, err := Parse(Add, []byte(`{"name":"a","parent":{"name":"v","vni":1,"vtep":{"cidr":"10.9.0.0/24"}}}`), "")
	require.NoError(t, err)
	withShim, err := Parse(Add, []byte(`{"cniVersion":"1.1.0","name":"a","master":"eth0","hostShim":{"range":"10.0.0.0/28"},"ipam":{"type":"whereabouts","range":"10.0.0.0/24"}}`), "")
	require.NoError(t, err)
	routes := map[bool]string{false: "none", true: "static"}
	want := map[string]any{
		"cniVersion":                plan.CNIVersion,
		"type":                      plan.Type,
		"parent.mtu":                float64(plan.Parent.MTU),
		"parent.port":               float64(plan.Parent.Port),
		"parent.vtep.interface":     plan.Parent.VTEP.Interface,
		"parent.vtep.routes":        routes[plan.Parent.VTEP.Routes],
		"hostShim.name":             withShim.HostShim.Name,
		"mode":                      plan.Mode,
		"mtu":                       float64(plan.MTU),
		"bcqueuelen":                float64(plan.BcQueueLen),
		"linkInContainer":           plan.LinkInContainer,
		"iscsiPath":                 string(plan.ISCSIPath),
		"conflictDetection.enabled": plan.Conflict.Enabled,
		"conflictDetection.window":  plan.Conflict.Window.String(),
	}
	got := map[string]any{}
	var walk func(path string, n *schemaNode)
	walk = func(path string, n *schemaNode) {
		if n.Default != nil {
			got[path] = n.Default
		}
		for key, sub := range n.Properties {
			walk(join(path, key), sub)
		}
	}
	walk("", readSchema(t))
	assert.Equal(t, want, got)
}

func schemaAccepts(s *jsonschema.Schema, data []byte) bool {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	return err == nil && s.Validate(v) == nil
}

// Every good NetConf is valid by the schema, but for the key that stock macvlan's
// suite writes with a capital.
func TestSchemaAcceptsTheGoodCorpus(t *testing.T) {
	s := SchemaValidator(t)
	files, err := filepath.Glob("testdata/good/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, !strings.Contains(string(data), "RuntimeConfig"), schemaAccepts(s, data), file)
	}
}

// The examples that the schema gives for a value are valid.
func TestSchemaExamples(t *testing.T) {
	var raw any
	data, err := os.ReadFile(schemaFile)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &raw))
	c := jsonschema.NewCompiler()
	found := 0
	var walk func(pointer string, v any)
	walk = func(pointer string, v any) {
		if v, ok := v.(map[string]any); ok {
			if examples, ok := v["examples"].([]any); ok {
				s, err := c.Compile(schemaFile + "#" + pointer)
				require.NoError(t, err, pointer)
				for _, e := range examples {
					found++
					assert.NoError(t, s.Validate(e), "%s", pointer)
				}
			}
			for key, sub := range v {
				walk(pointer+"/"+key, sub)
			}
		}
	}
	walk("", raw)
	assert.Greater(t, found, 10)
}
