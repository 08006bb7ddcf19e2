package live

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

const lh = "/apis/longhorn.io/v1beta2/namespaces/longhorn-system/"

// cluster answers with lists of items by path; what isn't there isn't found, and what is "-" is forbidden.
func cluster(t *testing.T, items map[string]string) *kubeapi.Client {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list, ok := items[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		switch {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}`)
		case list == "-":
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "no right to it"}`)
		default:
			fmt.Fprintf(w, `{"metadata": {"resourceVersion": "1"}, "items": [%s]}`, list)
		}
	}))
	t.Cleanup(s.Close)
	c, err := kubeapi.New(&rest.Config{Host: s.URL})
	require.NoError(t, err)
	return c
}

func three() map[string]string {
	return map[string]string{
		lh + "nodes":    `{"spec": {"disks": {"a": {}, "b": {}}}}, {"spec": {"disks": {"a": {}}}}, {"spec": {}}`,
		lh + "settings": `{"metadata": {"name": "v2-data-engine"}, "value": "true"}`,
		lh + "volumes":  `{"spec": {"accessMode": "rwx"}}, {"spec": {"accessMode": "rwo"}}, {"spec": {"accessMode": "rwx"}}`,
		"/api/v1/nodes": `{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.11"}, {"type": "Hostname", "address": "10.9.9.9"}]}}`,
		"/apis/networking.k8s.io/v1/servicecidrs": `{"spec": {"cidrs": ["10.96.0.0/12"]}}`,
	}
}

func texts(networks []plan.Network) []string {
	var out []string
	for _, n := range networks {
		if n.Kind != plan.Harvester {
			out = append(out, n.String())
		}
	}
	return out
}

func TestRead(t *testing.T) {
	c, err := Read(t.Context(), cluster(t, three()), "longhorn-system")
	require.NoError(t, err)
	assert.Equal(t, plan.Demand{Nodes: 3, Disks: 3, V1: true, V2: true}, c.Demand)
	assert.Equal(t, []string{
		"the pod range 10.244.1.0/24 of node n1", "the pod range fd00:1::/64 of node n1", "the node address 192.168.7.11/32 of n1", "the service range 10.96.0.0/12",
	}, texts(c.Networks))
	assert.False(t, c.Harvester)
	assert.Empty(t, c.Notes)
	assert.True(t, c.Networks[len(c.Networks)-1].Advisory)
}

func TestReadOfOtherClusters(t *testing.T) {
	objects := three()
	delete(objects, "/apis/networking.k8s.io/v1/servicecidrs")
	objects["/api/v1/services"] = `{"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": {"clusterIPs": ["10.43.0.1"]}}, {"spec": {"clusterIPs": ["None"]}}`
	objects["/apis/cilium.io/v2/ciliumnodes"] = `{"metadata": {"name": "n1"}, "spec": {"ipam": {"podCIDRs": ["10.0.1.0/24"]}}}`
	objects["/apis/crd.projectcalico.org/v1/ippools"] = `{"metadata": {"name": "default"}, "spec": {"cidr": "192.168.0.0/18"}}, {"spec": {"cidr": "rubbish"}}`
	objects["/apis/lhstorage.io/v1alpha1/hostshims"] = `{"spec": {"node": "n1", "parent": "vxlan-storage", "vtep": "10.100.100.1"}}, {"spec": {"node": "n2", "parent": "bond0.100"}}`
	objects["/apis/harvesterhci.io/v1beta1/settings"] = `{}`
	objects[lh+"settings"] = `{"metadata": {"name": "v1-data-engine"}, "value": "false"}, {"metadata": {"name": "v2-data-engine"}, "value": "true"},
		{"metadata": {"name": "storage-network"}, "value": "a/b"}, {"metadata": {"name": "endpoint-network-for-rwx-volume"}, "value": "a/b"}`
	c, err := Read(t.Context(), cluster(t, objects), "longhorn-system")
	require.NoError(t, err)
	assert.Equal(t, plan.Demand{Nodes: 3, Disks: 3, V2: true, RWX: true, Shares: 2}, c.Demand)
	assert.Subset(t, texts(c.Networks), []string{
		"the service range 10.43.0.1/32 of service default/kubernetes", "the pod range 10.0.1.0/24 of Cilium on node n1",
		"the pod range 192.168.0.0/18 of Calico's pool default", "the VTEP range 10.100.100.1/32 of n1 on vxlan-storage",
	})
	assert.True(t, c.Harvester)
	assert.False(t, c.Networks[len(c.Networks)-1].Advisory)
	require.Len(t, c.Notes, 1)
	assert.Contains(t, c.Notes[0], "before 1.33")

	objects[lh+"settings"] = `{"metadata": {"name": "endpoint-network-for-rwx-volume"}, "value": "a/rwx"}`
	c, err = Read(t.Context(), cluster(t, objects), "longhorn-system")
	require.NoError(t, err)
	assert.False(t, c.Demand.RWX)
	assert.Zero(t, c.Demand.Shares)
	assert.Contains(t, c.Notes[0], "a/rwx")
	objects[lh+"settings"] = `{"metadata": {"name": "storage-network-for-rwx-volume-enabled"}, "value": "true"}`
	c, err = Read(t.Context(), cluster(t, objects), "longhorn-system")
	require.NoError(t, err)
	assert.True(t, c.Demand.RWX)
}

func TestAllThatCanNotBeReadIsNamed(t *testing.T) {
	objects := three()
	objects["/api/v1/nodes"], objects[lh+"volumes"] = "-", "-"
	_, err := Read(t.Context(), cluster(t, objects), "longhorn-system")
	require.ErrorContains(t, err, "read nodes")
	require.ErrorContains(t, err, "read volumes.longhorn.io")
	_, err = Read(t.Context(), cluster(t, three()), "elsewhere")
	require.ErrorContains(t, err, "no nodes.longhorn.io in namespace elsewhere")
}
