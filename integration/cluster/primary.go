package cluster

import (
	"fmt"
)

// Primary is how pods get their eth0. It decides which address Longhorn's initiator
// dials: the one whose interface has the lower index.
type Primary string

// The two kinds.
const (
	Bridge Primary = "bridge" // stock: made inside the pod, with a low index
	Moved  Primary = "moved"  // made on the node and moved in, with a high one, as Cilium does
)

const primaryFile = confDir + "/10-cluster.conf"

// UsePrimary lets the pods that start from now on have an eth0 of this kind.
func (c *Cluster) UsePrimary(kind Primary) error {
	if kind == "" {
		kind = Bridge
	}
	for _, n := range c.Nodes {
		// No list of plugins: of one in a file Multus 4.2.3 gives DEL no more than what
		// every plugin knows, so host-local finds no ranges there and keeps the address.
		config := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "cluster", "type": %q, "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}`, kind, podNetwork(n.Lab.Index))
		if err := n.WriteFile(primaryFile, []byte(config)); err != nil {
			return fmt.Errorf("give %s the pods' network: %w", n.Name, err)
		}
	}
	return nil
}
