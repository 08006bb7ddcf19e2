package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

var nodeChecks = []Check{
	{
		Code: "LHS030", Severity: Error, Title: "No agent is installed",
		Why: "Nothing repairs what changes on nodes, notices pods without their network, renews the plugins' token (ADDs fail within a day) or gives leaked addresses back.",
		Fix: "helm upgrade --install lhstorage deploy/chart/lhstorage -n lhstorage-system --create-namespace",
		look: func(v *view) []hit {
			if v.Cluster == nil || v.cluster.Denies("daemonsets.apps") || slices.ContainsFunc(v.cluster.DaemonSets, func(d appsv1.DaemonSet) bool { return snapshot.IsAgent(d.Labels) }) {
				return nil
			}
			return one("cluster", "there is no DaemonSet with the label app.kubernetes.io/name=lhstorage")
		},
	},
	{
		Code: "LHS031", Severity: Error, Title: "The agent doesn't run everywhere",
		Why:  "Nodes without a ready agent keep what they have, but nothing there is repaired and new peers are found late.",
		Fix:  "kubectl -n NAMESPACE get pods -o wide -l app.kubernetes.io/name=lhstorage, then logs and describe of the one that isn't ready. No pods at all: the namespace needs the label pod-security.kubernetes.io/enforce=privileged",
		look: func(v *view) []hit { return v.incomplete(snapshot.IsAgent) },
	},
	{
		Code: "LHS032", Severity: Error, Title: "A node has no place on a parent",
		Why:  "It has no index, so neither VTEP nor shim address, and no other node sends to it.",
		Fix:  "look at the node's agent (kubectl logs): it names what is in the way, such as an index that another node has. A pod of the network that starts on the node claims a place, too",
		look: (*view).unplaced,
	},
	{
		Code: "LHS033", Severity: Error, Title: "A node isn't ready for its networks",
		Why: "Its parent or shim isn't as it must be, and its agent can't put it right.",
		Fix: "the reason says what to do; on the node: lhstoragectl doctor --local",
		look: func(v *view) []hit {
			return each(v.cluster.HostShims, func(h v1alpha1.HostShim) []hit {
				if h.Status.Ready != metav1.ConditionFalse {
					return nil
				}
				return one("node "+h.Spec.Node, "parent %s: %s", h.Spec.Parent, h.Status.Reason)
			})
		},
	},
	{
		Code: "LHS034", Severity: Info, Title: "A place is kept for a node that is gone",
		Why: "For an hour that is meant so: the node may come back. Peers don't send to it. Later a new node takes the place over, when nothing answers there any more.",
		Fix: "kubectl delete hostshim NAME, if the node won't come back",
		look: func(v *view) []hit {
			return each(v.cluster.HostShims, func(h v1alpha1.HostShim) []hit {
				if v.cluster.Denies("nodes") || v.cluster.HasNode(h.Spec.Node) {
					return nil
				}
				return remedied("kubectl delete hostshim "+h.Name+", if the node won't come back", "place "+h.Name, "there is no Node %s", h.Spec.Node)
			})
		},
	},
	{
		Code: "LHS035", Severity: Error, Title: "Two nodes have one address",
		Why:  "Peers reach one of them, whichever answered last: volumes of both lose their replicas at random.",
		Fix:  "pin another index on one of them (kubectl annotate node NAME lhstorage.io/index=N --overwrite), delete its HostShim and take the address off its shim; the agent then makes it anew",
		look: (*view).sharedPlaces,
	},
	{
		Code: "LHS036", Severity: Warning, Title: "A node's pinned index isn't its own",
		Why: "What the annotation asks for isn't what the node has; after a new start with nothing in its kernel it would be refused, or change its addresses.",
		Fix: "remove the annotation (kubectl annotate node NAME lhstorage.io/index-), or drain the node, delete its HostShim and restart its agent",
		look: func(v *view) []hit {
			return each(v.cluster.HostShims, func(h v1alpha1.HostShim) []hit {
				pinned := v.pinned(h.Spec.Node)
				if pinned == "" || pinned == strconv.Itoa(h.Spec.Index) {
					return nil
				}
				return one("node "+h.Spec.Node, "annotation %s says %s, and HostShim %s has %d", v1alpha1.IndexAnnotation, pinned, h.Name, h.Spec.Index)
			})
		},
	},
	{
		Code: "LHS037", Severity: Error, Title: "Multus doesn't run everywhere",
		Why:  "Pods that start on such a node get no second interface, some without any error: Longhorn then runs over the pod network.",
		Fix:  "kubectl -n NAMESPACE describe the Multus pod that isn't ready",
		look: func(v *view) []hit { return v.incomplete(snapshot.IsMultus) },
	},
	{
		Code: "LHS038", Severity: Warning, Title: "Multus was killed for its memory",
		Why:  "Thick Multus has a limit of 50 Mi by default, its delegates included; many pods that start at once exceed it, and their attachments fail or are forgotten.",
		Fix:  "raise the limit: kubectl -n NAMESPACE set resources daemonset/NAME --limits=memory=256Mi",
		look: func(v *view) []hit { return v.killed() },
	},
}

