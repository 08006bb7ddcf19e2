package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/nad"
)

var (
	definitionKind = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"}
	hostShimKind   = v1alpha1.GroupVersion.WithKind(v1alpha1.HostShimKind)
)

// newScheme knows the objects that the agent reads.
func newScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(scheme) // fails for a scheme that knows them otherwise, and this one is new
	scheme.AddKnownTypes(v1alpha1.GroupVersion, &v1alpha1.HostShim{}, &v1alpha1.HostShimList{})
	metav1.AddToGroupVersion(scheme, v1alpha1.GroupVersion)
	return scheme
}

// newMapper says which resources these objects are. Asked of the API server it would take calls, memory, and the API server.
func newMapper(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	mapper.Add(hostShimKind, meta.RESTScopeRoot)
	definitions := definitionKind.GroupVersion()
	mapper.AddSpecific(definitionKind, definitions.WithResource("network-attachment-definitions"), definitions.WithResource("network-attachment-definition"), meta.RESTScopeNamespace)
	return mapper, nil
}

func definitionObjects() *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(definitionKind)
	return object
}

// cacheOptions bound what is kept in memory: of pods this node's, and of everything the few fields that are read.
func cacheOptions(node string) cache.Options {
	yes := true
	return cache.Options{
		DefaultUnsafeDisableDeepCopy: &yes, // nothing that is read is changed
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:        {Field: fields.OneTermEqualSelector("spec.nodeName", node), Transform: stripPod},
			&corev1.Node{}:       {Transform: stripNode},
			&v1alpha1.HostShim{}: {Transform: cache.TransformStripManagedFields()},
			definitionObjects():  {Transform: cache.TransformStripManagedFields()},
		},
	}
}

func stripPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	kept := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp, Annotations: map[string]string{},
	}}
	for _, key := range []string{nad.NetworksAnnotation, nad.StatusAnnotation} {
		if value, ok := pod.Annotations[key]; ok {
			kept.Annotations[key] = value
		}
	}
	if value, ok := pod.Labels[longhornComponent]; ok {
		kept.Labels = map[string]string{longhornComponent: value}
	}
	kept.Spec.HostNetwork, kept.Status.Phase, kept.Status.StartTime = pod.Spec.HostNetwork, pod.Status.Phase, pod.Status.StartTime
	return kept, nil
}

func stripNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	kept := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Labels: node.Labels}}
	if index, ok := node.Annotations[v1alpha1.IndexAnnotation]; ok {
		kept.Annotations = map[string]string{v1alpha1.IndexAnnotation: index}
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			kept.Status.Addresses = append(kept.Status.Addresses, a)
		}
	}
	return kept, nil
}

// watches are the cluster as informers know it. Until one of them has its first list it is as if it weren't there: an agent
// that starts with the API server away goes by what is on disk.
type watches struct {
	cache   cache.Cache
	node    string
	members labels.Selector // the Nodes that take part

	definitions, hostShims, nodes, pods toolscache.SharedIndexInformer
}

// watch begins to watch; changed is called for what may matter to the node's network.
func (w *watches) watch(ctx context.Context, changed func()) error {
	for _, of := range []struct {
		object client.Object
		into   *toolscache.SharedIndexInformer
		tell   bool
	}{
		{definitionObjects(), &w.definitions, true}, {&v1alpha1.HostShim{}, &w.hostShims, true},
		{&corev1.Node{}, &w.nodes, true}, {&corev1.Pod{}, &w.pods, false},
	} {
		informer, err := w.cache.GetInformer(ctx, of.object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", of.object, err)
		}
		var ok bool
		if *of.into, ok = informer.(toolscache.SharedIndexInformer); !ok {
			return fmt.Errorf("watch %T: the informer is a %T, whose store can't be read", of.object, informer)
		}
		if !of.tell {
			continue
		}
		if _, err := informer.AddEventHandler(notifier(changed)); err != nil {
			return fmt.Errorf("watch %T: %w", of.object, err)
		}
	}
	return nil
}

// notifier passes on changes in substance: kubelet writes its Node every few minutes, agents write the status of their HostShim.
func notifier(changed func()) toolscache.ResourceEventHandlerFuncs {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() }, DeleteFunc: func(any) { changed() },
		UpdateFunc: func(before, after any) {
			if !sameSubstance(before, after) {
				changed()
			}
		},
	}
}

