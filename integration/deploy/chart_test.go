package deploy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

var update = flag.Bool("update", false, "write the golden files anew")

func newChart(t *testing.T) *Chart {
	t.Helper()
	c, err := NewChart(t.Context())
	require.NoError(t, err)
	return c
}

func TestGeneratedFilesAreFresh(t *testing.T) {
	c := newChart(t)
	files, err := c.Generated(t.Context())
	require.NoError(t, err)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(c.root, name))
		require.NoError(t, err, "run make generate")
		assert.Equal(t, string(want), string(got), "%s: run make generate", name)
	}
	copies, err := filepath.Glob(filepath.Join(c.Dir(), "files/*/*"))
	require.NoError(t, err)
	for _, path := range copies {
		name, err := filepath.Rel(c.root, path)
		require.NoError(t, err)
		assert.Contains(t, files, name, "its source is gone: remove it")
	}
}

func TestLint(t *testing.T) {
	c := newChart(t)
	_, err := c.Run(t.Context(), "lint", "--strict", c.Dir(), "--kube-version", kubeVersion)
	require.NoError(t, err)
}

// examples are the folders of deploy/examples.
func examples(t *testing.T, c *Chart) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(c.root, "deploy/examples/*/values.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, list)
	for i := range list {
		list[i] = filepath.Dir(list[i])
	}
	return list
}

// The pod on each kind of site. What else is rendered is in deploy/kustomize/base.
func TestGolden(t *testing.T) {
	c := newChart(t)
	for _, dir := range examples(t, c) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			got, err := c.Template(t.Context(), "--values", filepath.Join(dir, "values.yaml"), "--show-only", "templates/daemonset.yaml")
			require.NoError(t, err)
			golden := filepath.Join("testdata", filepath.Base(dir)+".yaml")
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "go test ./integration/deploy -run Golden -update")
			require.Equal(t, string(want), string(got), "go test ./integration/deploy -run Golden -update")
		})
	}
}

// Every example's network is one that the plugin takes.
func TestExampleNetworks(t *testing.T) {
	c := newChart(t)
	for _, dir := range examples(t, c) {
		data, err := os.ReadFile(filepath.Join(dir, "nad.yaml"))
		require.NoError(t, err)
		var nad struct {
			Spec struct{ Config string }
		}
		require.NoError(t, yaml.Unmarshal(data, &nad))
		_, err = netconf.Parse(netconf.Add, []byte(nad.Spec.Config), "")
		assert.NoError(t, err, dir)
	}
}

// Values that mean nothing are refused before anything is installed.
func TestSchema(t *testing.T) {
	c := newChart(t)
	for _, set := range []string{"distribution=k4s", "distributoin=k3s", "cniBinDir=opt/cni", "confDir=/etc/lhstorage/", "apiServer=10.0.0.1", "record=both", "agent.repair=all", "agent.metricsPort=0", "agent.firewal=true", "agent.firewallAllow={2049}", "agent.probeInterval=1", "monitoring.rules=yes", "image.repository="} {
		_, err := c.Template(t.Context(), "--set", set)
		assert.Error(t, err, set)
		key, _, _ := strings.Cut(set, "=")
		assert.ErrorContains(t, err, key[strings.LastIndex(key, ".")+1:])
	}
	_, err := c.Run(t.Context(), "template", "lhstorage", c.Dir(), "--kube-version", "1.30.9")
	require.ErrorContains(t, err, "1.31")
}

// Alerts and dashboard are there for who asks for them, as they are in deploy, with the labels by which they are found.
func TestMonitoring(t *testing.T) {
	c := newChart(t)
	got, err := c.Template(t.Context())
	require.NoError(t, err)
	for _, kind := range []string{"PrometheusRule", "PodMonitor", "lhstorage-dashboard"} {
		assert.NotContains(t, string(got), kind, "by default")
	}
	got, err = c.Template(t.Context(), "--show-only", "templates/monitoring.yaml", "--set", "monitoring.rules=true,monitoring.ruleLabels.release=kube-prometheus,monitoring.dashboard=true,monitoring.podMonitor=true,monitoring.podMonitorLabels.release=kube-prometheus")
	require.NoError(t, err)
	type object struct {
		Kind     string
		Metadata struct{ Labels map[string]string }
		Spec     any
		Data     map[string]string
	}
	objects := map[string]object{}
	for document := range strings.SplitSeq(string(got), "\n---\n") {
		var o object
		require.NoError(t, yaml.Unmarshal([]byte(document), &o))
		objects[o.Kind] = o
	}
	require.Len(t, objects, 3)
	rules, dashboard, monitor := objects["PrometheusRule"], objects["ConfigMap"], objects["PodMonitor"]
	var source object
	text, err := os.ReadFile(filepath.Join(c.root, "deploy/alerts/lhstorage.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &source))
	require.NotEmpty(t, source.Spec)
	assert.Equal(t, source.Spec, rules.Spec)
	assert.Equal(t, "kube-prometheus", rules.Metadata.Labels["release"])
	board, err := os.ReadFile(filepath.Join(c.root, "deploy/dashboard/lhstorage.json"))
	require.NoError(t, err)
	assert.JSONEq(t, string(board), dashboard.Data["lhstorage.json"])
	assert.Equal(t, "1", dashboard.Metadata.Labels["grafana_dashboard"])
	assert.Equal(t, "kube-prometheus", monitor.Metadata.Labels["release"])
	finds(t, c, monitor.Spec)
}

// finds holds a PodMonitor's spec against the DaemonSet that it is for.
func finds(t *testing.T, c *Chart, spec any) {
	t.Helper()
	text, err := c.Template(t.Context(), "--show-only", "templates/daemonset.yaml")
	require.NoError(t, err)
	var agents appsv1.DaemonSet
	require.NoError(t, yaml.Unmarshal(text, &agents))
	var monitor struct {
		Selector            metav1.LabelSelector
		PodMetricsEndpoints []struct{ Port string }
	}
	data, err := yaml.Marshal(spec)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, &monitor))
	selector, err := metav1.LabelSelectorAsSelector(&monitor.Selector)
	require.NoError(t, err)
	assert.False(t, selector.Empty())
	assert.True(t, selector.Matches(labels.Set(agents.Spec.Template.Labels)))
	require.Len(t, monitor.PodMetricsEndpoints, 1)
	var ports []string
	for _, p := range agents.Spec.Template.Spec.Containers[0].Ports {
		ports = append(ports, p.Name)
	}
	assert.Contains(t, ports, monitor.PodMetricsEndpoints[0].Port)
}
