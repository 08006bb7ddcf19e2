// Package examine is the agent's side of `lhstoragectl verify`: asked by a Verification object, it measures every leg that storage traffic takes from this
// node, looks at what the kernel has, and answers in the object's status. What the answers of all nodes mean together is judged by
// package verify.
//
// A request names no target. Whom to measure follows from the HostShims, the AddressClaims and this node's attachments ([Plan]), and the work is bounded: in
// time, in legs, in packets, to one examination at a time and one every few seconds.
//
// It takes three goes. Small packets go everywhere at once. Packets that fill the MTU and may not be fragmented then go to one node after the other,
// so that the fragments of outer packets which the host makes meanwhile are that node's, and are counted: what the parent sends for what its children
// do tells whether frames go to more than one peer. Last come TCP and HTTP. The agent serves HTTP in its pods' network namespaces, bound to
// their storage addresses, for as long as the other agents may need; no port of the host is opened.
package examine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/probe"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Known is what a node knows of itself and of the others.
type Known struct {
	HostShims   []v1alpha1.HostShim
	Claims      []v1alpha1.AddressClaim
	Attachments []record.Attachment // of this node
	Addresses   []netip.Addr        // the node's own in Kubernetes; where they are is the management device
}

// Examiner measures for one node. It is for one caller at a time.
type Examiner struct {
	Node   string
	Kernel kernel.Kernel // the host's
	Host   probe.In      // runs in the host's network namespace
	Know   func(context.Context) (Known, error)
	Log    *slog.Logger

	stop func() // ends what still serves the other agents
}

// Bounds of an examination.
const (
	longest   = 50 * time.Second
	serveFor  = 20 * time.Second // since the others may have heard later
	maxText   = 256
	maxLegs   = 1024 // in an answer (VerificationStatus.Legs)
	maxPods   = 32   // of this node that are measured
	perNode   = 4    // pods of another node that are measured, of each network
	legsAtOne = 16   // measured at once
)

// Examine measures. What could not be measured is said in the answer.
func (e *Examiner) Examine(ctx context.Context, id string) v1alpha1.VerificationStatus {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	answer, err := e.examine(ctx, id)
	answer.ID, answer.Time, answer.Milliseconds = id, metav1.Now(), time.Since(began).Milliseconds()
	if err != nil {
		answer.Error = cut(err.Error(), 4*maxText)
	}
	return answer
}

func (e *Examiner) examine(ctx context.Context, id string) (v1alpha1.VerificationStatus, error) {
	var answer v1alpha1.VerificationStatus
	known, err := e.Know(ctx)
	if err != nil {
		return answer, fmt.Errorf("find out whom to measure: %w", err)
	}
	r := &run{Examiner: e, known: known, id: id, began: time.Now(), pods: podsOf(known.Attachments)}
	faults := []error{r.serve()}
	answer.Networks, err = r.networks()
	faults = append(faults, err)
	answer.Pods = r.podFacts()
	targets, left := Plan(known, e.Node)
	answer.Left = left
	legs := r.small(ctx, targets)
	faults = append(faults, r.full(ctx, legs, &answer))
	r.talk(ctx, legs)
	r.askNeighbours(ctx, answer.Networks)
	for _, l := range legs {
		answer.Legs = append(answer.Legs, l.VerifiedLeg)
	}
	if ctx.Err() != nil {
		faults = append(faults, fmt.Errorf("not done after %s: what is missing wasn't measured", longest))
	}
	return answer, errors.Join(faults...)
}

// Close ends what still serves the other agents.
func (e *Examiner) Close() {
	if e.stop != nil {
		e.stop()
	}
	e.stop = nil
}

// run is one examination.
type run struct {
	*Examiner
	known Known
	id    string
	began time.Time
	pods  []record.Attachment

	facts map[string]netFacts // by network
	mtu   map[string]int      // of the pods' interfaces, by podKey
	macs  map[string]string
}

// leg is a target, and what came of it.
type leg struct {
	Target
	v1alpha1.VerifiedLeg
}

// podsOf are the attachments that are measured, in the order in which every node would choose them: instance managers first.
func podsOf(all []record.Attachment) []record.Attachment {
	pods := slices.DeleteFunc(slices.Clone(all), func(a record.Attachment) bool { return a.State != record.StateAttached || len(a.Addresses) == 0 })
	slices.SortStableFunc(pods, func(a, b record.Attachment) int { return byImportance(refOf(a), refOf(b)) })
	return pods[:min(len(pods), maxPods)]
}

// refOf names a pod; one that was started without Kubernetes by its container.
func refOf(a record.Attachment) string {
	if a.PodRef == "" {
		return a.ContainerID
	}
	return a.PodRef
}

func podKey(network, pod string) string { return network + " " + pod }

// in runs f where a leg is measured from.
func (r *run) in(t Target, f func() error) error {
	if t.Netns == "" {
		return r.Host(f)
	}
	return ns.WithNetNSPath(t.Netns, func(ns.NetNS) error { return f() })
}

func cut(text string, length int) string { return text[:min(len(text), length)] }
