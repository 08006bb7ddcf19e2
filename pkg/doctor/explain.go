package doctor

import (
	"cmp"
	"regexp"
)

// Cause is what a text means that a person found in an event, a condition or a log.
type Cause struct {
	Said  string `json:"said"`  // the part of the text by which it was told
	By    string `json:"by"`    // who says it
	Cause string `json:"cause"` // in words
	Fix   string `json:"fix"`
	Code  string `json:"code,omitempty"` // of the check that looks for it
}

// symptom is a text that somebody writes when something is wrong.
type symptom struct {
	text  *regexp.Regexp
	by    string
	cause string
	fix   string // empty: the check's
	code  string // empty: no check looks for it
}

// Explain finds the causes of a text, the most particular first.
func Explain(text string) []Cause {
	var causes []Cause
	for _, s := range symptoms {
		said := s.text.FindString(text)
		if said == "" {
			continue
		}
		check, _ := Find(s.code)
		causes = append(causes, Cause{Said: said, By: s.by, Cause: s.cause, Fix: cmp.Or(s.fix, check.Fix), Code: s.code})
	}
	return causes
}

// cause is the most particular one, for checks that read what others wrote.
func cause(text string) (symptom, bool) {
	for _, s := range symptoms {
		if s.text.MatchString(text) {
			return s, true
		}
	}
	return symptom{}, false
}

