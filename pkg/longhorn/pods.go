package longhorn

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nad"
)

// touchEvery is how often Longhorn's setting is touched while pods are wrong: after three tries within a blink longhorn-manager
// looks again only hourly, or when the object changes.
const touchEvery = 15 * time.Second

// annotationTouched is what is changed then.
const annotationTouched = "lhstorage.io/touched"

// waitPods waits until each pod of the data plane is as it must be.
func (s *Switch) waitPods(ctx context.Context) error {
	wanted := s.journal.Wanted()
	shape := read(wanted.Name, wanted.Config)
	touched, began := time.Now(), s.API.Now()
	return s.wait(ctx, s.Timeouts.Pods, "Longhorn's pods are on "+wanted.words(), func(ctx context.Context) ([]string, error) {
		open, err := s.openPods(ctx, wanted.Ref, shape, began)
		if err == nil {
			var rolling []string
			rolling, err = s.openCSI(ctx, wanted.Ref)
			open = append(open, rolling...)
		}
		if err == nil && len(open) > 0 && time.Since(touched) > min(touchEvery, 5*s.Timeouts.Poll) {
			touched = time.Now()
			err = s.touch(ctx)
		}
		return open, err
	})
}

// openPods says which pods aren't as they must be, with the last warnings about each.
func (s *Switch) openPods(ctx context.Context, ref Ref, shape shape, began time.Time) ([]string, error) {
	pods, err := s.dataPods(ctx)
	if err != nil {
		return nil, err
	}
	managers, _, err := list[manager](ctx, s.Cluster, s.longhorn("instancemanagers"))
	if err != nil {
		return nil, err
	}
	nodes, _, err := list[longhornNode](ctx, s.Cluster, s.longhorn("nodes"))
	if err != nil {
		return nil, err
	}
	open := append(unwell(ref, shape, pods, managers), withoutPod(nodes, pods)...)
	if len(open) == 0 {
		return nil, nil
	}
	events, _, err := list[corev1.Event](ctx, s.Cluster, kubeapi.Resource{Version: "v1", Plural: "events", Namespace: s.Namespace})
	return append(open, warnings(events, pods, managers, began)...), err
}

// openCSI says in what the pods of Longhorn's CSI plugin, which mount shared volumes, aren't as the setting for these wants them: Longhorn writes the
// network into their DaemonSet, whose pods are then made anew.
func (s *Switch) openCSI(ctx context.Context, wanted Ref) ([]string, error) {
	ref, err := s.sharedNetwork(ctx, wanted)
	if err != nil || ref.None() && s.journal.RWX == nil {
		return nil, err
	}
	set, err := get[appsv1.DaemonSet](ctx, s.Cluster, kinds[DaemonSet].resource(s.Namespace), csiPlugin)
	if set == nil {
		return nil, err
	}
	return unrolled(set, ref), nil
}

// sharedNetwork is the network of shared volumes by whichever setting this version has, where the other one says wanted.
func (c *Cluster) sharedNetwork(ctx context.Context, wanted Ref) (Ref, error) {
	on, err := c.setting(ctx, settingRWX)
	switch {
	case err != nil:
		return Ref{}, err
	case on != nil && on.Value == "true":
		return wanted, nil
	case on != nil:
		return Ref{}, nil
	}
	named, err := c.setting(ctx, settingEndpoint)
	if err != nil || named == nil {
		return Ref{}, err
	}
	return ParseRef(named.Value)
}

// unrolled says in what a DaemonSet's pods aren't all on a network yet.
func unrolled(set *appsv1.DaemonSet, ref Ref) []string {
	status := set.Status
	switch {
	case !ref.asks(set.Spec.Template.Annotations[nad.NetworksAnnotation]):
		return []string{fmt.Sprintf("DaemonSet %s isn't told yet that shared volumes are on %s", set.Name, ref.words())}
	case status.ObservedGeneration < set.Generation:
		return []string{fmt.Sprintf("DaemonSet %s has changed, and its pods aren't made anew yet", set.Name)}
	case status.UpdatedNumberScheduled < status.DesiredNumberScheduled || status.NumberAvailable < status.DesiredNumberScheduled:
		return []string{fmt.Sprintf("DaemonSet %s: of %d pods %d are made anew and %d available (kubectl -n %s get pods -l app=%s -o wide)",
			set.Name, status.DesiredNumberScheduled, status.UpdatedNumberScheduled, status.NumberAvailable, set.Namespace, set.Name)}
	}
	return nil
}

// unwell says what is wrong with pods for a network, and which instance managers don't run.
func unwell(ref Ref, shape shape, pods []corev1.Pod, managers []manager) (texts []string) {
	for i := range pods {
		if text := wrong(ref, shape, &pods[i]); text != "" {
			texts = append(texts, fmt.Sprintf("pod %s on %s %s", pods[i].Name, pods[i].Spec.NodeName, text))
		}
	}
	for _, m := range managers {
		if m.DeletionTimestamp == nil && m.Status.State != "running" {
			texts = append(texts, fmt.Sprintf("instance manager %s is %q", m.Name, m.Status.State))
		}
	}
	return texts
}

