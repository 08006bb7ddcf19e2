package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/embedded"
)

// binary is built once per build tag; the tests run it as a runtime does.
var (
	plain  = sync.OnceValues(func() (string, error) { return build("plain") })
	faulty = sync.OnceValues(func() (string, error) { return build("faulty", "-tags", "faultpoints") })
	bin    string
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lhstorage-ipam")
	if err != nil {
		panic(err)
	}
	bin = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func build(name string, flags ...string) (string, error) {
	path := filepath.Join(bin, name)
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
}

// node is a machine with a store of its own.
type node struct {
	t      *testing.T
	dir    string
	binary string
}

func newNode(t *testing.T, binary func() (string, error)) *node {
	path, err := binary()
	require.NoError(t, err)
	n := &node{t, t.TempDir(), path}
	n.configure("")
	return n
}

func (n *node) configure(kubeconfig string) {
	content, err := json.Marshal(map[string]string{"nodeName": "node1", "stateDir": n.state(), "runDir": n.dir + "/run", "kubeconfig": kubeconfig})
	require.NoError(n.t, err)
	require.NoError(n.t, os.WriteFile(n.nodeFile(), content, 0o600))
}

func (n *node) nodeFile() string { return filepath.Join(n.dir, "node.json") }
func (n *node) state() string    { return filepath.Join(n.dir, "state") }

func (n *node) boot() string {
	id, err := embedded.BootID()
	require.NoError(n.t, err)
	return filepath.Join(n.state(), "ipam", "boot-"+id)
}

// files is what a directory of the store holds.
func (n *node) files(dir string) []string {
	entries, err := os.ReadDir(filepath.Join(n.boot(), dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(n.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// claims is the store's claims by address.
func (n *node) claims() map[string]ipam.Claim {
	claims := map[string]ipam.Claim{}
	for _, name := range n.files("claims") {
		data, err := os.ReadFile(filepath.Join(n.boot(), "claims", name))
		require.NoError(n.t, err)
		var c ipam.Claim
		require.NoError(n.t, json.Unmarshal(data, &c), "%s: %s", name, data)
		claims[c.Address.String()] = c
	}
	return claims
}

func (n *node) empty() {
	n.t.Helper()
	assert.Empty(n.t, n.files("claims"))
	assert.Empty(n.t, n.files("drafts"))
}

// pod is an attachment.
type pod struct {
	container, ref string
	args           string // more of CNI_ARGS
	env            []string
}

func (p pod) cniArgs() string {
	args := "IgnoreUnknown=1"
	if namespace, name, ok := strings.Cut(p.ref, "/"); ok {
		args += ";K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name
	}
	if p.args != "" {
		args += ";" + p.args
	}
	return args
}

func (n *node) command(verb string, p pod, conf string) *exec.Cmd {
	var argv []string
	if v, rest, ok := strings.Cut(verb, " "); ok && v == "decline" {
		argv, verb = append([]string{v}, strings.Fields(rest)...), "ADD"
	}
	cmd := exec.Command(n.binary, argv...)
	cmd.Env = append([]string{
		"LHSTORAGE_NODE_FILE=" + n.nodeFile(), "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.container,
		"CNI_NETNS=/var/run/netns/none", "CNI_IFNAME=net1", "CNI_PATH=/opt/cni/bin", "CNI_ARGS=" + p.cniArgs(),
	}, p.env...)
	cmd.Stdin = strings.NewReader(conf)
	return cmd
}

// call runs a verb and returns the addresses it printed; a refusal is a *types.Error, a killed
// process another error.
func (n *node) call(verb string, p pod, conf string) ([]netip.Prefix, error) {
	var out, stderr bytes.Buffer
	cmd := n.command(verb, p, conf)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		refusal := new(types.Error)
		if json.Unmarshal(out.Bytes(), refusal) == nil && refusal.Code != 0 {
			return nil, refusal
		}
		return nil, fmt.Errorf("%w: %s%s", err, out.String(), stderr.String())
	}
	return addresses(out.Bytes())
}

func addresses(out []byte) ([]netip.Prefix, error) {
	if len(out) == 0 {
		return nil, nil
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, ip := range result.IPs {
		list = append(list, ip.Address)
	}
	return list, nil
}

func conf(section string) string {
	return `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": {"type": "lhstorage-ipam", ` + section + `}}`
}

func code(err error) cnierr.Code { return cnierr.CodeOf(err) }

func TestVerbs(t *testing.T) {
	n := newNode(t, plain)
	p := pod{container: "c1", ref: "ns/pod1"}
	c := conf(`"range": "10.0.0.0/24", "host_shim_range": "10.0.0.0/28", "gateway": "10.0.0.1"`)
	got, err := n.call("ADD", p, c)
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.16/24]", fmt.Sprint(got))

	withPrev := func(ip string) string {
		return strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "`+ip+`"}]}`, 1)
	}
	_, err = n.call("CHECK", p, withPrev("10.0.0.16/24"))
	require.NoError(t, err)
	_, err = n.call("CHECK", p, withPrev("10.0.0.17/24"))
	assert.Equal(t, cnierr.InvalidConfig, code(err))
	_, err = n.call("CHECK", p, c)
	require.ErrorContains(t, err, "prevResult is missing")
	_, err = n.call("STATUS", pod{}, c)
	require.NoError(t, err)

	_, err = n.call("GC", pod{}, c)
	require.NoError(t, err)
	assert.Len(t, n.claims(), 1, "GC without a list gives nothing up")
	gc := strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "cni.dev/valid-attachments": []`, 1)
	_, err = n.call("GC", pod{}, strings.Replace(gc, `"name": "net"`, `"name": "another"`, 1))
	require.NoError(t, err)
	assert.Len(t, n.claims(), 1, "GC of another network gives nothing up")
	_, err = n.call("GC", pod{}, gc)
	require.NoError(t, err)
	n.empty()
	for range 2 {
		_, err = n.call("DEL", p, c)
		require.NoError(t, err)
	}
}

// Each CNI version gets its own form of the result.
func TestVersions(t *testing.T) {
	n := newNode(t, plain)
	for version, want := range map[string]string{
		"0.1.0": `{"cniVersion": "0.1.0", "ip4": {"ip": "10.0.0.1/24", "gateway": "10.0.0.254"}, "dns": {}}`,
		"0.2.0": `{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/24", "gateway": "10.0.0.254"}, "dns": {}}`,
		"0.3.1": `{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.1/24", "gateway": "10.0.0.254"}], "dns": {}}`,
		"0.4.0": `{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/24", "gateway": "10.0.0.254"}], "dns": {}}`,
		"1.0.0": `{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24", "gateway": "10.0.0.254"}]}`,
		"1.1.0": `{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/24", "gateway": "10.0.0.254"}]}`,
	} {
		out, err := n.command("ADD", pod{container: "c1"}, strings.Replace(conf(`"range": "10.0.0.0/24", "gateway": "10.0.0.254"`), "1.1.0", version, 1)).Output()
		require.NoError(t, err, version)
		assert.JSONEq(t, want, string(out))
	}
	out, err := n.command("VERSION", pod{}, "").Output()
	require.NoError(t, err)
	assert.JSONEq(t, `{"cniVersion": "1.1.0", "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}`, string(out))
}

func TestAddressesByHand(t *testing.T) {
	n := newNode(t, plain)
	got, err := n.call("ADD", pod{container: "c1", args: "IP=10.0.0.9/24"}, conf(`"range": "10.0.0.0/24", "addresses": [{"address": "10.0.0.8/24"}]`))
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.1/24 10.0.0.8/24 10.0.0.9/24]", fmt.Sprint(got))
	assert.Len(t, n.claims(), 1)
}

