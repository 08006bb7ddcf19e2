// Package faults makes calls of the plugin fail or die at every step and looks at
// what is left: on the node, in the pod, in the IPAM plugin's store, on disk.
package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/storm"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const ifName = "lhnet1"

// shimAddr is the host shim's address in the networks of this package.
var shimAddr = netip.MustParseAddr("10.100.1.1")

// bed is one node of a network: node 1, with a link to a node 2 that isn't there.
type bed struct {
	*testnode.Node
	bin  string // CNI_PATH; ours first
	conf conf
	main conf // the main plugin that the network has before ours; nil: none
	pods []*pod
	// strangers are container ids whose claims a test made itself.
	strangers []string
}

// pod is a pod, attached or not.
type pod struct {
	ns.NetNS
	name     string
	attached bool
	previous json.RawMessage // of the main plugin
	addrs    []netip.Addr
}

func (p *pod) container() string { return "c-" + p.name }

// conf is a NetConf.
type conf map[string]any

func parse(text string) conf {
	var c conf
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(fmt.Sprintf("%v: %s", err, text))
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

var (
	faulty = sync.OnceValues(func() (string, error) { return path("faultpoints") })
	plain  = sync.OnceValues(func() (string, error) { return path() })
)

// path is a CNI_PATH of our plugins, built with tags, and the stock ones.
func path(tags ...string) (string, error) {
	ours, err := tools.Own(context.Background(), tags...)
	if err != nil {
		return "", err
	}
	stock, err := tools.Module(context.Background(), "stock")
	return ours + ":" + stock, err
}

func newBed(t *testing.T, build func() (string, error), network func(*bed) conf) *bed {
	t.Helper()
	testnode.RequireRoot(t)
	bin, err := build()
	require.NoError(t, err)
	node, err := testnode.New(t.TempDir(), t.TempDir(), 1)
	require.NoError(t, err)
	b := &bed{Node: node, bin: bin}
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	b.sh(t, `ip -batch - <<.
		link add under0 address 02:00:00:00:00:01 mtu 9000 type veth peer name under1 address 02:00:00:00:00:02 mtu 9000
		addr add 10.100.0.0/31 dev under0
		link set under0 up
		link set under1 up`+"\n.")
	b.conf = network(b)
	return b
}

func (b *bed) pod(t *testing.T, name string) *pod {
	t.Helper()
	netns, err := b.NewNetns()
	require.NoError(t, err)
	p := &pod{NetNS: netns, name: name}
	b.pods = append(b.pods, p)
	return p
}

// run runs a program in the host's namespace.
func (b *bed) run(script string) (string, error) {
	cmd := exec.Command("sh", "-ec", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := b.Host.Do(func(ns.NetNS) error { return cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", script, err, out.Bytes())
	}
	return out.String(), err
}

func (b *bed) sh(t testing.TB, script string) string {
	t.Helper()
	out, err := b.run(script)
	require.NoError(t, err)
	return out
}

// call changes how a verb is called.
type call func(*cniexec.Call)

// fault makes the call stumble.
func fault(what ...string) call {
	return func(c *cniexec.Call) { c.Env = append(c.Env, "LHSTORAGE_FAULT="+strings.Join(what, ",")) }
}

// tracing notes the points that the call passes.
func tracing(file string) call {
	return func(c *cniexec.Call) { c.Env = append(c.Env, "LHSTORAGE_FAULT_TRACE="+file) }
}

func with(conf conf) call { return func(c *cniexec.Call) { c.Conf = conf.json() } }

func through(program string) call { return func(c *cniexec.Call) { c.Through = program } }

func (b *bed) call(ctx context.Context, verb string, p *pod, how ...call) (cniexec.Outcome, error) {
	ours, _, _ := strings.Cut(b.bin, ":")
	c := cniexec.Call{Plugin: filepath.Join(ours, "lhstorage"), Command: verb, Path: b.bin, Conf: b.conf.json(), Env: b.Env()}
	if p != nil {
		c.ContainerID, c.IfName, c.Netns = p.container(), ifName, p.Path()
		c.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.name
		if b.main != nil {
			chained := parse(string(c.Conf))
			chained["prevResult"] = p.previous
			c.Conf = chained.json()
		}
	}
	for _, change := range how {
		change(&c)
	}
	return cniexec.Run(ctx, b.Host, c)
}

// callMain calls the network's main plugin.
func (b *bed) callMain(t testing.TB, verb string, p *pod) []byte {
	t.Helper()
	_, stock, _ := strings.Cut(b.bin, ":")
	out, err := cniexec.Run(t.Context(), b.Host, cniexec.Call{
		Plugin: filepath.Join(stock, fmt.Sprint(b.main["type"])), Command: verb, Path: b.bin, Conf: b.main.json(),
		ContainerID: p.container(), IfName: ifName, Netns: p.Path(),
	})
	require.NoError(t, err)
	return out.Stdout
}

// tryAdd calls ADD, the main plugin's first where there is one.
func (b *bed) tryAdd(t testing.TB, p *pod, how ...call) error {
	t.Helper()
	if b.main != nil && p.previous == nil {
		p.previous = b.callMain(t, "ADD", p)
	}
	return b.addUntil(t.Context(), p, how...)
}

// addUntil calls our ADD and kills it when ctx is over.
func (b *bed) addUntil(ctx context.Context, p *pod, how ...call) error {
	out, err := b.call(ctx, "ADD", p, how...)
	if err != nil {
		return err
	}
	p.attached = true
	p.addrs, err = storm.Addresses(out.Stdout)
	return err
}

func (b *bed) add(t testing.TB, p *pod, how ...call) {
	t.Helper()
	require.NoError(t, b.tryAdd(t, p, how...), "ADD of pod %s", p.name)
}

func (b *bed) tryDel(t testing.TB, p *pod, how ...call) error {
	t.Helper()
	if _, err := b.call(t.Context(), "DEL", p, how...); err != nil {
		return err
	}
	p.attached = false
	if p.previous != nil {
		b.callMain(t, "DEL", p)
		p.previous = nil
	}
	return nil
}

func (b *bed) del(t testing.TB, p *pod, how ...call) {
	t.Helper()
	require.NoError(t, b.tryDel(t, p, how...), "DEL of pod %s", p.name)
}

// requireTraffic pings from the host to the pod and back.
func (b *bed) requireTraffic(t testing.TB, p *pod) {
	t.Helper()
	for _, addr := range p.addrs {
		ping(t, b.Host, addr, "host to pod "+p.name)
	}
	ping(t, p, shimAddr, "pod "+p.name+" to host")
}

func ping(t testing.TB, from ns.NetNS, to netip.Addr, leg string) {
	t.Helper()
	var result probe.PingResult
	require.NoError(t, from.Do(func(ns.NetNS) (err error) {
		result, err = probe.Ping(t.Context(), probe.PingOptions{Target: to, Count: 2, Interval: time.Millisecond, Wait: 3 * time.Second})
		return err
	}))
	require.Zero(t, result.Loss(), "%s (%s): %+v", leg, to, result)
}

// requireRefused wants the one CNI error object on stdout and a non-zero exit.
func requireRefused(t testing.TB, err error, code cnierr.Code, words ...string) {
	t.Helper()
	require.Error(t, err)
	var said *types.Error
	require.ErrorAs(t, err, &said, "no CNI error: %v", err)
	text := said.Msg + "\n" + said.Details
	if code != 0 {
		assert.Equal(t, code, cnierr.Code(said.Code), text)
	}
	for _, w := range words {
		require.Contains(t, text, w)
	}
}

// requireKilled says that the call ended by SIGKILL and not by itself.
func requireKilled(t testing.TB, err error) {
	t.Helper()
	var ended *exec.ExitError
	require.ErrorAs(t, err, &ended, "%v", err)
	require.ErrorContains(t, err, "signal: killed")
}

// holders are the container ids that may have something.
func (b *bed) holders() []string {
	list := slices.Clone(b.strangers)
	for _, p := range b.pods {
		if p.attached || p.previous != nil {
			list = append(list, p.container())
		}
	}
	return list
}

// requireClean says that nothing is left of a pod that isn't attached, and no
// temporary file or lock of anything. allowed are the beginnings of names of other
// files and devices that may be there.
func (b *bed) requireClean(t testing.TB, allowed ...string) {
	t.Helper()
	b.requireNothing(t)
	may := func(name string) bool {
		return slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(name, a) })
	}
	for _, dir := range []string{b.Dir, b.Run} {
		files, err := testnode.Files(dir)
		require.NoError(t, err)
		for _, name := range files {
			require.True(t, lasting.MatchString(name) || may(name), "%s is left in %s", name, dir)
		}
	}
	for _, name := range b.links(t) {
		require.True(t, !strings.HasPrefix(name, "lhsdel") || may(name), "%s is left", name)
	}
}

// lasting are the files that a node has at rest.
var lasting = regexp.MustCompile(`^(` + strings.Join([]string{
	`lock`, `node\.json`, `(state/)?place/[^./][^/]*\.json`, `parents/[^./][^/]*\.json`, `attachments/c-[^@]*@lhnet1\.json`,
	`host-local/[^/]*/(lock|last_reserved_ip\.\d|[0-9a-f.:]+)`,
	`state/ipam/(lock|boot-[^/]*/(swept|claims/.*|drafts/.*))`,
}, "|") + `)$`)

// requireNothing says that nothing is left of a pod that isn't attached: no
// interface, record, claim or lock.
func (b *bed) requireNothing(t testing.TB) {
	t.Helper()
	for _, p := range b.pods {
		if !p.attached && p.previous == nil {
			links, err := testnode.Links(p)
			require.NoError(t, err)
			require.Empty(t, links, "devices in pod %s", p.name)
		}
		requireFree(t, int(p.Fd()), "the lock of pod "+p.name)
	}
	for _, dir := range []string{b.Dir, b.Run} {
		files, err := testnode.Files(dir)
		require.NoError(t, err)
		for _, name := range files {
			b.requireHeld(t, filepath.Join(dir, name))
		}
	}
}

// requireHeld says that a record or claim belongs to a pod that is attached, and
// that nobody has the file locked.
func (b *bed) requireHeld(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	requireFree(t, int(f.Fd()), "the lock of "+path)
	base := filepath.Base(path)
	if base == "lock" || base == "node.json" || strings.HasPrefix(base, "last_reserved_ip") {
		return
	}
	data, err := io.ReadAll(f)
	require.NoError(t, err)
	if !strings.Contains(path, "attachments/") && !strings.Contains(path, "host-local/") && !strings.Contains(path, "/ipam/") ||
		bytes.Contains(data, []byte(`"declined"`)) {
		return // no claim on behalf of a pod: a quarantine is meant to last
	}
	if base == "swept" {
		return
	}
	held := slices.ContainsFunc(b.holders(), func(id string) bool { return containsWord(data, id) })
	require.True(t, held, "%s is left: %s", path, data)
}

// containsWord keeps c-a and c-ab apart.
func containsWord(data []byte, word string) bool {
	return regexp.MustCompile(regexp.QuoteMeta(word) + `($|[^\w-])`).Match(data)
}

func requireFree(t testing.TB, fd int, what string) {
	t.Helper()
	require.NoError(t, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), "%s is held", what)
	require.NoError(t, unix.Flock(fd, unix.LOCK_UN))
}

func (b *bed) links(t testing.TB) []string {
	t.Helper()
	links, err := testnode.Links(b.Host)
	require.NoError(t, err)
	return links
}

// podName makes a call be for a pod of another name.
func podName(name string) call {
	return func(c *cniexec.Call) {
		c.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name
	}
}

// tryGC tells the plugin that all pods but p are still there.
func (b *bed) tryGC(t testing.TB, p *pod, how ...call) error {
	t.Helper()
	valid := []map[string]string{}
	for _, other := range b.pods {
		if other != p && other.attached {
			valid = append(valid, map[string]string{"containerID": other.container(), "ifname": ifName})
		}
	}
	list := parse(string(b.conf.json()))
	list["cni.dev/valid-attachments"] = valid
	_, err := b.call(t.Context(), "GC", nil, append([]call{with(list)}, how...)...)
	if err == nil {
		p.attached = false
	}
	return err
}
