package cluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// guide is a section of docs/migrate.md, whose commands a test runs one after the other.
type guide struct {
	bed
	heading string
	steps   []step
}

// step is a block of commands, named behind its language: ```sh install
type step struct{ name, script string }

var blocks = regexp.MustCompile("(?ms)^```sh (\\w+)\n(.*?)^```$")

// guide finds a section; all its steps have to be taken in order: see [guide.done].
func (b bed) guide(t *testing.T, heading string) *guide {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "docs/migrate.md"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## "+heading+"\n")
	require.True(t, found, "docs/migrate.md has no section %q", heading)
	section, _, _ = strings.Cut(section, "\n## ")
	g := &guide{bed: b, heading: heading}
	for _, match := range blocks.FindAllStringSubmatch(section, -1) {
		g.steps = append(g.steps, step{match[1], match[2]})
	}
	require.Len(t, g.steps, strings.Count(section, "\n```sh"), "a block without a name")
	return g
}

// take runs the next step, which has to be this one.
func (g *guide) take(t *testing.T, name string) {
	t.Helper()
	require.NotEmpty(t, g.steps, "%s: there is no step %s", g.heading, name)
	next := g.steps[0]
	require.Equal(t, name, next.name, g.heading)
	g.steps = g.steps[1:]
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	helm, err := tools.Module(ctx, "helm")
	require.NoError(t, err)
	chart, err := g.HelmChart(ctx)
	require.NoError(t, err)
	// Where deploy/chart/lhstorage is what HelmChart made.
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "deploy/chart"), 0o755))
	require.NoError(t, os.Symlink(chart, filepath.Join(dir, "deploy/chart/lhstorage")))
	require.NoError(t, g.Within(func() error {
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", next.script)
		cmd.Dir = dir
		cmd.Env = []string{
			"PATH=" + strings.Join([]string{filepath.Dir(g.Program("kubectl")), helm, "/usr/bin", "/bin"}, ":"),
			"HOME=" + g.Dir, "KUBECONFIG=" + g.AdminKubeconfig(), "IMAGE=" + ImageLhstorage, "TAG=v1",
		}
		out, err := cmd.CombinedOutput()
		assert.NoError(t, err, "%s, %s: %s", g.heading, name, out)
		return err
	}))
}

// done fails if a step was left out.
func (g *guide) done(t *testing.T) {
	t.Helper()
	assert.Empty(t, g.steps, "%s: nobody walks these", g.heading)
}

// installed takes what comes before each guide.
func (b bed) installed(t *testing.T) {
	t.Helper()
	g := b.guide(t, "Before")
	g.take(t, "install")
	g.done(t)
}

