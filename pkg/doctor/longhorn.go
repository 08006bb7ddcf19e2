package doctor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const (
	iscsiPort = 3260
	detached  = "detached"
	csiPlugin = "longhorn-csi-plugin"
)

var longhornChecks = []Check{
	{
		Code: "LHS060", Severity: Error, Title: "Longhorn is told to use a network that isn't there",
		Why:  "Longhorn checks that the value has one slash and no more: its pods ask Multus for a network that doesn't exist and don't start, once they are made anew.",
		Fix:  "kubectl -n longhorn-system patch settings.longhorn.io storage-network --type merge -p '{\"value\":\"NAMESPACE/NAME\"}', with every volume detached; lhstoragectl enable does it in the safe order",
		look: func(v *view) []hit { return v.named(snapshot.StorageNetworkSetting) },
	},
	{
		Code: "LHS061", Severity: Error, Title: "Longhorn waits for volumes to be detached",
		Why: "The setting storage-network is applied only when every volume is detached. What is attached meanwhile is in danger: Longhorn reads storage addresses by the new value at once, takes replicas for unknown and faults the volume.",
		Fix: "scale the workloads of these volumes down and keep them so until the setting is applied (lhstoragectl resume, or lhstoragectl rollback)",
		look: func(v *view) []hit {
			held := v.heldVolumes()
			if len(held) == 0 || !v.unapplied() {
				return nil
			}
			return one("setting "+snapshot.StorageNetworkSetting, "it isn't applied, and %d volumes aren't detached: %s", len(held), few(held))
		},
	},
	{
		Code: "LHS062", Severity: Error, Title: "A pod of Longhorn doesn't ask for the storage network",
		Why:  "It was made before the setting, and Longhorn makes such pods anew only when all volumes are detached (idle ones also before). Until then its data goes over the pod network.",
		Fix:  "lhstoragectl enable, which waits for all volumes to be detached and for each pod",
		look: (*view).unasked,
	},
	{
		Code: "LHS063", Severity: Error, Title: "A storage address isn't on the storage network",
		Why:  "Longhorn falls back to the pod's own address with no more than a line in its log when the network-status lacks the network: replica traffic goes over the pod network.",
		Fix:  "see LHS050 and LHS062 for the instance manager's pod; the engine or replica gets the right address with the next attachment of its volume",
		look: func(v *view) []hit { return v.storageIPs(outside) },
	},
	{
		Code: "LHS064", Severity: Error, Title: "A storage address isn't its pod's",
		Why:  "The instance manager was made anew with another address and the engine or replica still has the old one: its peers dial an address that is somebody else's, or nobody's.",
		Fix:  "detach and attach the volume; if it stays: kubectl -n longhorn-system annotate the engine or replica object (any annotation), which makes Longhorn look again",
		look: func(v *view) []hit { return v.storageIPs(unlike) },
	},
	{
		Code: "LHS065", Severity: Warning, Title: "A NetworkPolicy keeps iSCSI away",
		Why:  "Longhorn 1.12.1 has policies without a rule for TCP 3260. v1 volumes of this network are dialled over the pod network, where some CNIs then drop the node's connection; the storage network isn't touched by policies.",
		Fix:  "give the network a host shim and iscsiPath auto or storage-ip (docs/netconf.md), or allow TCP 3260 from the nodes in the policy",
		look: (*view).policies,
	},
	{
		Code: "LHS066", Severity: Error, Title: "Longhorn's CSI plugin isn't there",
		Why: "longhorn-manager looks for the DaemonSet longhorn-csi-plugin when it applies storage-network: without it the setting is never applied.",
		Fix: "kubectl -n longhorn-system get ds longhorn-csi-plugin; logs of longhorn-driver-deployer say why it isn't made",
		look: func(v *view) []hit {
			name := v.cluster.Longhorn.Namespace + "/" + csiPlugin
			if v.storageNetwork() == "" || v.cluster.Denies("daemonsets.apps") || slices.ContainsFunc(v.cluster.DaemonSets, func(d appsv1.DaemonSet) bool { return d.Namespace+"/"+d.Name == name }) {
				return nil
			}
			return one("daemonset "+name, "it isn't there")
		},
	},
	{
		Code: "LHS067", Severity: Error, Title: "The network for RWX volumes isn't there",
		Why:  "Share managers and the CSI plugin ask Multus for it and don't start.",
		Fix:  "kubectl -n longhorn-system patch settings.longhorn.io endpoint-network-for-rwx-volume --type merge -p '{\"value\":\"NAMESPACE/NAME\"}' (\"\" for none)",
		look: func(v *view) []hit { return v.named(snapshot.RWXNetworkSetting) },
	},
	{
		Code: "LHS068", Severity: Info, Title: "Longhorn doesn't use a storage network",
		Why: "The networks are there and ready, but Longhorn's setting storage-network is empty.",
		Fix: "lhstoragectl enable",
		look: func(v *view) []hit {
			if !v.cluster.Longhorn.Installed || v.cluster.Denies("settings.longhorn.io") || v.storageNetwork() != "" || len(v.compiled.Networks) == 0 {
				return nil
			}
			return one("setting "+snapshot.StorageNetworkSetting, "it is empty")
		},
	},
	{
		Code: "LHS069", Severity: Error, Title: "v2 volumes can't attach over this network",
		Why:  "The v2 engine's NVMe/TCP target binds the pod's IPv4 address on lhnet1 and the initiator is in the node: the node must reach it.",
		Fix:  "give the network an IPv4 range and a host shim (hostShim.range), or turn v2-data-engine off",
		look: (*view).v2,
	},
	{
		Code: "LHS070", Severity: Error, Title: "Harvester hasn't finished its storage network",
		Why:  "Harvester's setting storage-network waits for something, or has failed; until its condition configured is True its pods stay stopped.",
		Fix:  "lhstoragectl doctor explain --text 'MESSAGE' says what the message means",
		look: (*view).harvester,
	},
	{
		Code: "LHS071", Severity: Error, Title: "Longhorn uses a network whose pods its nodes don't reach",
		Why:  "A stock macvlan or ipvlan network isolates a node from its own pods. Volumes attach only as long as Longhorn happens to dial the pod's other address.",
		Fix:  "lhstoragectl convert makes our definition of it; or chain {\"type\": \"lhstorage\", \"hostShim\": {\"range\": …}} behind it (README, “From a stock macvlan network”)",
		look: (*view).stock,
	},
	{
		Code: "LHS072", Severity: Warning, Title: "Longhorn hasn't applied its network",
		Why: "After three quick tries it tries again only once an hour, or when the setting's object changes. (applied=true proves nothing either.)",
		Fix: "kubectl -n longhorn-system annotate settings.longhorn.io storage-network lhstorage.io/touched=\"$(date +%s)\" --overwrite",
		look: func(v *view) []hit {
			if !v.unapplied() || len(v.heldVolumes()) > 0 {
				return nil
			}
			return one("setting "+snapshot.StorageNetworkSetting, "it isn't applied, though every volume is detached")
		},
	},
}