func TestRefusals(t *testing.T) {
	n := newNode(t, plain)
	p := pod{container: "c1"}
	for _, c := range []struct {
		verb, conf string
		code       cnierr.Code
		want       string
	}{
		{"ADD", conf(`"range": "ten", "gateway": "x"`), cnierr.InvalidConfig, `ipam.range "ten"`},
		{"STATUS", conf(`"range": "ten", "gateway": "x"`), cnierr.InvalidConfig, `ipam.gateway "x"`},
		{"ADD", conf(`"range": "10.0.0.0/24", "kubernetes": {"kubeconfig": "/k"}`), cnierr.InvalidConfig, `read the kubeconfig /k`},
		{"GC", conf(`"range": "10.0.0.0/24", "kubernetes": {"kubeconfig": "/k"}`), cnierr.InvalidConfig, `read the kubeconfig /k`},
		{"ADD", conf(`"range": "10.0.0.0/24", "node_slice_size": "/26"`), cnierr.InvalidConfig, "this node has no cluster"},
		{"decline x", conf(`"range": "10.0.0.0/24"`), cnierr.InvalidEnvironment, "usage"},
		{"decline x y", conf(`"range": "10.0.0.0/24"`), cnierr.InvalidEnvironment, `ADDRESS "x"`},
		{"decline 10.0.0.1 02:00:00:00:00:09", conf(`"range": "10.0.0.0/24"`), cnierr.InvalidConfig, "no range of network \"net\" has it claimed"},
		{"decline 10.0.0.1 02:00:00:00:00:09", `[`, cnierr.Decode, "isn't a JSON object"},
	} {
		_, err := n.call(c.verb, p, c.conf)
		assert.Equal(t, c.code, code(err), "%s %s: %v", c.verb, c.conf, err)
		require.ErrorContains(t, err, c.want)
	}
	own := p
	own.env = []string{"CNI_NETNS=/proc/self/ns/net"}
	_, err := n.call("ADD", own, conf(`"range": "10.0.0.0/24"`))
	assert.Equal(t, cnierr.HostNetns, code(err))
	n.empty()

	// A pod must be removable whatever has become of its configuration.
	_, err = n.call("ADD", p, conf(`"range": "10.0.0.0/24"`))
	require.NoError(t, err)
	_, err = n.call("DEL", p, conf(`"range": "ten"`))
	require.NoError(t, err)
	n.empty()

	// Where a cluster is meant the node's disk is no way out, and a pod that ends isn't kept.
	n.configure("/etc/kubeconfig")
	_, err = n.call("STATUS", p, conf(`"range": "10.0.0.0/24"`))
	assert.Equal(t, cnierr.NotAvailable, code(err))
	require.ErrorContains(t, err, "read the kubeconfig /etc/kubeconfig")
	for range 2 {
		_, err = n.call("DEL", p, conf(`"range": "10.0.0.0/24"`))
		require.NoError(t, err)
	}
	queued, err := os.ReadDir(filepath.Join(n.state(), "release-queue"))
	require.NoError(t, err)
	assert.Len(t, queued, 1)
	n.empty()
	require.NoError(t, os.Remove(n.nodeFile()))
	_, err = n.call("ADD", p, conf(`"range": "10.0.0.0/24"`))
	assert.ErrorContains(t, err, n.nodeFile())
}

