package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	fewAgents  = 20
	manyAgents = 200
	leaseEvery = 15 * time.Second
	watches    = 5               // kinds of objects
	watchTime  = 5 * time.Minute // the API server ends a watch between this and twice this

	// What one agent asks of the API server when it starts, and when it stops: what it watches, its Lease, its place, a token for the plugins, its report.
	restartBound = 40
)

// TestFleet counts what many agents ask of one API server, at rest and while all of them are restarted, one in twenty at a time. The bounds are
// on requests for each agent, which depend neither on the machine nor on how many there are.
func TestFleet(t *testing.T) {
	t.Parallel() // it waits most of the time
	size, probeEvery := fewAgents, probeEvery
	if os.Getenv(fullScale) != "" {
		size, probeEvery = manyAgents, time.Minute // a round asks with broadcasts, of which each goes to all nodes
	}
	b := newBedOn(t, lab.Options{Nodes: 1, Topology: lab.TopologyLAN}, largeNAD)
	b.crowd(t, size)
	before := b.requests(t)
	time.Sleep(10 * time.Second)
	idle := b.requests(t).since(before, requests{}) // what the API server asks of itself
	f := b.newFleet(t, size, "--probe-interval="+probeEvery.String())
	f.restart(t)
	time.Sleep(2 * probeEvery) // each has probed twice, and reported

	before = b.requests(t)
	time.Sleep(4 * probeEvery)
	rest := b.requests(t).since(before, idle)
	t.Logf("%d agents at rest: %s", size, rest)
	intervals := func(every time.Duration) float64 { return float64(size) * (rest.in.Seconds()/every.Seconds() + 1) }
	assert.LessOrEqual(t, rest.of("leases"), intervals(leaseEvery), "who doesn't lead reads the Lease, and one renews it")
	assert.LessOrEqual(t, rest.of("addressclaims"), intervals(probeEvery), "one list in a round of probes")
	assert.LessOrEqual(t, rest.of("probereports"), intervals(rest.in), "reports stay as they are")
	assert.LessOrEqual(t, rest.by("WATCH"), watches*intervals(watchTime), "a watch ends by itself and is begun again")
	others := rest.total() - rest.of("leases") - rest.of("addressclaims") - rest.of("probereports") - rest.by("WATCH")
	assert.LessOrEqual(t, others, 0.5*float64(size), "what is watched isn't asked for")

	before = b.requests(t)
	f.restart(t)
	restart := b.requests(t).since(before, idle)
	t.Logf("%d agents restarted, %d at once: %s", size, max(1, size/20), restart)
	assert.LessOrEqual(t, restart.total()/float64(size)-rest.total()/float64(size)*restart.in.Seconds()/rest.in.Seconds(), float64(restartBound))
}

// requests are those that an API server has answered in a time, by verb and resource.
type requests struct {
	count map[string]float64
	at    time.Time
	in    time.Duration
}

var label = regexp.MustCompile(`(\w+)="([^"]*)"`)

// requests reads apiserver_request_total. A watch counts when it ends.
func (b *bed) requests(t *testing.T) requests {
	t.Helper()
	text, err := b.Kube.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	require.NoError(t, err)
	r := requests{count: map[string]float64{}, at: time.Now()}
	for line := range strings.Lines(string(text)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		series, ok := strings.CutPrefix(series, "apiserver_request_total{")
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(series, -1) {
			labels[l[1]] = l[2]
		}
		if !ok || labels["resource"] == "" { // /metrics and /readyz are ours
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		r.count[strings.TrimSuffix(labels["verb"]+" "+labels["resource"]+"/"+labels["subresource"], "/")] += n
	}
	return r
}

// since is what was asked after before, without what is asked anyway.
func (r requests) since(before, anyway requests) requests {
	out := requests{count: map[string]float64{}, in: r.at.Sub(before.at)}
	for what, count := range r.count {
		n := count - before.count[what]
		if anyway.in > 0 {
			n -= anyway.count[what] * out.in.Seconds() / anyway.in.Seconds()
		}
		if n > 0.5 {
			out.count[what] = n
		}
	}
	return out
}

func (r requests) total() float64 { return r.sum(func(_, _ string) bool { return true }) }

// of are the requests for a resource.
func (r requests) of(resource string) float64 {
	return r.sum(func(_, of string) bool { return of == resource })
}

// by are the requests with a verb.
func (r requests) by(verb string) float64 {
	return r.sum(func(by, _ string) bool { return by == verb })
}

func (r requests) sum(counts func(verb, resource string) bool) (sum float64) {
	for what, count := range r.count {
		if verb, resource, _ := strings.Cut(what, " "); counts(verb, resource) {
			sum += count
		}
	}
	return sum
}

func (r requests) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f requests in %s, %.1f/s", r.total(), r.in.Round(time.Second), r.total()/r.in.Seconds())
	for _, what := range slices.SortedFunc(maps.Keys(r.count), func(x, y string) int { return cmp.Compare(r.count[y], r.count[x]) }) {
		fmt.Fprintf(&b, "\n  %6.0f %s", r.count[what], what)
	}
	return b.String()
}