func (v *view) storageNetwork() string {
	value, _ := v.cluster.Longhorn.Setting(snapshot.StorageNetworkSetting)
	return value
}

func (v *view) unapplied() bool {
	_, applied := v.cluster.Longhorn.Setting(snapshot.StorageNetworkSetting)
	return applied != nil && !*applied
}

func (v *view) heldVolumes() []string {
	var names []string
	for _, vol := range v.cluster.Longhorn.Volumes {
		if vol.Status.State != detached {
			names = append(names, vol.Name+" ("+vol.Status.State+")")
		}
	}
	return names
}

// named checks that a setting of Longhorn names a definition, exactly.
func (v *view) named(setting string) []hit {
	value, _ := v.cluster.Longhorn.Setting(setting)
	if value == "" || v.absent(snapshot.Definitions) || v.cluster.Denies(snapshot.Definitions) {
		return nil
	}
	if slices.ContainsFunc(v.cluster.Definitions, func(d agent.Definition) bool { return d.Ref() == value }) {
		return nil
	}
	return one("setting "+setting, "its value is %q, and there is no such NetworkAttachmentDefinition (namespace/name, without spaces)", value)
}

// asksFor says whether a pod's annotation asks for a network.
func asksFor(pod *corev1.Pod, ref string) bool {
	bare := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Annotations: map[string]string{
		nad.NetworksAnnotation: pod.Annotations[nad.NetworksAnnotation],
	}}}
	asked, err := agent.Missing(bare, map[string]bool{ref: true})
	return err != nil || len(asked) > 0 // what can't be read is LHS054's
}

func (v *view) unasked() []hit {
	want := v.storageNetwork()
	if want == "" {
		return nil
	}
	return v.pods(func(pod *corev1.Pod) []string {
		component := pod.Labels[snapshot.LonghornComponent]
		if pod.Namespace != v.cluster.Longhorn.Namespace || component != snapshot.InstanceManagers && component != "backing-image-manager" || !snapshot.Running(pod) || asksFor(pod, want) {
			return nil
		}
		return []string{fmt.Sprintf("it is a %s and doesn't ask for %s, which the setting names", component, want)}
	})
}

// storageIPFault says what is wrong with the storage address of an engine or replica.
type storageIPFault func(n agent.Network, own, address string) string

func outside(n agent.Network, _, address string) string {
	addr, err := snapshot.ParseAddr(address)
	if err == nil && slices.ContainsFunc(n.Plan.IPAM.Ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) || len(n.Plan.IPAM.Ranges) == 0 {
		return ""
	}
	return fmt.Sprintf("its storageIP %q is outside of network %s (%v)", address, n.Ref(), n.Plan.IPAM.Ranges)
}

