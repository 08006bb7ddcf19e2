package netconf_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

var update = flag.Bool("update", false, "rewrite the golden plans in testdata/good")

// goodFiles are NetConfs that must parse; the part of the name before the first
// hyphen or dot is the verb, ADD when it isn't one.
func goodFiles(t testing.TB) []string {
	files, err := filepath.Glob("testdata/good/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func verbOf(file string) netconf.Verb {
	word := strings.ToUpper(strings.FieldsFunc(filepath.Base(file), func(c rune) bool { return c == '-' || c == '.' })[0])
	switch v := netconf.Verb(word); v {
	case netconf.Check, netconf.Status, netconf.GC:
		return v
	}
	return netconf.Add
}

func read(t testing.TB, file string) []byte {
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return data
}

// golden is a plan as text: JSON with the MAC readable and the delegate's NetConf as written.
func golden(t *testing.T, p *netconf.Plan) string {
	delegate := string(p.IPAM.Delegate)
	plain := *p
	plain.IPAM.Delegate = nil
	text, err := json.MarshalIndent(struct {
		netconf.Plan
		MAC string
	}{plain, p.MAC.String()}, "", "  ")
	require.NoError(t, err)
	return string(text) + "\n--- delegate\n" + delegate + "\n"
}

func TestGoodCorpus(t *testing.T) {
	for _, file := range goodFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			plan, err := netconf.Parse(verbOf(file), read(t, file), "")
			require.NoError(t, err)
			require.True(t, json.Valid(plan.IPAM.Delegate), "%s", plan.IPAM.Delegate)
			want := strings.TrimSuffix(file, ".json") + ".plan"
			if *update {
				require.NoError(t, os.WriteFile(want, []byte(golden(t, plan)), 0o644))
			}
			assert.Equal(t, string(read(t, want)), golden(t, plan))
		})
	}
}

func TestBadCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.json")
	require.NoError(t, err)
	require.Len(t, badCases, len(files), "each file of testdata/bad has one line in badCases")
	for _, c := range badCases {
		t.Run(c.file, func(t *testing.T) {
			plan, err := netconf.Parse(c.verb, read(t, "testdata/bad/"+c.file+".json"), c.args)
			require.Error(t, err)
			assert.Nil(t, plan)
			assert.Equal(t, c.code, cnierr.CodeOf(fmt.Errorf("wrapped: %w", err)))
			var all *netconf.Error
			require.ErrorAs(t, err, &all)
			require.Len(t, all.Faults, 1, "%v", err)
			assert.Equal(t, c.key, all.Faults[0].Key)
			lines := strings.Split(err.Error(), "\n")
			require.Len(t, lines, 2)
			assert.Contains(t, lines[1], c.key)
		})
	}
}

// The schema refuses what a schema can see, and nothing that is right.
func TestSchemaAgreesWithTheBadCorpus(t *testing.T) {
	schema := netconf.SchemaValidator(t)
	for _, c := range badCases {
		accepted := netconf.SchemaAccepts(schema, read(t, "testdata/bad/"+c.file+".json"))
		assert.Equal(t, c.schema, !accepted, "%s: refused by the schema", c.file)
	}
}

func TestLenientNeverFails(t *testing.T) {
	for _, c := range badCases {
		stdin := read(t, "testdata/bad/"+c.file+".json")
		plan := netconf.Lenient(stdin, c.args)
		require.NotNil(t, plan, c.file)
		if c.code != cnierr.Decode {
			assert.True(t, json.Valid(plan.IPAM.Delegate), c.file)
		}
	}
}

