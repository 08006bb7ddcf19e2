package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// execute runs the program's code as main does, with input on stdin.
func execute(t *testing.T, input string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(bytes.NewBufferString(input))
	root.SetOut(&out)
	root.SetErr(&errs)
	err := root.ExecuteContext(t.Context())
	return out.String(), errs.String() + message(err), exitCode(err)
}

// netconfOf is what a node makes of a manifest.
func netconfOf(t *testing.T, manifest string) (nad.Definition, *netconf.Plan) {
	t.Helper()
	var d nad.Definition
	require.NoError(t, yaml.Unmarshal([]byte(manifest), &d), manifest)
	p, err := netconf.Parse(netconf.Add, []byte(d.Spec.Config), "")
	require.NoError(t, err, manifest)
	return d, p
}

func TestPlan(t *testing.T) {
	stdout, _, code := execute(t, "", "plan", "--nodes", "5", "--disks-per-node", "2", "--images", "10")
	assert.Zero(t, code)
	assert.Contains(t, stdout, "together 45: 40 for pods, 5 for nodes")
	assert.Contains(t, stdout, "their example's sum: 30")

	stdout, _, code = execute(t, "", "plan", "-o", "json", "--rwx", "--rwx-volumes", "4")
	assert.Zero(t, code)
	var out planOutput
	require.NoError(t, json.Unmarshal([]byte(stdout), &out))
	assert.Equal(t, 6+6+10+3+4, out.Need.Pods)
	require.NotNil(t, out.NAD)

	stdout, _, code = execute(t, "", "plan", "--nad", "--parent", "vlan", "--device", "bond0", "--vlan", "100", "--range", "192.168.0.0/24", "--exclude", "192.168.0.1", "-n", "storage", "--mtu", "9000")
	assert.Zero(t, code)
	d, p := netconfOf(t, stdout)
	assert.Equal(t, "storage", d.Metadata.Namespace)
	assert.Equal(t, "bond0.100", p.Parent.Name)
	assert.Equal(t, 9000, p.Parent.MTU)
	assert.Equal(t, "192.168.0.8/29", p.HostShim.Ranges[0].String(), "clear of the gateway")
	assert.Len(t, p.IPAM.Excluded, 1)

	stdout, _, code = execute(t, "", "plan", "--nad", "--parent", "device", "--device", "eth1", "--name", "flat")
	assert.Zero(t, code)
	_, p = netconfOf(t, stdout)
	assert.Equal(t, netconf.ParentDevice, p.Parent.Type)
	assert.Equal(t, "flat", p.Name)
}

func TestPlanFindsWhatIsWrong(t *testing.T) {
	stdout, stderr, code := execute(t, "", "plan", "--nad", "--range", "10.43.1.0/28", "--harvester", "--avoid", "10.43.1.8")
	assert.Equal(t, exitFailed, code)
	assert.Empty(t, stdout, "no definition")
	for _, want := range []string{"too small", "Harvester reserves", "overlaps the network 10.43.1.8/32"} {
		assert.Contains(t, stderr, want)
	}
	for _, args := range [][]string{{"--range", "x"}, {"--vtep-cidr", "10.0.0.1"}, {"--parent", "bond"}, {"--parent", "vlan"}, {"--nodes", "0"}, {"--v1=false"}, {"--exclude", "10.0.0.1"}, {"-o", "xml"}, {"more"}, {"--parent", "vlan", "--device", "bond0"}} {
		_, stderr, code := execute(t, "", append([]string{"plan"}, args...)...)
		assert.Equal(t, exitUsage, code, args)
		assert.NotEmpty(t, stderr)
	}
	_, stderr, _ = execute(t, "", "plan", "--range", "x", "--exclude", "y", "--parent", "z")
	for _, want := range []string{`--range "x"`, `--exclude "y"`, `--parent "z"`} {
		assert.Contains(t, stderr, want)
	}
	stdout, _, code = execute(t, "", "plan", "--range", "10.100.100.0/24")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stdout, "overlaps the VTEP range 10.100.100.0/24")
}

func TestPlanFromCluster(t *testing.T) {
	lists := map[string]string{
		"/apis/longhorn.io/v1beta2/namespaces/longhorn-system/nodes":    `{"spec": {"disks": {"a": {}, "b": {}}}}, {"spec": {"disks": {"a": {}}}}`,
		"/apis/longhorn.io/v1beta2/namespaces/longhorn-system/settings": `{"metadata": {"name": "v2-data-engine"}, "value": "true"}`,
		"/apis/longhorn.io/v1beta2/namespaces/longhorn-system/volumes":  "",
		"/api/v1/nodes": `{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.100.1.0/24"]}}`,
		"/apis/networking.k8s.io/v1/servicecidrs": `{"spec": {"cidrs": ["10.96.0.0/16"]}}`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list, ok := lists[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprintf(w, `{"metadata": {}, "items": [%s]}`, list)
	}))
	t.Cleanup(s.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{clusters: [{name: c, cluster: {server: "`+s.URL+`"}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}`), 0o600))
	stdout, stderr, code := execute(t, "", "plan", "--from-cluster", "--kubeconfig", kubeconfig, "-o", "json")
	require.Zero(t, code, stderr)
	var out planOutput
	require.NoError(t, json.Unmarshal([]byte(stdout), &out))
	assert.Equal(t, 4+4+6+10, out.Need.Pods)
	assert.Equal(t, "10.100.0.0/26", out.Choose.Range.String(), "10.100.1.0/24 is a node's for pods")

	stdout, _, code = execute(t, "", "plan", "--from-cluster", "--kubeconfig", kubeconfig, "-o", "json", "--nodes", "4", "--v2=false", "--images", "0", "--range", "10.100.1.0/24")
	assert.Equal(t, exitFailed, code)
	require.NoError(t, json.Unmarshal([]byte(stdout), &out))
	assert.Equal(t, 8+6, out.Need.Pods, "what is given wins")
	assert.Contains(t, out.Findings[0].Text, "pod range 10.100.1.0/24 of node n1")

	_, stderr, code = execute(t, "", "plan", "--from-cluster", "--kubeconfig", kubeconfig, "-n", "elsewhere")
	assert.Equal(t, exitBroken, code)
	assert.Contains(t, stderr, "no nodes.longhorn.io in namespace elsewhere")
}
