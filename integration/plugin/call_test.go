package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// binaries is a CNI_PATH with the stock plugins and ours, built once with each set
// of tags.
func binaries(t testing.TB, tags ...string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	key := strings.Join(tags, ",")
	if built.path[key] == "" {
		built.path[key] = tools.Ours(t, tags...) + ":" + tools.Build(t, "stock")
	}
	return built.path[key]
}

var built = struct {
	sync.Mutex
	path map[string]string
}{path: map[string]string{}}

// conf is a NetConf.
type conf map[string]any

func parse(format string, args ...any) conf {
	var c conf
	if err := json.Unmarshal(fmt.Appendf(nil, format, args...), &c); err != nil {
		panic(err)
	}
	return c
}

func (c conf) json() []byte {
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return data
}

// with is a copy of c in which the keys, given as "parent.mtu", have other values;
// nil takes a key away.
func (c conf) with(keysAndValues ...any) conf {
	changed := parse("%s", c.json())
	for i := 0; i < len(keysAndValues); i += 2 {
		path := strings.Split(keysAndValues[i].(string), ".")
		at := map[string]any(changed)
		for _, key := range path[:len(path)-1] {
			if _, ok := at[key].(map[string]any); !ok {
				at[key] = map[string]any{}
			}
			at = at[key].(map[string]any)
		}
		last := path[len(path)-1]
		if at[last] = keysAndValues[i+1]; keysAndValues[i+1] == nil {
			delete(at, last)
		}
	}
	return changed
}

// vxlan is the network of twoNodes on this node. host-local gives each node's pods
// addresses from 10.100.1.(16·index) on, where the source design's Whereabouts
// would see to it.
func (n *node) vxlan() conf {
	start := 16 * max(n.file.Index, 1)
	return parse(`{
		"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
		"parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100,
			"vtep": {"cidr": "10.100.100.0/24", "routes": "static", "via": {"10.100.100.1": "to-node1", "10.100.100.2": "to-node2"}},
			"peers": ["10.100.100.1", "10.100.100.2"]},
		"hostShim": {"range": "10.100.1.0/28"},
		"ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "10.100.1.0/24", "rangeStart": "10.100.1.%d", "rangeEnd": "10.100.1.%d"}]]}
	}`, n.hostLocal(), start, start+15)
}

// shimAddr is the shim's address that node index gets in the network of vxlan.
func shimAddr(index int) netip.Addr { return netip.AddrFrom4([4]byte{10, 100, 1, byte(index)}) }

// call is how a verb is called where that isn't the usual way.
type call func(*cniexec.Call)

func withoutNetns(c *cniexec.Call) { c.Netns = "" }

func netnsPath(path string) call { return func(c *cniexec.Call) { c.Netns = path } }

func stdin(text string) call { return func(c *cniexec.Call) { c.Conf = []byte(text) } }

// faulty makes a binary with fault points stumble.
func faulty(faults string) call {
	return func(c *cniexec.Call) { c.Env = append(c.Env, "LHSTORAGE_FAULT="+faults) }
}

func cniArgs(args string) call { return func(c *cniexec.Call) { c.Args += ";" + args } }

func (n *node) run(t testing.TB, verb string, p *pod, c conf, how ...call) (cniexec.Outcome, error) {
	t.Helper()
	plugin, err := invoke.FindInPath(fmt.Sprint(c["type"]), filepath.SplitList(n.bin))
	require.NoError(t, err)
	req := cniexec.Call{
		Plugin: plugin, Command: verb, Path: n.bin, Conf: c.json(),
		Env: []string{nodefile.PathEnv + "=" + n.nodeFile()},
	}
	if p != nil {
		req.ContainerID, req.IfName, req.Netns = p.container, p.ifName, p.netns.Path()
		req.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.container
	}
	for _, change := range how {
		change(&req)
	}
	return cniexec.Run(t.Context(), n.netns, req)
}

// must runs a verb that has to succeed.
func (n *node) must(t testing.TB, verb string, p *pod, c conf, how ...call) cniexec.Outcome {
	t.Helper()
	out, err := n.run(t, verb, p, c, how...)
	require.NoError(t, err)
	return out
}

// add attaches a pod and returns the result, converted to the current version.
func (n *node) add(t testing.TB, p *pod, c conf, how ...call) *types100.Result {
	t.Helper()
	out := n.must(t, "ADD", p, c, how...)
	t.Logf("ADD %s: %s %s", p.container, out.Wall, out.Stderr)
	result := decode(t, fmt.Sprint(c["cniVersion"]), out.Stdout)
	p.addrs = nil
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		require.True(t, ok)
		p.addrs = append(p.addrs, addr.Unmap())
	}
	return result
}

func decode(t testing.TB, confVersion string, stdout []byte) *types100.Result {
	t.Helper()
	result, err := version.NewResult(confVersion, stdout)
	require.NoError(t, err, "%s", stdout)
	current, err := types100.NewResultFromResult(result)
	require.NoError(t, err)
	return current
}

// check runs CHECK with the result of ADD, as a runtime does.
func (n *node) check(t testing.TB, p *pod, c conf, result *types100.Result) error {
	t.Helper()
	_, err := n.run(t, "CHECK", p, c.with("prevResult", result))
	return err
}

// requireRefusal says that err is a CNI error with this code that says these words.
func requireRefusal(t testing.TB, err error, code cnierr.Code, words ...string) {
	t.Helper()
	require.Error(t, err)
	var said *types.Error
	require.ErrorAs(t, err, &said, "a CNI error")
	text := said.Msg + "\n" + said.Details
	assert.Equal(t, code, cnierr.Code(said.Code), "code of: %s", text)
	for _, w := range words {
		assert.Contains(t, text, w)
	}
}