func unlike(n agent.Network, own, address string) string {
	if own == "" || own == address || outside(n, own, address) != "" {
		return ""
	}
	return fmt.Sprintf("its storageIP is %s, and the interface of its instance manager on %s has %s", address, n.Ref(), own)
}

// StorageIPFault says what is wrong with the storage address of an engine or replica; empty: it is on the network and its instance
// manager's own (own; empty: that isn't known).
func StorageIPFault(n agent.Network, own, address string) string {
	return cmp.Or(outside(n, own, address), unlike(n, own, address))
}

func (v *view) storageIPs(fault storageIPFault) []hit {
	n, ok := v.cluster.Named(v.storageNetwork())
	if !ok {
		return nil
	}
	check := func(kind string) func(snapshot.Instance) []hit {
		return func(i snapshot.Instance) []hit {
			if i.Status.StorageIP == "" || i.Status.State != "running" {
				return nil
			}
			if text := fault(n, v.cluster.StorageAddress(i.Status.InstanceManager, n.Ref()), i.Status.StorageIP); text != "" {
				return one(kind+" "+i.Name+" of volume "+i.Spec.Volume, "%s", text)
			}
			return nil
		}
	}
	return append(each(v.cluster.Longhorn.Engines, check("engine")), each(v.cluster.Longhorn.Replicas, check("replica"))...)
}

func (v *view) policies() []hit {
	n, ok := v.cluster.Named(v.storageNetwork())
	if !ok || n.Plan.HostShim != nil && n.Plan.ISCSIPath != netconf.ISCSIPodIP {
		return nil // dialled over the storage network
	}
	return each(v.cluster.NetworkPolicies, func(p networkingv1.NetworkPolicy) []hit {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil || !slices.ContainsFunc(v.cluster.Pods, func(pod corev1.Pod) bool {
			return pod.Namespace == p.Namespace && snapshot.IsInstanceManager(pod.Labels) && selector.Matches(labels.Set(pod.Labels))
		}) {
			return nil
		}
		if !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) || slices.ContainsFunc(p.Spec.Ingress, allowsISCSI) {
			return nil
		}
		return one("networkpolicy "+p.Namespace+"/"+p.Name, "it selects instance managers and allows no TCP %d", iscsiPort)
	})
}

func allowsISCSI(rule networkingv1.NetworkPolicyIngressRule) bool {
	if len(rule.Ports) == 0 {
		return true
	}
	return slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool {
		tcp := p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP
		if !tcp || p.Port == nil {
			return tcp
		}
		first := p.Port.IntValue()
		last := first
		if p.EndPort != nil {
			last = int(*p.EndPort)
		}
		return first <= iscsiPort && iscsiPort <= last
	})
}

func (v *view) v2() []hit {
	enabled, _ := v.cluster.Longhorn.Setting(snapshot.V2EngineSetting)
	n, ok := v.cluster.Named(v.storageNetwork())
	if !ok || enabled != "true" {
		return nil
	}
	if !slices.ContainsFunc(n.Plan.IPAM.Ranges, func(p netip.Prefix) bool { return p.Addr().Is4() }) && len(n.Plan.IPAM.Ranges) > 0 {
		return one(networkAt(n), "v2-data-engine is on and the network has no IPv4 range")
	}
	if n.Plan.HostShim == nil {
		return one(networkAt(n), "v2-data-engine is on and the network has no host shim")
	}
	return nil
}

func (v *view) harvester() []hit {
	if v.cluster.Harvester == nil {
		return nil
	}
	var found []hit
	for _, c := range v.cluster.Harvester.Status.Conditions {
		if c.Type != "configured" || c.Status == "True" {
			continue
		}
		h := hit{where: "Harvester's setting " + snapshot.StorageNetworkSetting, what: strings.TrimSpace("configured=" + c.Status + ", " + c.Reason + ": " + c.Message)}
		if known, ok := cause(c.Message); ok {
			h.fix = known.fix
		}
		found = append(found, h)
	}
	return found
}

func (v *view) stock() []hit {
	ref := v.storageNetwork()
	if ref == "" || v.compiled.Ours[ref] {
		return nil
	}
	return each(v.cluster.Definitions, func(d agent.Definition) []hit {
		if d.Ref() != ref {
			return nil
		}
		for _, kind := range mainTypes(d.Config) {
			if kind == "macvlan" || kind == "ipvlan" {
				return one("network "+ref, "it is of type %s, and Longhorn's setting names it", kind)
			}
		}
		return nil
	})
}

// mainTypes are the types of the plugins of a configuration.
func mainTypes(config string) []string {
	var conf struct {
		Type    string `json:"type"`
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal([]byte(config), &conf) != nil {
		return nil
	}
	types := []string{conf.Type}
	for _, p := range conf.Plugins {
		types = append(types, p.Type)
	}
	return types
}
