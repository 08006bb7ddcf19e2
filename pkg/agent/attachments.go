package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/nad"
)

const attachmentsEvery = 10 * time.Second

// Missing lists the networks of ours that a pod asks for and doesn't have, once for each time that it asks.
func Missing(pod *corev1.Pod, ours map[string]bool) ([]string, error) {
	asked, err := asks(pod)
	if err != nil || len(asked) == 0 {
		return nil, err
	}
	var status []struct {
		Name string `json:"name"`
	}
	if raw := pod.Annotations[nad.StatusAnnotation]; raw != "" {
		if err := json.Unmarshal([]byte(raw), &status); err != nil {
			return nil, fmt.Errorf("annotation %s can't be read: %w", nad.StatusAnnotation, err)
		}
	}
	has := map[string]int{}
	for _, s := range status {
		has[s.Name]++
	}
	var missing []string
	for _, ref := range asked {
		switch {
		case !ours[ref]:
		case has[ref] > 0:
			has[ref]--
		default:
			missing = append(missing, ref)
		}
	}
	return missing, nil
}

// asks are the networks that a pod's annotation asks for, as namespace/name. It is a list in JSON, or names with commas
// between them: [namespace/]name[@interface].
func asks(pod *corev1.Pod) ([]string, error) {
	raw := strings.TrimSpace(pod.Annotations[nad.NetworksAnnotation])
	if raw == "" {
		return nil, nil
	}
	var refs []string
	if strings.HasPrefix(raw, "[") {
		var list []struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		}
		if err := json.Unmarshal([]byte(raw), &list); err != nil {
			return nil, fmt.Errorf("annotation %s can't be read: %w", nad.NetworksAnnotation, err)
		}
		for _, n := range list {
			namespace := n.Namespace
			if namespace == "" {
				namespace = pod.Namespace
			}
			refs = append(refs, namespace+"/"+n.Name)
		}
		return refs, nil
	}
	for part := range strings.SplitSeq(raw, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(part), "@")
		if !strings.Contains(name, "/") {
			name = pod.Namespace + "/" + name
		}
		refs = append(refs, name)
	}
	return refs, nil
}

// late says that a pod should have its networks by now.
func late(pod *corev1.Pod, now time.Time, grace time.Duration) bool {
	since := pod.CreationTimestamp.Time
	if pod.Status.StartTime != nil {
		since = pod.Status.StartTime.Time
	}
	over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return !over && !pod.Spec.HostNetwork && pod.DeletionTimestamp == nil && now.Sub(since) > grace
}

// attachments watches over the pods of this node.
type attachments struct {
	*Agent
	told map[string]bool // pods and networks that an Event was written about
	turn turn            // to repair
}

// Run looks every now and then: pods that lack a network are few, and nothing hangs on a second.
func (w *attachments) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if synced(w.watches.pods, w.watches.definitions) {
			w.look(ctx, time.Now())
		}
		pause(ctx, min(attachmentsEvery, w.options.AttachmentGrace))
	}
	return nil
}

func (w *attachments) look(ctx context.Context, now time.Time) {
	var list corev1.PodList
	if err := w.watches.cache.List(ctx, &list); err != nil {
		return // the cache ends with the process
	}
	ours := w.compiled.Load().Ours
	counts, still := map[string]int{}, map[string]bool{}
	var lacking []*corev1.Pod
	for i := range list.Items {
		pod := &list.Items[i]
		missing, err := Missing(pod, ours)
		if err != nil || len(missing) == 0 || !late(pod, now, w.options.AttachmentGrace) {
			continue // what can't be read isn't ours to judge: Multus refuses it, too
		}
		lacking = append(lacking, pod)
		for _, ref := range missing {
			counts[ref]++
			id := string(pod.UID) + " " + ref
			still[id] = true
			if !w.told[id] {
				w.log.Warn("a pod runs without the network it asks for", "pod", pod.Namespace+"/"+pod.Name, "network", ref)
				w.event(pod, ReasonAttachmentMissing, "Watch", "the pod asks for network %s, but its network-status lacks it: it has no interface there; delete the pod, so that it is attached anew", ref)
			}
		}
	}
	w.told = still
	w.metrics.missing.Reset()
	for ref := range ours {
		w.metrics.missing.WithLabelValues(ref).Set(float64(counts[ref]))
	}
	if w.options.Repair == RepairLonghorn {
		w.repair(ctx, list.Items, lacking)
	}
}
