package deploy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
	for _, kind := range []string{"PrometheusRule", "lhstorage-dashboard"} {
		assert.NotContains(t, string(got), kind, "by default")
	}
	got, err = c.Template(t.Context(), "--show-only", "templates/monitoring.yaml", "--set", "monitoring.rules=true,monitoring.ruleLabels.release=kube-prometheus,monitoring.dashboard=true")
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
	require.Len(t, objects, 2)
	rules, dashboard := objects["PrometheusRule"], objects["ConfigMap"]
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
}
