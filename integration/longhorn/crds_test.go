package longhorn

import (
	"fmt"
	"strings"
)

// crd is a definition that takes any fields: what is tested is lhstorage, not whether Longhorn's schema is right.
type crd struct {
	group, version, kind, plural string
	cluster                      bool // not namespaced
	status                       bool // a subresource
}

// definitions are Longhorn's, Harvester's and what goes with it, with scope and status subresource as they have them.
var definitions = []crd{
	{group: "longhorn.io", version: "v1beta2", kind: "Setting", plural: "settings", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "Volume", plural: "volumes", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "VolumeAttachment", plural: "volumeattachments", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "Engine", plural: "engines", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "Replica", plural: "replicas", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "InstanceManager", plural: "instancemanagers", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "Node", plural: "nodes", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "BackingImage", plural: "backingimages", status: true},
	{group: "longhorn.io", version: "v1beta2", kind: "Backup", plural: "backups", status: true},
	{group: "harvesterhci.io", version: "v1beta1", kind: "Setting", plural: "settings", cluster: true},
	{group: "harvesterhci.io", version: "v1beta1", kind: "VirtualMachineImage", plural: "virtualmachineimages"},
	{group: "kubevirt.io", version: "v1", kind: "VirtualMachineInstance", plural: "virtualmachineinstances"},
	{group: "monitoring.coreos.com", version: "v1", kind: "Prometheus", plural: "prometheuses"},
	{group: "monitoring.coreos.com", version: "v1", kind: "Alertmanager", plural: "alertmanagers"},
	{group: "management.cattle.io", version: "v3", kind: "ManagedChart", plural: "managedcharts"},
}

func (d crd) String() string {
	scope := map[bool]string{true: "Cluster", false: "Namespaced"}[d.cluster]
	subresources := ""
	if d.status {
		subresources = "\n    subresources: {status: {}}"
	}
	return fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[4]s.%[1]s}
spec:
  group: %[1]s
  names: {kind: %[3]s, plural: %[4]s, singular: %[5]s}
  scope: %[6]s
  versions:
  - name: %[2]s
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}%[7]s
---`, d.group, d.version, d.kind, d.plural, strings.ToLower(d.kind), scope, subresources)
}