// incomplete finds DaemonSets of which not all pods are ready.
func (v *view) incomplete(is func(map[string]string) bool) []hit {
	return each(v.cluster.DaemonSets, func(d appsv1.DaemonSet) []hit {
		s := d.Status
		if !is(d.Labels) && !is(d.Spec.Template.Labels) || s.NumberReady >= s.DesiredNumberScheduled && s.DesiredNumberScheduled > 0 {
			return nil
		}
		what := fmt.Sprintf("%d of %d pods are ready", s.NumberReady, s.DesiredNumberScheduled)
		if nodes := v.notReady(d); len(nodes) > 0 {
			what += ": not on " + few(nodes)
		}
		return one("daemonset "+d.Namespace+"/"+d.Name, "%s", what)
	})
}

// notReady are the nodes of a DaemonSet's pods that aren't ready.
func (v *view) notReady(d appsv1.DaemonSet) []string {
	var nodes []string
	for i := range v.cluster.Pods {
		p := &v.cluster.Pods[i]
		same := p.Namespace == d.Namespace && slices.ContainsFunc(p.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "DaemonSet" && o.Name == d.Name })
		if same && !isReady(p) {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return nodes
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

func (v *view) killed() []hit {
	var found []hit
	for i := range v.cluster.Pods {
		p := &v.cluster.Pods[i]
		if !snapshot.IsMultus(p.Labels) {
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			if t := c.LastTerminationState.Terminated; t != nil && t.Reason == "OOMKilled" {
				found = append(found, one("pod "+snapshot.Ref(p), "container %s on node %s was killed %s for its memory (%d restarts)", c.Name, p.Spec.NodeName, t.FinishedAt.UTC().Format("2006-01-02 15:04"), c.RestartCount)...)
			}
		}
	}
	return found
}

// parents are those that nodes need a place on.
func (v *view) parents() []string {
	var names []string
	for _, n := range v.compiled.Networks {
		needs := n.Plan.HostShim != nil || n.Plan.Parent.Type == netconf.ParentVXLAN
		if needs && n.Plan.Parent.Name != "" && !slices.Contains(names, n.Plan.Parent.Name) {
			names = append(names, n.Plan.Parent.Name)
		}
	}
	return names
}

func (v *view) unplaced() []hit {
	if v.absent(snapshot.HostShims) || v.cluster.Denies(snapshot.HostShims) {
		return nil
	}
	return each(v.parents(), func(parent string) []hit {
		shims := v.cluster.Shims(parent)
		return each(v.members(), func(node string) []hit {
			if slices.ContainsFunc(shims, func(h v1alpha1.HostShim) bool { return h.Spec.Node == node }) {
				return nil
			}
			return one("node "+node, "there is no HostShim for it on parent %s", parent)
		})
	})
}

func (v *view) sharedPlaces() []hit {
	var found []hit
	first := map[string]string{}
	claim := func(kind, parent, address, node string) {
		key := parent + " " + address
		if other, ok := first[key]; ok && other != node && address != "" {
			found = append(found, hit{where: "address " + address, what: fmt.Sprintf("nodes %s and %s both have it as their %s on %s", other, node, kind, parent)})
		}
		first[key] = node
	}
	for _, h := range v.cluster.HostShims {
		claim("VTEP", h.Spec.Parent, h.Spec.VTEP, h.Spec.Node)
		for _, n := range h.Spec.Networks {
			for _, a := range n.Addresses {
				claim("shim's address", h.Spec.Parent, string(a), h.Spec.Node)
			}
		}
	}
	return found
}

func (v *view) pinned(node string) string {
	for i := range v.cluster.Nodes {
		if v.cluster.Nodes[i].Name == node {
			return strings.TrimSpace(v.cluster.Nodes[i].Annotations[v1alpha1.IndexAnnotation])
		}
	}
	return ""
}

// vteps are those of a parent's nodes that exist, with the nodes' names; complete says that every member has one.
func (v *view) vteps(parent string) (of map[netip.Addr]string, complete bool) {
	of = map[netip.Addr]string{}
	var placed []string
	for _, h := range v.cluster.Shims(parent) {
		if addr, err := netip.ParseAddr(h.Spec.VTEP); err == nil && v.cluster.HasNode(h.Spec.Node) {
			of[addr] = h.Spec.Node
			placed = append(placed, h.Spec.Node)
		}
	}
	missing := slices.ContainsFunc(v.members(), func(n string) bool { return !slices.Contains(placed, n) })
	return of, !missing && len(of) > 0
}
