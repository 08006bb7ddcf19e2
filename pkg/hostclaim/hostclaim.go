// Package hostclaim claims a node's place on a parent in the cluster: its index, and the VTEP and shim
// addresses that follow from it.
//
// A place is a HostShim object named `<parent>-<index>`: creating it is what claims the index. What a node
// holds already in its kernel it claims exactly so, whatever the order in which nodes come; a node that has its
// object keeps that; only a fresh node takes the lowest free index. What another node has is refused, naming both.
// The object of a node that has left is taken over after an hour, and only when nothing answers there any more. [Claimer.Sweep] removes
// it by the same rule before a fresh node needs it.
package hostclaim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// Shims are the cluster's places.
var Shims = kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: v1alpha1.HostShimResource}

var nodes = kubeapi.Resource{Version: "v1", Plural: "nodes"}

// Grace is how long the place of a node that has left is kept for it.
const Grace = time.Hour

// goneAnnotation of a HostShim says since when its node has been missed.
const goneAnnotation = v1alpha1.Group + "/node-gone"

// tries bounds how often a place is chosen anew because another node was quicker: as many nodes may
// join at once.
const tries = 300

// Claimer claims places for one node.
type Claimer struct {
	API       *kubeapi.Client
	Node      nodefile.File
	MachineID string                                 // content of /etc/machine-id; empty: not known
	Answers   func(context.Context, netip.Addr) bool // whether anything answers at an address

	// Known is what watches have told, false where they haven't yet; nil: nothing is watched. It may be a little old, so a place is
	// found by it only when there is nothing to claim; whatever is written is decided by what the API server says then.
	Known func(parent string) (Snapshot, bool)
}

// Snapshot is the cluster as watches have told it.
type Snapshot struct {
	Index    string               // the Node's annotation, see [v1alpha1.IndexAnnotation]
	Internal []netip.Addr         // the Node's InternalIPs
	Shims    []*v1alpha1.HostShim // of the parent; not to be changed
}

// Answer is a node's place and its peers.
type Answer struct {
	Index     int          `json:"index"`
	Addresses []netip.Addr `json:"addresses"` // of the host shim, one for each host range
	VTEP      netip.Addr   `json:"vtep,omitzero"`
	Peers     []netip.Addr `json:"peers"` // VTEPs of the parent's other nodes, sorted

	// Kubernetes are the Node's InternalIPs: the node must leave them where they are.
	Kubernetes []netip.Addr `json:"kubernetes,omitempty"`
}

// Claim finds or makes the node's place on the parent of plan's network. seen is what its kernel has, last what
// was answered before. Errors have code 7 where people must decide, 11 where the cluster can't be asked.
func (c *Claimer) Claim(ctx context.Context, plan *netconf.Plan, seen place.Seen, last place.Place) (Answer, error) {
	if plan.Parent.Name == "" {
		return Answer{}, cnierr.New(cnierr.InvalidConfig, "network %q: the parent's name isn't known, so there is no place on it to claim; set parent.name", plan.Name)
	}
	if answer, ok := c.settled(plan, seen); ok {
		return answer, nil
	}
	var object nodeObject
	pinned, err := c.pinned(ctx, &object)
	if err != nil {
		return Answer{}, err
	}
	seen.Kubernetes = object.internal()
	for range tries {
		all, err := c.list(ctx, plan.Parent.Name)
		if err != nil {
			return Answer{}, err
		}
		answer, err := c.try(ctx, plan, pinned, seen, last, all)
		if !errors.Is(err, errAgain) {
			answer.Kubernetes = seen.Kubernetes
			return answer, err
		}
	}
	return Answer{}, cnierr.New(cnierr.TryAgain, "claim a place on %s for node %s: other nodes were quicker %d times; the runtime may try again", plan.Parent.Name, c.Node.NodeName, tries)
}

