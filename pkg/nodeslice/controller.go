package nodeslice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// networksMark is the annotation of a NodeSlicePool that says which definitions it is for, sorted, with commas. It also says that the pool is
// this package's to remove.
const networksMark = v1alpha1.Group + "/networks"

const (
	definitionVersion = "k8s.cni.cncf.io/v1"
	definitionKind    = "NetworkAttachmentDefinition"
)

// Controller keeps the NodeSlicePools of a cluster. One is enough; two do no harm.
type Controller struct {
	API       *kubeapi.Client
	Namespace string // of Whereabouts' objects; empty: kube-system
	Log       *slog.Logger
}

// Report says how many nodes have no slice, by NodeSlicePool, and what definitions aren't gone by.
type Report struct {
	Without map[string][]string
	Faults  []Fault
}

// object is a NodeSlicePool. Whereabouts' types of v0.8.0 don't have it yet.
type object struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              spec   `json:"spec"`
	Status            status `json:"status"`
}

type spec struct {
	Range     string `json:"range"`
	SliceSize string `json:"sliceSize"`
}

type status struct {
	Allocations []Allocation `json:"allocations"`
}

// Sync makes the NodeSlicePools what definitions and nodes want, and goes on past errors. What somebody else changed
// in the meantime is left for the next time.
func (c *Controller) Sync(ctx context.Context, definitions []Definition, members []string, live map[string]bool) (Report, error) {
	networks, faults := Networks(definitions)
	report := Report{Without: map[string][]string{}, Faults: faults}
	have := map[string]object{}
	err := kubeapi.Each(ctx, c.API, c.pools(), func(o object) { have[o.Name] = o })
	switch {
	case apierrors.IsNotFound(err) && len(networks) == 0: // Whereabouts' kinds aren't there, and nobody wants them
		return report, nil
	case err != nil:
		return report, fmt.Errorf("list NodeSlicePools in %s: %w", c.pools().Namespace, c.API.Explain(err))
	}
	var errs []error
	wanted := map[string]bool{}
	for _, n := range networks {
		wanted[n.Name] = true
		old, there := have[n.Name]
		without, err := c.sync(ctx, n, old, there, members, live)
		report.Without[n.Name] = without
		errs = append(errs, err)
	}
	for name, o := range have {
		if o.Annotations[networksMark] != "" && !wanted[name] && !faulty(o, faults) {
			errs = append(errs, c.remove(ctx, o))
		}
	}
	return report, errors.Join(errs...)
}

// faulty says whether a definition of a pool is there, but can't be gone by: then the pool stays as it is.
func faulty(o object, faults []Fault) bool {
	refs := strings.Split(o.Annotations[networksMark], ",")
	return slices.ContainsFunc(faults, func(f Fault) bool { return slices.Contains(refs, f.Ref()) })
}

func (c *Controller) pools() kubeapi.Resource {
	return kube.Slices(cmp.Or(c.Namespace, metav1.NamespaceSystem))
}

// sync makes or changes one pool.
func (c *Controller) sync(ctx context.Context, n Network, old object, there bool, members []string, live map[string]bool) (without []string, err error) {
	var have *State
	if there {
		have = &State{old.Spec.Range, old.Spec.SliceSize, old.Status.Allocations}
	}
	inUse := func(a Allocation) bool {
		used, e := c.inUse(ctx, n, a)
		err = errors.Join(err, e)
		return used
	}
	want, without := Plan(have, n, Nodes{members, live, inUse})
	if err != nil {
		return without, err
	}
	if !there {
		return without, c.create(ctx, n, want)
	}
	return without, c.change(ctx, n, old, want)
}

// inUse says whether something is claimed of the slice of a node that has left.
func (c *Controller) inUse(ctx context.Context, n Network, a Allocation) (bool, error) {
	slice, err := netip.ParsePrefix(a.SliceRange)
	if err != nil {
		return false, nil //nolint:nilerr // nothing can be claimed of it
	}
	pool, err := n.whole.Sliced(a.NodeName, slice)
	if err != nil {
		return false, nil //nolint:nilerr // nothing can be claimed of it
	}
	var claims v1alpha1.AddressClaimList
	if err := c.API.List(ctx, kube.Claims, &claims, kubeapi.Labelled(v1alpha1.LabelPool, v1alpha1.LabelValue(pool.Name))); err != nil {
		return true, fmt.Errorf("list the claims of slice %s, whose node %s has left: %w", a.SliceRange, a.NodeName, c.API.Explain(err))
	}
	return len(claims.Items) > 0, nil
}