func TestFlatFile(t *testing.T) {
	n := newNode(t, plain)
	flat := filepath.Join(n.dir, "whereabouts.conf")
	c := conf(`"configuration_path": "` + flat + `"`)
	_, err := n.call("ADD", pod{container: "c1"}, c)
	require.ErrorContains(t, err, "ipam.range: is missing", "the missing file itself is no fault")
	require.NoError(t, os.WriteFile(flat, []byte(`{"range": "10.7.0.0/24"}`), 0o600))
	got, err := n.call("ADD", pod{container: "c1"}, c)
	require.NoError(t, err)
	assert.Equal(t, "[10.7.0.1/24]", fmt.Sprint(got))
	require.NoError(t, os.Remove(flat))
	require.NoError(t, os.Mkdir(flat, 0o700))
	_, err = n.call("ADD", pod{container: "c1"}, c)
	assert.Equal(t, cnierr.IO, code(err))
}

func TestFullPool(t *testing.T) {
	n := newNode(t, plain)
	c := conf(`"range": "10.0.0.0/30"`)
	for i := range 2 {
		_, err := n.call("ADD", pod{container: fmt.Sprint("c", i)}, c)
		require.NoError(t, err)
	}
	for _, verb := range []string{"ADD", "STATUS"} {
		_, err := n.call(verb, pod{container: "c9"}, c)
		assert.Equal(t, map[string]cnierr.Code{"ADD": cnierr.Exhausted, "STATUS": cnierr.NotAvailable}[verb], code(err))
		require.ErrorContains(t, err, "error at storage engine: Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.2 / range: 10.0.0.0/30 / excludeRanges: []")
		require.ErrorContains(t, err, "Pool 10.0.0.0-30 of network \"net\": 2 of 2 addresses are held or in quarantine")
		require.ErrorContains(t, err, "the claims are the files in "+n.boot())
	}
	_, err := n.call("DEL", pod{container: "c0"}, c)
	require.NoError(t, err)
	got, err := n.call("ADD", pod{container: "c9"}, c)
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.1/30]", fmt.Sprint(got))
}