// settled is the answer where watches know the node's object as it must be.
func (c *Claimer) settled(plan *netconf.Plan, seen place.Seen) (Answer, bool) {
	if c.Known == nil {
		return Answer{}, false
	}
	known, ok := c.Known(plan.Parent.Name)
	if !ok {
		return Answer{}, false
	}
	var own, others []*v1alpha1.HostShim
	for _, h := range known.Shims {
		if h.Spec.Node == c.Node.NodeName {
			own = append(own, h)
		} else {
			others = append(others, h)
		}
	}
	pinned, err := c.pin(known.Index)
	if len(own) != 1 || err != nil {
		return Answer{}, false
	}
	seen.Kubernetes = known.Internal
	last := placeOf(own[0], plan.Name)
	if place.Index(plan, pinned, seen, last) == 0 {
		return Answer{}, false
	}
	want, err := place.Resolve(plan, pinned, seen, last)
	if err != nil || taken(c.Node.NodeName, plan, want, own, others) != nil || !kept(own[0], c.object(plan, want, own[0])) {
		return Answer{}, false // the API server's word counts, and the error is then from there
	}
	a := answer(plan, want, others)
	a.Kubernetes = known.Internal
	return a, true
}

// errAgain says that the places have changed since they were listed.
var errAgain = errors.New("the places have changed meanwhile")

// pinned is the node file with the index that the Node's annotation gives. It reads the Node into object.
func (c *Claimer) pinned(ctx context.Context, object *nodeObject) (nodefile.File, error) {
	file := c.Node
	err := c.API.Get(ctx, nodes, file.NodeName, object)
	switch {
	case apierrors.IsNotFound(err):
		return file, cnierr.New(cnierr.InvalidConfig, "there is no Node %q: nodeName in the node file must be this node's name in the cluster", file.NodeName)
	case err != nil:
		return file, fmt.Errorf("read Node %s: %w", file.NodeName, c.API.Explain(err))
	}
	return c.pin(object.Metadata.Annotations[v1alpha1.IndexAnnotation])
}

// pin is the node file with the index that an annotation gives, if it gives one.
func (c *Claimer) pin(text string) (nodefile.File, error) {
	file := c.Node
	if text == "" {
		return file, nil
	}
	index, err := strconv.Atoi(text)
	switch {
	case err != nil || index < 1:
		return file, cnierr.New(cnierr.InvalidConfig, "Node %s: annotation %s is %q, but must be a number from 1", file.NodeName, v1alpha1.IndexAnnotation, text)
	case file.Index != 0 && file.Index != index:
		return file, cnierr.New(cnierr.InvalidConfig, "node %s is pinned to index %d by its annotation %s and to %d by its node file: leave one of them out", file.NodeName, index, v1alpha1.IndexAnnotation, file.Index)
	}
	file.Index = index
	return file, nil
}

// nodeObject is what is read of a Node.
type nodeObject struct {
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

// internal are the addresses by which the cluster reaches a node.
func (n nodeObject) internal() (list []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if addr := parse(a.Address); a.Type == "InternalIP" && addr.IsValid() {
			list = append(list, addr)
		}
	}
	return list
}

func (c *Claimer) list(ctx context.Context, parent string) ([]*v1alpha1.HostShim, error) {
	var list v1alpha1.HostShimList
	if err := c.API.List(ctx, Shims, &list, kubeapi.Labelled(v1alpha1.LabelParent, v1alpha1.LabelValue(parent))); err != nil {
		return nil, fmt.Errorf("list the places on %s: %w", parent, c.API.Explain(err))
	}
	var shims []*v1alpha1.HostShim
	for i := range list.Items {
		if list.Items[i].Spec.Parent == parent {
			shims = append(shims, &list.Items[i])
		}
	}
	return shims, nil
}

// try claims a place, given all that there are; errAgain when they have changed.
func (c *Claimer) try(ctx context.Context, plan *netconf.Plan, node nodefile.File, seen place.Seen, last place.Place, all []*v1alpha1.HostShim) (Answer, error) {
	own, others, err := c.split(ctx, all)
	if err != nil {
		return Answer{}, err
	}
	if err := c.giveWay(ctx, own, others); err != nil {
		return Answer{}, err
	}
	if len(own) > 0 {
		last = placeOf(own[0], plan.Name)
	}
	var want place.Place
	if place.Index(plan, node, seen, last) == 0 {
		want, err = c.fresh(ctx, plan, node, seen, others)
	} else {
		want, err = place.Resolve(plan, node, seen, last)
	}
	if err != nil {
		return Answer{}, err
	}
	if err := taken(node.NodeName, plan, want, own, others); err != nil {
		return Answer{}, err
	}
	if err := c.keep(ctx, plan, want, own); err != nil {
		return Answer{}, err
	}
	return answer(plan, want, others), nil
}