// settingCRD and setting are what of Longhorn the guides touch; what Longhorn does then the tests do.
const (
	settingCRD = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "settings.longhorn.io"},
 "spec": {"group": "longhorn.io", "scope": "Namespaced", "names": {"kind": "Setting", "plural": "settings", "singular": "setting"},
  "versions": [{"name": "v1beta2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"value": {"type": "string"}}}}}]}}`
	setting = `{"apiVersion": "longhorn.io/v1beta2", "kind": "Setting", "metadata": {"name": "storage-network", "namespace": "longhorn-system"}, "value": "longhorn-system/storage-old"}`
)

func newGuideBed(t *testing.T, o Options) bed {
	t.Helper()
	o.Nodes, o.Untouched, o.Primary = 2, true, Moved
	b := newBed(t, o)
	require.NoError(t, b.ImportLhstorage(t.Context(), "v1"))
	for _, object := range []string{settingCRD, setting} {
		require.NoError(t, b.Apply(t.Context(), nil, []byte(object)))
	}
	return b
}

// switched is what Longhorn does when its setting has changed: instance managers are made anew, with the network that the setting names. Here one by one,
// beside the old ones, so that each kind has to reach the other.
func (b bed) switched(t *testing.T, old []Running) (now []Running) {
	t.Helper()
	value, err := b.Kubectl(t.Context(), "--namespace", namespace, "get", "settings.longhorn.io", "storage-network", "--output=jsonpath={.value}")
	require.NoError(t, err)
	require.Equal(t, example.Namespace+"/"+example.Name, value)
	for _, p := range old {
		name := "new-" + p.Node.Name
		require.NoError(t, b.Create(t.Context(), namespace, InstanceManager(p.Node.Name, name, example)))
		now = append(now, b.running(t, name)...)
		b.wantLegs(t, append(now[:len(now):len(now)], old...), "")
	}
	require.NoError(t, b.Apply(t.Context(), nil, []byte(setting)))
	return now
}

// retire ends the old pods, and the guide.
func (b bed) retire(t *testing.T, g *guide, old, now []Running) {
	t.Helper()
	for _, p := range old {
		_, err := b.Kubectl(t.Context(), "--namespace", namespace, "delete", "pod", p.Name)
		require.NoError(t, err)
	}
	g.take(t, "clean")
	g.done(t)
	b.wantLegs(t, now, "")
	for _, p := range now {
		b.wantAttached(t, p.Storage)
	}
	b.remove(t)
	b.wantNoneHeld(t)
}

// shimScript is what the source design's DaemonSet does on a node beyond what [Options.Script] has done: the shim, with the address of the parent.
const shimScript = `addr=$(ip -o -4 addr show dev vxlan-storage | awk '{print $4}')
ip link add lhnet1-host link vxlan-storage type macvlan mode bridge
ip addr del $addr dev vxlan-storage
ip addr add $addr dev lhnet1-host
ip link set lhnet1-host up`

const scriptSet = `{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "storage-network", "namespace": "kube-system"},
 "spec": {"selector": {"matchLabels": {"app": "storage-network"}}, "template": {"metadata": {"labels": {"app": "storage-network"}},
  "spec": {"hostNetwork": true, "containers": [{"name": "main", "image": "` + ImageBusybox + `", "imagePullPolicy": "Never"}]}}}}`

// storageDevices are what adoption may not change: devices, MACs, MTUs, addresses, flood entries, routes. Learning is what may.
func (b bed) storageDevices(t *testing.T) (all []string) {
	t.Helper()
	for _, n := range b.on() {
		out, err := n.Run(t.Context(), "/bin/sh", "-c", `for d in vxlan-storage lhnet1-host; do
  ip -o link show $d | sed 's/.*: \([^:]*\): .* mtu \([0-9]*\) .*ether \([^ ]*\).*/\1 \2 \3/'; ip -o -4 addr show $d | awk '{print $4}'
done; ip -d -o link show vxlan-storage | grep -o 'vxlan id [0-9]* .*local [^ ]*\|dstport [0-9]*'; bridge fdb show dev vxlan-storage | grep ^00:00:00:00:00:00 | sort
ip -4 route show | grep ^10.100.10 | awk '{print $1, $2, $3, $4, $5}' | sort`)
		require.NoError(t, err)
		all = append(all, string(out))
	}
	return all
}

func TestMigrateFromTheSourceDesign(t *testing.T) {
	b := newGuideBed(t, Options{Script: true})
	for _, n := range b.on() {
		_, err := n.Run(t.Context(), "/bin/sh", "-euc", shimScript)
		require.NoError(t, err)
	}
	require.NoError(t, b.Apply(t.Context(), nil, []byte(scriptSet)))
	old := controlplane.Network{Namespace: namespace, Name: "storage-old", Interface: StorageInterface}
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, old.Name, strings.ReplaceAll(stockNAD, `"stock"`, `"storage-old"`)))
	pods := b.managers(t, old)
	b.wantLegs(t, pods, "")
	before := b.storageDevices(t)

	stops := []func() (int, int){b.talk(t, b.Nodes[0], pods[1].Storage), b.talk(t, b.Nodes[0], pods[0].Storage), talkIn(t, pods[0].In, pods[1].Storage)}
	b.installed(t)
	g := b.guide(t, "The hand-written DaemonSet of the source design")
	g.take(t, "network")
	g.take(t, "wait")
	assert.Equal(t, before, b.storageDevices(t), "adopted in place")
	g.take(t, "daemonset")
	g.take(t, "switch")
	now := b.switched(t, pods)
	wantNoneLost(t, stops...)
	b.retire(t, g, pods, now)
}

