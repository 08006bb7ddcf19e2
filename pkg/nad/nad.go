// Package nad writes NetworkAttachmentDefinitions: networks of lhstorage's, checked by the same code that
// reads them on a node, in a form that people can read and compare.
package nad

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// Definition is a NetworkAttachmentDefinition, as far as it is written.
type Definition struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
}

// Metadata of a definition.
type Metadata struct {
	Name         string            `json:"name,omitempty"`
	GenerateName string            `json:"generateName,omitempty"`
	Namespace    string            `json:"namespace,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Spec of a definition.
type Spec struct {
	Config string `json:"config"` // JSON
}

// Of is the definition that holds a configuration.
func Of(namespace, name, config string) Definition {
	return Definition{
		APIVersion: "k8s.cni.cncf.io/v1", Kind: "NetworkAttachmentDefinition",
		Metadata: Metadata{Name: name, Namespace: namespace}, Spec: Spec{Config: config},
	}
}

// Config is a CNI configuration: what encoding/json makes of it, or the same written by hand.
type Config map[string]any

// Network is a network of lhstorage's in the words of people who plan one; what is
// zero is left out of the configuration.
type Network struct {
	Namespace, Name string
	Parent          Parent
	ShimName        string
	Hosts           netip.Prefix // the part of Range kept for nodes
	MTU             int          // of the pods' interfaces, bytes
	IPAM            string       // default lhstorage-ipam
	Range           netip.Prefix
	Exclude         []string
}

// Parent is what carries the network; which fields are used depends on Type.
type Parent struct {
	Type   netconf.ParentType
	Name   string
	MTU    int // bytes
	VNI    int
	Port   int
	VTEP   netip.Prefix
	Device string
	VLAN   int
}

// Config is the network's configuration.
func (n Network) Config() Config {
	p := n.Parent
	parent := Config{"type": string(p.Type)}
	parent.set("name", p.Name, "mtu", p.MTU, "vni", p.VNI, "port", p.Port, "device", p.Device, "vlan", p.VLAN)
	if p.VTEP.IsValid() {
		parent["vtep"] = Config{"cidr": p.VTEP.String()}
	}
	ipam := Config{"type": "lhstorage-ipam", "range": n.Range.String()}
	ipam.set("type", n.IPAM)
	if len(n.Exclude) > 0 {
		ipam["exclude"] = n.Exclude
	}
	c := Config{"cniVersion": "1.1.0", "name": n.Name, "type": netconf.DefaultType, "parent": parent, "ipam": ipam}
	c.set("mtu", n.MTU)
	if n.Hosts.IsValid() {
		shim := Config{"range": n.Hosts.String()}
		shim.set("name", n.ShimName)
		c["hostShim"] = shim
	}
	return c
}

// set sets keys to values that aren't zero.
func (c Config) set(pairs ...any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if value := pairs[i+1]; ok && value != "" && value != 0 {
			c[key] = value
		}
	}
}

// Definition is the network's, if a node would take it; the error holds every fault.
func (n Network) Definition() (Definition, error) {
	config := n.Config()
	if _, err := Check(config); err != nil {
		return Definition{}, err
	}
	return Of(n.Namespace, n.Name, config.String()), nil
}

// Check reads a configuration as a node does, a list of plugins too, of which one must be lhstorage. What it
// means is returned.
func Check(c Config) (*netconf.Plan, error) {
	list, chained := c["plugins"].([]any)
	if !chained {
		data, err := json.Marshal(c)
		if err != nil {
			return nil, err
		}
		return netconf.Parse(netconf.Add, data, "")
	}
	for i, entry := range list {
		plugin, ok := object(entry)
		if !ok || plugin["type"] != netconf.DefaultType {
			continue
		}
		// As a runtime gives it to the plugin.
		plugin["cniVersion"], plugin["name"] = c["cniVersion"], c["name"]
		if i > 0 {
			plugin["prevResult"] = map[string]any{
				"cniVersion": c["cniVersion"],
				"interfaces": []any{map[string]any{"name": "lhnet1", "sandbox": "/run/netns/pod"}},
			}
		}
		return Check(plugin)
	}
	return nil, errors.New("no plugin of the list is lhstorage")
}

// object is a copy of a JSON object.
func object(value any) (Config, bool) {
	var source map[string]any
	switch v := value.(type) {
	case Config:
		source = v
	case map[string]any:
		source = v
	default:
		return nil, false
	}
	c := Config{}
	for key, value := range source {
		c[key] = value
	}
	return c, true
}

// Parse reads a configuration.
func Parse(config string) (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return nil, fmt.Errorf("the configuration isn't a JSON object: %w", err)
	}
	if c == nil {
		return nil, errors.New("the configuration is empty")
	}
	return c, nil
}
