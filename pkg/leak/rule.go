// Package leak finds the claims that no attachment holds any more, and gives them back as a DEL does.
//
// An address leaks where no DEL comes: a node dies, a runtime forgets a sandbox, an ADD is killed and repeated
// with another address. Nothing but the pod, its Node and the pod's network-status tell then. What they say is judged by
// one rule, without I/O, in [Memory.Pass]; a claim is given up only when
//
//   - it was found leaked in two passes in a row, some time apart, and nobody touched it in between;
//   - it isn't young: an ADD may be under way;
//   - it still is what was judged, by UID and resourceVersion, when it is given up: one that a new sandbox took over stays.
//
// All lists are consistent, and claims are read before pods, pods before Nodes: a pod is there before its claim, so a claim whose
// pod is missing from the later list has none.
//
// # What is never collected
//
// A claim that the network-status of a live pod names. A claim of a pod without a network-status: it is still being made, or
// Multus lost its annotation (it does, after the API server was away). A claim of a pod that is being deleted: DEL is
// to come. A quarantine, which ends by itself. A claim without a pod (of a container that somebody made by hand), for as long as
// its Node is there: nobody but the node knows.
//
// # Nodes that are away
//
// A pod may be gone and its containers not: after a forced deletion, while the kubelet can't hear of it. So nothing of
// a node that isn't Ready is collected, unless its Node has the taint node.kubernetes.io/out-of-service, by which people say that it is off.
// A Node that was deleted says less than it seems, for a kubelet that starts anew registers again: it must be missing for a
// grace time, and the pod be missing, too.
//
// # Finished pods
//
// A pod that Succeeded or Failed keeps its object and its network-status. Its phase doesn't say that the sandbox is gone: the
// kubelet reports an eviction before it stops the containers, and the control plane fails the pods of lost nodes. What does
// is the condition PodReadyToStartContainers, which the kubelet sets to False when there is no sandbox (any more). Without it (before
// Kubernetes 1.29) the claim waits until the pod is deleted.
//
// # Whereabouts' objects
//
// Entries and reservations mirror claims, and go before their claim. One without a claim isn't touched: it is a real
// Whereabouts', or of a claim that was lost, and what is missing for a live attachment is no reason to delete the rest.
package leak

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

// Reason says in a word why a claim is leaked; it is a metric's label.
type Reason string

// The reasons.
const (
	Held        Reason = ""             // not leaked, or it can't be told
	PodGone     Reason = "pod-gone"     // there is no pod of that name
	PodReplaced Reason = "pod-replaced" // there is another one of that name
	PodFinished Reason = "pod-finished" // it has ended, and its sandbox is gone
	NodeGone    Reason = "node-gone"    // the node and the pod, if there was one, are gone
	Superseded  Reason = "superseded"   // the pod has another address, by a later ADD
	Unfinished  Reason = "unfinished"   // it was given up, but whoever did that never came to the end
)

// Reasons are all for which claims are collected.
var Reasons = []Reason{PodGone, PodReplaced, PodFinished, NodeGone, Superseded, Unfinished}

// Pod is what is known of a pod.
type Pod struct {
	Node        string
	UIDs        []string // its own, and for a static pod the kubelet's, which is the one that the runtime hears
	Terminating bool     // it is to be deleted
	Finished    bool     // it Succeeded or Failed
	SandboxGone bool     // its kubelet says that there is no sandbox
	Status      []Interface
}

// Interface is an entry of a pod's network-status.
type Interface struct {
	Name      string
	Addresses []netip.Addr
}

// names says whether the network-status has an address.
func (p Pod) names(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Status, func(i Interface) bool { return slices.Contains(i.Addresses, addr) })
}

// follows says whether a claim is for an earlier pod of the same name. Where the runtime told no UID the node must do, for a pod doesn't
// move; but a node file may have another name for the node, so only for a pod whose interfaces are known.
func (p Pod) follows(c v1alpha1.AddressClaim) bool {
	if c.Spec.PodUID != "" {
		return !slices.Contains(p.UIDs, c.Spec.PodUID)
	}
	return p.Node != c.Spec.Node && (p.Finished || len(p.Status) > 0)
}

// Node is what is known of a Node.
type Node struct {
	Away bool // its kubelet isn't heard of, and nobody says that the machine is off
}

// Cluster is the cluster as one pass read it.
type Cluster struct {
	Now    time.Time // the API server's
	Claims []v1alpha1.AddressClaim
	Pods   map[string]Pod // by namespace/name
	Nodes  map[string]Node
}

// Verdict is what is said of a claim.
type Verdict struct {
	Claim  v1alpha1.AddressClaim
	Reason Reason
	Why    string // in words, also why it is held
}

