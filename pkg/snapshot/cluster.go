package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/leak"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// Names of resources in Cluster.Absent.
const (
	Definitions  = "network-attachment-definitions.k8s.cni.cncf.io"
	HostShims    = v1alpha1.HostShimResource + "." + v1alpha1.Group
	Claims       = v1alpha1.AddressClaimResource + "." + v1alpha1.Group
	ProbeReports = v1alpha1.ProbeReportResource + "." + v1alpha1.Group
	Pools        = "ippools.whereabouts.cni.cncf.io"
	Reservations = "overlappingrangeipreservations.whereabouts.cni.cncf.io"
)

// Options say where things are.
type Options struct {
	Longhorn string // namespace; empty: longhorn-system
	Pools    string // namespace of Whereabouts' objects; empty: kube-system
}

const (
	defaultLonghorn = "longhorn-system"
	defaultPools    = metav1.NamespaceSystem
)

// Look reads a cluster. It fails only where the API server can't be asked at all.
func Look(ctx context.Context, api *kubeapi.Client, o Options) (*Cluster, error) {
	return look(ctx, api, o, (*looker).definitions, (*looker).networks, (*looker).pools, (*looker).addresses, (*looker).nodes, (*looker).pods, (*looker).events, (*looker).longhorn, (*looker).harvester)
}

// LookAtPools reads no more than [Snapshot.Fill] needs.
func LookAtPools(ctx context.Context, api *kubeapi.Client, o Options) (*Cluster, error) {
	return look(ctx, api, o, (*looker).definitions, (*looker).pools)
}

func look(ctx context.Context, api *kubeapi.Client, o Options, parts ...func(*looker, context.Context, Options)) (*Cluster, error) {
	if o.Longhorn == "" {
		o.Longhorn = defaultLonghorn
	}
	if o.Pools == "" {
		o.Pools = defaultPools
	}
	l := &looker{api: api, seen: &Cluster{Longhorn: Longhorn{Namespace: o.Longhorn}}}
	for _, part := range parts {
		part(l, ctx, o)
		if l.lost != nil {
			return nil, fmt.Errorf("ask the cluster: %w", api.Explain(l.lost))
		}
	}
	return l.seen, nil
}

// looker reads one cluster.
type looker struct {
	api  *kubeapi.Client
	seen *Cluster
	lost error // the API server doesn't answer: there is no use in going on
}

// list reads all objects of a resource; one that isn't installed, or may not be read, is noted.
func list[T any](ctx context.Context, l *looker, r kubeapi.Resource, keep func(T) (T, bool), opts ...kubeapi.Option) (all []T) {
	if l.lost != nil {
		return nil
	}
	name := r.Plural
	if r.Group != "" {
		name += "." + r.Group
	}
	l.note(name, kubeapi.Each(ctx, l.api, r, func(object T) {
		if kept, ok := keep(object); ok {
			all = append(all, kept)
		}
	}, opts...))
	return all
}

func (l *looker) note(name string, err error) {
	switch {
	case err == nil:
	case apierrors.IsNotFound(err):
		l.seen.Absent = append(l.seen.Absent, name)
	case unanswered(err):
		l.lost = err
	default:
		l.seen.Denied = append(l.seen.Denied, Denial{name, err.Error()})
	}
}

func unanswered(err error) bool {
	return kubeapi.IsUnreachable(err) || apierrors.IsUnauthorized(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func all[T any](object T) (T, bool) { return object, true }

// definitionObject is what is read of a NetworkAttachmentDefinition.
type definitionObject struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Config string `json:"config"`
	} `json:"spec"`
}

func (l *looker) definitions(ctx context.Context, _ Options) {
	definitions := kubeapi.Resource{Group: "k8s.cni.cncf.io", Version: "v1", Plural: "network-attachment-definitions"}
	for _, d := range list(ctx, l, definitions, all[definitionObject]) {
		l.seen.Definitions = append(l.seen.Definitions, agent.Definition{
			Namespace: d.Namespace, Name: d.Name, UID: string(d.UID), Created: d.CreationTimestamp.Time, Config: d.Spec.Config,
		})
	}
}

