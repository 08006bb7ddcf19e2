// Package alerts_test tests the alerts and the dashboard with Prometheus' own tool.
package alerts_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

type rule struct {
	Alert       string            `json:"alert,omitempty"`
	Record      string            `json:"record,omitempty"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type group struct {
	Name  string `json:"name"`
	Rules []rule `json:"rules"`
}

type rules struct {
	Groups []group `json:"groups"`
}

func alerts(t *testing.T) rules {
	t.Helper()
	text, err := os.ReadFile("lhstorage.yaml")
	require.NoError(t, err)
	var object struct {
		Spec rules `json:"spec"`
	}
	require.NoError(t, yaml.UnmarshalStrict(withoutHead(text), &object))
	require.NotEmpty(t, object.Spec.Groups)
	return object.Spec
}

// withoutHead keeps an object's spec.
func withoutHead(text []byte) []byte {
	_, spec, _ := strings.Cut(string(text), "\nspec:")
	return []byte("spec:" + spec)
}

// promtool runs it on files of a directory.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("CI") == "" {
		t.Skip("needs promtool: make deps")
	}
	require.NoError(t, err, "make deps installs promtool")
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func write(t *testing.T, dir, name string, content any) {
	t.Helper()
	text, err := yaml.Marshal(content)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
}

// Each alert fires when it must, after the time that it must, and not in a quiet
// cluster; testdata/tests.yaml has the series.
func TestAlerts(t *testing.T) {
	dir := t.TempDir()
	all := alerts(t)
	write(t, dir, "rules.yaml", all)
	promtool(t, dir, "check", "rules", "rules.yaml")

	tests, err := os.ReadFile("testdata/tests.yaml")
	require.NoError(t, err)
	for _, g := range all.Groups {
		for _, r := range g.Rules {
			assert.Contains(t, string(tests), "alertname: "+r.Alert+"}", "when it must not fire")
			assert.Regexp(t, "alertname: "+r.Alert+"\n +exp_alerts", string(tests), "when it must fire")
			assert.NotEmpty(t, r.Annotations["description"], r.Alert)
			delete(r.Annotations, "description") // the tests say what the summary becomes
		}
	}
	write(t, dir, "rules.yaml", all)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tests.yaml"), tests, 0o600))
	promtool(t, dir, "test", "rules", "tests.yaml")
}

type dashboard struct {
	Panels []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		GridPos struct{ X, Y, W, H int }
		Targets []struct {
			Expr string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

func panels(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("../dashboard/lhstorage.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d))
	require.NotEmpty(t, d.Panels)
	return d
}

// Every question that the dashboard asks is one that Prometheus understands.
func TestDashboard(t *testing.T) {
	var asked group
	asked.Name = "dashboard"
	ids := map[int]bool{}
	for _, p := range panels(t).Panels {
		assert.False(t, ids[p.ID], "panel id %d", p.ID)
		ids[p.ID] = true
		assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		assert.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$node", ".*").Replace(target.Expr)
			assert.NotContains(t, expr, "$", "a variable that is none")
			asked.Rules = append(asked.Rules, rule{Record: fmt.Sprintf("panel:%d:%d", p.ID, len(asked.Rules)), Expr: expr})
		}
	}
	dir := t.TempDir()
	write(t, dir, "rules.yaml", rules{Groups: []group{asked}})
	promtool(t, dir, "check", "rules", "rules.yaml")
}

var metric = regexp.MustCompile(`lhstorage_[a-z_]+`)

// What alerts and dashboard look at is documented, so a metric that is renamed
// doesn't leave an alert that never fires.
func TestMetricsAreDocumented(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	var documented []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		documented = append(documented, metric.FindAllString(string(text), -1)...)
	}
	var used []string
	for _, g := range alerts(t).Groups {
		for _, r := range g.Rules {
			used = append(used, metric.FindAllString(r.Expr, -1)...)
		}
	}
	for _, p := range panels(t).Panels {
		for _, target := range p.Targets {
			used = append(used, metric.FindAllString(target.Expr, -1)...)
		}
	}
	for _, name := range used {
		name = strings.TrimSuffix(name, "_bucket")
		assert.True(t, slices.Contains(documented, name), "%s is in no page of docs", name)
	}
}
