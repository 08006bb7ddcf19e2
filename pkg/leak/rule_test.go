package leak

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

var (
	times = Settings{Interval: time.Minute, MinAge: 5 * time.Minute, NodeGrace: 10 * time.Minute}
	began = time.Unix(start, 0)
)

// held is a claim of interface net1 of pod ns/a on node n1, an hour old, changed by what is given.
func held(address string, changes ...func(*v1alpha1.AddressClaim)) v1alpha1.AddressClaim {
	c := v1alpha1.AddressClaim{ObjectMeta: metav1.ObjectMeta{
		Name: address, UID: types.UID("of " + address), ResourceVersion: "10", CreationTimestamp: metav1.NewTime(began.Add(-time.Hour)),
	}}
	c.Spec.Address, c.Spec.Pool, c.Spec.Node, c.Spec.ContainerID = address, "pool", "n1", "c1"
	c.Spec.PodRef, c.Spec.PodUID, c.Spec.IfName = "ns/a", "uid1", "net1"
	for _, change := range changes {
		change(&c)
	}
	return c
}

func version(v string) func(*v1alpha1.AddressClaim) {
	return func(c *v1alpha1.AddressClaim) { c.ResourceVersion = v }
}

func of(change func(*v1alpha1.AddressClaimSpec)) func(*v1alpha1.AddressClaim) {
	return func(c *v1alpha1.AddressClaim) { change(&c.Spec) }
}

func aged(age time.Duration) func(*v1alpha1.AddressClaim) {
	return func(c *v1alpha1.AddressClaim) { c.CreationTimestamp = metav1.NewTime(began.Add(-age)) }
}

func onNode(name string) func(*v1alpha1.AddressClaim) {
	return of(func(s *v1alpha1.AddressClaimSpec) { s.Node = name })
}

var (
	released = of(func(s *v1alpha1.AddressClaimSpec) { s.Released = true })
	declined = of(func(s *v1alpha1.AddressClaimSpec) { s.Declined = &v1alpha1.Declined{} })
	noUID    = of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "" })
	byHand   = of(func(s *v1alpha1.AddressClaimSpec) { s.PodRef, s.PodUID = "", "" })
)

// pod is ns/a on node n1 as it is while it lives, with what Multus reported of net1.
func pod(net1 ...string) Pod {
	p := Pod{Node: "n1", UIDs: []string{"uid1"}, Status: []Interface{{"eth0", []netip.Addr{netip.MustParseAddr("10.244.0.9")}}}}
	if len(net1) > 0 {
		p.Status = append(p.Status, reported("net1", net1...))
	}
	return p
}

func reported(name string, addresses ...string) Interface {
	i := Interface{Name: name}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParseAddr(a))
	}
	return i
}

func (p Pod) with(change func(*Pod)) *Pod {
	change(&p)
	return &p
}