// said makes a pattern of a text: case doesn't matter, and a space stands for any white space.
func said(pattern string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)` + regexp.MustCompile(` +`).ReplaceAllString(pattern, `\s+`))
}

const (
	byLonghorn    = "Longhorn"
	byHarvester   = "Harvester's webhook"
	byProgress    = "Harvester's condition configured"
	byIPAM        = "Whereabouts, lhstorage-ipam"
	byOurs        = "lhstorage"
	byMultus      = "Multus"
	byRuntime     = "kubelet, the container runtime"
	byKernel      = "the kernel"
	byInitiator   = "the node's initiator"
	byController  = "Kubernetes"
	byLonghornLog = "longhorn-manager's log"
)

var symptoms = []symptom{
	// Longhorn
	{said(`failed to apply storage-network setting to Longhorn components when there are attached volumes`), byLonghornLog,
		"the setting is applied only when every volume is detached", "", "LHS061"},
	{said(`waiting for all volumes detached:?\s*\S*`), byProgress,
		"Harvester waits for volumes to be detached; those that aren't are named after the colon", "stop the VMs and workloads that use them; volumes of VMs that are off but attached: look for a pod or an image export that holds them (kubectl -n longhorn-system get volumeattachments.longhorn.io -o yaml, attachmentTickets)", "LHS061"},
	{said(`IP allocation failure for Longhorn Pods`), byProgress,
		"the range has fewer addresses than Longhorn's pods need (nodes, disks, images; twice during an upgrade)", "", "LHS020"},
	{said(`Failed rebuilding of replica.*no route to host`), byLonghornLog,
		"the engine's pod doesn't find the replica's address: no ARP answer on the storage network", "", "LHS041"},
	{said(`Failed rebuilding of replica`), byLonghornLog, "a replica can't be rebuilt; what comes after it says why: no route and time-outs are the storage network's", "", "LHS041"},
	{said(`index out of range.*(GetStorageIPFromPod)?|GetStorageIPFromPod`), byLonghornLog,
		"longhorn-manager crashes on a network-status whose entry has an empty list of addresses", "", "LHS051"},
	{said(`unknown replica`), byLonghornLog,
		"the setting storage-network was changed while the volume was attached: replicas' addresses changed under it", "set storage-network back to the old value, detach the volume, salvage it if it is faulted; then lhstoragectl enable, which waits for all volumes to be detached", "LHS061"},
	{said(`(storage-network|network-attachment-definition).*(invalid|must be).*|value .* is not a valid storage.network`), byLonghorn,
		"the value must be namespace/name of a NetworkAttachmentDefinition", "", "LHS060"},

	// Harvester
	{said(`failed to unmarshal the setting value`), byHarvester, "the value isn't the JSON that Harvester wants", `{"vlan":100,"clusterNetwork":"NAME","range":"192.168.0.0/24","exclude":[]}`, ""},
	{said(`the valid value range for VLAN IDs is 0 to 4094`), byHarvester, "the VLAN id is out of range", "use 0 (untagged) to 4094", ""},
	{said(`network with vlan id \d+ not allowed on mgmt cluster`), byHarvester, "on the cluster network mgmt VLAN ids 0 and 1 are the management network itself", "use a VLAN id above 1, or another cluster network", ""},
	{said(`range should be subnet CIDR`), byHarvester, "the range has host bits set, or isn't a CIDR", "write the network's first address: 192.168.0.0/24, not 192.168.0.1/24", ""},
	{said(`IPv6 ranges are not supported for network settings`), byHarvester, "Harvester's storage network is IPv4", "use an IPv4 range; lhstorage's own networks can be IPv6", ""},
	{said(`min supported prefix length for network is 16`), byHarvester, "the range is too large", "use a /16 or a smaller one", ""},
	{said(`exclude range \S+ do not overlap include range`), byHarvester, "an excluded range isn't inside the range", "leave it out of exclude", ""},
	{said(`exclude range \S+ includes include range`), byHarvester, "an excluded range holds the whole range: host bits of an exclude are masked", "exclude a single address as /32", "LHS007"},
	{said(`exclude ranges have overlapping subnets`), byHarvester, "two excluded ranges overlap (its check compares neighbours only; lhstoragectl convert compares all)", "merge them", ""},
	{said(`allocatable IP address range is < \d+`), byHarvester, "the range has fewer addresses than this cluster's nodes and disks need", "lhstoragectl plan says which prefix is large enough", "LHS020"},
	{said(`storage network cannot use the same vlan \d+ as VM Network`), byHarvester, "exclusiveVlan is on and a VM network has the same VLAN", "use another VLAN, or turn exclusiveVlan off", ""},
	{said(`\bcreate NAD\b`), byProgress, "progress: Harvester makes the definition; if it stays so, the Multus resources are missing", "", "LHS002"},
	{said(`Stopping Pods`), byProgress, "progress: Prometheus, Grafana, Alertmanager and the VM Import Controller are stopped, since they hold volumes", "if it stays so: kubectl -n cattle-monitoring-system get pods, and look who starts them again", ""},
	{said(`Update Longhorn setting`), byProgress, "progress: Longhorn's setting is written; if it stays so, Longhorn hasn't applied it", "", "LHS072"},
	{said(`Restarting Pods`), byProgress, "progress: what was stopped is started again", "if it stays so: kubectl get events -A --field-selector type=Warning, and lhstoragectl doctor explain with what they say", ""},

	// IPAM
	{said(`Could not allocate IP in range(: ip: .*range: \S+)?`), byIPAM, "no address is left in the range for this pod", "", "LHS020"},
	{said(`net mask is too short, subnet \S+ has no usable IP addresses`), byIPAM, "the range is a /31, /32, /127 or /128", "use a larger range", "LHS003"},
	{said(`could not parse exclude range`), byIPAM, "exclude has something that isn't an address or a CIDR", "", "LHS003"},
	{said(`invalid range start for CIDR`), byIPAM, "the first address of the range isn't in the network of the last one", "", "LHS003"},
	{said(`resource is being created by another|nodeslicepool.*not found|no allocated node slice`), byIPAM, "node slices are on and this node has none yet", "run Whereabouts' node-slice controller, or leave node_slice_size out", ""},
	{said(`error at storage engine`), byIPAM, "the address store refused: what comes after it says why", "kubectl get ippools -A; with `context deadline exceeded` the API server is slow, or many pods start at once and Whereabouts' lock is contended", ""},
	{said(`no matches for kind "?(IPPool|OverlappingRangeIPReservation)|ippools\.whereabouts\.cni\.cncf\.io.*not found`), byController, "Whereabouts' resources aren't installed", "", "LHS011"},

	// Multus and the runtime
	{said(`failed to find plugin "lhstorage(-ipam)?" in path \S*`), byRuntime, "the program isn't where this node's runtime, or Multus, looks for CNI plugins (k3s and MicroK8s have directories of their own)", "", "LHS100"},
	{said(`failed to find plugin "\S+" in path`), byRuntime, "a plugin that the definition names isn't on the node (Talos ships no macvlan binary)", "install the CNI project's plugins into that directory, or convert the definition to lhstorage", "LHS100"},
	{said(`cannot find a network-attachment-definition \(\S+\)|network-attachment-definitions?\S* "?\S+"? not found`), byMultus, "the annotation names a definition that isn't there", "", "LHS060"},
	{said(`namespace isolation enabled, annotation violates permission`), byMultus, "Multus lets pods use definitions of their own namespace only", "make the definition in the pod's namespace, or add its namespace to Multus' globalNamespaces", ""},
	{said(`failed to (unmarshal|parse).*networks? annotation|parsePodNetworkAnnotation`), byMultus, "the pod's networks annotation can't be read", "", "LHS054"},
	{said(`CNI network config not found|no networks found in /etc/cni/net\.d|cni plugin not initialized`), byRuntime, "the node has no CNI configuration (yet)", "look at the cluster network's own pods on this node first, then at Multus'", "LHS037"},
	{said(`(dial unix|connect).*multus.*sock(et)?\b.*|multus-shim.*(connection refused|no such file)`), byMultus, "thick Multus' daemon isn't there or was killed", "", "LHS038"},
	{said(`OOMKilled`), byRuntime, "a container was killed for its memory", "", "LHS038"},
	{said(`text file busy`), byRuntime, "an installer writes a plugin in place while it runs", "install with install-cni, which replaces files in one step; restart that installer's pod", "LHS100"},
	{said(`read-only file system`), byKernel, "the directory of CNI plugins or configuration can't be written on this host", "name a writable one: --cni-bin-dir, --conf-dir (docs/install.md; Talos: /var/lib/lhstorage)", "LHS100"},
	{said(`violates PodSecurity`), byController, "the namespace doesn't allow privileged pods", "kubectl label namespace NAMESPACE pod-security.kubernetes.io/enforce=privileged", "LHS031"},
	{said(`the server has asked for the client to provide credentials|\bUnauthorized\b|its token expired`), byOurs, "the plugins' token on this node has expired: its agent, which renews it, is away or not allowed to", "", "LHS100"},
	{said(`x509: certificate (signed by unknown authority|has expired)`), byOurs, "the kubeconfig on the node has another cluster's or an old CA", "", "LHS100"},

	// ours, by what the plugin's errors say
	{said(`describe parent \S+ differently|is described otherwise by`), byOurs, "two definitions describe one parent differently", "", "LHS004"},
	{said(`can't be changed while devices hang on it`), byOurs, "the parent has a VNI, port or kind that the definition contradicts, and pods hang on it", "", "LHS111"},
	{said(`has VNI \d+ on UDP port \d+ already`), byOurs, "another VXLAN device of this node has the same VNI and port; the kernel refuses a second one, even with another local address", "name that device as parent.name, or choose another parent.vni", "LHS122"},
	{said(`isn't on this node: .ip link. lists the devices`), byOurs, "the definition names a device that this node doesn't have", "", "LHS110"},
	{said(`another process has been changing this node's storage network`), byOurs, "the node's lock is held", "fuser -v /run/lhstorage/lock names who holds it; the runtime tries again", ""},
	{said(`can't serve as the host shim of`), byOurs, "a device of the shim's name is something else", "", "LHS131"},
	{said(`the host shim's address \S+ is on \S+ of this node already`), byOurs, "another device of the node has the shim's address", "", "LHS134"},
	{said(`is held by another device|duplicate address`), byOurs, "another device on the network has the address; its MAC is in the text", "", "LHS027"},
	{said(`doesn't stay as it is set`), byOurs, "something else changes the storage network's devices back", "", "LHS127"},
	{said(`StorageNetworkContested`), byOurs, "something else changes back what the agent puts right", "", "LHS127"},
	{said(`StorageNetworkMissing|its network-status lacks it`), byOurs, "a pod runs without the network that it asks for", "", "LHS050"},
	{said(`StorageNetworkNotReady`), byOurs, "the node can't be made ready for the network: the event says why", "", "LHS033"},
	{said(`iscsiPath \S+ (can't be|wasn't) had`), byOurs, "the address that Longhorn would dial isn't the one that iscsiPath wants", "", "LHS145"},

	// the kernel
	{said(`Cannot replace non-unicast fdb entr(y|ies)`), byKernel, "`bridge fdb replace` doesn't work for the MAC 00:00:00:00:00:00 (Linux 6.18)", "bridge fdb del … (no entry is no error), then bridge fdb append …; lhstorage does it so", "LHS114"},
	{said(`failed to create macvlan: device or resource busy|macvlan.*device or resource busy`), byKernel, "the parent has a passthru child, which must be the only one, or it is a port of a bridge or bond", "use the bond or bridge as the parent, mode bridge", "LHS111"},
	{said(`(operation not supported|unknown device type).*(vxlan|macvlan|dummy|vlan)|(vxlan|macvlan|dummy|vlan).*(operation not supported|unknown device type)`), byKernel, "the kernel lacks this kind of device", "", "LHS102"},
	{said(`message too long|EMSGSIZE|frag(mentation)? needed`), byKernel, "a packet with DF is larger than the MTU of the way", "", "LHS117"},
	{said(`martian source`), byKernel, "rp_filter drops packets that come by another device than the answer would leave by", "", "LHS136"},
	{said(`(neighbour|neighbor|ARP).*table overflow`), byKernel, "the node's neighbour table is full", "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 (gc_thresh2=4096, gc_thresh1=1024)", ""},

	// the initiators, from /var/log and events
	{said(`iscsiadm: (cannot make connection|connect) to \S+.*|initiator reported error \(8 - connection timed out\)|iscsiadm: Could not login`), byInitiator, "the node doesn't reach the target in the pod of its own: with a macvlan network that needs the host shim", "on the node: lhstoragectl doctor --local; lhstoragectl status shows which address is dialled", "LHS040"},
	{said(`Failed to (write to|connect|add controller).*nvme|nvme.*(failed to connect|connection (timed out|refused)|could not add new controller)`), byInitiator, "the node's NVMe/TCP initiator doesn't reach the target on the pod's storage address", "", "LHS040"},
	{said(`mount\.nfs.*(timed out|no route to host)|nfs: server \S+ not responding`), byInitiator, "the node doesn't reach the share manager's address", "", "LHS067"},
	{said(`no route to host`), byKernel, "no ARP answer came for the address", "on the node that said it: ip neigh, lhstoragectl doctor --local", "LHS041"},
}
