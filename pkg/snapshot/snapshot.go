// Package snapshot reads what is known of a cluster's storage networks, and of the node that a program runs on, into plain values.
//
// It is the one place that people's commands (status, doctor, report) observe with: what they say of it is judged without
// I/O. Nothing is changed. A part that can't be read (a resource that isn't installed, a right that is lacking) is left out, and
// Absent or Denied say so.
//
// A snapshot holds no credential: Secrets are never asked for, and of pods, Nodes and DaemonSets only those fields are kept that
// somebody judges; a container's environment isn't among them.
package snapshot

import (
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/leak"
)

// Snapshot is what was seen.
type Snapshot struct {
	Time    time.Time `json:"time"`              // the API server's, else this machine's
	Cluster *Cluster  `json:"cluster,omitempty"` // nil: no cluster was asked
	Local   *Local    `json:"local,omitempty"`   // nil: no node was looked at
}

// Cluster is what the API server knows.
type Cluster struct {
	Absent []string `json:"absent,omitempty"` // resources that aren't installed, as plural.group
	Denied []Denial `json:"denied,omitempty"`

	Definitions  []agent.Definition                          `json:"definitions,omitempty"`
	HostShims    []v1alpha1.HostShim                         `json:"hostShims,omitempty"`
	Claims       []v1alpha1.AddressClaim                     `json:"claims,omitempty"`
	ProbeReports []v1alpha1.ProbeReport                      `json:"probeReports,omitempty"`
	Pools        []whereabouts.IPPool                        `json:"pools,omitempty"`
	Reservations []whereabouts.OverlappingRangeIPReservation `json:"reservations,omitempty"`
	Recorder     *kube.Lease                                 `json:"recorder,omitempty"`
	Leaks        *leak.Cluster                               `json:"-"` // pkg/leak's own view of claims, pods and Nodes

	Nodes           []corev1.Node                `json:"nodes,omitempty"`
	Pods            []corev1.Pod                 `json:"pods,omitempty"` // those that ask for networks, Longhorn's, Multus' and the agent's
	DaemonSets      []appsv1.DaemonSet           `json:"daemonSets,omitempty"`
	NetworkPolicies []networkingv1.NetworkPolicy `json:"networkPolicies,omitempty"` // of Longhorn's namespace
	Events          []corev1.Event               `json:"events,omitempty"`          // warnings about the pods that are kept
	Services        []string                     `json:"services,omitempty"`        // Service networks, or addresses in them

	Longhorn  Longhorn          `json:"longhorn"`
	Harvester *HarvesterSetting `json:"harvester,omitempty"` // nil: this is no Harvester
}

// Denial is something that could not be read.
type Denial struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Longhorn are Longhorn's objects (longhorn.io/v1beta2), as far as they matter to its network.
type Longhorn struct {
	Namespace        string            `json:"namespace"`
	Installed        bool              `json:"installed"`
	Settings         []LonghornSetting `json:"settings,omitempty"`
	Volumes          []Volume          `json:"volumes,omitempty"`
	Engines          []Instance        `json:"engines,omitempty"`
	Replicas         []Instance        `json:"replicas,omitempty"`
	InstanceManagers []InstanceManager `json:"instanceManagers,omitempty"`
}

// Names of Longhorn's settings.
const (
	StorageNetworkSetting = "storage-network"
	RWXNetworkSetting     = "endpoint-network-for-rwx-volume"
	V2EngineSetting       = "v2-data-engine"
)

// Setting is the value of one of Longhorn's settings, and whether Longhorn says that it is applied; nil: it doesn't say.
func (l Longhorn) Setting(name string) (value string, applied *bool) {
	for _, s := range l.Settings {
		if s.Name == name {
			return s.Value, s.Status.Applied
		}
	}
	return "", nil
}

// LonghornSetting is a setting of Longhorn.
type LonghornSetting struct {
	metav1.ObjectMeta `json:"metadata"`

	Value  string `json:"value"`
	Status struct {
		Applied *bool `json:"applied,omitempty"`
	} `json:"status"`
}

// Volume is a volume of Longhorn.
type Volume struct {
	metav1.ObjectMeta `json:"metadata"`

	Status struct {
		State      string `json:"state,omitempty"`
		Robustness string `json:"robustness,omitempty"`
		Node       string `json:"currentNodeID,omitempty"`
	} `json:"status"`
}

// Instance is an engine or a replica.
type Instance struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Volume     string `json:"volumeName,omitempty"`
		Node       string `json:"nodeID,omitempty"`
		DataEngine string `json:"dataEngine,omitempty"`
	} `json:"spec"`
	Status struct {
		State           string `json:"currentState,omitempty"`
		StorageIP       string `json:"storageIP,omitempty"`
		IP              string `json:"ip,omitempty"`
		Port            int    `json:"port,omitempty"`
		InstanceManager string `json:"instanceManagerName,omitempty"`
		Endpoint        string `json:"endpoint,omitempty"`
	} `json:"status"`
}

// InstanceManager is the object of an instance-manager pod, which has its name.
type InstanceManager struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Node       string `json:"nodeID,omitempty"`
		DataEngine string `json:"dataEngine,omitempty"`
	} `json:"spec"`
	Status struct {
		State string `json:"currentState,omitempty"`
		IP    string `json:"ip,omitempty"`
	} `json:"status"`
}

// HarvesterSetting is Harvester's setting storage-network.
type HarvesterSetting struct {
	metav1.ObjectMeta `json:"metadata"`

	Value  string `json:"value,omitempty"`
	Status struct {
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Reason  string `json:"reason,omitempty"`
			Message string `json:"message,omitempty"`
		} `json:"conditions,omitempty"`
	} `json:"status"`
}