func (c *Controller) create(ctx context.Context, n Network, want State) error {
	namespace := c.pools().Namespace
	o := object{
		TypeMeta: metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "NodeSlicePool"},
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, Namespace: namespace, OwnerReferences: owners(n, namespace), Annotations: map[string]string{networksMark: marks(n)},
		},
		Spec: spec{want.Range, want.SliceSize}, Status: status{want.Allocations},
	}
	err := c.API.Create(ctx, c.pools(), o, nil)
	switch {
	case apierrors.IsAlreadyExists(err): // somebody was quicker
		return nil
	case err != nil:
		return fmt.Errorf("make NodeSlicePool %s/%s: %w", namespace, n.Name, c.API.Explain(err))
	}
	c.Log.Info("divided a range among nodes", "nodeslicepool", n.Name, "range", want.Range, "size", want.SliceSize, "slices", len(want.Allocations))
	return nil
}

// change patches a pool that is as it was read.
func (c *Controller) change(ctx context.Context, n Network, old object, want State) error {
	ops := changes(n, old, want)
	if len(ops) == 0 {
		return nil
	}
	ops = append([]kubeapi.Op{kubeapi.Test("/metadata/uid", string(old.UID)), kubeapi.Test("/metadata/resourceVersion", old.ResourceVersion)}, ops...)
	err := c.API.Patch(ctx, c.pools(), old.Name, ops, nil)
	if apierrors.IsInvalid(err) || apierrors.IsConflict(err) { // a failed test, or a refusal
		var now object
		if getErr := c.API.Get(ctx, c.pools(), old.Name, &now); apierrors.IsNotFound(getErr) || getErr == nil && now.ResourceVersion != old.ResourceVersion {
			return nil
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("change NodeSlicePool %s/%s: %w", old.Namespace, old.Name, c.API.Explain(err))
	}
	return nil
}

// changes are what differs.
func changes(n Network, old object, want State) (ops []kubeapi.Op) {
	if (old.Spec != spec{want.Range, want.SliceSize}) {
		ops = append(ops, kubeapi.Add("/spec", spec{want.Range, want.SliceSize}))
	}
	if !slices.Equal(old.Status.Allocations, want.Allocations) {
		ops = append(ops, kubeapi.Add("/status", status{want.Allocations}))
	}
	if refs := owners(n, old.Namespace); !equality.Semantic.DeepEqual(old.OwnerReferences, refs) {
		ops = append(ops, kubeapi.Add("/metadata/ownerReferences", refs))
	}
	switch {
	case old.Annotations[networksMark] == marks(n):
	case old.Annotations == nil:
		ops = append(ops, kubeapi.Add("/metadata/annotations", map[string]string{networksMark: marks(n)}))
	default:
		ops = append(ops, kubeapi.Add("/metadata/annotations/"+kubeapi.Escape(networksMark), marks(n)))
	}
	return ops
}

func (c *Controller) remove(ctx context.Context, o object) error {
	err := c.API.Delete(ctx, c.pools(), o.Name, string(o.UID), o.ResourceVersion)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("remove NodeSlicePool %s/%s, which no network wants any more: %w", o.Namespace, o.Name, c.API.Explain(err))
	}
	c.Log.Info("removed a NodeSlicePool, which no network wants any more", "nodeslicepool", o.Name, "networks", o.Annotations[networksMark])
	return nil
}

// marks names a network's definitions.
func marks(n Network) string {
	var refs []string
	for _, d := range n.Owners {
		refs = append(refs, d.Ref())
	}
	slices.Sort(refs)
	return strings.Join(refs, ",")
}

// owners are the definitions that own a pool in a namespace; the oldest one controls it, as Whereabouts has it.
func owners(n Network, namespace string) []metav1.OwnerReference {
	refs := []metav1.OwnerReference{}
	for _, d := range n.Owners {
		if d.Namespace != namespace || d.UID == "" {
			continue
		}
		ref := metav1.OwnerReference{APIVersion: definitionVersion, Kind: definitionKind, Name: d.Name, UID: types.UID(d.UID)}
		if len(refs) == 0 {
			ref.Controller, ref.BlockOwnerDeletion = new(true), new(true)
		}
		refs = append(refs, ref)
	}
	return refs
}
