package longhorn

import (
	"context"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/harvester"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// Request is what somebody wants.
type Request struct {
	// Network that Longhorn shall use; the zero value: the pod network.
	Network Ref
	// Config is the configuration that its definition shall have; empty: the definition is there already.
	Config string
	// RWX says whether shared volumes shall use it too; nil: that stays as it is.
	RWX *bool
	// Harvester says that this is Harvester, whose own setting is to be kept in step.
	Harvester bool
	// Ignore are findings that are passed over.
	Ignore []Code
}

// observed is all that preflight judges: read once, and then no call is made any more.
type observed struct {
	journal *Journal

	longhorn bool // its definitions are served
	setting  *setting
	rwx      *setting // whichever this version has

	volumes     []volume
	attachments []attachment
	engines     []instance
	managers    []manager
	nodes       []longhornNode
	images      []backingImage
	backups     []backup
	dataPods    []corev1.Pod
	csiPlugin   bool
	defaults    *corev1.ConfigMap
	users       users

	multus      bool            // network definitions are served
	multusNodes map[string]bool // where Multus runs
	target, now *Network        // as they are
	targetUsers []string        // pods that ask for the target
	whereabouts bool
	shims       []v1alpha1.HostShim
	shimsServed bool
	reports     []v1alpha1.ProbeReport

	harvester *harvester.Object
	monitors  []Workload // on Harvester
	machines  []machine
	vmImages  []vmImage
}

type (
	machine struct {
		metav1.ObjectMeta `json:"metadata"`
		Status            struct {
			Phase string `json:"phase"`
		} `json:"status"`
	}

	vmImage struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			DisplayName string `json:"displayName"`
		} `json:"spec"`
		Status struct {
			Progress   int         `json:"progress"`
			Conditions []condition `json:"conditions"`
		} `json:"status"`
	}
)

var (
	harvesterSettings = kubeapi.Resource{Group: "harvesterhci.io", Version: "v1beta1", Plural: "settings"}
	vmImages          = kubeapi.Resource{Group: "harvesterhci.io", Version: "v1beta1", Plural: "virtualmachineimages"}
	machines          = kubeapi.Resource{Group: "kubevirt.io", Version: "v1", Plural: "virtualmachineinstances"}
)

// reader remembers the first error, so that reading can be written down as a list.
type reader struct {
	*Cluster
	ctx context.Context //nolint:containedctx // it lives as long as one call of observe
	err error
}

func all[T any](r *reader, resource kubeapi.Resource, opts ...kubeapi.Option) (items []T, served bool) {
	if r.err == nil {
		items, served, r.err = list[T](r.ctx, r.Cluster, resource, opts...)
	}
	return items, served
}

func one[T any](r *reader, resource kubeapi.Resource, name string) (object *T) {
	if r.err == nil {
		object, r.err = get[T](r.ctx, r.Cluster, resource, name)
	}
	return object
}

// observe reads what a request is judged by.
func (c *Cluster) observe(ctx context.Context, req Request) (*observed, error) {
	r, o := &reader{Cluster: c, ctx: ctx}, &observed{multusNodes: map[string]bool{}}
	if o.journal, r.err = c.Journal(ctx); IsNoJournal(r.err) {
		r.err = nil
	}
	o.volumes, o.longhorn = all[volume](r, c.longhorn("volumes"))
	o.readLonghorn(r)
	o.readNetwork(r, req)
	o.readHarvester(r, req)
	if r.err == nil {
		o.users, r.err = c.usersOf(ctx, o.volumes)
	}
	return o, r.err
}

func (o *observed) readLonghorn(r *reader) {
	o.setting = one[setting](r, r.longhorn("settings"), settingNetwork)
	for _, name := range []string{settingRWX, settingEndpoint} {
		if o.rwx == nil {
			o.rwx = one[setting](r, r.longhorn("settings"), name)
		}
	}
	o.attachments, _ = all[attachment](r, r.longhorn("volumeattachments"))
	o.engines, _ = all[instance](r, r.longhorn("engines"))
	o.managers, _ = all[manager](r, r.longhorn("instancemanagers"))
	o.nodes, _ = all[longhornNode](r, r.longhorn("nodes"))
	o.images, _ = all[backingImage](r, r.longhorn("backingimages"))
	o.backups, _ = all[backup](r, r.longhorn("backups"))
	o.defaults = one[corev1.ConfigMap](r, r.configMaps(), "longhorn-default-setting")
	o.csiPlugin = one[appsv1.DaemonSet](r, kinds[DaemonSet].resource(r.Namespace), csiPlugin) != nil
	if r.err == nil {
		o.dataPods, r.err = r.dataPods(r.ctx)
	}
}