// wrong says what is wrong with a pod; empty: nothing.
func wrong(ref Ref, shape shape, pod *corev1.Pod) string {
	if asked := pod.Annotations[nad.NetworksAnnotation]; !ref.asks(asked) {
		if ref.None() {
			return "still asks for " + asked + ": Longhorn hasn't made it anew yet"
		}
		return fmt.Sprintf("doesn't ask for %s yet: Longhorn hasn't made it anew", ref)
	}
	if !ref.None() {
		addr, err := ref.storageAddress(pod.Annotations[nad.StatusAnnotation])
		switch {
		case err != nil && !podReady(pod):
			return "isn't Ready: " + string(pod.Status.Phase)
		case err != nil:
			return fmt.Sprintf("runs without the network: %v; delete the pod, it is made anew", err)
		case !shape.holds(addr):
			return fmt.Sprintf("has the address %s, which isn't one of %s for pods: which network is that?", addr, shape.rangesText())
		}
	}
	if !podReady(pod) {
		return "isn't Ready: " + string(pod.Status.Phase)
	}
	return ""
}

// withoutPod says which ready nodes have no instance manager.
func withoutPod(nodes []longhornNode, pods []corev1.Pod) (texts []string) {
	for _, n := range nodes {
		ready := slices.ContainsFunc(n.Status.Conditions, func(c condition) bool { return c.Type == "Ready" && c.Status == "True" })
		has := slices.ContainsFunc(pods, func(p corev1.Pod) bool {
			return p.Labels[labelComponent] == componentInstance && cmp.Or(p.Labels[labelNode], p.Spec.NodeName) == n.Name
		})
		if ready && !has {
			texts = append(texts, fmt.Sprintf("node %s has no instance manager yet", n.Name))
		}
	}
	return texts
}

// warnings are what was said about pods that aren't Ready, the last of each reason: why a sandbox can't be made, for example, which another warning must
// not hide. An instance manager whose pod can't start is an error to longhorn-manager, which makes the pod anew under the same name every few
// seconds: what was said of those before, since began, counts as well.
func warnings(events []corev1.Event, pods []corev1.Pod, managers []manager, began time.Time) (texts []string) {
	ailing := map[string]types.UID{}
	for _, m := range managers {
		if m.Status.State != "running" {
			ailing[m.Name] = ""
		}
	}
	for i := range pods {
		if !podReady(&pods[i]) {
			ailing[pods[i].Name] = pods[i].UID
		}
	}
	last := map[string]map[string]corev1.Event{} // by pod and reason
	for _, e := range events {
		pod := e.InvolvedObject
		uid, ails := ailing[pod.Name]
		if e.Type != corev1.EventTypeWarning || pod.Kind != "Pod" || !ails || pod.UID != uid && e.LastTimestamp.Time.Before(began) {
			continue
		}
		if last[pod.Name] == nil {
			last[pod.Name] = map[string]corev1.Event{}
		}
		if !e.LastTimestamp.Before(ptr.To(last[pod.Name][e.Reason].LastTimestamp)) {
			last[pod.Name][e.Reason] = e
		}
	}
	for _, pod := range slices.Sorted(maps.Keys(last)) {
		for _, reason := range slices.Sorted(maps.Keys(last[pod])) {
			texts = append(texts, fmt.Sprintf("pod %s: %s: %s", pod, reason, strings.TrimSpace(last[pod][reason].Message)))
		}
	}
	return texts
}

// touch makes longhorn-manager look at its setting again.
func (c *Cluster) touch(ctx context.Context) error {
	now, err := c.setting(ctx, settingNetwork)
	if err != nil || now == nil {
		return err
	}
	at := time.Now().UTC().Format(time.RFC3339Nano)
	op := kubeapi.Add("/metadata/annotations/"+kubeapi.Escape(annotationTouched), at)
	if now.Annotations == nil {
		op = kubeapi.Add("/metadata/annotations", map[string]string{annotationTouched: at})
	}
	if err := c.API.Patch(ctx, c.longhorn("settings"), settingNetwork, []kubeapi.Op{op}, nil); err != nil {
		return fmt.Errorf("make longhorn-manager look at its setting again: %w", err)
	}
	return nil
}

// unattached says which of the volumes that were in use aren't any more.
func unattached(wanted []string, volumes []volume) (texts []string) {
	for _, v := range volumes {
		if slices.Contains(wanted, v.Name) && v.Status.State != "attached" {
			texts = append(texts, fmt.Sprintf("volume %s is %s: what used it may still be starting (`kubectl get pods -A`)", v.Name, cmp.Or(v.Status.State, "unknown")))
		}
	}
	return texts
}

// misplacedOf says which engines and replicas use another network than they should. That they have an address proves nothing: for
// a pod without the network Longhorn takes the pod's own.
func misplacedOf(instances []instance, ref Ref, shape shape) (texts []string) {
	for _, i := range instances {
		if i.Status.State != "running" || ref.None() {
			continue
		}
		addr, err := netip.ParseAddr(i.Status.StorageIP)
		if err != nil || !shape.holds(addr) {
			texts = append(texts, fmt.Sprintf("%s of volume %s uses the address %q, which isn't one of %s for pods: its pod started without %s", i.Name, i.Spec.Volume, i.Status.StorageIP, cmp.Or(shape.rangesText(), ref.String()), storageInterface))
		}
	}
	return texts
}