// fleet are agents that have a network namespace each, on the switch of the cluster's nodes, and nothing else of a node.
type fleet struct {
	program string
	flags   []string
	members []*member
}

type member struct {
	name, dir string
	netns     ns.NetNS
	process   *controlplane.Process
}

// newFleet makes the nodes of a crowd. They reach the API server, and each other not: the kernel's neighbour table is one for all namespaces, and
// too small for all pairs of two hundred.
func (b *bed) newFleet(t *testing.T, count int, flags ...string) *fleet {
	t.Helper()
	f := &fleet{program: filepath.Join(tools.Ours(t), "lhstorage-agent"), flags: flags}
	account, err := b.ServiceAccountKubeconfig(t.Context(), "lhstorage-system", "lhstorage-agent", "")
	require.NoError(t, err)
	for i := range count {
		m := &member{name: fmt.Sprintf("crowd-%04d", i), dir: t.TempDir()}
		f.members = append(f.members, m)
		netns := fmt.Sprintf("%s.f%d", b.Name, i) // removed with the cluster
		script := fmt.Sprintf(`set -e
			ip netns add %[1]s
			ip -n %[1]s link add eth0 type veth peer name f%[2]d netns %[3]s.cp
			ip -n %[3]s.cp link set f%[2]d master br0 up
			ip -n %[1]s link set lo up
			ip -n %[1]s link set eth0 up
			ip -n %[1]s addr add 10.100.220.%[4]d/24 dev eth0
			ip -n %[1]s addr add %[5]s/32 dev eth0
			ip -n %[1]s route add unreachable 10.100.192.0/20`, netns, i, b.Name, i+20, vtepOf(i+100))
		output, err := exec.CommandContext(t.Context(), "bash", "-c", script).CombinedOutput()
		require.NoError(t, err, string(output))
		m.netns, err = ns.GetNS("/run/netns/" + netns)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, m.netns.Close()) })
		file, err := json.Marshal(nodefile.File{
			NodeName: m.name, Kubeconfig: filepath.Join(m.dir, "kubeconfig"), StateDir: filepath.Join(m.dir, "state"), RunDir: filepath.Join(m.dir, "run"),
		})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, "node.json"), file, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, "agent.kubeconfig"), account, 0o600))
	}
	t.Cleanup(func() {
		for _, m := range f.members {
			if m.process != nil {
				assert.NoError(t, m.process.Kill())
			}
		}
	})
	return f
}

// restart starts all agents anew, one in twenty at a time, each of which must be ready before the next ones.
func (f *fleet) restart(t *testing.T) {
	t.Helper()
	for wave := range slices.Chunk(f.members, max(1, len(f.members)/20)) {
		var group errgroup.Group
		for _, m := range wave {
			group.Go(func() error { return m.restart(f) })
		}
		require.NoError(t, group.Wait())
		for _, m := range wave {
			var code int
			var body string
			require.Eventually(t, func() bool {
				code, body = getIn(m.netns, "http://127.0.0.1:9811/readyz")
				return code == http.StatusOK
			}, settle, 50*time.Millisecond, "%s isn't ready: %s", m.name, body)
		}
	}
}

func (m *member) restart(f *fleet) error {
	if m.process != nil {
		if err := m.process.Stop(); err != nil {
			return err
		}
	}
	var err error
	m.process, err = controlplane.Launch(m.name, filepath.Join(m.dir, "log"), m.netns.Set, append([]string{
		f.program, "--node-file=" + filepath.Join(m.dir, "node.json"), "--kubeconfig=" + filepath.Join(m.dir, "agent.kubeconfig"),
		"--metrics-address=127.0.0.1:9810", "--health-address=127.0.0.1:9811",
	}, f.flags...), []string{"PATH=" + os.Getenv("PATH")})
	return err
}