// csiPlugin is the name of Longhorn's DaemonSet.
const csiPlugin = "longhorn-csi-plugin"

func (o *observed) readNetwork(r *reader, req Request) {
	_, o.multus = all[definition](r, networks(""))
	if r.err == nil && o.multus {
		o.target, r.err = r.network(r.ctx, req.Network)
	}
	if ref, err := ParseRef(o.value()); r.err == nil && o.multus && err == nil {
		o.now, r.err = r.network(r.ctx, ref)
	}
	pods, _ := all[corev1.Pod](r, allPods)
	for i := range pods {
		o.readPod(&pods[i], req.Network)
	}
	_, o.whereabouts = all[metav1.PartialObjectMetadata](r, kube.Pools(metav1.NamespaceAll))
	o.shims, o.shimsServed = all[v1alpha1.HostShim](r, hostclaim.Shims)
	o.reports, _ = all[v1alpha1.ProbeReport](r, probereport.Resource)
}

func (o *observed) readPod(pod *corev1.Pod, target Ref) {
	for _, c := range pod.Spec.Containers {
		if strings.Contains(c.Image, "multus") && podReady(pod) {
			o.multusNodes[pod.Spec.NodeName] = true
		}
	}
	if target.mentioned(pod) {
		o.targetUsers = append(o.targetUsers, pod.Namespace+"/"+pod.Name)
	}
}

// mentioned says whether a pod asks for a network, however that is written.
func (r Ref) mentioned(pod *corev1.Pod) bool {
	if r.None() || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	if strings.Contains(pod.Annotations[nad.StatusAnnotation], `"`+r.String()+`"`) {
		return true
	}
	asked := pod.Annotations[nad.NetworksAnnotation]
	for _, part := range strings.Split(asked, ",") { // the short form
		name, _, _ := strings.Cut(strings.TrimSpace(part), "@")
		if name == r.String() || name == r.Name && pod.Namespace == r.Namespace {
			return true
		}
	}
	return r.asks(asked)
}

func (o *observed) readHarvester(r *reader, req Request) {
	o.harvester = one[harvester.Object](r, harvesterSettings, harvester.StorageNetworkSetting)
	if !req.Harvester {
		return
	}
	o.machines, _ = all[machine](r, machines)
	o.vmImages, _ = all[vmImage](r, vmImages)
	for _, w := range monitors {
		if found := one[scalable](r, kinds[w.Kind].resource(w.Namespace), w.Name); found != nil {
			if w.Replicas = found.replicas(w.Kind); w.Replicas > 0 {
				o.monitors = append(o.monitors, w)
			}
		}
	}
}

// monitors are what Harvester stops, in its order: the chart first, or it would start the others again. Started again they are in
// the opposite order.
var monitors = []Workload{
	{Kind: ManagedChart, Namespace: harvester.FleetNamespace, Name: harvester.MonitoringChart},
	{Kind: Prometheus, Namespace: harvester.MonitoringNamespace, Name: harvester.Prometheus},
	{Kind: Alertmanager, Namespace: harvester.MonitoringNamespace, Name: harvester.Alertmanager},
	{Kind: Deployment, Namespace: harvester.MonitoringNamespace, Name: harvester.Grafana},
	{Kind: Deployment, Namespace: harvester.SystemNamespace, Name: harvester.VMImportController},
}

// value is what Longhorn's setting says.
func (o *observed) value() string {
	if o.setting == nil {
		return ""
	}
	return o.setting.Value
}

// running is all that has to be stopped, in order.
func (o *observed) running() []Workload { return remember(o.monitors, o.users.Workloads) }
