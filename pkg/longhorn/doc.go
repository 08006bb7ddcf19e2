// Package longhorn moves Longhorn (longhorn.io/v1beta2) onto a storage network, off it, and back.
//
// Changing the setting `storage-network` while a volume is attached breaks that volume, `status.applied` says nothing, and
// existence of the network isn't checked by Longhorn (measured on longhorn-manager v1.10.0). So a [Switch] is a list of small
// steps with a journal:
//
//	preflight   everything that stands in the way, at once; nothing is changed
//	network     the NetworkAttachmentDefinition is made, or brought up to date
//	nodes       each Longhorn node's agent says that parent and shim are ready; until here all volumes are in use
//	stop        what uses volumes is stopped; what it was is in the journal first
//	detach      all volumes are detached; who still holds one is named
//	adopt       on Harvester: its own setting is told, or its controller would undo the next step
//	setting     the setting is changed, right after a last look at the volumes
//	pods        each pod of Longhorn's data plane has its interface with an address in range, and is Ready
//	verify      the agents measure every leg of the network, and lose nothing
//	start       what was stopped is started again; virtual machines never are
//	settle      its volumes are attached, engines and replicas use storage addresses
//	clean       the network that isn't wanted any more is removed, if it is ours to remove
//
// Each step can be done twice. The journal says which one was begun, so a run that ended anywhere goes on from there, and at
// any step the way back is: the same steps towards the old network. [Journal.Steps] is the whole of that logic, and pure.
//
// The journal is a ConfigMap in Longhorn's namespace: whoever may change the setting can see it from any machine, it goes when
// Longhorn goes, and neither Helm nor GitOps nor Longhorn writes it (an annotation on the Setting would be at their mercy, a
// file would be on the wrong laptop). Each write is on condition that nobody else wrote it, so of two runs one gives way
// before it changes anything.
package longhorn