func (l *looker) networks(ctx context.Context, _ Options) {
	l.seen.HostShims = list(ctx, l, hostclaim.Shims, func(h v1alpha1.HostShim) (v1alpha1.HostShim, bool) {
		h.ManagedFields = nil
		return h, true
	})
	l.seen.ProbeReports = list(ctx, l, probereport.Resource, func(p v1alpha1.ProbeReport) (v1alpha1.ProbeReport, bool) {
		p.ManagedFields = nil
		return p, true
	})
}

func (l *looker) pools(ctx context.Context, o Options) {
	l.seen.Claims = list(ctx, l, kube.Claims, func(c v1alpha1.AddressClaim) (v1alpha1.AddressClaim, bool) {
		c.ManagedFields = nil
		return c, true
	})
	l.seen.Pools = list(ctx, l, kube.Pools(o.Pools), func(p whereabouts.IPPool) (whereabouts.IPPool, bool) {
		p.ManagedFields = nil
		return p, true
	})
}

func (l *looker) addresses(ctx context.Context, o Options) {
	l.seen.Reservations = list(ctx, l, kube.Reservations(o.Pools), func(r whereabouts.OverlappingRangeIPReservation) (whereabouts.OverlappingRangeIPReservation, bool) {
		r.ManagedFields = nil
		return r, true
	})
	var lease kube.Lease
	if err := l.api.Get(ctx, kube.Leases(o.Pools), kube.RecorderLease, &lease); err == nil {
		l.seen.Recorder = &lease
	}
	if len(l.seen.Claims) == 0 || l.lost != nil {
		return
	}
	leaks, err := leak.Read(ctx, l.api)
	l.note("what leaked claims are told by", err)
	l.seen.Leaks = leaks
}

func (l *looker) nodes(ctx context.Context, _ Options) {
	l.seen.Nodes = list(ctx, l, kubeapi.Resource{Version: "v1", Plural: "nodes"}, func(n corev1.Node) (corev1.Node, bool) {
		kept := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, Labels: n.Labels, CreationTimestamp: n.CreationTimestamp}, Spec: n.Spec}
		if index, ok := n.Annotations[v1alpha1.IndexAnnotation]; ok {
			kept.Annotations = map[string]string{v1alpha1.IndexAnnotation: index}
		}
		kept.Status.Addresses, kept.Status.Conditions, kept.Status.NodeInfo = n.Status.Addresses, n.Status.Conditions, n.Status.NodeInfo
		return kept, true
	})
	l.seen.DaemonSets = list(ctx, l, kubeapi.Resource{Group: "apps", Version: "v1", Plural: "daemonsets"}, func(d appsv1.DaemonSet) (appsv1.DaemonSet, bool) {
		kept := appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, Labels: d.Labels}, Status: d.Status}
		kept.Spec.Template.Labels = d.Spec.Template.Labels
		return kept, IsAgent(d.Labels) || IsMultus(d.Labels) || IsMultus(d.Spec.Template.Labels) || d.Namespace == l.seen.Longhorn.Namespace
	})
	l.services(ctx)
}

// services finds the Service networks: told by ServiceCIDR objects (Kubernetes 1.33), else by one address in them.
func (l *looker) services(ctx context.Context) {
	type serviceCIDR struct {
		Spec struct {
			CIDRs []string `json:"cidrs"`
		} `json:"spec"`
	}
	err := kubeapi.Each(ctx, l.api, kubeapi.Resource{Group: "networking.k8s.io", Version: "v1", Plural: "servicecidrs"}, func(s serviceCIDR) {
		l.seen.Services = append(l.seen.Services, s.Spec.CIDRs...)
	})
	if err == nil && len(l.seen.Services) > 0 {
		return
	}
	var kubernetes corev1.Service
	if err := l.api.Get(ctx, kubeapi.Resource{Version: "v1", Plural: "services", Namespace: metav1.NamespaceDefault}, "kubernetes", &kubernetes); err == nil {
		l.seen.Services = append(l.seen.Services, kubernetes.Spec.ClusterIPs...)
	}
}