// split tells the node's own objects from the others', its own newest first. It has more than one when it was killed while
// it moved to another index. Its own are those of its name, or, after it was renamed, of its machine id where no live Node has
// that object's name.
func (c *Claimer) split(ctx context.Context, all []*v1alpha1.HostShim) (own, others []*v1alpha1.HostShim, err error) {
	renamed := !slices.ContainsFunc(all, func(h *v1alpha1.HostShim) bool { return h.Spec.Node == c.Node.NodeName })
	for _, h := range all {
		mine := h.Spec.Node == c.Node.NodeName
		if renamed && c.MachineID != "" && h.Spec.MachineID == c.MachineID {
			lives, err := c.lives(ctx, h.Spec.Node)
			if err != nil {
				return nil, nil, err
			}
			mine = !lives
		}
		if mine {
			own = append(own, h)
		} else {
			others = append(others, h)
		}
	}
	slices.SortFunc(own, func(a, b *v1alpha1.HostShim) int {
		if older(a, b) {
			return 1
		}
		return -1
	})
	return own, others, nil
}

// older says which of two objects was there first: of two nodes that claimed the same address at the same moment, under
// different indexes, that one has it.
func older(a, b *v1alpha1.HostShim) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}

// giveWay removes an object of this node that has an address which an older one of another node has too; the error is errAgain
// then. What the node holds in its kernel it goes on holding, and is told whose it is.
func (c *Claimer) giveWay(ctx context.Context, own, others []*v1alpha1.HostShim) error {
	for _, o := range own {
		for _, h := range others {
			if !older(h, o) || !shareAddress(h, o) {
				continue
			}
			if err := c.remove(ctx, o); err != nil {
				return err
			}
			return errAgain
		}
	}
	return nil
}

func shareAddress(a, b *v1alpha1.HostShim) bool {
	theirs := addresses(b)
	return slices.ContainsFunc(addresses(a), func(addr netip.Addr) bool { return slices.Contains(theirs, addr) })
}

// remove removes an object of this node.
func (c *Claimer) remove(ctx context.Context, h *v1alpha1.HostShim) error {
	err := c.API.Delete(ctx, Shims, h.Name, string(h.UID), "")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove HostShim %s, which is no place of this node any more: %w", h.Name, c.API.Explain(err))
	}
	return nil
}

// lives says whether there is a Node of that name.
func (c *Claimer) lives(ctx context.Context, node string) (bool, error) {
	err := c.API.Get(ctx, nodes, node, nil)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read Node %s: %w", node, c.API.Explain(err))
	}
	return true, nil
}

// fresh is the place of a node that has none: the index that its VTEP stands for, if it has one, else the
// lowest that is free together with what follows from it; if there is none, that of a node which left long ago. What answers is not
// free, though nobody has claimed it: a node that a script set up claims its place with its first pod.
func (c *Claimer) fresh(ctx context.Context, plan *netconf.Plan, node nodefile.File, seen place.Seen, others []*v1alpha1.HostShim) (place.Place, error) {
	vtep, wish := place.Held(plan, seen)
	if err := taken(node.NodeName, plan, place.Place{VTEP: vtep}, nil, others); err != nil {
		return place.Place{}, err // at every index
	}
	var words []string
	try := func(index int) (want place.Place, free bool, err error) {
		node.Index = index
		if want, err = place.Resolve(plan, node, seen, place.Place{}); err != nil || taken(node.NodeName, plan, want, nil, others) != nil {
			return want, false, err
		}
		addr := c.answering(ctx, want, seen)
		if addr.IsValid() {
			words = append(words, fmt.Sprintf("index %d is nobody's, but %s answers: is it of a node that a script set up, and that has had no pod yet?", index, addr))
		}
		return want, !addr.IsValid(), nil
	}
	if wish != 0 {
		if want, free, err := try(wish); err == nil && free {
			return want, nil
		}
	}
	for index := 1; ; index++ {
		want, free, err := try(index)
		switch {
		case err != nil && index > 1: // beyond a range
			return c.reuse(ctx, plan, others, words)
		case err != nil || free:
			return want, err
		}
	}
}

