package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

// Legs: the three kinds of way that storage traffic takes.
const (
	LegPodPod     = "pod-pod"     // between pods on different nodes
	LegHostLocal  = "host-local"  // from a node to a pod on it
	LegHostRemote = "host-remote" // from a node to a pod elsewhere
)

// Leg is one measured way.
type Leg struct {
	Plugin  string     `json:"plugin"`
	Leg     string     `json:"leg"`
	From    string     `json:"from"` // node1 or node1/pod1
	To      string     `json:"to"`
	Address netip.Addr `json:"address"` // what was pinged
	Packets int        `json:"packets"` // that were to be sent
	Loss    float64    `json:"loss"`    // percent, 0 to 100
	RTT     *float64   `json:"rtt_ms"`  // mean; null if nothing came back
}

// OK says whether nothing was lost.
func (l Leg) OK() bool { return l.Loss == 0 }

// MatrixOptions say how each leg is measured.
type MatrixOptions struct {
	Count    int           // packets; default 20
	Interval time.Duration // default 10 ms
	Wait     time.Duration // for the last answers; default 1 s
	MTU      int           // fill packets up to this size and forbid fragments; 0: small packets
	Parallel int           // legs at once; default 4
}

// place is where a ping starts.
type place struct {
	name, netns string
}

// way is one leg before it is measured.
type way struct {
	leg    string
	from   place
	to     string
	target netip.Addr
}

// Matrix measures all legs between all nodes and pods, by ping. Loss is a
// result, not an error.
func (l *Lab) Matrix(ctx context.Context, o MatrixOptions) ([]Leg, error) {
	pods, err := l.Pods()
	if err != nil {
		return nil, err
	}
	ways := l.ways(pods)
	if len(ways) == 0 {
		return nil, fmt.Errorf("lab %s has no attached pod to measure: `lhstoragectl lab add NODE POD` adds one", l.opts.Name)
	}
	setDefault(&o.Parallel, 4)
	legs := make([]Leg, len(ways))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Parallel)
	for i, w := range ways {
		group.Go(func() (err error) {
			legs[i], err = l.measure(ctx, w, o)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("lab %s: matrix: %w", l.opts.Name, err)
	}
	return legs, nil
}

// ways lists all legs, pod to pod first, then from the hosts.
func (l *Lab) ways(pods []Pod) []way {
	var podPod, local, remote []way
	for _, from := range pods {
		if len(from.Addresses) == 0 { // it is just being added
			continue
		}
		for _, to := range pods {
			if from.Node != to.Node {
				podPod = append(podPod, waysTo(LegPodPod, place{from.Node + "/" + from.Name, from.Netns}, to)...)
			}
		}
	}
	for _, node := range l.Nodes() {
		host := place{node.Name, node.Netns}
		for _, to := range pods {
			if node.Name == to.Node {
				local = append(local, waysTo(LegHostLocal, host, to)...)
			} else {
				remote = append(remote, waysTo(LegHostRemote, host, to)...)
			}
		}
	}
	return slices.Concat(podPod, local, remote)
}

// waysTo is one way per address of the pod.
func waysTo(leg string, from place, to Pod) []way {
	var ways []way
	for _, address := range to.Addresses {
		ways = append(ways, way{leg: leg, from: from, to: to.Node + "/" + to.Name, target: address.Addr()})
	}
	return ways
}

func (l *Lab) measure(ctx context.Context, w way, o MatrixOptions) (Leg, error) {
	ping := probe.PingOptions{Target: w.target, Count: o.Count, Interval: o.Interval, Wait: o.Wait}
	if o.MTU > 0 {
		ping.Payload, ping.DontFragment = probe.PayloadFor(w.target, o.MTU), true
	}
	var result probe.PingResult
	err := within(w.from.netns, func() (err error) {
		result, err = probe.Ping(ctx, ping)
		return err
	})
	if err != nil {
		return Leg{}, fmt.Errorf("%s to %s: %w", w.from.name, w.to, err)
	}
	leg := Leg{Plugin: l.opts.Plugin, Leg: w.leg, From: w.from.name, To: w.to, Address: w.target, Packets: result.Wanted, Loss: result.Loss()}
	if result.Received > 0 {
		ms := float64(result.Avg.Microseconds()) / 1000
		leg.RTT = &ms
	}
	return leg, nil
}

// Failed are the legs that lost packets.
func Failed(legs []Leg) []Leg {
	var failed []Leg
	for _, leg := range legs {
		if !leg.OK() {
			failed = append(failed, leg)
		}
	}
	return failed
}

// In returns a function that runs code in the namespace of a node (pod empty)
// or of a pod.
func (l *Lab) In(node, pod string) (probe.In, error) {
	n, err := l.Node(node)
	if err != nil {
		return nil, err
	}
	name := n.Netns
	if pod != "" {
		p, err := l.Pod(node, pod)
		if err != nil {
			return nil, err
		}
		name = p.Netns
	}
	return func(f func() error) error { return within(name, f) }, nil
}
