package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const storage = `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
 "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
 "hostShim": {"range": "10.100.1.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`

// defined is a definition of a certain age in minutes.
func defined(name string, age int, config string) Definition {
	return Definition{Namespace: "ns", Name: name, UID: name, Created: time.Unix(1_700_000_000, 0).Add(-time.Duration(age) * time.Minute), Config: config}
}

// summary is what came of definitions, in words.
func summary(c Compiled) string {
	var words []string
	for _, n := range c.Networks {
		words = append(words, n.Ref()+" "+key(n.Plan))
	}
	for _, f := range c.Faults {
		words = append(words, f.Ref()+" "+f.Reason)
	}
	return strings.Join(words, "; ")
}

func TestCompile(t *testing.T) {
	with := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(storage) }
	chained := `{"cniVersion": "1.0.0", "name": "chained", "plugins": [
 {"type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "10.9.0.0/24"}}, {"type": "lhstorage", "hostShim": {"range": "10.9.0.0/28"}}]}`
	for _, c := range []struct {
		name        string
		definitions []Definition
		want        string
	}{
		{"none", nil, ""},
		{"one", []Definition{defined("a", 0, storage)}, "ns/a storage@vxlan-storage"},
		{"another plugin's, or Multus' own file's", []Definition{defined("a", 0, with(`"lhstorage"`, `"macvlan"`)), defined("b", 0, "")}, ""},
		{"without a name", []Definition{defined("a", 0, with(`"name": "storage", `, ""))}, "ns/a a@vxlan-storage"},
		{"a list", []Definition{defined("a", 0, `{"cniVersion": "1.0.0", "name": "list", "plugins": [`+with(`"name": "storage", `, "")+`, {"type": "tuning"}]}`)}, "ns/a list@vxlan-storage"},
		{"behind macvlan", []Definition{defined("a", 0, chained)}, "ns/a chained@eth1"},
		{"behind a main plugin without a master", []Definition{defined("a", 0, strings.Replace(chained, `"master": "eth1", `, "", 1))}, ""},
		{"in a pod", []Definition{defined("a", 0, `{"cniVersion": "1.0.0", "name": "n", "type": "lhstorage", "master": "eth0", "linkInContainer": true}`)}, ""},
		{"broken ones beside a good one", []Definition{defined("a", 2, with(`"hostShim"`, `"hostShimm"`)), defined("b", 1, `{"type": "lhstorage"`), defined("c", 0, storage)},
			"ns/c storage@vxlan-storage; ns/a InvalidNetwork; ns/b InvalidNetwork"},
		{"broken, and nobody knows whose", []Definition{defined("a", 0, `{`)}, ""},
		{"a shim's network that can't be read", []Definition{defined("a", 0, with(`"type": "lhstorage-ipam", "range": "10.100.1.0/24"`, `"type": "dhcp"`))}, "ns/a InvalidNetwork"},
		{"for two namespaces", []Definition{defined("a", 1, storage), defined("b", 0, storage)}, "ns/a storage@vxlan-storage"},
		{"two on one parent", []Definition{defined("a", 1, storage), defined("b", 0, with(`"name": "storage"`, `"name": "backup"`))}, "ns/a storage@vxlan-storage; ns/b backup@vxlan-storage"},
		{"the older counts", []Definition{defined("a", 0, with(`"name": "storage"`, `"name": "other"`, "100,", "7,")), defined("b", 1, storage)}, "ns/b storage@vxlan-storage; ns/a ContradictoryNetwork"},
		{"one name, two shims", []Definition{defined("a", 1, storage), defined("b", 0, with("10.100.1.0/28", "10.100.1.0/27"))}, "ns/a storage@vxlan-storage; ns/b ContradictoryNetwork"},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, summary(Compile(c.definitions))) })
	}
	c := Compile([]Definition{defined("a", 0, with("100,", "7,", `"name": "storage"`, `"name": "other"`)), defined("b", 1, storage)})
	require.ErrorContains(t, c.Faults[0].Err, "described otherwise by ns/b, which is older: vni is 100 there and 7 here")
	assert.Equal(t, map[string]bool{"ns/a": true, "ns/b": true}, c.Ours)
}

// An agent that starts with the API server away knows what the last one knew.
func TestDefinitionsOnDisk(t *testing.T) {
	dir := t.TempDir()
	assert.Empty(t, loadDefinitions(dir))
	list := []Definition{defined("a", 0, storage)}
	list[0].Created = list[0].Created.UTC()
	require.NoError(t, saveDefinitions(dir, list))
	require.NoError(t, saveDefinitions(dir, list))
	assert.Equal(t, list, loadDefinitions(dir))
}