func TestRule(t *testing.T) {
	const a, b = "10.0.0.1", "10.0.0.2"
	here, away := map[string]Node{"n1": {}, "n2": {}}, map[string]Node{"n1": {Away: true}, "n2": {}}
	finished := func(p *Pod) { p.Finished = true }
	ended := func(p *Pod) { p.Finished, p.SandboxGone = true, true }
	later := held(b, version("11"))
	for _, c := range []struct {
		name   string
		claim  v1alpha1.AddressClaim
		other  *v1alpha1.AddressClaim // beside it
		pod    *Pod                   // nil: there is none
		nodes  map[string]Node
		after  time.Duration // the first pass; the verdict is of the second one
		reason Reason
		why    string // of what is leaked
	}{
		// The pod lives.
		{name: "it has the address", claim: held(a), pod: new(pod(a)), nodes: here},
		{name: "it has the address, though its node file has another name for the node", claim: held(a, noUID, onNode("n2")), pod: new(pod(a)), nodes: here},
		{name: "it has the address, though its UID is another", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: new(pod(a)), nodes: here},
		{name: "it has both addresses", claim: held(a), other: &later, pod: new(pod(a, b)), nodes: here},
		{name: "Multus has not written of it", claim: held(a), other: &later, pod: &Pod{Node: "n1", UIDs: []string{"uid1"}}, nodes: here},
		{name: "Multus has not written of it, and its node file has another name for the node", claim: held(a, noUID, onNode("n2")), pod: &Pod{Node: "n1", UIDs: []string{"uid1"}}, nodes: here},
		{name: "Multus writes of another interface only", claim: held(a), pod: new(pod()), nodes: here},
		{name: "it is being deleted, and has another address", claim: held(a), other: &later, pod: pod(b).with(func(p *Pod) { p.Terminating = true }), nodes: here},

		// A later ADD has made another claim.
		{name: "an ADD was killed and repeated", claim: held(a), other: &later, pod: new(pod(b)), nodes: here, reason: Superseded, why: "interface net1 of pod ns/a has 10.0.0.2, by a later ADD"},
		{name: "versions are numbers", claim: held(a, version("9")), other: new(held(b)), pod: new(pod(b)), nodes: here, reason: Superseded},
		{name: "the other claim is the older one", claim: held(a, version("12")), other: &later, pod: new(pod(b)), nodes: here},
		{name: "the other claim is of the same version", claim: held(a, version("11")), other: &later, pod: new(pod(b)), nodes: here},
		{name: "versions are nobody's numbers", claim: held(a, version("x")), other: &later, pod: new(pod(b)), nodes: here},
		{name: "the pod has neither", claim: held(a), other: &later, pod: new(pod("10.0.0.3")), nodes: here},
		{name: "the pod has the other's address on another interface", claim: held(a), other: &later, pod: &Pod{Node: "n1", UIDs: []string{"uid1"}, Status: []Interface{reported("net2", b)}}, nodes: here},
		{name: "the other claim is another interface's", claim: held(a), other: new(held(b, version("11"), of(func(s *v1alpha1.AddressClaimSpec) { s.IfName = "net2" }))), pod: new(pod(b)), nodes: here},
		{name: "the other claim is of another pool", claim: held(a), other: new(held(b, version("11"), of(func(s *v1alpha1.AddressClaimSpec) { s.Pool = "pool6" }))), pod: new(pod(b)), nodes: here},
		{name: "the other claim is another pod's", claim: held(a), other: new(held(b, version("11"), of(func(s *v1alpha1.AddressClaimSpec) { s.PodRef = "ns/b" }))), pod: new(pod(b)), nodes: here},
		{name: "the other claim was given up", claim: held(a), other: new(held(b, version("11"), aged(0), released)), pod: new(pod(b)), nodes: here},
		{name: "the other claim is in quarantine", claim: held(a), other: new(held(b, version("11"), declined)), pod: new(pod(b)), nodes: here},
		{name: "the other claim has no address", claim: held(a), other: new(held("nonsense", version("11"))), pod: new(pod(b)), nodes: here},
		{name: "the node isn't heard of, but the pod is", claim: held(a), other: &later, pod: new(pod(b)), nodes: away, reason: Superseded},

		// The pod is gone.
		{name: "no pod", claim: held(a), nodes: here, reason: PodGone, why: "there is no pod ns/a"},
		{name: "no pod, and nonsense for an address", claim: held("nonsense"), nodes: here, reason: PodGone},
		{name: "no pod, but the node isn't heard of", claim: held(a), nodes: away},
		{name: "another pod of the name", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: new(pod(b)), nodes: here, reason: PodReplaced, why: "it is for an earlier pod ns/a, on node n1"},
		{name: "another pod of the name, of which Multus has not written", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: &Pod{Node: "n1", UIDs: []string{"uid1"}}, nodes: here, reason: PodReplaced},
		{name: "another pod of the name, which is being deleted", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: pod().with(func(p *Pod) { p.Terminating = true }), nodes: here, reason: PodReplaced},
		{name: "another pod of the name, but the node isn't heard of", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: new(pod(b)), nodes: away},
		{name: "a pod of the name on another node", claim: held(a, noUID, onNode("n2")), pod: new(pod(b)), nodes: here, reason: PodReplaced},
		{name: "an ended pod of the name on another node", claim: held(a, noUID, onNode("n2")), pod: &Pod{Node: "n1", UIDs: []string{"uid1"}, Finished: true}, nodes: here, reason: PodReplaced},
		{name: "the kubelet's UID of a static pod", claim: held(a), pod: pod(b).with(func(p *Pod) { p.UIDs = []string{"mirror", "uid1"} }), nodes: here},

		// It has ended.
		{name: "its sandbox is gone", claim: held(a), pod: pod(a).with(ended), nodes: here, reason: PodFinished, why: "pod ns/a has ended"},
		{name: "its sandbox may be there", claim: held(a), pod: pod(a).with(finished), nodes: here},
		{name: "its sandbox may be there, though another claim is named", claim: held(a), other: &later, pod: pod(b).with(finished), nodes: here},
		{name: "a pod that lives has no sandbox yet", claim: held(a), pod: pod(b).with(func(p *Pod) { p.SandboxGone = true }), nodes: here},
		{name: "an earlier one has ended, too", claim: held(a, of(func(s *v1alpha1.AddressClaimSpec) { s.PodUID = "uid0" })), pod: pod(a).with(finished), nodes: here, reason: PodReplaced},

		// The node is gone.
		{name: "the node has just gone", claim: held(a, onNode("gone")), nodes: here, after: times.NodeGrace - time.Second},
		{name: "the node is gone", claim: held(a, onNode("gone")), nodes: here, after: times.NodeGrace, reason: NodeGone, why: "there is no pod ns/a, and node gone has been gone for 10m0s"},
		{name: "the node is gone, another pod of the name lives", claim: held(a, noUID, onNode("gone")), pod: new(pod(b)), nodes: here, after: times.NodeGrace, reason: NodeGone},
		{name: "the node is gone, the pod isn't", claim: held(a, onNode("gone")), pod: &Pod{Node: "gone", UIDs: []string{"uid1"}}, nodes: here, after: times.NodeGrace},
		{name: "of no node", claim: held(a, onNode("")), nodes: here, reason: PodGone},

		// A container without a pod.
		{name: "by hand", claim: held(a, byHand), nodes: here, after: times.NodeGrace},
		{name: "by hand, node away", claim: held(a, byHand), nodes: away, after: times.NodeGrace},
		{name: "by hand, node just gone", claim: held(a, byHand, onNode("gone")), nodes: here, after: times.NodeGrace - time.Second},
		{name: "by hand, node gone", claim: held(a, byHand, onNode("gone")), nodes: here, after: times.NodeGrace, reason: NodeGone, why: "a container without a pod on node gone, which has been gone for 10m0s"},
		{name: "by hand, of no node", claim: held(a, byHand, onNode("")), nodes: here, after: times.NodeGrace},

		// Whatever the pod.
		{name: "young", claim: held(a, aged(times.MinAge-time.Second)), nodes: here},
		{name: "not young any more", claim: held(a, aged(times.MinAge)), nodes: here, reason: PodGone},
		{name: "in quarantine", claim: held(a, declined), nodes: here, after: times.NodeGrace},
		{name: "given up just now", claim: held(a, aged(0), released), pod: new(pod(a)), nodes: here},
		{name: "given up, never removed", claim: held(a, released), pod: new(pod(a)), nodes: here, reason: Unfinished, why: "it was given up, but is still there"},
		{name: "given up, never removed, by hand", claim: held(a, byHand, released), nodes: away, reason: Unfinished},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := &Cluster{Now: began, Claims: []v1alpha1.AddressClaim{c.claim}, Nodes: c.nodes, Pods: map[string]Pod{}}
			if c.other != nil {
				seen.Claims = append(seen.Claims, *c.other)
			}
			if c.pod != nil {
				seen.Pods["ns/a"] = *c.pod
			}
			var memory Memory
			_, due := memory.Pass(times, began, seen)
			require.Empty(t, due, "the first pass")
			leaked, _ := memory.Pass(times, began.Add(c.after), seen)
			reason, why := Held, ""
			for _, v := range leaked {
				if v.Claim.Name == c.claim.Name {
					reason, why = v.Reason, v.Why
				}
			}
			assert.Equal(t, c.reason, reason, why)
			assert.Contains(t, why, c.why)
		})
	}
}

