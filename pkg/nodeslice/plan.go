// Package nodeslice divides networks' ranges among nodes, as Whereabouts' node slice controller does: for each network with
// `node_slice_size` a NodeSlicePool says which node allocates from which slice, and the IPAM plugin goes by it (package kube).
//
// Names, fields and the choice are Whereabouts' (v0.9.2, pkg/node-controller): a node gets the first slice that is free, in the list's
// order; a node that has left gives its slice back; another range or size divides everything anew. It serves networks of type
// lhstorage-ipam, too, for which Whereabouts' own controller gives up on all networks of the cluster. Only one of
// the two may run. It is otherwise in this:
//
//   - A slice of a node that has left comes free when nothing is claimed of it any more: where ranges don't overlap
//     (enable_overlapping_ranges: false) a claim's name has the node's in it, and two nodes could give one address.
//   - Nodes get their slices in the order of their names, not in any.
//   - A definition owns its pool (ownerReferences) only where both are in one namespace: Kubernetes' garbage collector looks for owners there
//     alone, and removes what has none. For the others an annotation says who they are, and a pool that nobody has asked for goes.
//   - Networks of different names never contradict each other.
package nodeslice

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Allocation is a slice, and the node that has it.
type Allocation struct {
	NodeName   string `json:"nodeName"` // "": nobody
	SliceRange string `json:"sliceRange"`
}

// State is what a NodeSlicePool says.
type State struct {
	Range       string
	SliceSize   string
	Allocations []Allocation
}

// Nodes are the cluster's.
type Nodes struct {
	Members []string              // that get slices, sorted
	Live    map[string]bool       // all that there are
	InUse   func(Allocation) bool // whether something is claimed of a slice whose node has left; nil: nothing is
}

// Plan is what a NodeSlicePool must say, given what it says (nil: there is none), and which nodes have no slice, because there are too few.
func Plan(have *State, n Network, nodes Nodes) (want State, without []string) {
	want = State{Range: n.Range.String(), SliceSize: n.Size}
	if have == nil || !divides(*have, n) {
		for _, slice := range divide(n.Range, n.Bits) {
			want.Allocations = append(want.Allocations, Allocation{SliceRange: slice.String()})
		}
		return want, give(want.Allocations, nodes.Members)
	}
	want.Allocations = slices.Clone(have.Allocations)
	give(want.Allocations, nodes.Members) // before slices come free: one that just did rests as long as others are there
	for i, a := range want.Allocations {
		if a.NodeName != "" && !nodes.Live[a.NodeName] && (nodes.InUse == nil || !nodes.InUse(a)) {
			want.Allocations[i].NodeName = ""
		}
	}
	return want, give(want.Allocations, nodes.Members)
}

// divides says whether a state is of a network's range and size, however they are written.
func divides(s State, n Network) bool {
	bits, err := strconv.Atoi(strings.TrimPrefix(s.SliceSize, "/"))
	return err == nil && bits == n.Bits && s.Range == n.Range.String()
}

// give gives each node that has none the first slice that nobody has; it returns those for whom there is none.
func give(list []Allocation, nodes []string) (without []string) {
	has := map[string]bool{}
	for _, a := range list {
		has[a.NodeName] = true
	}
	next := 0
	for _, node := range nodes {
		if has[node] {
			continue
		}
		for next < len(list) && list[next].NodeName != "" {
			next++
		}
		if next == len(list) {
			without = append(without, node)
			continue
		}
		list[next].NodeName = node
	}
	return without
}

// divide lists the parts of an IPv4 range, of a length that isn't shorter than its own.
func divide(whole netip.Prefix, bits int) []netip.Prefix {
	parts := make([]netip.Prefix, 0, 1<<(bits-whole.Bits()))
	first := whole.Masked().Addr().As4()
	base := binary.BigEndian.Uint32(first[:])
	for i := range cap(parts) {
		var at [4]byte
		binary.BigEndian.PutUint32(at[:], base+uint32(i)<<(32-bits))
		parts = append(parts, netip.PrefixFrom(netip.AddrFrom4(at), bits))
	}
	return parts
}
