package lab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
)

// DefaultRoot is where labs keep their state.
const DefaultRoot = "/run/lhstorage-lab"

// Topologies: how nodes reach each other.
const (
	TopologyMesh = "mesh" // a /31 link between each two nodes, called to-<other node>
	TopologyLAN  = "lan"  // one switch, eth1 on each node, and a default route
)

// Parents: what the pods' interfaces are children of.
const (
	ParentVXLAN  = "vxlan"  // vxlan-storage
	ParentDevice = "device" // eth1, which holds the node's own address in the storage subnet
)

// Plugins that can be under test.
const (
	PluginLhstorage = "lhstorage"
	PluginMacvlan   = "macvlan" // the stock one
)

// Address plugins.
const (
	IPAMLhstorage = "lhstorage-ipam"
	IPAMHostLocal = "host-local"
	IPAMStatic    = "static"
)

const (
	maxNodes    = 15 // the /28 for hosts: 16 addresses without the network's own
	maxNameLen  = 40
	minMTU      = 1280
	maxMTU      = 65535
	defaultMTU  = 9000
	defaultName = "lab"
)

// Options describe a lab. Only BinDirs is required.
type Options struct {
	Name     string       `json:"name"`     // default lab
	Root     string       `json:"root"`     // default DefaultRoot
	Nodes    int          `json:"nodes"`    // default 3, at most 15
	Topology string       `json:"topology"` // default mesh; lan for parent device and for one node
	Parent   string       `json:"parent"`   // default vxlan
	Plugin   string       `json:"plugin"`   // default lhstorage
	IPAM     string       `json:"ipam"`     // default lhstorage-ipam; host-local with macvlan
	BinDirs  []string     `json:"binDirs"`  // where the CNI plugins are
	MTU      int          `json:"mtu"`      // of the underlay, in bytes; default 9000
	Range    netip.Prefix `json:"range"`    // the storage network; default 10.100.1.0/24. Its first 16 addresses are the hosts'

	// NoLearning makes stock macvlan's VXLAN parents as the script of the source
	// design does, flooding every frame to every peer.
	NoLearning bool `json:"noLearning,omitempty"`

	// Configure may change a node's plugin configuration before it is written.
	Configure func(Node, map[string]any) `json:"-"`
	Progress  func(string)               `json:"-"` // is told each step
	Stderr    io.Writer                  `json:"-"` // the plugins' stderr; default: plugins.log in the node's directory
}

var labName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func (o Options) withNames() Options {
	if o.Name == "" {
		o.Name = defaultName
	}
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	return o
}

// complete fills in the defaults and validates.
func (o Options) complete() (Options, error) {
	o = o.withNames().withDefaults()
	return o, errors.Join(o.checkName(), o.checkChoices(), o.checkNumbers())
}

func (o Options) withDefaults() Options {
	setDefault(&o.Nodes, 3)
	setDefault(&o.Parent, ParentVXLAN)
	setDefault(&o.Plugin, PluginLhstorage)
	setDefault(&o.MTU, defaultMTU)
	if o.Parent == ParentDevice || o.Nodes == 1 { // a single node has no links to others
		setDefault(&o.Topology, TopologyLAN)
	}
	setDefault(&o.Topology, TopologyMesh)
	if o.Plugin == PluginMacvlan {
		setDefault(&o.IPAM, IPAMHostLocal)
	}
	setDefault(&o.IPAM, IPAMLhstorage)
	setDefault(&o.Range, netip.MustParsePrefix("10.100.1.0/24"))
	for i, dir := range o.BinDirs { // kept in the state file, for processes that run elsewhere
		if abs, err := filepath.Abs(dir); err == nil {
			o.BinDirs[i] = abs
		}
	}
	return o
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// with takes over what a state file can't hold.
func (o Options) with(live Options) Options {
	o.Configure, o.Progress, o.Stderr = live.Configure, live.Progress, live.Stderr
	return o
}

func (o Options) checkName() error {
	var errs []error
	if !labName.MatchString(o.Name) || len(o.Name) > maxNameLen {
		errs = append(errs, fmt.Errorf("name %q: want at most %d lower-case letters, digits and dashes", o.Name, maxNameLen))
	}
	if !filepath.IsAbs(o.Root) {
		errs = append(errs, fmt.Errorf("root %q: want an absolute path", o.Root))
	}
	return errors.Join(errs...)
}

func (o Options) checkChoices() error {
	var errs []error
	for _, c := range []struct {
		key, value string
		allowed    []string
	}{
		{"topology", o.Topology, []string{TopologyMesh, TopologyLAN}},
		{"parent", o.Parent, []string{ParentVXLAN, ParentDevice}},
		{"plugin", o.Plugin, []string{PluginLhstorage, PluginMacvlan}},
		{"ipam", o.IPAM, []string{IPAMLhstorage, IPAMHostLocal, IPAMStatic}},
	} {
		if !slices.Contains(c.allowed, c.value) {
			errs = append(errs, fmt.Errorf("%s %q: want one of %v", c.key, c.value, c.allowed))
		}
	}
	if o.Parent == ParentDevice && o.Topology == TopologyMesh {
		errs = append(errs, errors.New("parent device with topology mesh: point-to-point links are no common network; use topology lan"))
	}
	if o.Nodes == 1 && o.Topology == TopologyMesh {
		errs = append(errs, errors.New("topology mesh with one node: there is no link to carry anything; use topology lan"))
	}
	return errors.Join(errs...)
}

func (o Options) checkNumbers() error {
	var errs []error
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("nodes %d: want 1 to %d", o.Nodes, maxNodes))
	}
	if o.MTU < minMTU || o.MTU > maxMTU {
		errs = append(errs, fmt.Errorf("mtu %d: want %d to %d", o.MTU, minMTU, maxMTU))
	}
	if spare := o.Range.Addr().BitLen() - o.Range.Bits(); !o.Range.IsValid() || spare < minHostBits || o.Range != o.Range.Masked() {
		errs = append(errs, fmt.Errorf("range %s: want a network with at least %d addresses and no host bits set", o.Range, 1<<minHostBits))
	} else if o.Range.Overlaps(underlay) || o.Range.Overlaps(vteps) || o.Range.Overlaps(podNetwork) {
		errs = append(errs, fmt.Errorf("range %s: overlaps one of the lab's own networks %s, %s, %s", o.Range, underlay, vteps, podNetwork))
	}
	if len(o.BinDirs) == 0 {
		errs = append(errs, errors.New("no directory with CNI plugins was named"))
	}
	return errors.Join(errs...)
}
