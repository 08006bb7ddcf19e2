package snapshot

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/nad"
)

// Labels by which pods are known.
const (
	LonghornComponent = "longhorn.io/component"
	LonghornNode      = "longhorn.io/node"
	InstanceManagers  = "instance-manager"
	appName           = "app.kubernetes.io/name"
	agentName         = "lhstorage"
)

// Interface is an entry of a pod's network-status.
type Interface struct {
	Name      string   `json:"name"` // of the network: namespace/name for an additional one
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	Default   bool     `json:"default"`
}

// Addrs are those of the entry's addresses that can be read.
func (i Interface) Addrs() []netip.Addr {
	var list []netip.Addr
	for _, text := range i.IPs {
		if addr, err := ParseAddr(text); err == nil {
			list = append(list, addr)
		}
	}
	return list
}

// ParseAddr reads an address, with or without a prefix length: Longhorn passes on what a network-status says.
func ParseAddr(text string) (netip.Addr, error) {
	text, _, _ = strings.Cut(text, "/")
	return netip.ParseAddr(text)
}

// Interfaces reads a pod's network-status; none where there is no annotation.
func Interfaces(pod *corev1.Pod) ([]Interface, error) {
	for _, key := range []string{nad.StatusAnnotation, nad.LegacyStatusAnnotation} {
		raw := pod.Annotations[key]
		if raw == "" {
			continue
		}
		var list []Interface
		if err := json.Unmarshal([]byte(raw), &list); err != nil {
			return nil, fmt.Errorf("annotation %s of pod %s can't be read: %w", key, Ref(pod), err)
		}
		return list, nil
	}
	return nil, nil
}

// Ref names a pod: namespace/name.
func Ref(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// IsAgent says whether labels are those of lhstorage's agents.
func IsAgent(labels map[string]string) bool { return labels[appName] == agentName }

// IsMultus goes by the labels of Multus' own manifests and of the distributions' (RKE2, k3s, Harvester).
func IsMultus(labels map[string]string) bool {
	for _, key := range []string{"app", "name", "tier", appName, "k8s-app"} {
		if strings.Contains(labels[key], "multus") {
			return true
		}
	}
	return false
}

// IsInstanceManager says whether labels are those of Longhorn's instance managers.
func IsInstanceManager(labels map[string]string) bool {
	return labels[LonghornComponent] == InstanceManagers
}

// Running says whether a pod may carry traffic: it isn't over and isn't being deleted.
func Running(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning
}

func wanted(pod *corev1.Pod, longhorn string) bool {
	asks := pod.Annotations[nad.NetworksAnnotation] != "" || pod.Annotations[nad.StatusAnnotation] != ""
	return asks || pod.Namespace == longhorn || IsAgent(pod.Labels) || IsMultus(pod.Labels)
}

// stripPod keeps what is judged of a pod. Nothing of a container's environment, arguments or volumes is.
func stripPod(pod *corev1.Pod) corev1.Pod {
	kept := corev1.Pod{ObjectMeta: pod.ObjectMeta, Status: pod.Status}
	kept.ManagedFields, kept.Annotations = nil, map[string]string{}
	for _, key := range []string{nad.NetworksAnnotation, nad.StatusAnnotation, nad.LegacyStatusAnnotation} {
		if value, ok := pod.Annotations[key]; ok {
			kept.Annotations[key] = value
		}
	}
	kept.Spec.NodeName, kept.Spec.HostNetwork = pod.Spec.NodeName, pod.Spec.HostNetwork
	return kept
}
