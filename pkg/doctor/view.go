package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// view is a snapshot with what many checks want of it.
type view struct {
	*snapshot.Snapshot

	cluster  *snapshot.Cluster // of no cluster: an empty one
	local    *snapshot.Local   // of no node: an empty one
	compiled agent.Compiled
}

func newView(s *snapshot.Snapshot) *view {
	v := &view{Snapshot: s, cluster: s.Cluster, local: s.Local}
	if v.cluster == nil {
		v.cluster = &snapshot.Cluster{}
	}
	if v.local == nil {
		v.local = &snapshot.Local{}
	}
	v.compiled = v.cluster.Compiled()
	return v
}

// absent says that a resource isn't installed.
func (v *view) absent(resource string) bool { return slices.Contains(v.cluster.Absent, resource) }

// members are the Nodes that run an agent, or all where none does: a Node that has none takes no part.
func (v *view) members() []string {
	var all, agents []string
	for i := range v.cluster.Nodes {
		all = append(all, v.cluster.Nodes[i].Name)
	}
	for i := range v.cluster.Pods {
		if p := &v.cluster.Pods[i]; snapshot.IsAgent(p.Labels) && slices.Contains(all, p.Spec.NodeName) && !slices.Contains(agents, p.Spec.NodeName) {
			agents = append(agents, p.Spec.NodeName)
		}
	}
	slices.Sort(agents)
	if len(agents) == 0 {
		return all
	}
	return agents
}

// attached is an interface that a running pod has on one of our networks.
type attached struct {
	pod     *corev1.Pod
	network agent.Network
	entry   snapshot.Interface
}

func (a attached) ref() string { return snapshot.Ref(a.pod) }

// attachments are the interfaces that running pods have on our networks, as Multus says.
func (v *view) attachments() []attached {
	var list []attached
	for i := range v.cluster.Pods {
		pod := &v.cluster.Pods[i]
		if !snapshot.Running(pod) {
			continue
		}
		entries, err := snapshot.Interfaces(pod)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !v.compiled.Ours[e.Name] {
				continue
			}
			if n, ok := v.cluster.Named(e.Name); ok {
				list = append(list, attached{pod, n, e})
			}
		}
	}
	return list
}

// shimAddrs are the addresses that HostShims say, with the name of their Node.
func (v *view) shimAddrs() map[netip.Addr]string {
	held := map[netip.Addr]string{}
	for _, h := range v.cluster.HostShims {
		for _, n := range h.Spec.Networks {
			for _, text := range n.Addresses {
				if addr, err := netip.ParseAddr(string(text)); err == nil {
					held[addr] = h.Spec.Node
				}
			}
		}
	}
	return held
}

func (v *view) here() string { return "node " + v.local.Node.NodeName }

// each makes a hit of each of some things.
func each[T any](list []T, hits func(T) []hit) []hit {
	var found []hit
	for _, x := range list {
		found = append(found, hits(x)...)
	}
	return found
}

// one is a single hit with the check's own remedy.
func one(where, format string, args ...any) []hit {
	return []hit{{where: where, what: fmt.Sprintf(format, args...)}}
}

// remedied is a single hit with a remedy of its own.
func remedied(fix, where, format string, args ...any) []hit {
	return []hit{{where: where, what: fmt.Sprintf(format, args...), fix: fix}}
}

// few lists names, and how many more there are.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func networkAt(n agent.Network) string { return "network " + n.Ref() }

// on adds the names of a network's devices to hits.
func on(p *netconf.Plan, hits []hit) []hit {
	for i := range hits {
		hits[i].parent = p.Parent.Name
		if p.HostShim != nil {
			hits[i].shim = p.HostShim.Name
		}
	}
	return hits
}
