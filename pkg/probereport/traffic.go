package probereport

import (
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

// traffic adds up what parents sent, and what their children did. The first is
// more than the second where a frame is sent to more than one peer: with learning
// on these are broadcasts and first frames alone. (It may be less: children of one
// node reach each other without their parent.)
type traffic struct {
	shims map[string]string // by parent; kept while the node has no pod
	last  map[device]uint64 // bytes sent, when it was looked at last
}

// device of the host, or of a pod.
type device struct{ netns, name string }

// addTraffic counts what was sent since the last round. It needs to look into
// each pod: where it can't, the round isn't counted, on neither side.
func (p *Prober) addTraffic(local []Pod) {
	if !p.FromPods {
		return
	}
	t := &p.sent
	if t.last == nil {
		t.shims, t.last = map[string]string{}, map[device]uint64{}
	}
	now, blind := p.counters(local)
	for _, pod := range local {
		t.shims[pod.Parent] = pod.Shim
	}
	for parent, shim := range t.shims {
		at, known := t.last[device{name: parent}]
		if have, there := now[device{name: parent}]; !there || !known || have < at || blind[parent] {
			continue // gone, new, made anew, or not to be compared
		}
		p.Metrics.parents.WithLabelValues(parent).Add(float64(now[device{name: parent}] - at))
		children := t.since(now, device{name: shim})
		for _, pod := range local {
			if pod.Parent == parent {
				children += t.since(now, device{pod.Netns, pod.IfName})
			}
		}
		p.Metrics.children.WithLabelValues(parent).Add(float64(children))
	}
	t.last = now
}

// since is what a device sent since the last look: all that it ever did, if it is
// new.
func (t *traffic) since(now map[device]uint64, d device) uint64 {
	if have, at := now[d], t.last[d]; have >= at {
		return have - at
	}
	return now[d]
}

// counters reads what the host's devices and the pods' sent. blind are the
// parents of pods that can't be looked into.
func (p *Prober) counters(local []Pod) (now map[device]uint64, blind map[string]bool) {
	now, blind = map[device]uint64{}, map[string]bool{}
	read := func(netns string) error {
		counters, err := probe.Counters()
		for name, bytes := range counters {
			now[device{netns, name}] = bytes.Tx
		}
		return err
	}
	if err := p.Host(func() error { return read("") }); err != nil {
		return map[device]uint64{}, blind
	}
	for _, pod := range local {
		if err := ns.WithNetNSPath(pod.Netns, func(ns.NetNS) error { return read(pod.Netns) }); err != nil {
			blind[pod.Parent] = true
		}
	}
	return now, blind
}
