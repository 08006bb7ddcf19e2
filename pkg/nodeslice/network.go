package nodeslice

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// Definition is a NetworkAttachmentDefinition.
type Definition struct {
	Namespace, Name, UID string
	Created              time.Time
	Config               string
}

// Ref names it as pods' annotations do.
func (d Definition) Ref() string { return d.Namespace + "/" + d.Name }

// Network is a network whose range is divided among nodes. Several definitions may be of one.
type Network struct {
	Name   string // of its NodeSlicePool: network_name, else the network's
	Size   string // of a slice, as it is written: a Whereabouts controller compares the text
	Range  netip.Prefix
	Bits   int
	Owners []Definition
	whole  ipam.Pool
}

// mostSlices bound one NodeSlicePool: each entry takes some 50 bytes, and etcd carries 1.5 MB.
const mostSlices = 1 << 14

// Fault says why a definition isn't gone by.
type Fault struct {
	Definition
	Err error
}

// Networks reads the definitions. Those without node slices, or with an IPAM that isn't Whereabouts' or ours, are left out.
// Of two that contradict each other the older counts: nodes have their slices by it.
func Networks(definitions []Definition) (networks []Network, faults []Fault) {
	sorted := slices.SortedFunc(slices.Values(definitions), func(a, b Definition) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Ref(), b.Ref()))
	})
	for _, d := range sorted {
		n, err := read(d)
		if err == nil && n != nil {
			networks, err = add(networks, *n)
		}
		if err != nil {
			faults = append(faults, Fault{d, err})
		}
	}
	return networks, faults
}

// add takes a network in, unless an older one contradicts it.
func add(networks []Network, n Network) ([]Network, error) {
	i := slices.IndexFunc(networks, func(old Network) bool { return old.Name == n.Name })
	if i < 0 {
		return append(networks, n), nil
	}
	old := &networks[i]
	if old.Range != n.Range || old.Bits != n.Bits {
		return networks, fmt.Errorf("NodeSlicePool %s is for %s in slices of /%d by %s, which is older, and for %s in slices of /%d by this one: say the same in both, or give one of the networks a network_name",
			n.Name, old.Range, old.Bits, old.Owners[0].Ref(), n.Range, n.Bits)
	}
	old.Owners = append(old.Owners, n.Owners...)
	return networks, nil
}

// section is what tells of a plugin's IPAM whether it has node slices.
type section struct {
	Type string          `json:"type"`
	Size json.RawMessage `json:"node_slice_size"`
}

// read makes a network of a definition; nil for one without node slices.
func read(d Definition) (*Network, error) {
	conf, size := sliced(d)
	if conf == nil {
		return nil, nil //nolint:nilnil // that is how it is said
	}
	cfg, err := ipam.Parse(ipam.Input{NetConf: conf, Cluster: true})
	if cfg.NodeSlice == 0 || len(cfg.Pools) == 0 {
		return nil, err
	}
	i := slices.IndexFunc(cfg.Pools, func(p ipam.Pool) bool { return p.Range.Addr().Is4() })
	if i < 0 {
		return nil, errors.New("ipam.node_slice_size is set, but no range is IPv4: only those are divided among nodes")
	}
	pool := cfg.Pools[i]
	n := &Network{Name: cmp.Or(pool.NetworkName, cfg.Network), Size: size, Range: pool.Range, Bits: cfg.NodeSlice, Owners: []Definition{d}, whole: pool}
	switch count := n.Bits - n.Range.Bits(); {
	case count < 0:
		return nil, fmt.Errorf("ipam.node_slice_size %q is bigger than the range %s: a slice is a part of it", size, n.Range)
	case 1<<count > mostSlices:
		return nil, fmt.Errorf("range %s has %d slices of /%d, more than one NodeSlicePool can hold (%d): make node_slice_size shorter", n.Range, 1<<count, n.Bits, mostSlices)
	}
	return n, nil
}

// sliced is the configuration with the IPAM section that has node slices, named as the network, and the size as it is written;
// nil where there is none. What can't be read is Multus' to complain of.
func sliced(d Definition) (conf []byte, size string) {
	var whole map[string]json.RawMessage
	if json.Unmarshal([]byte(d.Config), &whole) != nil {
		return nil, ""
	}
	plugins := []map[string]json.RawMessage{whole}
	if list, ok := whole["plugins"]; ok {
		plugins = nil
		if json.Unmarshal(list, &plugins) != nil {
			return nil, ""
		}
	}
	for _, p := range plugins {
		var s section
		if json.Unmarshal(p["ipam"], &s) != nil || s.Type != "whereabouts" && s.Type != "lhstorage-ipam" {
			continue
		}
		if size = strings.Trim(string(s.Size), `"`); size == "" || size == "null" {
			continue
		}
		name := whole["name"]
		if string(name) == "" || string(name) == `""` { // as Multus does
			name, _ = json.Marshal(d.Name) //nolint:errchkjson // a text can always be written
		}
		conf, _ = json.Marshal(map[string]json.RawMessage{"name": name, "ipam": p["ipam"]}) //nolint:errchkjson // they were read from JSON
		return conf, size
	}
	return nil, ""
}