// answering is an address of a place at which another device answers; invalid if none does.
func (c *Claimer) answering(ctx context.Context, want place.Place, seen place.Seen) netip.Addr {
	asked := slices.DeleteFunc(append(slices.Clone(want.Shim), want.VTEP), func(a netip.Addr) bool {
		return !a.IsValid() || slices.Contains(seen.Local, a)
	})
	answers := make([]bool, len(asked))
	var group sync.WaitGroup
	for i, addr := range asked {
		group.Go(func() { answers[i] = c.Answers(ctx, addr) })
	}
	group.Wait()
	if i := slices.Index(answers, true); i >= 0 {
		return asked[i]
	}
	return netip.Addr{}
}

// reuse removes the object of a node that left long ago, so that its place is free; the error is
// errAgain then, else says what there is, after words.
func (c *Claimer) reuse(ctx context.Context, plan *netconf.Plan, all []*v1alpha1.HostShim, words []string) (place.Place, error) {
	for _, h := range all {
		lives, err := c.lives(ctx, h.Spec.Node)
		if err != nil {
			return place.Place{}, err
		}
		if lives {
			if err := c.returned(ctx, h); err != nil {
				return place.Place{}, err
			}
			continue
		}
		why, err := c.free(ctx, h)
		if err != nil {
			return place.Place{}, err
		}
		words = append(words, why)
	}
	hint := "no node has left"
	if len(words) > 0 {
		hint = strings.Join(words, "; ")
	}
	return place.Place{}, cnierr.New(cnierr.InvalidConfig, "all %d places on %s that the host range and the VTEP range have are taken (%s): widen hostShim.range and parent.vtep.cidr, or delete the HostShim of a node that won't come back",
		len(all), plan.Parent.Name, hint)
}

// free removes an object whose node is gone, if it has been gone for long and nothing answers; the error is errAgain
// then. Else it says why not.
func (c *Claimer) free(ctx context.Context, h *v1alpha1.HostShim) (why string, err error) {
	since, err := c.missed(ctx, h)
	if err != nil {
		return "", err
	}
	if left := Grace - c.API.Now().Sub(since); left > 0 {
		return fmt.Sprintf("index %d of node %s, which is gone, is kept for another %s", h.Spec.Index, h.Spec.Node, left.Round(time.Second)), nil
	}
	if addr := c.answerer(ctx, h); addr.IsValid() {
		return fmt.Sprintf("index %d of node %s, which is gone, can't be reused: %s still answers", h.Spec.Index, h.Spec.Node, addr), nil
	}
	if err := c.removeGone(ctx, h); err != nil {
		return "", err
	}
	return "", errAgain
}