func TestDeclineVerb(t *testing.T) {
	n := newNode(t, plain)
	c, p := conf(`"range": "10.0.0.0/24"`), pod{container: "c1", ref: "ns/pod1"}
	_, err := n.call("ADD", p, c)
	require.NoError(t, err)
	_, err = n.call("decline 10.0.0.1 02:00:00:00:00:09", p, c)
	require.NoError(t, err)
	got, err := n.call("ADD", p, c)
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.2/24]", fmt.Sprint(got))
	held := n.claims()["10.0.0.1"]
	require.NotNil(t, held.Declined)
	assert.Equal(t, "02:00:00:00:00:09", held.Declined.MAC)
	assert.WithinDuration(t, time.Now().Add(10*time.Minute), held.Declined.Until, time.Minute)
}

// A reboot ends all sandboxes, so it frees their addresses.
func TestReboot(t *testing.T) {
	n := newNode(t, plain)
	c := conf(`"range": "10.0.0.0/30"`)
	before, err := embedded.Open(filepath.Join(n.state(), "ipam"), "an-earlier-boot")
	require.NoError(t, err)
	pool, _, err := ipam.NewPool("", false, netip.MustParsePrefix("10.0.0.0/30"), netip.Addr{}, netip.Addr{})
	require.NoError(t, err)
	for _, a := range []string{"10.0.0.1", "10.0.0.2"} {
		require.NoError(t, before.Create(t.Context(), pool, pool.NewClaim(netip.MustParseAddr(a), ipam.Owner{ContainerID: a, IfName: "net1"})))
	}
	got, err := n.call("ADD", pod{container: "c1"}, c)
	require.NoError(t, err)
	assert.Equal(t, "[10.0.0.1/30]", fmt.Sprint(got))
	assert.Len(t, n.claims(), 1)
}

func TestLockHeldByAnother(t *testing.T) {
	n := newNode(t, faulty)
	c := conf(`"range": "10.0.0.0/24", "timeout": "1s"`)
	_, err := n.call("ADD", pod{container: "c1"}, c)
	require.NoError(t, err)
	slow := n.command("DEL", pod{container: "c1", env: []string{"LHSTORAGE_FAULT=ipam.del.unlinked=sleep:1m"}}, c)
	require.NoError(t, slow.Start())
	require.Eventually(t, func() bool { return len(n.files("claims")) == 0 }, 10*time.Second, 5*time.Millisecond)
	_, err = n.call("DEL", pod{container: "c2"}, c)
	assert.Equal(t, cnierr.TryAgain, code(err), "%v", err)
	require.ErrorContains(t, err, "waited 1")
	require.ErrorContains(t, err, filepath.Join(n.state(), "ipam", "lock"))
	_, err = n.call("ADD", pod{container: "c3"}, c)
	require.NoError(t, err, "an ADD needs no lock")

	// The kernel gives the lock of a process that dies to the next.
	require.NoError(t, slow.Process.Kill())
	_ = slow.Wait()
	for _, container := range []string{"c1", "c3"} {
		_, err = n.call("DEL", pod{container: container}, c)
		require.NoError(t, err)
	}
	n.empty()
}

