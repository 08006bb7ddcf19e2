package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
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
	fleetSize = 200
	wave      = 10 // agents that are restarted at once: 5 %

	// What one agent asks of the API server. At rest, in a minute: its Lease at four retries, the pods of four other nodes for the probes, and now
	// and then a report that has changed in substance. When it starts: what it watches, its Lease, its place, a token for the plugins, its report.
	restBound    = 12
	restartBound = 40
)

// TestFleet counts what two hundred agents ask of one API server, at rest and while all of them are restarted, a wave after the other. The
// bounds are on requests for each agent, which don't depend on the machine.
func TestFleet(t *testing.T) {
	b := newBedOn(t, lab.Options{Nodes: 1, Topology: lab.TopologyLAN}, largeNAD)
	b.crowd(t, fleetSize)
	idle := b.asked(t, 30*time.Second)
	f := b.newFleet(t, fleetSize)
	for first := 0; first < fleetSize; first += wave {
		f.restart(t, first, first+wave)
	}
	time.Sleep(90 * time.Second) // each has probed once, and reported

	at := time.Now()
	before := b.requests(t)
	time.Sleep(2 * time.Minute)
	rest := b.requests(t).since(before, idle, time.Since(at))
	t.Logf("%d agents at rest: %s", fleetSize, rest)
	assert.LessOrEqual(t, rest.perMinute(fleetSize), float64(restBound))
	assert.Zero(t, rest.count["LIST nodes"]+rest.count["LIST hostshims"]+rest.count["LIST pods"]+rest.count["LIST network-attachment-definitions"], "what is watched isn't listed")

	at = time.Now()
	before = b.requests(t)
	for first := 0; first < fleetSize; first += wave {
		f.restart(t, first, first+wave)
	}
	restart := b.requests(t).since(before, idle, time.Since(at))
	t.Logf("%d agents restarted, %d at once: %s", fleetSize, wave, restart)
	assert.LessOrEqual(t, restart.total()/fleetSize-rest.perMinute(fleetSize)*restart.in.Minutes(), float64(restartBound))
}

// asked are the API server's requests in a time, by whom ever.
func (b *bed) asked(t *testing.T, in time.Duration) requests {
	before := b.requests(t)
	time.Sleep(in)
	return b.requests(t).since(before, requests{in: in}, in)
}

// requests are those that an API server has answered, by verb and resource.
type requests struct {
	count map[string]float64
	in    time.Duration
}

var labels = regexp.MustCompile(`(\w+)="([^"]*)"`)

// requests reads apiserver_request_total. A watch counts when it ends.
func (b *bed) requests(t *testing.T) requests {
	t.Helper()
	text, err := b.Kube.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	require.NoError(t, err)
	r := requests{count: map[string]float64{}}
	for line := range strings.Lines(string(text)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		series, ok := strings.CutPrefix(series, "apiserver_request_total{")
		label := map[string]string{}
		for _, l := range labels.FindAllStringSubmatch(series, -1) {
			label[l[1]] = l[2]
		}
		if !ok || label["resource"] == "" { // /metrics and /readyz are ours
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		r.count[strings.TrimSuffix(label["verb"]+" "+label["resource"]+"/"+label["subresource"], "/")] += n
	}
	return r
}

// since is what was asked after before, without what would have been asked anyway in that time.
func (r requests) since(before, anyway requests, in time.Duration) requests {
	out := requests{map[string]float64{}, in}
	for what, count := range r.count {
		if n := count - before.count[what] - anyway.count[what]*in.Seconds()/anyway.in.Seconds(); n > 0.5 {
			out.count[what] = n
		}
	}
	return out
}

func (r requests) total() (sum float64) {
	for _, count := range r.count {
		sum += count
	}
	return sum
}

func (r requests) perMinute(agents int) float64 { return r.total() / r.in.Minutes() / float64(agents) }

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
	*bed

	program string
	members []*member
}

type member struct {
	name, dir string
	netns     ns.NetNS
	process   *controlplane.Process
}

// newFleet makes the nodes of a crowd. Their VTEPs are on the device that leads to the API server, so that they reach each other.
func (b *bed) newFleet(t *testing.T, count int) *fleet {
	t.Helper()
	f := &fleet{bed: b, program: filepath.Join(tools.Ours(t), "lhstorage-agent")}
	account, err := b.ServiceAccountKubeconfig(t.Context(), "lhstorage-system", "lhstorage-agent", "")
	require.NoError(t, err)
	for i := range count {
		m := &member{name: fmt.Sprintf("crowd-%04d", i), dir: t.TempDir()}
		f.members = append(f.members, m)
		netns := fmt.Sprintf("%s.f%d", b.Name, i) // removed with the cluster
		sh(t, b.Nodes[0], fmt.Sprintf(`
			ip netns add %[1]s
			ip -n %[1]s link add eth0 type veth peer name f%[2]d netns %[3]s.cp
			ip -n %[3]s.cp link set f%[2]d master br0 up
			ip -n %[1]s link set lo up
			ip -n %[1]s link set eth0 up
			ip -n %[1]s addr add 10.100.220.%[4]d/24 dev eth0
			ip -n %[1]s addr add %[5]s/20 dev eth0`, netns, i, b.Name, i+20, vtepOf(i+100)))
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
			assert.NoError(t, m.process.Kill())
		}
	})
	return f
}

// restart restarts some of the agents at once, and waits until they are ready.
func (f *fleet) restart(t *testing.T, from, to int) {
	t.Helper()
	var group errgroup.Group
	for _, m := range f.members[from:to] {
		group.Go(func() error {
			if m.process != nil {
				if err := m.process.Stop(); err != nil {
					return err
				}
			}
			var err error
			m.process, err = controlplane.Launch(m.name, filepath.Join(m.dir, "log"), m.netns.Set, []string{
				f.program, "--node-file=" + filepath.Join(m.dir, "node.json"), "--kubeconfig=" + filepath.Join(m.dir, "agent.kubeconfig"),
				"--metrics-address=127.0.0.1:9810", "--health-address=127.0.0.1:9811",
			}, []string{"PATH=" + os.Getenv("PATH")})
			return err
		})
	}
	require.NoError(t, group.Wait())
	for _, m := range f.members[from:to] {
		require.Eventually(t, func() bool {
			code, _ := getIn(m.netns, "http://127.0.0.1:9811/readyz")
			return code == 200
		}, 2*time.Minute, 50*time.Millisecond, "%s isn't ready", m.name)
	}
}