// taken is the refusal of a place of which another node has a part. An object of this node for it that was there first is a
// claim already: the other one gives way.
func taken(node string, plan *netconf.Plan, want place.Place, own, others []*v1alpha1.HostShim) error {
	var faults []error
	at := slices.IndexFunc(own, func(o *v1alpha1.HostShim) bool { return o.Spec.Index == want.Index })
	for _, h := range others {
		if at >= 0 && older(own[at], h) {
			continue
		}
		var parts []string
		if h.Spec.Index == want.Index {
			parts = append(parts, fmt.Sprintf("index %d", want.Index))
		}
		if want.VTEP.IsValid() && parse(h.Spec.VTEP) == want.VTEP {
			parts = append(parts, "VTEP "+want.VTEP.String())
		}
		for _, addr := range want.Shim {
			if slices.Contains(placeOf(h, plan.Name).Shim, addr) {
				parts = append(parts, "address "+addr.String())
			}
		}
		if len(parts) > 0 {
			faults = append(faults, fmt.Errorf("%s is node %s's (HostShim %s)", strings.Join(parts, " and "), h.Spec.Node, h.Name))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return cnierr.New(cnierr.InvalidConfig, "node %s can't have its place on %s: %w; give one of the nodes another address, or, if that node won't come back, delete its HostShim",
		node, plan.Parent.Name, errors.Join(faults...))
}

// keep makes the node's object what it must be, and removes those of its former places. After a claim was made the error is
// errAgain: whether somebody claimed the same addresses under another index shows when all are listed once more.
func (c *Claimer) keep(ctx context.Context, plan *netconf.Plan, want place.Place, all []*v1alpha1.HostShim) error {
	name := Name(plan.Parent.Name, want.Index)
	i := slices.IndexFunc(all, func(h *v1alpha1.HostShim) bool { return h.Name == name })
	if i < 0 {
		var former *v1alpha1.HostShim
		if len(all) > 0 {
			former = all[0]
		}
		return c.create(ctx, c.object(plan, want, former))
	}
	for _, h := range all {
		if h.Name == name {
			continue
		}
		if err := fault.At("hostclaim.move"); err != nil {
			return err
		}
		if err := c.remove(ctx, h); err != nil {
			return err
		}
	}
	own := all[i]
	object := c.object(plan, want, own)
	if kept(own, object) {
		return nil
	}
	ops := []kubeapi.Op{kubeapi.Add("/spec", object.Spec), kubeapi.Add("/metadata/labels/"+kubeapi.Escape(v1alpha1.LabelNode), object.Labels[v1alpha1.LabelNode])}
	if Marks(own) {
		ops = append(ops, kubeapi.Remove("/metadata/annotations/"+kubeapi.Escape(goneAnnotation)))
	}
	return c.patch(ctx, own, ops)
}

// create claims an index; the error is errAgain, whoever was the first.
func (c *Claimer) create(ctx context.Context, object *v1alpha1.HostShim) error {
	err := c.API.Create(ctx, Shims, object, nil)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("claim HostShim %s: %w", object.Name, c.API.Explain(err))
	}
	if err := fault.At("hostclaim.created"); err != nil {
		return err
	}
	return errAgain
}

// kept says that a node's object is as it must be.
func kept(own, object *v1alpha1.HostShim) bool {
	return own.Name == object.Name && equal(own.Spec, object.Spec) && own.Labels[v1alpha1.LabelNode] == object.Labels[v1alpha1.LabelNode] && !Marks(own)
}

// patch changes an object that is as it was read; errAgain when it isn't.
func (c *Claimer) patch(ctx context.Context, h *v1alpha1.HostShim, ops []kubeapi.Op) error {
	err := c.API.Patch(ctx, Shims, h.Name, append([]kubeapi.Op{kubeapi.Test("/metadata/resourceVersion", h.ResourceVersion)}, ops...), nil)
	switch {
	case err == nil:
		return nil
	case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		return errAgain
	case apierrors.IsInvalid(err): // a failed test, or a refusal
		var now v1alpha1.HostShim
		if getErr := c.API.Get(ctx, Shims, h.Name, &now); getErr == nil && now.ResourceVersion != h.ResourceVersion {
			return errAgain
		}
	}
	return fmt.Errorf("change HostShim %s: %w", h.Name, c.API.Explain(err))
}

func annotate(h *v1alpha1.HostShim, key, value string) []kubeapi.Op {
	if h.Annotations == nil {
		return []kubeapi.Op{kubeapi.Add("/metadata/annotations", map[string]string{key: value})}
	}
	return []kubeapi.Op{kubeapi.Add("/metadata/annotations/"+kubeapi.Escape(key), value)}
}

// answer is what the node is told.
func answer(plan *netconf.Plan, want place.Place, others []*v1alpha1.HostShim) Answer {
	a := Answer{Index: want.Index, Addresses: want.Shim, VTEP: want.VTEP, Peers: []netip.Addr{}}
	if a.Addresses == nil {
		a.Addresses = []netip.Addr{}
	}
	for _, h := range others {
		if vtep := parse(h.Spec.VTEP); vtep.IsValid() && vtep != want.VTEP && plan.Parent.Type == netconf.ParentVXLAN {
			a.Peers = append(a.Peers, vtep)
		}
	}
	slices.SortFunc(a.Peers, netip.Addr.Compare)
	a.Peers = slices.Compact(a.Peers)
	return a
}

func parse(text string) netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// addresses are all that a node has on its parent.
func addresses(h *v1alpha1.HostShim) []netip.Addr {
	var list []netip.Addr
	if vtep := parse(h.Spec.VTEP); vtep.IsValid() {
		list = append(list, vtep)
	}
	for _, n := range h.Spec.Networks {
		list = append(list, placeOf(h, n.Name).Shim...)
	}
	return list
}

func equal(a, b v1alpha1.HostShimSpec) bool {
	sameNetwork := func(x, y v1alpha1.ShimNetwork) bool {
		return x.Name == y.Name && slices.Equal(x.Addresses, y.Addresses)
	}
	return a.Node == b.Node && a.MachineID == b.MachineID && a.VTEP == b.VTEP && a.Address == b.Address && cmp.Compare(a.Index, b.Index) == 0 && slices.EqualFunc(a.Networks, b.Networks, sameNetwork)
}