func TestLenientFillsInWhatDELNeeds(t *testing.T) {
	plan := netconf.Lenient([]byte(`{"cniVersion":"1.1.0","name":"storage","type":"lhstorage","master":"eth0","linkInContainer":true,"nonsense":1,
		"hostShim":{"range":5},"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"lhnet1","sandbox":"/n"}]},"ipam":{"type":"host-local","subnet":"x"}}`),
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u;broken")
	assert.Equal(t, "storage", plan.Name)
	assert.Equal(t, "1.1.0", plan.CNIVersion)
	assert.Equal(t, "eth0", plan.Parent.Name)
	assert.True(t, plan.LinkInContainer)
	assert.False(t, plan.Chained)
	assert.Equal(t, "host-local", plan.IPAM.Type)
	assert.Contains(t, string(plan.IPAM.Delegate), `"nonsense":1`)
	require.NotNil(t, plan.PrevResult)
	assert.Equal(t, "lhnet1", plan.PrevResult.Interfaces[0].Name)
	assert.Equal(t, netconf.Pod{Namespace: "ns", Name: "pod", UID: "u"}, plan.Pod)

	for _, nothing := range []string{"", "null", "[]", "{", "{}"} {
		plan := netconf.Lenient([]byte(nothing), "")
		assert.Empty(t, plan.Name)
		assert.Empty(t, plan.IPAM.Type)
	}
}

// DEL must reach the IPAM with the configuration that ADD gave it.
func TestLenientDelegatesAsADDDid(t *testing.T) {
	for _, file := range goodFiles(t) {
		if verbOf(file) != netconf.Add || strings.Contains(file, "chained") {
			continue
		}
		plan, err := netconf.Parse(netconf.Add, read(t, file), "")
		require.NoError(t, err)
		assert.Equal(t, string(plan.IPAM.Delegate), string(netconf.Lenient(read(t, file), "").IPAM.Delegate), file)
	}
}

func TestAllFaultsAtOnceInOrder(t *testing.T) {
	stdin := []byte(`{"cniVersion":"1.1.0","name":"storage","type":"lhstorage","parant":{},"mode":"bride","mtu":"big",
		"parent":{"type":"vxlan","name":"v","vni":0,"vlan":3},"conflictDetection":{"window":"x"},"mac":"z"}`)
	_, err := netconf.Parse(netconf.Add, stdin, "MAC=y")
	require.Error(t, err)
	assert.Equal(t, strings.TrimSpace(`
network "storage" can't be used: 9 faults in its configuration
parant {}: unknown key; did you mean "parent"?
mode "bride": must be one of bridge, private, vepa, passthru; did you mean "bridge"?
mtu "big": must be 0 (worked out) or a whole number from 68 to 65535, in bytes
parent.vni 0: must be a whole number from 1 to 16777215
CNI_ARGS.MAC "y": must be a MAC address such as 02:00:00:00:00:01
parent.vtep.cidr: is missing: the network of the nodes' tunnel end points, such as "10.100.100.0/24"
parent.vlan 3: a vxlan parent has no vlan, only a vlan parent has
mac "z": must be a MAC address such as 02:00:00:00:00:01
conflictDetection.window "x": must be a duration from 1ms to 5s, such as "20ms"`), err.Error())
	for range 20 {
		_, again := netconf.Parse(netconf.Add, stdin, "MAC=y")
		require.Equal(t, err.Error(), again.Error())
	}
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	e := cnierr.ToCNI(err)
	assert.Equal(t, uint(7), e.Code)
	assert.NotContains(t, e.Msg, "\n")
}

func TestMissingParentSaysWhyItIsNotGuessed(t *testing.T) {
	_, err := netconf.Parse(netconf.Add, []byte(`{"cniVersion":"1.1.0","name":"a","type":"lhstorage","ipam":{"type":"static"}}`), "")
	require.Error(t, err)
	for _, word := range []string{"parent", "master", "default route"} {
		assert.Contains(t, err.Error(), word)
	}
}

func TestSuggestions(t *testing.T) {
	for key, want := range map[string]string{
		`"vni":100`:                         `did you mean "parent.vni"`,
		`"hostshim_range":"x"`:              `unknown key`,
		`"iscsipaht":"auto"`:                `did you mean "iscsiPath"`,
		`"conflictDetection":{"range":"x"}`: `did you mean "hostShim.range"`,
		`"hostShim":{"colour":"x"}`:         `known here: name, range, address`,
		`"a\nb":1`:                          `"a\nb" 1: unknown key`,
	} {
		_, err := netconf.Parse(netconf.Add, []byte(`{"cniVersion":"1.1.0","name":"a","master":"eth0",`+key+`}`), "")
		require.Error(t, err)
		assert.Contains(t, err.Error(), want)
		assert.Len(t, strings.Split(err.Error(), "\n"), 2)
	}
}

func TestMACPrecedence(t *testing.T) {
	const conf, env, args, run = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:04"
	for _, c := range []struct{ env, args, run, want string }{
		{"", "", "", conf},
		{env, "", "", env},
		{env, args, "", args},
		{"", args, "", args},
		{env, args, run, run},
		{env, "", run, run},
		{"", "", run, run},
	} {
		stdin := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"a","master":"eth0","mac":%q,"args":{"cni":{"mac":%q}},"runtimeConfig":{"mac":%q}}`, conf, c.args, c.run)
		plan, err := netconf.Parse(netconf.Add, []byte(stdin), "IgnoreUnknown=1;MAC="+c.env)
		require.NoError(t, err)
		want, _ := net.ParseMAC(c.want)
		assert.Equal(t, want, plan.MAC, "%+v", c)
	}
}

func TestCNIArgs(t *testing.T) {
	const conf = `{"cniVersion":"1.1.0","name":"a","master":"eth0"}`
	plan, err := netconf.Parse(netconf.Add, []byte(conf), "IgnoreUnknown=true;K8S_POD_NAMESPACE=longhorn-system;K8S_POD_NAME=im-0;K8S_POD_INFRA_CONTAINER_ID=;K8S_POD_UID=u-1;X=1;IP=10.0.0.1,fd00::1/64;GATEWAY=10.0.0.254")
	require.NoError(t, err)
	assert.Equal(t, netconf.Pod{Namespace: "longhorn-system", Name: "im-0", UID: "u-1"}, plan.Pod)
	for _, args := range []string{"IgnoreUnknown=maybe", "X=1", "IgnoreUnknown=1;", "=x", "MAC=a=b", "IP=ten", "K8S_POD_UID=a b", "IgnoreUnknown=0;Y=2"} {
		_, err := netconf.Parse(netconf.Add, []byte(conf), args)
		require.Error(t, err, args)
		assert.Equal(t, cnierr.InvalidEnvironment, cnierr.CodeOf(err), args)
		assert.Contains(t, err.Error(), "CNI_ARGS", args)
	}
	// A fault of the configuration is the one to mend first.
	_, err = netconf.Parse(netconf.Add, []byte(`{"cniVersion":"1.1.0","name":"a"}`), "MAC=x")
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	_, err = netconf.Parse(netconf.Add, []byte(`{"cniVersion":"9","name":"a"}`), "MAC=x")
	assert.Equal(t, cnierr.IncompatibleVersion, cnierr.CodeOf(err))
}

func TestChainedIsSeenOnADDOnly(t *testing.T) {
	conf := read(t, "testdata/good/chained.json")
	for verb, want := range map[netconf.Verb]bool{netconf.Add: true, netconf.Check: false, netconf.Status: false, netconf.GC: false} {
		plan, err := netconf.Parse(verb, conf, "")
		require.NoError(t, err, verb)
		assert.Equal(t, want, plan.Chained, verb)
		assert.Empty(t, plan.Parent.Name)
		assert.NotNil(t, plan.PrevResult)
	}
	// Without a sandbox nobody has attached the pod yet.
	_, err := netconf.Parse(netconf.Add, []byte(`{"cniVersion":"1.1.0","name":"a","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"br0"}]}}`), "")
	require.Error(t, err)
}

func TestPrevResultOfEveryVersion(t *testing.T) {
	results := map[string]string{
		"0.1.0": `{"ip4":{"ip":"10.0.0.5/24"}}`,
		"0.2.0": `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24"}}`,
		"0.3.0": `{"interfaces":[{"name":"lhnet1","sandbox":"/n"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.5/24"}]}`,
		"0.3.1": `{"cniVersion":"0.3.1","interfaces":[{"name":"lhnet1","sandbox":"/n"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.5/24"}]}`,
		"0.4.0": `{"cniVersion":"0.4.0","interfaces":[{"name":"lhnet1","sandbox":"/n"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.5/24"}]}`,
		"1.0.0": `{"interfaces":[{"name":"lhnet1","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.5/24"}]}`,
		"1.1.0": `{"cniVersion":"1.0.0","interfaces":[{"name":"lhnet1","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.5/24"}]}`,
	}
	for version, result := range results {
		plan, err := netconf.Parse(netconf.Check, []byte(fmt.Sprintf(`{"cniVersion":%q,"name":"a","master":"eth0","prevResult":%s}`, version, result)), "")
		require.NoError(t, err, version)
		require.NotNil(t, plan.PrevResult, version)
		require.Len(t, plan.PrevResult.IPs, 1, version)
		assert.Equal(t, "10.0.0.5/24", plan.PrevResult.IPs[0].Address.String(), version)
		assert.Equal(t, "1.1.0", plan.PrevResult.CNIVersion)
	}
}

func TestValidAttachments(t *testing.T) {
	for keys, want := range map[string]*[]netconf.Attachment{
		``:                                  nil,
		`,"cni.dev/valid-attachments":null`: {},
		`,"cni.dev/valid-attachments":[]`:   {},
		`,"cni.dev/attachments":null`:       {},
		`,"cni.dev/attachments":[{"containerID":"c","ifname":"i"}]`: {{ContainerID: "c", IfName: "i"}},
	} {
		plan, err := netconf.Parse(netconf.GC, []byte(`{"cniVersion":"1.1.0","name":"a","master":"eth0"`+keys+`}`), "")
		require.NoError(t, err)
		assert.Equal(t, want, plan.ValidAttachments, keys)
	}
}

// The delegate gets what was written, byte for byte, but for the excludes.
func TestDelegateKeepsEveryOtherByte(t *testing.T) {
	const before = "{\n  \"cniVersion\" : \"1.1.0\", \"name\":\"a\",\n\t\"master\":\"eth0\", \"args\": {\"cni\":{ \"x\" : 1.50e2 , \"\\u006d\": \"<&>\"}},\n \"ipam\" : "
	const after = " ,\"hostShim\": {\"range\" :\"10.0.0.0/28\"}\n}"
	plan, err := netconf.Parse(netconf.Add, []byte(before+`{ "type":"whereabouts","range":"10.0.0.0/24", "big": 12345678901234567890 }`+after), "")
	require.NoError(t, err)
	assert.Equal(t, before+`{ "type":"whereabouts","range":"10.0.0.0/24", "big": 12345678901234567890,"exclude":["10.0.0.0/28"]}`+after, string(plan.IPAM.Delegate)) //nolint:testifylint // byte for byte, not merely equal as JSON
}

func TestWarnings(t *testing.T) {
	for file, want := range map[string]string{
		"stock-macvlan":  "no host shim is made",
		"host-bits":      `hostShim.range "10.100.1.5/28" has host bits set: it is taken as 10.100.1.0/28`,
		"static-peers":   "parent.peers[2] 10.100.101.3 lies outside",
		"chained-master": `mode "bridge" has no effect`,
	} {
		plan, err := netconf.Parse(netconf.Add, read(t, "testdata/good/"+file+".json"), "")
		require.NoError(t, err)
		assert.Contains(t, strings.Join(plan.Warnings, "\n"), want)
	}
	plan, err := netconf.Parse(netconf.Add, read(t, "testdata/good/source-design.json"), "")
	require.NoError(t, err)
	assert.Empty(t, plan.Warnings)
}

// The configurations of the stock plugin's own suite, with the type changed.
func TestStockMacvlanConfigurations(t *testing.T) {
	for _, version := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, link := range []string{"", `"linkInContainer": true,`, `"linkInContainer": false,`} {
			for _, body := range []string{
				`"ipam": {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": "/d"}`,
				`"ipam": {}`,
				`"ipam": {"type": "host-local", "ranges": [[ {"subnet": "10.1.2.0/24", "gateway": "10.1.2.1"} ]], "dataDir": "/d"}`,
				`"capabilities": {"mac": true}, "RuntimeConfig": {"mac": "c2:11:22:33:44:55"}, "ipam": {}`,
				`"mode": "", "dns": {}, "ipam": {"Name": "", "type": "", "routes": null, "dataDir": "", "resolvConf": "", "ranges": null}`,
				`"mode": "", "dns": {}, "ipam": {"subnet": "10.1.2.0/24", "Name": "", "type": "host-local", "routes": null, "dataDir": "", "resolvConf": "", "ranges": null}`,
			} {
				conf := fmt.Sprintf(`{"cniVersion": %q, "name": "mynet", "type": "lhstorage", "master": "eth0", %s %s}`, version, link, body)
				plan, err := netconf.Parse(netconf.Add, []byte(conf), "IgnoreUnknown=true;MAC=c2:11:22:33:44:66")
				require.NoError(t, err, conf)
				assert.Equal(t, netconf.Parent{Type: netconf.ParentDevice, Name: "eth0"}, plan.Parent)
				assert.Equal(t, conf, string(plan.IPAM.Delegate))
				assert.Nil(t, plan.HostShim)
			}
		}
	}
}