func TestManyAtOnce(t *testing.T) {
	const pods = 200
	n := newNode(t, plain)
	// Two pools of one CIDR share its addresses.
	confs := []string{conf(`"range": "10.0.0.0/24"`), conf(`"range": "10.0.0.0/16"`)}
	at := func(i int) (pod, string) {
		return pod{container: fmt.Sprint("c", i), ref: fmt.Sprint("ns/pod", i)}, confs[i%2]
	}
	got := make([][]netip.Prefix, pods)
	all := func(verb string) {
		began := time.Now()
		defer func() { t.Logf("%d at once: %s in %s", pods, verb, time.Since(began).Round(time.Millisecond)) }()
		var group sync.WaitGroup
		for i := range pods {
			group.Go(func() {
				p, c := at(i)
				var err error
				got[i], err = n.call(verb, p, c)
				assert.NoError(t, err)
			})
		}
		group.Wait()
	}
	all("ADD")
	seen, claims := map[netip.Addr]bool{}, n.claims()
	for i, list := range got {
		require.Len(t, list, 1, i)
		assert.False(t, seen[list[0].Addr()], "%s was given twice", list[0])
		seen[list[0].Addr()] = true
		p, _ := at(i)
		assert.Equal(t, p.container, claims[list[0].Addr().String()].ContainerID)
	}
	assert.Len(t, claims, pods)
	all("DEL")
	n.empty()
}

// Calls are killed at random instants, with all pods at once, and two sandboxes for each of them.
// Whatever the instant: each address that was acknowledged is held for whom it was given to until its DEL, and
// when all are deleted nothing is left.
func TestKilledAtAnyInstant(t *testing.T) {
	const workers, kills = 6, 200
	n := newNode(t, plain)
	c := conf(`"ipRanges": [{"range": "10.0.0.0/28"}, {"range": "10.0.0.0/28"}, {"range": "fd00::/64"}]`)
	var group sync.WaitGroup
	killed := make([]int, workers)
	for w := range workers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for round := 0; killed[w] < (kills+workers-1)/workers; round++ {
				p := pod{container: fmt.Sprintf("w%d-%d", w, round%2), ref: fmt.Sprint("ns/pod", w)}
				for _, verb := range []string{"ADD", "DEL"} {
					if n.killedCall(verb, p, c, time.Duration(random.IntN(6000))*time.Microsecond) {
						killed[w]++
					}
				}
				if round%3 != 0 {
					continue
				}
				got, err := n.call("ADD", p, c) // acknowledged
				if err != nil || len(got) != 3 || got[0] == got[1] {
					t.Errorf("ADD after kills: %v, %v", got, err)
					return
				}
				for _, a := range got {
					if holder := n.holder(a.Addr()); holder != p.container {
						t.Errorf("%s was given to %s and is held by %q", a.Addr(), p.container, holder)
					}
				}
			}
			for _, container := range []string{"0", "1"} {
				_, err := n.call("DEL", pod{container: fmt.Sprintf("w%d-%s", w, container), ref: fmt.Sprint("ns/pod", w)}, c)
				assert.NoError(t, err)
			}
		})
	}
	group.Wait()
	n.empty()
	total := 0
	for _, k := range killed {
		total += k
	}
	assert.GreaterOrEqual(t, total, kills)
}

// holder is the container that an address is claimed for.
func (n *node) holder(addr netip.Addr) string {
	data, err := os.ReadFile(filepath.Join(n.boot(), "claims", strings.ReplaceAll(addr.String(), ":", "-")))
	var c ipam.Claim
	if err != nil || json.Unmarshal(data, &c) != nil {
		return ""
	}
	return c.ContainerID
}

// killedCall kills a call after a while; it says whether it was still running.
func (n *node) killedCall(verb string, p pod, conf string, after time.Duration) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := n.command(verb, p, conf)
	cmd.Stdout = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		n.t.Error(err)
		return false
	}
	timer := time.AfterFunc(after, func() {
		if ctx.Err() == nil {
			_ = cmd.Process.Kill()
		}
	})
	defer timer.Stop()
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode() == -1
}

