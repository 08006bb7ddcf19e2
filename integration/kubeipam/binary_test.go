package kubeipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

const (
	nodeFile   = "/etc/lhstorage/node.json"
	kubeconfig = "/etc/lhstorage/kubeconfig"
)

// machine is a node on which the plugin runs as a runtime would run it.
type machine struct {
	*controlplane.Node
	binary string
}

func (b *bed) machine(t *testing.T, name, record string) *machine {
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, b.ApplyFiles(t.Context(), []string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding"}, filepath.Join(root, "deploy/rbac/node.yaml")))
	n, err := b.Node(name)
	require.NoError(t, err)
	content, err := b.ServiceAccountKubeconfig(t.Context(), "kube-system", "lhstorage-node", "")
	require.NoError(t, err)
	require.NoError(t, n.WriteFile(kubeconfig, content))
	m := &machine{n, filepath.Join(tools.Ours(t), "lhstorage-ipam")}
	m.settings(t, kubeconfig, record)
	return m
}

// settings writes the node file.
func (m *machine) settings(t *testing.T, kubeconfig, record string) {
	require.NoError(t, m.WriteFile(nodeFile, fmt.Appendf(nil, `{"nodeName": %q, "kubeconfig": %q, "record": %q}`, m.Name, kubeconfig, record)))
}

// queued is how many releases wait on the node's disk.
func (m *machine) queued(t require.TestingT) int {
	files, err := m.Files("/var/lib/lhstorage/release-queue")
	require.NoError(t, err)
	return len(slices.DeleteFunc(files, func(path string) bool { return filepath.Ext(path) != ".json" }))
}

func conf(section string) string {
	return `{"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": {"type": "lhstorage-ipam", ` + section + `}}`
}

// call runs a verb for the pod ns/POD; it returns the addresses, what was said on stderr, and the refusal.
func (m *machine) call(t *testing.T, verb, container, pod, conf string) (addresses, said string, err error) {
	var out, stderr bytes.Buffer
	runErr := m.Do(func() error {
		cmd := exec.Command(m.binary)
		cmd.Env = append(cmd.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+container, "CNI_NETNS=/var/run/netns/none", "CNI_IFNAME=net1", "CNI_PATH=/opt/cni/bin",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME="+pod)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(conf), &out, &stderr
		return cmd.Run()
	})
	if runErr != nil {
		refusal := new(types.Error)
		require.NoError(t, json.Unmarshal(out.Bytes(), refusal), "%v: %s%s", runErr, out.String(), stderr.String())
		return "", stderr.String(), refusal
	}
	var result struct {
		IPs []struct{ Address string }
	}
	if out.Len() > 0 {
		require.NoError(t, json.Unmarshal(out.Bytes(), &result))
	}
	var list []string
	for _, ip := range result.IPs {
		list = append(list, ip.Address)
	}
	return strings.Join(list, " "), stderr.String(), nil
}

// The plugin's verbs, with the rights of the account that comes with it.
func verbs(t *testing.T, b *bed) {
	m := b.machine(t, "node1", "sync")
	c := conf(`"range": "10.0.0.0/24", "host_shim_range": "10.0.0.0/28"`)
	got, _, err := m.call(t, "ADD", "c1", "pod1", c)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.16/24", got)
	assert.Equal(t, "claim 10.0.0.16 c1 ns/pod1 net1\nentry 10.0.0.0-24 16 c1 ns/pod1 net1\nreservation 10.0.0.16 c1 ns/pod1 net1", b.objects(t))
	withPrev := strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.16/24"}]}`, 1)
	_, _, err = m.call(t, "CHECK", "c1", "pod1", withPrev)
	require.NoError(t, err)
	_, _, err = m.call(t, "STATUS", "", "", c)
	require.NoError(t, err)
	_, _, err = m.call(t, "DEL", "c0", "pod1", c)
	require.NoError(t, err)
	assert.Equal(t, 1, b.whole(t, false), "an older sandbox's DEL")
	_, _, err = m.call(t, "GC", "", "", strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}]`, 1))
	require.NoError(t, err)
	assert.Equal(t, 1, b.whole(t, false))
	_, _, err = m.call(t, "GC", "", "", strings.Replace(c, `"type": "macvlan"`, `"type": "macvlan", "cni.dev/valid-attachments": []`, 1))
	require.NoError(t, err)
	assert.Empty(t, b.objects(t))
	for range 2 {
		_, _, err = m.call(t, "DEL", "c1", "pod1", c)
		require.NoError(t, err)
	}

	// A network's own kubeconfig serves where the node file names none.
	require.NoError(t, m.WriteFile(nodeFile, []byte(`{"nodeName": "node1"}`)))
	c = conf(`"range": "10.0.0.0/24", "kubernetes": {"kubeconfig": "` + kubeconfig + `"}`)
	got, _, err = m.call(t, "ADD", "c1", "pod1", c)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1/24", got)
	assert.Equal(t, 1, b.whole(t, false))
	_, _, err = m.call(t, "DEL", "c1", "pod1", c)
	require.NoError(t, err)
	assert.Empty(t, b.objects(t))
}

// The release of a pod that ended while the API server was away is carried out later, and doesn't touch what
// the pod's next sandbox has.
func away(t *testing.T, b *bed) {
	m := b.machine(t, "node1", "sync")
	c := conf(`"range": "10.0.0.0/24", "timeout": "6s"`)
	for _, pod := range []string{"pod1", "pod2"} {
		_, _, err := m.call(t, "ADD", "old-"+pod, pod, c)
		require.NoError(t, err)
	}
	require.NoError(t, b.StopAPIServer())
	began := time.Now()
	_, _, err := m.call(t, "ADD", "new-pod3", "pod3", c)
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err), "%v", err)
	assert.ErrorContains(t, err, "is the API server up, and does "+kubeconfig+" name it rightly?")
	assert.Less(t, time.Since(began), 8*time.Second)
	for _, pod := range []string{"pod1", "pod2"} {
		_, said, err := m.call(t, "DEL", "old-"+pod, pod, c)
		require.NoError(t, err)
		assert.Contains(t, said, "can't be given up now and are queued on disk")
	}
	assert.Equal(t, 2, m.queued(t))
	require.NoError(t, b.StartAPIServer(t.Context()))
	got, _, err := m.call(t, "ADD", "new-pod1", "pod1", c)
	require.NoError(t, err)
	assert.NotEmpty(t, got)
	require.Equal(t, 1, b.whole(t, false), "%s", b.objects(t))
	assert.Contains(t, b.objects(t), "new-pod1 ns/pod1 net1")
	for range 2 {
		_, _, err = m.call(t, "DEL", "old-pod1", "pod1", c)
		require.NoError(t, err)
		assert.Equal(t, 1, b.whole(t, false))
	}
	_, _, err = m.call(t, "DEL", "new-pod1", "pod1", c)
	require.NoError(t, err)
	assert.Empty(t, b.objects(t))
	assert.Zero(t, m.queued(t))

	// Without credentials a pod can be deleted, too.
	require.NoError(t, m.WriteFile(nodeFile, []byte(`{"nodeName": "node1", "kubeconfig": "/etc/lhstorage/none"}`)))
	_, said, err := m.call(t, "DEL", "c9", "pod9", c)
	require.NoError(t, err)
	assert.Contains(t, said, "/etc/lhstorage/none")
	_, _, err = m.call(t, "ADD", "c9", "pod9", c)
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
}
