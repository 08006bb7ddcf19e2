package controlplane

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
)

// Annotations of the Network Plumbing Working Group's specification.
const (
	NetworksAnnotation      = "k8s.v1.cni.cncf.io/networks"
	NetworkStatusAnnotation = "k8s.v1.cni.cncf.io/network-status"
)

// Resources for [Cluster.Dynamic]: Multus' and whereabouts'.
var (
	NetworkAttachments = schema.GroupVersionResource{Group: "k8s.cni.cncf.io", Version: "v1", Resource: "network-attachment-definitions"}

	whereabouts    = schema.GroupVersion{Group: "whereabouts.cni.cncf.io", Version: "v1alpha1"}
	IPPools        = whereabouts.WithResource("ippools")
	Reservations   = whereabouts.WithResource("overlappingrangeipreservations")
	NodeSlicePools = whereabouts.WithResource("nodeslicepools")
)

// Network is one entry of a pod's networks annotation, as Longhorn writes it.
type Network struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Interface string `json:"interface"`
}

// NetworkStatus is one entry of a pod's network-status annotation, as Multus
// writes it.
type NetworkStatus struct {
	Name      string   `json:"name"` // namespace/name of the NetworkAttachmentDefinition
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	MAC       string   `json:"mac"`
	Default   bool     `json:"default"`
}

// CreateNamespace makes a namespace in which pods can be made.
func (c *Cluster) CreateNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.Kube.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return c.addDefaultServiceAccount(ctx, name)
}

// addDefaultServiceAccount makes what a controller makes in each namespace, and
// without which no pod is admitted.
func (c *Cluster) addDefaultServiceAccount(ctx context.Context, namespace string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	_, err := c.Kube.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	if err := present(err); err != nil {
		return fmt.Errorf("create service account %s/default: %w", namespace, err)
	}
	return nil
}

// CreateNetwork makes a NetworkAttachmentDefinition with the given CNI
// configuration.
func (c *Cluster) CreateNetwork(ctx context.Context, namespace, name, config string) error {
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": NetworkAttachments.GroupVersion().String(),
		"kind":       "NetworkAttachmentDefinition",
		"metadata":   map[string]any{"name": name},
		"spec":       map[string]any{"config": config},
	}}
	if _, err := c.Dynamic.Resource(NetworkAttachments).Namespace(namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create network %s/%s: %w", namespace, name, err)
	}
	return nil
}

// CreatePod makes a Pod object on a node, with the annotation that asks for the
// networks. Nothing is started: see [Node.RunPod].
func (c *Cluster) CreatePod(ctx context.Context, node, namespace, name string, networks ...Network) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			NodeName:                     node,
			AutomountServiceAccountToken: ptr.To(false),
			Containers:                   []corev1.Container{{Name: "pause", Image: "none"}},
		},
	}
	if len(networks) > 0 {
		list, err := json.Marshal(networks)
		if err != nil {
			return nil, err
		}
		pod.Annotations[NetworksAnnotation] = string(list)
	}
	made, err := c.Kube.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create pod %s/%s: %w", namespace, name, err)
	}
	return made, nil
}

// DeletePod removes a Pod object at once, as a kubelet does at the end.
func (c *Cluster) DeletePod(ctx context.Context, namespace, name string) error {
	if err := c.Kube.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		return fmt.Errorf("delete pod %s/%s: %w", namespace, name, err)
	}
	return nil
}
