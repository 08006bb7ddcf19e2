package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// RepairLonghorn is the value of --repair that lets the agent delete instance managers.
const RepairLonghorn = "longhorn"

// The label that says which part of Longhorn a pod is.
const (
	longhornComponent = "longhorn.io/component"
	instanceManager   = "instance-manager"
)

const (
	repairsAnHour = 3 // in the whole cluster: what breaks on every node at once, a wrong definition, say, isn't mended by deleting pods

	turnLease    = "lhstorage-repair"              // in Longhorn's namespace: who repairs
	turnTime     = 5 * time.Minute                 // of who repairs, until the next one may, should it be killed over it
	repairedNote = v1alpha1.Group + "/repaired-at" // annotation: when repairs were begun in the last hour, with commas between
)

// turn is this node's to repair.
type turn struct {
	namespace string // of the Lease; empty: it isn't this node's turn
	since     time.Time
}

// repair deletes one of Longhorn's instance managers that lacks its network and runs nothing, so that Longhorn makes it anew. One at a
// time in the whole cluster: the next one when no instance manager of this node is on its way any more. Longhorn may take a moment until it begins, so a
// turn lasts for as long as a pod may be without its networks, at least.
func (w *attachments) repair(ctx context.Context, all []corev1.Pod, lacking []*corev1.Pod) {
	if underWay(all) || time.Since(w.turn.since) < w.options.AttachmentGrace {
		return
	}
	if err := w.endTurn(ctx); err != nil {
		w.log.Warn("the turn to repair instance managers can't be passed on; it ends by itself", "error", err)
	}
	for _, pod := range lacking {
		if pod.Labels[longhornComponent] != instanceManager || pod.Status.Phase != corev1.PodRunning {
			continue
		}
		idle, err := w.idle(ctx, pod)
		if err != nil || !idle {
			w.log.Warn("an instance manager without its network isn't deleted", "pod", pod.Namespace+"/"+pod.Name, "idle", idle, "error", err)
			continue
		}
		switch mine, err := w.takeTurn(ctx, pod.Namespace); {
		case err != nil:
			w.log.Warn("an instance manager without its network isn't deleted yet", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			return
		case !mine:
			w.log.Debug("another node repairs, or there were enough repairs in the last hour", "pod", pod.Namespace+"/"+pod.Name)
			return
		}
		err = w.api.Delete(ctx, kubeapi.Resource{Version: "v1", Plural: "pods", Namespace: pod.Namespace}, pod.Name, string(pod.UID), "")
		if err != nil && !apierrors.IsNotFound(err) {
			w.log.Warn("an instance manager without its network can't be deleted", "pod", pod.Namespace+"/"+pod.Name, "error", w.api.Explain(err))
			return
		}
		w.metrics.attachmentRepairs.Inc()
		w.log.Info("deleted an instance manager that had no storage network and ran no instance", "pod", pod.Namespace+"/"+pod.Name)
		w.event(pod, ReasonAttachmentRepair, "Delete", "the instance manager had no storage network and ran no instance: it was deleted, so that Longhorn makes it anew")
		return
	}
}

// takeTurn makes this node the one that repairs, unless another one does or there have been enough repairs.
func (w *attachments) takeTurn(ctx context.Context, namespace string) (bool, error) {
	leases := kube.Leases(namespace)
	var lease kube.Lease
	err := w.api.Get(ctx, leases, turnLease, &lease)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return false, fmt.Errorf("read Lease %s/%s: %w", namespace, turnLease, w.api.Explain(err))
	}
	next, ok := nextTurn(lease, w.node.NodeName, w.api.Now())
	if !ok {
		return false, nil
	}
	if missing {
		next.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
		next.Name, next.Namespace = turnLease, namespace
		err = w.api.Create(ctx, leases, next, nil)
	} else {
		err = w.api.Update(ctx, leases, turnLease, next, nil)
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return false, nil // another node was quicker
	}
	if err != nil {
		return false, fmt.Errorf("take the turn to repair, Lease %s/%s: %w", namespace, turnLease, w.api.Explain(err))
	}
	w.turn = turn{namespace, time.Now()}
	return true, nil
}

// endTurn lets the next node repair, if this one was to.
func (w *attachments) endTurn(ctx context.Context) error {
	namespace := w.turn.namespace
	w.turn = turn{}
	if namespace == "" {
		return nil
	}
	var lease kube.Lease
	err := w.api.Get(ctx, kube.Leases(namespace), turnLease, &lease)
	if err == nil && lease.Spec.HolderIdentity == w.node.NodeName {
		lease.Spec.HolderIdentity = ""
		err = w.api.Update(ctx, kube.Leases(namespace), turnLease, lease, nil)
	}
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("give up Lease %s/%s: %w", namespace, turnLease, w.api.Explain(err))
}

// nextTurn is the Lease with node's repair in it; false while another node repairs, or when there were enough. An agent that was started anew has
// its node's turn.
func nextTurn(lease kube.Lease, node string, now time.Time) (kube.Lease, bool) {
	began := repairs(lease, now)
	holder := lease.Spec.HolderIdentity
	busy := holder != "" && holder != node && lease.Spec.RenewTime != nil && now.Sub(lease.Spec.RenewTime.Time) < turnTime
	if busy || len(began) >= repairsAnHour {
		return lease, false
	}
	next := lease
	next.Annotations = maps.Clone(lease.Annotations)
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	next.Annotations[repairedNote] = strings.Join(append(began, now.UTC().Format(time.RFC3339)), ",")
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = node, int(turnTime.Seconds()), new(metav1.NewMicroTime(now))
	return next, true
}

// repairs are the times of the last hour's repairs, as they are written.
func repairs(lease kube.Lease, now time.Time) []string {
	return slices.DeleteFunc(strings.Split(lease.Annotations[repairedNote], ","), func(text string) bool {
		at, err := time.Parse(time.RFC3339, text)
		return err != nil || now.Sub(at) > time.Hour
	})
}

// underWay says that an instance manager is ending or starting.
func underWay(all []corev1.Pod) bool {
	for i := range all {
		if all[i].Labels[longhornComponent] == instanceManager && (all[i].DeletionTimestamp != nil || all[i].Status.Phase == corev1.PodPending) {
			return true
		}
	}
	return false
}

// idle says that the InstanceManager object of a pod, which has its name, lists no instance. Longhorn's v1beta2 has three lists
// (types/instancemanager.go: instanceEngines, instanceReplicas, and instances of older versions). An unknown status is not idle.
func (w *attachments) idle(ctx context.Context, pod *corev1.Pod) (bool, error) {
	var object struct {
		metav1.ObjectMeta `json:"metadata"`

		Status *struct {
			Engines   map[string]any `json:"instanceEngines"`
			Replicas  map[string]any `json:"instanceReplicas"`
			Instances map[string]any `json:"instances"`
		} `json:"status"`
	}
	managers := kubeapi.Resource{Group: "longhorn.io", Version: "v1beta2", Plural: "instancemanagers", Namespace: pod.Namespace}
	if err := w.api.Get(ctx, managers, pod.Name, &object); err != nil {
		return false, fmt.Errorf("read InstanceManager %s/%s: %w", pod.Namespace, pod.Name, w.api.Explain(err))
	}
	s := object.Status
	return s != nil && len(s.Engines)+len(s.Replicas)+len(s.Instances) == 0, nil
}
