package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// cniVersion of the configurations that the lab writes.
const cniVersion = "1.1.0"

// writeNode writes a node's file and its CNI configuration.
func (l *Lab) writeNode(node Node) error {
	file := nodefile.File{NodeName: node.Name, Index: node.Index, StateDir: node.StateDir(), RunDir: node.RunDir()}
	for path, content := range map[string]any{
		node.NodeFile(): file,
		node.confFile(): l.confList(node),
	} {
		data, err := json.MarshalIndent(content, "", "  ")
		if err == nil {
			err = writeFile(path, append(data, '\n'))
		}
		if err != nil {
			return fmt.Errorf("node %s: write %s: %w", node.Name, filepath.Base(path), err)
		}
	}
	return nil
}

// confList is the network configuration list of a node. It differs between
// nodes in the pods' window, and in the way to the other nodes' VTEPs.
func (l *Lab) confList(node Node) map[string]any {
	conf := l.opts.netConf(node)
	if l.opts.Configure != nil {
		l.opts.Configure(node, conf)
	}
	return map[string]any{"cniVersion": cniVersion, "name": networkName, "plugins": []any{conf}}
}

func (o Options) netConf(node Node) map[string]any {
	conf := map[string]any{"type": o.Plugin, "mode": "bridge", "ipam": o.ipam(node)}
	if o.Plugin == PluginMacvlan {
		conf["master"] = node.Parent
		return conf
	}
	conf["parent"] = o.parent(node)
	conf["hostShim"] = map[string]any{"name": shimDevice, "range": o.hostRange().String()}
	return conf
}

func (o Options) parent(node Node) map[string]any {
	if o.Parent == ParentDevice {
		return map[string]any{"type": ParentDevice, "name": lanDevice}
	}
	vtep := map[string]any{"cidr": o.vtepCIDR().String(), "interface": "dummy0"}
	if o.Topology == TopologyMesh {
		vtep["routes"], vtep["via"] = "static", o.via(node)
	}
	var peers []string
	for _, n := range o.nodes() {
		peers = append(peers, n.VTEP.String())
	}
	return map[string]any{"type": ParentVXLAN, "name": vxlanDevice, "vni": vni, "port": vxlanPort, "vtep": vtep, "peers": peers}
}

// via names, for each peer's VTEP, the device that leads to it.
func (o Options) via(node Node) map[string]string {
	via := map[string]string{}
	for _, n := range o.nodes() {
		if n.Index != node.Index {
			via[n.VTEP.String()] = linkTo(n.Name)
		}
	}
	return via
}

// ipam gives each node its own window, since each has its own store.
func (o Options) ipam(node Node) map[string]any {
	first, last := node.Window.First.String(), node.Window.Last.String()
	switch o.IPAM {
	case IPAMHostLocal:
		return map[string]any{
			"type": IPAMHostLocal, "dataDir": filepath.Join(node.Dir, "host-local"),
			"ranges": []any{[]any{map[string]any{"subnet": o.Range.String(), "rangeStart": first, "rangeEnd": last}}},
		}
	case IPAMStatic:
		return map[string]any{"type": IPAMStatic} // each pod's address is put in by staticConf
	default:
		return map[string]any{"type": IPAMLhstorage, "range": o.Range.String(), "range_start": first, "range_end": last}
	}
}

// conf reads a node's configuration from its file, so that a user's changes to
// it count, and puts a pod's static address in if it has one.
func conf(node Node, static netip.Prefix) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(node.confFile())
	if err == nil && static.IsValid() {
		data, err = staticConf(data, static)
	}
	if err != nil {
		return nil, fmt.Errorf("network configuration of %s: %w", node.Name, err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("network configuration %s: %w", node.confFile(), err)
	}
	return list, nil
}

// staticConf names the pod's address in the first plugin's ipam section.
func staticConf(data []byte, address netip.Prefix) ([]byte, error) {
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("the list %q has no plugins", list.Name)
	}
	ipam, ok := list.Plugins[0]["ipam"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("plugin %v has no ipam section to put address %s in", list.Plugins[0]["type"], address)
	}
	ipam["addresses"] = []any{map[string]any{"address": address.String()}}
	return json.Marshal(list)
}
