package harvester

import (
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StorageNetworkSetting is the name of Harvester's own setting, a cluster-wide Setting of harvesterhci.io/v1beta1.
const StorageNetworkSetting = "storage-network"

// Annotations of that setting, by which Harvester's controller knows what it did. While AnnotationNetwork says what Longhorn's
// setting says, and AnnotationHash fits the value, it leaves Longhorn alone; else it stops workloads, waits and changes
// Longhorn's setting to AnnotationNetwork itself.
const (
	AnnotationHash       = LabelHash
	AnnotationNetwork    = markNetwork + "/net-attach-def"
	AnnotationOldNetwork = markNetwork + "/old-net-attach-def"
	// AnnotationMade is on the NetworkAttachmentDefinitions that Harvester made.
	AnnotationMade = markNetwork
)

// Namespaces and names of what Harvester's controller stops, because it uses volumes or would start what does.
const (
	SystemNamespace     = ownNamespace
	MonitoringNamespace = "cattle-monitoring-system"
	FleetNamespace      = "fleet-local"

	MonitoringChart    = "rancher-monitoring"
	Prometheus         = "rancher-monitoring-prometheus"
	Alertmanager       = "rancher-monitoring-alertmanager"
	Grafana            = "rancher-monitoring-grafana"
	VMImportController = "harvester-harvester-vm-import-controller"
)

// ConditionConfigured says how far the setting has come.
const ConditionConfigured = "configured"

// Reason of the condition, in Harvester's own words.
type Reason string

// The reasons.
const (
	InProgress Reason = "In Progress"
	Completed  Reason = "Completed"
)

// Messages of the condition, in Harvester's own words; the last while pods lack an address.
const (
	MessageSetting = "Update Longhorn setting"
	MessageRestart = "Restarting Pods"
	MessageNoIP    = "IP allocation failure for Longhorn Pods"
)

// Object is what is read of the setting.
type Object struct {
	metav1.ObjectMeta `json:"metadata"`
	Value             string `json:"value"`
	Status            struct {
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Condition of a setting.
type Condition struct {
	Type           string `json:"type"`
	Status         string `json:"status"`
	Reason         string `json:"reason,omitempty"`
	Message        string `json:"message,omitempty"`
	LastUpdate     string `json:"lastUpdateTime,omitempty"`
	LastTransition string `json:"lastTransitionTime,omitempty"`
}

// AnnotationsFor are the setting's annotations when Longhorn shall use the network (namespace/name, or nothing): as the
// controller writes them, with the network so far as the old one. The controller deletes the old one's definition as soon as
// Longhorn's setting has changed.
func (o *Object) AnnotationsFor(network string) map[string]string {
	out := maps.Clone(o.Annotations)
	if out == nil {
		out = map[string]string{}
	}
	out[AnnotationHash] = Hash(o.Value)
	if out[AnnotationNetwork] != network {
		out[AnnotationOldNetwork], out[AnnotationNetwork] = out[AnnotationNetwork], network
	}
	return out
}

// ConditionsFor are the setting's conditions with ConditionConfigured as given; it is True when the reason is Completed.
func (o *Object) ConditionsFor(reason Reason, message string, now time.Time) []Condition {
	status := map[bool]string{true: "True", false: "False"}[reason == Completed]
	at := now.UTC().Format(time.RFC3339)
	next := Condition{Type: ConditionConfigured, Status: status, Reason: string(reason), Message: message, LastUpdate: at, LastTransition: at}
	out := slices.Clone(o.Status.Conditions)
	i := slices.IndexFunc(out, func(c Condition) bool { return c.Type == ConditionConfigured })
	if i < 0 {
		return append(out, next)
	}
	if old := out[i]; old.Status == status {
		next.LastTransition = old.LastTransition
		if old.Reason == next.Reason && old.Message == message {
			return out
		}
	}
	out[i] = next
	return out
}

// Configured is the condition, as far as there is one.
func (o *Object) Configured() (Condition, bool) {
	i := slices.IndexFunc(o.Status.Conditions, func(c Condition) bool { return c.Type == ConditionConfigured })
	if i < 0 {
		return Condition{}, false
	}
	return o.Status.Conditions[i], true
}