// What a claim without an owner becomes over several passes: each sees the claim at a version, or not at all (""), and says whether it is due.
func TestPasses(t *testing.T) {
	type pass struct {
		at      time.Duration
		version string
		node    bool // is there
		leaked  bool
		due     bool
	}
	const minute = time.Minute
	for _, c := range []struct {
		name   string
		passes []pass
	}{
		{"two in a row", []pass{{0, "1", true, true, false}, {minute, "1", true, true, true}}},
		{"it stays due", []pass{{0, "1", true, true, false}, {minute, "1", true, true, true}, {minute + time.Second, "1", true, true, true}}},
		{"too soon after each other", []pass{{0, "1", true, true, false}, {minute/2 - 1, "1", true, true, false}, {minute / 2, "1", true, true, true}}},
		{"somebody touched it", []pass{{0, "1", true, true, false}, {minute, "2", true, true, false}, {minute + minute/2 - 1, "2", true, true, false}, {2 * minute, "2", true, true, true}}},
		{"it was held in between", []pass{{0, "1", true, true, false}, {minute, "", true, false, false}, {2 * minute, "1", true, true, false}, {3 * minute, "1", true, true, true}}},
		{"its node goes", []pass{
			{0, "1", false, false, false}, {10*minute - 1, "1", false, false, false}, {10 * minute, "1", false, true, false}, {11 * minute, "1", false, true, true},
		}},
		{"its node goes, and somebody touches it", []pass{{0, "1", false, false, false}, {9 * minute, "2", false, false, false}, {10 * minute, "2", false, false, false}, {19*minute - 1, "2", false, false, false}, {19 * minute, "2", false, true, false}}},
		{"its node comes back and goes", []pass{{0, "1", false, false, false}, {9 * minute, "1", true, true, false}, {10 * minute, "1", false, false, false}, {19 * minute, "1", false, false, false}, {20 * minute, "1", false, true, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var memory Memory
			for i, p := range c.passes {
				seen := &Cluster{Now: began, Nodes: map[string]Node{}}
				if p.version != "" {
					seen.Claims = []v1alpha1.AddressClaim{held("10.0.0.1", version(p.version))}
				}
				if p.node {
					seen.Nodes["n1"] = Node{}
				}
				leaked, due := memory.Pass(times, began.Add(p.at), seen)
				assert.Equal(t, p.leaked, len(leaked) == 1, "pass %d: leaked", i)
				assert.Equal(t, p.due, len(due) == 1, "pass %d: due", i)
			}
		})
	}
}

// A claim of the name, but another object, is another claim.
func TestAnotherClaimOfTheName(t *testing.T) {
	var memory Memory
	for i, uid := range []types.UID{"first", "second"} {
		c := held("10.0.0.1", func(c *v1alpha1.AddressClaim) { c.UID = uid })
		leaked, due := memory.Pass(times, began.Add(time.Duration(i)*time.Minute), &Cluster{Now: began, Claims: []v1alpha1.AddressClaim{c}, Nodes: map[string]Node{"n1": {}}})
		require.Len(t, leaked, 1)
		require.Empty(t, due)
	}
}

// What is read of the API's objects.
func TestObjects(t *testing.T) {
	for _, c := range []struct {
		name, json string
		want       Pod
	}{
		{"a pod", `{"metadata": {"uid": "u"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}, {"type": "Ready", "status": "False"}]}}`, Pod{Node: "n", UIDs: []string{"u"}}},
		{"a static pod", `{"metadata": {"uid": "u", "annotations": {"kubernetes.io/config.hash": "h"}}}`, Pod{UIDs: []string{"u", "h"}}},
		{"deleted", `{"metadata": {"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}}`, Pod{UIDs: []string{"u"}, Terminating: true}},
		{"failed", `{"metadata": {"uid": "u"}, "status": {"phase": "Failed"}}`, Pod{UIDs: []string{"u"}, Finished: true}},
		{"succeeded, its sandbox gone", `{"metadata": {"uid": "u"}, "status": {"phase": "Succeeded", "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}, {"type": "Ready", "status": "True"}]}}`,
			Pod{UIDs: []string{"u"}, Finished: true, SandboxGone: true}},
		{"with addresses", `{"metadata": {"uid": "u", "annotations": {"k8s.v1.cni.cncf.io/network-status": "[{\"interface\": \"net1\", \"ips\": [\"10.0.0.1\", \"nonsense\", \"fd00::1\"]}]"}}}`,
			Pod{UIDs: []string{"u"}, Status: []Interface{reported("net1", "10.0.0.1", "fd00::1")}}},
		{"a status that can't be read", `{"metadata": {"uid": "u", "annotations": {"k8s.v1.cni.cncf.io/network-status": "["}}}`, Pod{UIDs: []string{"u"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o podObject
			require.NoError(t, json.Unmarshal([]byte(c.json), &o))
			assert.Equal(t, c.want, o.pod())
		})
	}
	for _, c := range []struct {
		name, json string
		away       bool
	}{
		{"ready", `{"status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}}`, false},
		{"not ready", `{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}`, true},
		{"unheard", `{"status": {"conditions": [{"type": "Ready", "status": "Unknown"}, {"type": "NetworkUnavailable", "status": "False"}]}, "spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}}`, true},
		{"said to be off", `{"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}, "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}, {"key": "node.kubernetes.io/unreachable"}]}}`, false},
		{"said to be off, though it is ready", `{"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}}`, false},
	} {
		t.Run("a Node that is "+c.name, func(t *testing.T) {
			var o nodeObject
			require.NoError(t, json.Unmarshal([]byte(c.json), &o))
			assert.Equal(t, Node{Away: c.away}, o.node())
		})
	}
}
