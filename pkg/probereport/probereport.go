// Package probereport measures the legs that storage traffic takes from this
// node, and says what it found as a ProbeReport object and as metrics.
//
// A round takes a minute. It pings, spread over the round, every other node's
// shim, this node's pods, and a pod on every other node, from the host and, where
// that is allowed, from a pod. Above 64 other nodes each round takes the next 64.
//
// Whom to ask is decided by a pure function ([Choose]), and so is whether a
// report differs from the last in substance ([Changed]): the object is written
// when a leg begins or ceases to lose packets, when a round-trip time has doubled
// or halved, when a node is reached for the first time, when Longhorn dials another
// address of an instance manager, and every ten minutes.
// Pods that come and go are no news.
package probereport

import (
	"context"
	"net/netip"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Bounds of a round.
const (
	MaxNodes = 64  // other nodes
	maxLocal = 32  // pods of this node
	maxLegs  = 256 // in a report (ProbeReportStatus.Legs)
)

// Peer is another node's place on a network.
type Peer struct {
	Node, Network string
	Addresses     []netip.Addr // of its shim
}

// Pod is a pod on a network.
type Pod struct {
	Ref           string // namespace/name
	Node, Network string
	Addresses     []netip.Addr

	// Of this node's pods only.
	Netns                string // path of its network namespace
	Parent, Shim, IfName string // its interface, what that hangs on, and the shim beside it
}

// Sources tell whom there is to ask.
type Sources interface {
	// Peers are the other nodes' places. It is asked every round.
	Peers(ctx context.Context) ([]Peer, error)
	// Local are this node's pods. It is asked every round, and again when one
	// doesn't answer.
	Local(ctx context.Context) ([]Pod, error)
	// Remote are the pods of other nodes, by node. A few nodes are asked for in a round, all at once: each call costs the API server a look
	// at all claims of the cluster.
	Remote(ctx context.Context, nodes ...string) (map[string][]Pod, error)
}

// Known is who can be asked.
type Known struct {
	Node   string
	Peers  []Peer
	Local  []Pod
	Remote map[string][]Pod // by node
}

// Target is one leg to measure.
type Target struct {
	Kind    v1alpha1.LegKind
	Network string
	From    Pod // the zero Pod: the host
	Node    string
	Pod     string
	Address netip.Addr
}

// key tells a leg from others in substance: which pod of another node is asked,
// and from which, differs from round to round.
type key struct {
	kind          v1alpha1.LegKind
	network, node string
	to            string // the address, or its family where any pod will do
}

func keyOf(kind v1alpha1.LegKind, network, node, address string) key {
	k := key{kind: kind, network: network, node: node, to: address}
	if kind == v1alpha1.LegHostRemote || kind == v1alpha1.LegPodRemote {
		k.to = "ipv6"
		if a, err := netip.ParseAddr(address); err == nil && a.Is4() {
			k.to = "ipv4"
		}
	}
	return k
}
