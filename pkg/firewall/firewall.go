// Package firewall keeps the storage network to itself: nobody but a peer puts
// frames into the tunnel, nothing is routed into the network or out of it, and
// pods reach no service of the host over its shim.
//
// It only closes. What it lets pass goes on to the host's own rules (RETURN,
// never ACCEPT), so a node's administrator and the cluster's network plugin keep
// the last word.
//
// All of it is in the mangle table, which every packet passes before the filter
// table: an ACCEPT of another's there can't go around it, and nobody is fought
// with over the first place in INPUT and FORWARD, which kube-proxy, Calico and
// firewalld each claim for themselves. Conntrack has seen the packet by then,
// and a dropped packet leaves no conntrack entry. From each base chain one jump
// leads to a chain of ours; all of ours begin with [Prefix].
//
// The rules are worked out by a pure function ([Desired.Rules]), compared with
// what is there and put there in one transaction for a family, so that there is
// no moment without them: iptables-save reads and iptables-restore writes, a
// process each. What nftables' generation says is as it was left isn't read.
//
// github.com/coreos/go-iptables was used for this at first. It lists a chain and
// writes a rule at a time: a peer that came was thirty processes, and a chain
// half filled meanwhile. Nor would it serve for the rest. Removal takes the same
// read, because jumps that others have altered are found by what they lead to,
// and one transaction where it has a process for each rule and chain. And it takes
// the backend of the program that is called iptables, while here that is
// chosen in whose tables the host's own rules are.
//
// Bridged and macvlan traffic of pods isn't routed by the host, so no rule here
// sees it. Rules name devices, not the network's addresses, wherever packets
// are forwarded: with br_netfilter the frames of a bridge pass FORWARD too, and
// a virtual machine's storage network may have the same addresses.
package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Prefix is how the names of our chains begin.
const Prefix = "LHSTORAGE-"

// Table holds all our chains.
const Table = "mangle"

// Desired is what the firewall of this node must know.
type Desired struct {
	Parents []Parent
	Shims   []Shim
	Allowed []Port // what pods may reach in the host, over any shim
}

// Parent is a device that the storage network's macvlan children hang on.
type Parent struct {
	Name string
	// Own says that lhstorage made it and that it has no address: whatever IP packet
	// enters by it, not by one of its children, has no business there.
	Own bool

	VNI  int
	Port uint16 // UDP port of a vxlan parent, else 0
	VTEP netip.Addr
	// Peers are the VTEPs that may send into the tunnel. Nil: not known, so the
	// port isn't guarded.
	Peers []netip.Addr
	// Shared says that another device of this host has a tunnel on the port, a pod
	// network's for one: only packets of our VNI are looked at.
	Shared bool
}

// Shim is the host's own child of a parent.
type Shim struct {
	Name   string
	Parent string
	// Addresses are the shim's. What is sent to them comes by the shim.
	Addresses []netip.Addr
	// Ranges are the storage network's, from which allowed ports are reached.
	Ranges []netip.Prefix
}

// Port is a service of the host.
type Port struct {
	Protocol string // tcp or udp
	Port     uint16
}

func (p Port) String() string { return strconv.Itoa(int(p.Port)) + "/" + p.Protocol }

// ParsePorts reads a list such as 2049/tcp,123/udp, with commas between; none is an empty text. All faults come at once.
func ParsePorts(text string) ([]Port, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var ports []Port
	var faults []error
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		number, protocol, _ := strings.Cut(word, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || port == 0 || protocol != "tcp" && protocol != "udp" {
			faults = append(faults, fmt.Errorf("%q isn't a port and a protocol, such as 2049/tcp or 123/udp", word))
			continue
		}
		ports = append(ports, Port{Protocol: protocol, Port: uint16(port)})
	}
	return ports, errors.Join(faults...)
}

// deviceName is what is safe in a rule: the kernel allows more, but a trailing +
// would be a wildcard there, and quotes would end a word.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,15}$`)

func (d Desired) check() error {
	var faults []error
	name := func(what, name string) {
		if !deviceName.MatchString(name) {
			faults = append(faults, fmt.Errorf("%s %q: a device name in a firewall rule has letters, digits and _.:@- only", what, name))
		}
	}
	for _, p := range d.Parents {
		name("parent", p.Name)
	}
	for _, s := range d.Shims {
		name("host shim", s.Name)
		if s.Parent != "" {
			name("parent", s.Parent)
		}
	}
	for _, p := range d.Allowed {
		if p.Protocol != "tcp" && p.Protocol != "udp" || p.Port == 0 {
			faults = append(faults, fmt.Errorf("allowed port %s: the protocol is tcp or udp, and the port isn't 0", p))
		}
	}
	return errors.Join(faults...)
}
