package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// Networks on a flat LAN, one straight on the nodes' NIC, one over VXLAN whose VTEPs are the NICs' own addresses.
const (
	flatNAD = `{"cniVersion": "1.1.0", "name": "flat", "type": "lhstorage", "parent": {"type": "device", "name": "eth1"},
  "hostShim": {"name": "lhflat-host", "range": "10.100.2.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.2.0/24"}}`
	overlayNAD = `{"cniVersion": "1.1.0", "name": "overlay", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.200.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`
)

func TestOnALAN(t *testing.T) {
	b := newBed(t, Options{Nodes: 2, Topology: lab.TopologyLAN, Primary: Moved})
	require.NoError(t, b.InstallLhstorage(t.Context()))
	for name, conf := range map[string]string{"flat": flatNAD, "overlay": overlayNAD} {
		require.NoError(t, b.CreateNetwork(t.Context(), namespace, name, conf))
		network := controlplane.Network{Namespace: namespace, Name: name, Interface: StorageInterface}
		b.managers(t, network)
		// The first node heard of the second with that one's first pod; without the agent it asks when its answer is a minute old.
		for _, n := range b.on() {
			require.NoError(t, n.Do(age))
			require.NoError(t, b.Create(t.Context(), namespace, Pod(n.Name, "hears-"+n.Name, network)))
			b.running(t, "hears-"+n.Name)
		}
		pods := b.running(t, "instance-manager-node1", "instance-manager-node2")
		b.wantLegs(t, pods, "")
		for i, addr := range dialled(t, pods) {
			require.Equal(t, pods[i].Storage, addr)
			b.wantAttached(t, addr)
		}
		b.remove(t)
		b.wantNoneHeld(t)
	}
}