// wantNoneLost ends talks.
func wantNoneLost(t *testing.T, stops ...func() (sent, lost int)) {
	t.Helper()
	total := 0
	for _, stop := range stops {
		sent, lost := stop()
		assert.Zero(t, lost, "of %d packets to an old pod", sent)
		total += sent
	}
	assert.Positive(t, total)
	t.Logf("%d packets to old pods", total)
}

const (
	lanNAD = `{"cniVersion": "1.0.0", "name": "storage-old", "type": "macvlan", "master": "eth1", "mode": "bridge",
  "ipam": {"type": "whereabouts", "range": "10.100.2.0/24", "exclude": ["10.100.2.0/28"]}}`
	// As Harvester's controller writes it, without a VLAN.
	bridgeNAD = `{"cniVersion": "0.3.1", "name": "storagenetwork-old", "type": "bridge", "bridge": "storage-br", "promiscMode": true,
  "ipam": {"type": "whereabouts", "range": "10.100.3.0/24", "exclude": ["10.100.3.1/32"]}}`
)

func TestMigrateOnALAN(t *testing.T) {
	b := newGuideBed(t, Options{Topology: lab.TopologyLAN})
	for _, way := range []struct {
		heading, old, conf string
		prepare            func(*testing.T, bed)
	}{
		{"Stock macvlan with Whereabouts", "storage-old", lanNAD, func(t *testing.T, b bed) { b.installed(t) }},
		{"Harvester's bridge", "storagenetwork-old", bridgeNAD, makeBridges},
	} {
		if !t.Run(way.heading, func(t *testing.T) { b.move(t, way.heading, way.old, way.conf, way.prepare) }) {
			return // they share nodes
		}
	}
}

// move walks a guide from a network that is there already.
func (b bed) move(t *testing.T, heading, old, conf string, prepare func(*testing.T, bed)) {
	t.Helper()
	prepare(t, b)
	require.NoError(t, b.CreateNetwork(t.Context(), namespace, old, conf))
	pods := b.managers(t, controlplane.Network{Namespace: namespace, Name: old, Interface: StorageInterface})
	require.Error(t, b.Nodes[0].Attach(t.Context(), pods[0].Storage), "the test shows nothing: the host reaches its own pod without lhstorage")
	stop := talkIn(t, pods[0].In, pods[1].Storage)
	g := b.guide(t, heading)
	g.take(t, "network")
	g.take(t, "wait")
	b.wantLegs(t, pods, "") // hosts reach the old pods, too
	g.take(t, "switch")
	now := b.switched(t, pods)
	wantNoneLost(t, stop)
	b.retire(t, g, pods, now)
}

// makeBridges puts each node's NIC into a bridge, as Harvester's network controller does. The guide before used the NIC itself.
func makeBridges(t *testing.T, b bed) {
	_, err := b.Kubectl(t.Context(), "--namespace", namespace, "delete", "network-attachment-definition", example.Name)
	require.NoError(t, err)
	for _, n := range b.on() {
		b.until(t, n.Name+" has its bridge", func(ctx context.Context) error { // the agent may have to hear first that the shim is nobody's any more
			_, err := n.Run(ctx, "/bin/sh", "-euc", "ip link del lhnet1-host 2>/dev/null || true; ip link show storage-br >/dev/null 2>&1 || ip link add storage-br type bridge; ip link set storage-br up; ip link set eth1 master storage-br")
			return err
		})
	}
}
