package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

// Flow is one TCP stream between two pods of a mesh.
type Flow struct {
	FromNode, FromPod string
	ToNode, ToPod     string
	Bytes             int64
}

// Usage is what a stream cost: the bytes that kernels sent on each link, all
// headers included.
type Usage struct {
	Carried uint64      `json:"carried"` // on the stream's way, in its direction
	Wasted  uint64      `json:"wasted"`  // on all links that aren't its way
	Links   []LinkUsage `json:"links"`
	Rate    float64     `json:"bits_per_second"`
}

// LinkUsage is what one node sent to another one.
type LinkUsage struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Bytes uint64 `json:"bytes"`
	OnWay bool   `json:"on_way"` // the link between the stream's two nodes, in either direction
}

// WasteRatio is the bytes on links that aren't on the stream's way ÷ the bytes
// on its way, one way.
func (u Usage) WasteRatio() float64 {
	if u.Carried == 0 {
		return 0
	}
	return float64(u.Wasted) / float64(u.Carried)
}

// Stream sends a flow and measures what each of the mesh's links carried.
func (l *Lab) Stream(ctx context.Context, f Flow) (Usage, error) {
	if l.opts.Topology != TopologyMesh {
		return Usage{}, fmt.Errorf("lab %s: bytes per link: topology %s has no links between two nodes", l.opts.Name, l.opts.Topology)
	}
	to, err := l.Pod(f.ToNode, f.ToPod)
	if err != nil {
		return Usage{}, err
	}
	if len(to.Addresses) == 0 {
		return Usage{}, fmt.Errorf("pod %s/%s has no address", to.Node, to.Name)
	}
	sender, err := l.In(f.FromNode, f.FromPod)
	if err != nil {
		return Usage{}, err
	}
	receiver, err := l.In(f.ToNode, f.ToPod)
	if err != nil {
		return Usage{}, err
	}
	before, err := l.sent()
	if err != nil {
		return Usage{}, err
	}
	result, err := probe.Stream(ctx, probe.StreamOptions{Bytes: f.Bytes, Sender: sender, Receiver: receiver, To: to.Addresses[0].Addr()})
	if err != nil {
		return Usage{}, err
	}
	after, err := l.sent()
	if err != nil {
		return Usage{}, err
	}
	usage := f.usage(before, after)
	usage.Rate = result.BitsPerSecond()
	return usage, nil
}

// direction is one direction of a link between two nodes.
type direction struct{ from, to string }

func (f Flow) usage(before, after map[direction]uint64) Usage {
	var u Usage
	for d, bytes := range after {
		bytes -= before[d]
		onWay := d == direction{f.FromNode, f.ToNode} || d == direction{f.ToNode, f.FromNode}
		u.Links = append(u.Links, LinkUsage{From: d.from, To: d.to, Bytes: bytes, OnWay: onWay})
		switch {
		case d == direction{f.FromNode, f.ToNode}:
			u.Carried = bytes
		case !onWay:
			u.Wasted += bytes
		}
	}
	slices.SortFunc(u.Links, func(a, b LinkUsage) int {
		return strings.Compare(a.From+" "+a.To, b.From+" "+b.To)
	})
	return u
}

// sent reads what each node has sent to each other one, in bytes.
func (l *Lab) sent() (map[direction]uint64, error) {
	sent := map[direction]uint64{}
	for _, node := range l.Nodes() {
		var counters map[string]probe.LinkBytes
		err := within(node.Netns, func() (err error) {
			counters, err = probe.Counters()
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", node.Name, err)
		}
		for _, peer := range l.peers(node) {
			sent[direction{node.Name, peer.Name}] = counters[linkTo(peer.Name)].Tx
		}
	}
	return sent, nil
}