// Each fault point of each call fails or kills it once; then the next call mends it, and
// the DEL of all leaves nothing.
func TestEachFaultPoint(t *testing.T) {
	c := conf(`"ipRanges": [{"range": "10.0.0.0/28"}, {"range": "10.0.0.0/28"}]`)
	excluded := conf(`"ipRanges": [{"range": "10.0.0.0/28", "exclude": ["10.0.0.1"]}, {"range": "10.0.0.0/28"}]`)
	gc := strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "cni.dev/valid-attachments": []`, 1)
	older, newer := pod{container: "old", ref: "ns/pod"}, pod{container: "new", ref: "ns/pod"}
	scenarios := []struct {
		name   string
		before []string // "VERB container" in order, all of the same pod
		verb   string
		conf   string
		must   []string // points that the scenario must pass, so that none gets lost unseen
	}{
		{"first ADD", nil, "ADD", c, []string{"ipam.add.snapshot", "ipam.add.create", "ipam.add.drafted", "ipam.add.created", "ipam.add.result"}},
		{"ADD of a newer sandbox", []string{"ADD old"}, "ADD", c, []string{"ipam.add.reown", "ipam.add.reown.drafted", "ipam.add.reown.staged", "ipam.add.reown.renamed"}},
		{"ADD after an exclude", []string{"ADD old"}, "ADD", excluded, []string{"ipam.del.unlinked"}},
		{"DEL", []string{"ADD new"}, "DEL", c, []string{"ipam.del.release", "ipam.del.unlinked"}},
		{"decline", []string{"ADD new"}, "decline 10.0.0.1 02:00:00:00:00:09", c, []string{"ipam.decline", "ipam.decline.drafted", "ipam.decline.staged", "ipam.decline.renamed"}},
		{"GC", []string{"ADD new"}, "GC", gc, []string{"ipam.gc.collect"}},
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			prepare := func() *node {
				n := newNode(t, faulty)
				for _, step := range s.before {
					verb, container, _ := strings.Cut(step, " ")
					_, err := n.call(verb, pod{container: container, ref: "ns/pod"}, c)
					require.NoError(t, err)
				}
				return n
			}
			trace := filepath.Join(t.TempDir(), "trace")
			traced := newer
			traced.env = []string{"LHSTORAGE_FAULT_TRACE=" + trace}
			_, err := prepare().call(s.verb, traced, s.conf)
			require.NoError(t, err)
			data, err := os.ReadFile(trace)
			require.NoError(t, err)
			passed := strings.Fields(string(data))
			for _, point := range s.must {
				assert.Contains(t, passed, point)
			}
			count := map[string]int{}
			for _, point := range passed {
				count[point]++
				for _, action := range []string{"error", "kill"} {
					fault := fmt.Sprintf("%s#%d=%s", point, count[point], action)
					n := prepare()
					struck := newer
					struck.env = []string{"LHSTORAGE_FAULT=" + fault}
					_, err := n.call(s.verb, struck, s.conf)
					require.Error(t, err, fault)
					if action == "error" {
						require.ErrorContains(t, err, "injected fault at "+point)
					}
					if s.name == "first ADD" && action == "error" {
						n.empty() // rolled back
					}
					// The next call mends it …
					_, err = n.call(s.verb, newer, s.conf)
					require.NoError(t, err, fault)
					got, err := n.call("ADD", newer, s.conf)
					require.NoError(t, err, fault)
					require.Len(t, got, 2, fault)
					assert.NotEqual(t, got[0], got[1], fault)
					claims := n.claims()
					for _, a := range got {
						assert.Equal(t, "new", claims[a.Addr().String()].ContainerID, "%s: %v", fault, claims)
					}
					live := 0
					for _, claim := range claims {
						if claim.Declined == nil {
							live++
						}
					}
					assert.Equal(t, 2, live, "%s leaks: %v", fault, claims)
					// … and nothing stays.
					for _, p := range []pod{older, newer} {
						_, err = n.call("DEL", p, c)
						require.NoError(t, err, fault)
					}
					left := slices.DeleteFunc(n.files("drafts"), func(name string) bool { return strings.HasPrefix(name, "declined.") })
					assert.Empty(t, left, fault)
					for _, claim := range n.claims() {
						assert.NotNil(t, claim.Declined, "%s leaves %v", fault, claim)
					}
				}
			}
		})
	}
}