func (l *looker) pods(ctx context.Context, o Options) {
	l.seen.Pods = list(ctx, l, kubeapi.Resource{Version: "v1", Plural: "pods"}, func(p corev1.Pod) (corev1.Pod, bool) {
		if !wanted(&p, o.Longhorn) {
			return p, false
		}
		return stripPod(&p), true
	})
	l.seen.NetworkPolicies = list(ctx, l, kubeapi.Resource{Group: "networking.k8s.io", Version: "v1", Plural: "networkpolicies", Namespace: o.Longhorn},
		func(p networkingv1.NetworkPolicy) (networkingv1.NetworkPolicy, bool) {
			p.ManagedFields, p.Annotations = nil, nil
			return p, true
		})
}

const eventAge = time.Hour // for which Kubernetes keeps Events, too

// events reads warnings about the pods that are kept.
func (l *looker) events(ctx context.Context, o Options) {
	namespaces, known := map[string]bool{o.Longhorn: true}, map[string]bool{}
	for i := range l.seen.Pods {
		namespaces[l.seen.Pods[i].Namespace] = true
		known[Ref(&l.seen.Pods[i])] = true
	}
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		l.seen.Events = append(l.seen.Events, list(ctx, l, kubeapi.Resource{Version: "v1", Plural: "events", Namespace: namespace}, func(e corev1.Event) (corev1.Event, bool) {
			kept := corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}, InvolvedObject: e.InvolvedObject,
				Reason: e.Reason, Message: e.Message, Type: e.Type, Count: e.Count, LastTimestamp: e.LastTimestamp, EventTime: e.EventTime}
			about := e.InvolvedObject.Kind == "Pod" && known[e.InvolvedObject.Namespace+"/"+e.InvolvedObject.Name]
			return kept, about && e.Type == corev1.EventTypeWarning && l.api.Now().Sub(When(&e)) < eventAge
		})...)
	}
}

// When is the last time that an event was seen.
func When(e *corev1.Event) time.Time {
	if e.LastTimestamp.IsZero() {
		return e.EventTime.Time
	}
	return e.LastTimestamp.Time
}

func (l *looker) longhorn(ctx context.Context, o Options) {
	of := func(plural string) kubeapi.Resource {
		return kubeapi.Resource{Group: "longhorn.io", Version: "v1beta2", Plural: plural, Namespace: o.Longhorn}
	}
	before := len(l.seen.Absent)
	lh := &l.seen.Longhorn
	lh.Settings = list(ctx, l, of("settings"), func(s LonghornSetting) (LonghornSetting, bool) {
		s.ManagedFields, s.Annotations = nil, nil
		return s, slices.Contains([]string{StorageNetworkSetting, RWXNetworkSetting, V2EngineSetting}, s.Name)
	})
	if len(l.seen.Absent) > before {
		l.seen.Absent = l.seen.Absent[:before] // a cluster without Longhorn is none that lacks something
		return
	}
	lh.Installed = true
	lh.Volumes = list(ctx, l, of("volumes"), func(v Volume) (Volume, bool) { v.ManagedFields, v.Annotations = nil, nil; return v, true })
	lh.Engines = list(ctx, l, of("engines"), bare)
	lh.Replicas = list(ctx, l, of("replicas"), bare)
	lh.InstanceManagers = list(ctx, l, of("instancemanagers"), func(m InstanceManager) (InstanceManager, bool) {
		m.ManagedFields, m.Annotations = nil, nil
		return m, true
	})
}

func bare(i Instance) (Instance, bool) {
	i.ManagedFields, i.Annotations = nil, nil
	return i, true
}

func (l *looker) harvester(ctx context.Context, _ Options) {
	var setting HarvesterSetting
	err := l.api.Get(ctx, kubeapi.Resource{Group: "harvesterhci.io", Version: "v1beta1", Plural: "settings"}, StorageNetworkSetting, &setting)
	if err == nil {
		setting.ManagedFields = nil
		l.seen.Harvester = &setting
	}
}