// judgement is a pass's view of one claim.
type judgement struct {
	Settings
	*Cluster
	missing  map[types.UID]time.Duration // of claims whose Node is missing, for how long
	siblings map[interfaceOf][]v1alpha1.AddressClaim
}

// interfaceOf identifies the interface of a pod that claims of a pool are for.
type interfaceOf struct{ podRef, ifName, pool string }

func siblingsOf(c v1alpha1.AddressClaim) interfaceOf {
	return interfaceOf{c.Spec.PodRef, c.Spec.IfName, c.Spec.Pool}
}

// judge is the rule for what follows from one pass alone.
func (j judgement) judge(c v1alpha1.AddressClaim) (Reason, string) {
	age := j.Now.Sub(c.CreationTimestamp.Time)
	switch {
	case c.Spec.Declined != nil:
		return Held, "it is in quarantine"
	case age < j.MinAge:
		return Held, fmt.Sprintf("it is %s old: an ADD may be under way", age.Round(time.Second))
	case c.Spec.Released:
		return Unfinished, "it was given up, but is still there"
	case c.Spec.PodRef == "":
		return j.containers(c)
	}
	pod, exists := j.Pods[c.Spec.PodRef]
	addr, _ := netip.ParseAddr(c.Spec.Address) // nonsense is named by no pod
	switch {
	case !exists:
		return j.unlessAway(c, PodGone, fmt.Sprintf("there is no pod %s", c.Spec.PodRef))
	case !pod.Finished && pod.names(addr):
		return Held, "its pod's network-status names it"
	case pod.follows(c):
		return j.unlessAway(c, PodReplaced, fmt.Sprintf("it is for an earlier pod %s, on node %s", c.Spec.PodRef, c.Spec.Node))
	case pod.Finished && pod.SandboxGone:
		return PodFinished, fmt.Sprintf("pod %s has ended, and its kubelet says that its sandbox is gone", c.Spec.PodRef)
	case pod.Finished:
		return Held, "its pod has ended, but its kubelet doesn't say that the sandbox is gone"
	case pod.Terminating:
		return Held, "its pod is being deleted: its DEL is to come"
	case len(pod.Status) == 0:
		return Held, "its pod has no network-status"
	}
	return j.superseded(c, pod)
}

// containers is the rule for a claim without a pod.
func (j judgement) containers(c v1alpha1.AddressClaim) (Reason, string) {
	if missing, gone := j.missing[c.UID]; gone && missing >= j.NodeGrace {
		return NodeGone, fmt.Sprintf("it is for a container without a pod on node %s, which has been gone for %s", c.Spec.Node, missing.Round(time.Second))
	}
	return Held, "it is for a container without a pod, of which only its node knows"
}

// unlessAway is the reason for a claim whose pod is gone, unless the containers of its node may run on unheard of.
func (j judgement) unlessAway(c v1alpha1.AddressClaim, reason Reason, why string) (Reason, string) {
	missing, gone := j.missing[c.UID]
	switch {
	case gone && missing < j.NodeGrace:
		return Held, fmt.Sprintf("%s, but node %s has been gone for %s only, and may register again", why, c.Spec.Node, missing.Round(time.Second))
	case gone:
		return NodeGone, fmt.Sprintf("%s, and node %s has been gone for %s", why, c.Spec.Node, missing.Round(time.Second))
	case j.Nodes[c.Spec.Node].Away:
		return Held, fmt.Sprintf("%s, but node %s isn't Ready: the sandbox may run on; if the machine is off, taint the Node with node.kubernetes.io/out-of-service", why, c.Spec.Node)
	}
	return reason, why
}

// superseded is the rule for a claim of a live pod that its network-status doesn't name: it is leaked when a later ADD made another
// claim for the same interface from the same pool, and that one is named. An ADD writes its claim, be it new or
// taken over, so the later one has the higher version; were it the other way round, the network-status would be the old one.
func (j judgement) superseded(c v1alpha1.AddressClaim, pod Pod) (Reason, string) {
	for _, i := range pod.Status {
		for _, other := range j.siblings[siblingsOf(c)] {
			addr, err := netip.ParseAddr(other.Spec.Address)
			if err != nil || i.Name != c.Spec.IfName || !slices.Contains(i.Addresses, addr) {
				continue
			}
			if order, err := resourceversion.CompareResourceVersion(other.ResourceVersion, c.ResourceVersion); err == nil && order > 0 {
				return Superseded, fmt.Sprintf("interface %s of pod %s has %s, by a later ADD", c.Spec.IfName, c.Spec.PodRef, other.Spec.Address)
			}
		}
	}
	return Held, "its pod's network-status doesn't name it, but no later claim either"
}
