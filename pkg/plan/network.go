package plan

import (
	"fmt"
	"net/netip"
	"slices"
)

// Kind is what a network is used for.
type Kind string

// The kinds.
const (
	Pod       Kind = "pod range"
	Service   Kind = "service range"
	Node      Kind = "node address"
	VTEP      Kind = "VTEP range"
	Harvester Kind = "range that Harvester reserves"
	Other     Kind = "network"
)

// Network is addresses that are in use.
type Network struct {
	Kind     Kind         `json:"kind"`
	Name     string       `json:"name,omitempty"` // whose
	Prefix   netip.Prefix `json:"prefix"`
	Advisory bool         `json:"advisory,omitempty"` // to overlap it is allowed, but should be known
}

// String is kind, name and prefix.
func (n Network) String() string {
	if n.Name == "" {
		return fmt.Sprintf("the %s %s", n.Kind, n.Prefix)
	}
	return fmt.Sprintf("the %s %s of %s", n.Kind, n.Prefix, n.Name)
}

// HarvesterReserved are the ranges that Harvester's documents reserve and its webhook
// doesn't check. Elsewhere than on Harvester (strict false) it is worth no more than a
// warning: two of them are what RKE2 and k3s use unless told otherwise.
func HarvesterReserved(strict bool) []Network {
	var list []Network
	for _, s := range []string{"10.42.0.0/16", "10.43.0.0/16", "10.52.0.0/16", "10.53.0.0/16"} {
		list = append(list, Network{Kind: Harvester, Prefix: netip.MustParsePrefix(s), Advisory: !strict})
	}
	return list
}

// Overlapping are those of known that share an address with p, in their order.
func Overlapping(p netip.Prefix, known []Network) []Network {
	return slices.DeleteFunc(slices.Clone(known), func(n Network) bool { return !n.Prefix.IsValid() || !n.Prefix.Overlaps(p) })
}

// private is where networks are proposed, the best first: what the examples of the
// documentation use, then what is left of the private networks (RFC 1918).
var private = []netip.Prefix{
	netip.MustParsePrefix("10.100.1.0/24"), netip.MustParsePrefix("10.100.0.0/16"), netip.MustParsePrefix("10.96.0.0/11"),
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("10.0.0.0/8"),
}

// free is a private network of a length that overlaps nothing known.
func free(length int, known []Network) (netip.Prefix, bool) {
	var taken []netip.Prefix
	for _, n := range known {
		if n.Prefix.IsValid() {
			taken = append(taken, n.Prefix)
		}
	}
	for _, in := range private {
		if length < in.Bits() {
			continue
		}
		for p := range vacant(in, length, taken) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