func sameSubstance(before, after any) bool {
	switch old := before.(type) {
	case *corev1.Node:
		now, ok := after.(*corev1.Node)
		return ok && maps.Equal(old.Labels, now.Labels) && maps.Equal(old.Annotations, now.Annotations) && slices.Equal(old.Status.Addresses, now.Status.Addresses)
	case *v1alpha1.HostShim:
		now, ok := after.(*v1alpha1.HostShim)
		return ok && old.Generation == now.Generation && old.UID == now.UID && maps.Equal(old.Labels, now.Labels) && maps.Equal(old.Annotations, now.Annotations)
	default:
		return false
	}
}

func synced(informers ...cache.Informer) bool {
	return !slices.ContainsFunc(informers, func(i cache.Informer) bool { return i == nil || !i.HasSynced() })
}

// networks are the definitions; false when they aren't known yet.
func (w *watches) networks(ctx context.Context) ([]Definition, bool) {
	if !synced(w.definitions) {
		return nil, false
	}
	all, err := w.listDefinitions(ctx)
	return all, err == nil
}

// listDefinitions waits for the first list.
func (w *watches) listDefinitions(ctx context.Context) ([]Definition, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(definitionKind.GroupVersion().WithKind(definitionKind.Kind + "List"))
	if err := w.cache.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list network definitions: %w", err)
	}
	var all []Definition
	for i := range list.Items {
		object := &list.Items[i]
		config, _, _ := unstructured.NestedString(object.Object, "spec", "config") // none: Multus reads it from the node's disk, and it isn't ours
		all = append(all, Definition{object.GetNamespace(), object.GetName(), string(object.GetUID()), object.GetCreationTimestamp().UTC(), config})
	}
	slices.SortFunc(all, func(a, b Definition) int { return cmp.Compare(a.Ref(), b.Ref()) })
	return all, nil
}

// snapshot implements hostclaim.Claimer's Known.
func (w *watches) snapshot(parent string) (hostclaim.Snapshot, bool) {
	if !synced(w.hostShims, w.nodes) {
		return hostclaim.Snapshot{}, false
	}
	var own corev1.Node
	if err := w.cache.Get(context.Background(), client.ObjectKey{Name: w.node}, &own); err != nil {
		return hostclaim.Snapshot{}, false
	}
	s := hostclaim.Snapshot{Index: own.Annotations[v1alpha1.IndexAnnotation], Shims: w.shims(parent)}
	for _, a := range own.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil {
			s.Internal = append(s.Internal, addr)
		}
	}
	return s, true
}

// stored are the objects that an informer has, by no means to be changed. A List of the cache would copy each of a thousand, at every pass.
func stored[T any](informer toolscache.SharedIndexInformer) (objects []*T) {
	for _, object := range informer.GetStore().List() {
		if o, ok := object.(*T); ok {
			objects = append(objects, o)
		}
	}
	return objects
}

// shims are the HostShims of a parent.
func (w *watches) shims(parent string) []*v1alpha1.HostShim {
	return slices.DeleteFunc(stored[v1alpha1.HostShim](w.hostShims), func(h *v1alpha1.HostShim) bool { return h.Spec.Parent != parent })
}

// peers judges the VTEPs of a parent's HostShims: those of nodes that have left, which are no peers though their place is kept for
// them, and whether every Node that takes part has its place, so that a flood entry which belongs to none of them belongs to nobody.
func (w *watches) peers(parent string) (departed map[netip.Addr]bool, complete bool) {
	if !synced(w.hostShims, w.nodes) {
		return nil, false
	}
	return judge(stored[corev1.Node](w.nodes), w.shims(parent), w.members)
}

func judge(nodes []*corev1.Node, shims []*v1alpha1.HostShim, members labels.Selector) (departed map[netip.Addr]bool, complete bool) {
	waiting := make(map[string]bool, len(nodes)) // by name of each: whether it has no place yet
	for _, n := range nodes {
		waiting[n.Name] = members.Matches(labels.Set(n.Labels))
	}
	departed = map[netip.Addr]bool{}
	for _, h := range shims {
		if _, lives := waiting[h.Spec.Node]; lives {
			waiting[h.Spec.Node] = false
		} else if vtep, err := netip.ParseAddr(h.Spec.VTEP); err == nil {
			departed[vtep] = true
		}
	}
	for _, without := range waiting {
		if without {
			return departed, false
		}
	}
	return departed, true
}
