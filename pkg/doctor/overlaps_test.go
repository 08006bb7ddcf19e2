package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// A network's range and its VTEPs' are compared with all that the cluster has, each alone.
func TestOverlaps(t *testing.T) {
	services := func(list ...string) func(*world) {
		return func(w *world) { w.cluster.Services = list }
	}
	for name, c := range map[string]struct {
		alter func(*world)
		want  string // empty: no overlap
	}{
		"range, Services":              {services("10.100.1.128/25"), "range 10.100.1.0/24 overlaps the Services' network, 10.100.1.128/25"},
		"range, a Service's address":   {services("10.100.1.99"), "range 10.100.1.0/24 overlaps the Services' network, 10.100.1.99/32"},
		"range, pods":                  {func(w *world) { w.cluster.Nodes[1].Spec.PodCIDRs = []string{"10.100.1.64/26"} }, "range 10.100.1.0/24 overlaps the pod range of node node2, 10.100.1.64/26"},
		"VTEPs, Services":              {services("10.100.96.0/20"), "the VTEPs' range 10.100.100.0/24 overlaps the Services' network, 10.100.96.0/20"},
		"VTEPs, a Service's address":   {services("10.100.100.1"), "the VTEPs' range 10.100.100.0/24 overlaps the Services' network, 10.100.100.1/32"},
		"VTEPs, pods":                  {func(w *world) { w.cluster.Nodes[2].Spec.PodCIDRs = []string{"10.100.100.0/26"} }, "the VTEPs' range 10.100.100.0/24 overlaps the pod range of node node3, 10.100.100.0/26"},
		"VTEPs, a node's own address":  {func(w *world) { w.address("10.100.100.2") }, ""},
		"range, a node's own address":  {func(w *world) { w.address("10.100.1.200") }, "range 10.100.1.0/24 overlaps an address of node node2, 10.100.1.200/32"},
		"nothing that belongs to both": {services("10.100.2.0/24", "10.100.101.0/24"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := healthy(t)
			c.alter(w)
			var found []string
			for _, f := range Diagnose(w.snapshot()) {
				if f.Code == "LHS008" {
					found = append(found, f.What)
				}
			}
			if c.want == "" {
				assert.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			assert.Equal(t, c.want, found[0])
		})
	}
}

// address gives node2 another address.
func (w *world) address(text string) {
	w.cluster.Nodes[1].Status.Addresses = append(w.cluster.Nodes[1].Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: text})
}
