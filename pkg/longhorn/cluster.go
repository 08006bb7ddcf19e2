package longhorn

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// DefaultNamespace is where Longhorn is, unless it was installed with care to be elsewhere.
const DefaultNamespace = "longhorn-system"

// Longhorn's settings that this package changes.
const (
	settingNetwork = "storage-network"
	// settingRWX puts shared volumes on the storage network (1.7 to 1.10).
	settingRWX = "storage-network-for-rwx-volume-enabled"
	// settingEndpoint names the network of shared volumes (from 1.11 on).
	settingEndpoint = "endpoint-network-for-rwx-volume"
)

// Labels of Longhorn's pods.
const (
	labelComponent = "longhorn.io/component"
	labelNode      = "longhorn.io/node"

	componentInstance = "instance-manager"
	componentImage    = "backing-image-manager"
)

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	managedBy      = "lhstoragectl"
)

// Cluster is a cluster with Longhorn.
type Cluster struct {
	API       *kubeapi.Client
	Namespace string // Longhorn's
}

func (c *Cluster) longhorn(plural string) kubeapi.Resource {
	return kubeapi.Resource{Group: "longhorn.io", Version: "v1beta2", Plural: plural, Namespace: c.Namespace}
}

func networks(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: "k8s.cni.cncf.io", Version: "v1", Plural: "network-attachment-definitions", Namespace: namespace}
}

var allPods = kubeapi.Resource{Version: "v1", Plural: "pods"}

// What is read of Longhorn's objects.
type (
	setting struct {
		metav1.ObjectMeta `json:"metadata"`
		Value             string `json:"value"`
	}

	volume struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Image string `json:"image"`
		} `json:"spec"`
		Status struct {
			State            string `json:"state"`
			Robustness       string `json:"robustness"`
			Node             string `json:"currentNodeID"`
			CurrentImage     string `json:"currentImage"`
			MigrationNode    string `json:"currentMigrationNodeID"`
			RestoreRequired  bool   `json:"restoreRequired"`
			Expansion        bool   `json:"expansionRequired"`
			KubernetesStatus struct {
				Namespace string `json:"namespace"`
				PVC       string `json:"pvcName"`
				LastPVC   string `json:"lastPVCRefAt"` // not empty: the claim is history
			} `json:"kubernetesStatus"`
		} `json:"status"`
	}

	attachment struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Volume  string            `json:"volume"`
			Tickets map[string]ticket `json:"attachmentTickets"`
		} `json:"spec"`
	}

	ticket struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Node string `json:"nodeID"`
	}

	// instance is an engine or a replica.
	instance struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Volume string `json:"volumeName"`
		} `json:"spec"`
		Status struct {
			State     string                     `json:"currentState"`
			StorageIP string                     `json:"storageIP"`
			Expanding bool                       `json:"isExpanding"`
			Rebuild   map[string]json.RawMessage `json:"rebuildStatus"`
			Restore   map[string]json.RawMessage `json:"restoreStatus"`
		} `json:"status"`
	}

	manager struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Engine string `json:"dataEngine"`
		} `json:"spec"`
		Status struct {
			State string `json:"currentState"`
		} `json:"status"`
	}

	longhornNode struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Disks map[string]struct{} `json:"disks"`
		} `json:"spec"`
		Status struct {
			Conditions []condition `json:"conditions"`
		} `json:"status"`
	}

	backingImage struct {
		metav1.ObjectMeta `json:"metadata"`
		Status            struct {
			Files map[string]struct {
				State    string `json:"state"`
				Progress int    `json:"progress"`
			} `json:"diskFileStatusMap"`
		} `json:"status"`
	}

	backup struct {
		metav1.ObjectMeta `json:"metadata"`
		Status            struct {
			State  string `json:"state"`
			Volume string `json:"volumeName"`
		} `json:"status"`
	}

	// condition is as Kubernetes' are, but its times may be empty.
	condition struct {
		Type    string `json:"type"`
		Status  string `json:"status"`
		Message string `json:"message"`
	}

	definition struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Config string `json:"config"`
		} `json:"spec"`
	}
)

// list reads all objects of a kind; of a kind that isn't served, none.
func list[T any](ctx context.Context, c *Cluster, r kubeapi.Resource, opts ...kubeapi.Option) (items []T, served bool, err error) {
	err = kubeapi.Each(ctx, c.API, r, func(item T) { items = append(items, item) }, opts...)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list %s: %w", r.Plural, err)
	}
	return items, true, nil
}

// get reads an object; one that isn't there is nil.
func get[T any](ctx context.Context, c *Cluster, r kubeapi.Resource, name string) (*T, error) {
	var object T
	err := c.API.Get(ctx, r, name, &object)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // that is how absence is said here
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", r.Plural, name, err)
	}
	return &object, nil
}

func (c *Cluster) setting(ctx context.Context, name string) (*setting, error) {
	return get[setting](ctx, c, c.longhorn("settings"), name)
}

// network reads a NetworkAttachmentDefinition; nil: it isn't there.
func (c *Cluster) network(ctx context.Context, ref Ref) (*Network, error) {
	if ref.None() {
		return nil, nil //nolint:nilnil // the pod network has no definition
	}
	d, err := get[definition](ctx, c, networks(ref.Namespace), ref.Name)
	if d == nil {
		return nil, err
	}
	return &Network{Ref: ref, Config: d.Spec.Config, Labels: d.Labels, Annotations: d.Annotations}, nil
}

// dataPods are the pods that Longhorn puts on the storage network; those on their way out don't count.
func (c *Cluster) dataPods(ctx context.Context) ([]corev1.Pod, error) {
	r := allPods
	r.Namespace = c.Namespace
	pods, _, err := list[corev1.Pod](ctx, c, r, kubeapi.Selected(labelComponent+" in ("+componentInstance+","+componentImage+")"))
	return slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), err
}

// holders are the volumes that aren't detached, and who holds them.
func (c *Cluster) holders(ctx context.Context) ([]holder, error) {
	volumes, served, err := list[volume](ctx, c, c.longhorn("volumes"))
	if err != nil {
		return nil, err
	}
	if !served {
		return nil, fmt.Errorf("longhorn's volumes are not served any more: is its installation being changed? Nothing is done until they are")
	}
	attachments, _, err := list[attachment](ctx, c, c.longhorn("volumeattachments"))
	if err != nil {
		return nil, err
	}
	return holdersOf(volumes, attachments), nil
}
