package status

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/probereport"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// How it is known which address the initiator dials.
const (
	SeenOnNode = "seen"     // in the pod's own namespace, by its node's agent or by --local there
	ByName     = "eth1"     // Longhorn asks for an interface of that name first
	Enforced   = "enforced" // the plugin refuses a pod in which iscsiPath can't be had
	Expected   = "expected" // iscsiPath auto: the plugin chose it so where it could; the node knows for certain
	OnlyOne    = "only one" // the pod has no other address
	Unknown    = "unknown"  // the order of the interfaces decides, which only the node knows
)

// Dial is the address that the node's v1 initiator dials to reach an instance manager. Longhorn never looks at the storage network
// for that.
type Dial struct {
	Address   string `json:"address,omitempty"`
	Interface string `json:"interface,omitempty"`
	How       string `json:"how"`
}

// dial finds the address; network is the one that Longhorn's setting names, or the zero one.
func (b builder) dial(pod *corev1.Pod, network agent.Network) Dial {
	if b.s.Local != nil {
		for _, a := range b.s.Local.Attachments {
			if a.PodRef == snapshot.Ref(pod) && a.Gone == "" && a.Dial.IsValid() {
				return Dial{a.Dial.String(), a.By, SeenOnNode}
			}
		}
	}
	entries, err := snapshot.Interfaces(pod)
	if err != nil {
		return Dial{How: Unknown}
	}
	if d, ok := b.reported(pod, entries); ok {
		return d
	}
	policy, how := netconf.ISCSIPath(""), Unknown
	if network.Plan != nil {
		policy = iscsipath.Wanted(network.Plan.ISCSIPath, b.reaches(pod.Spec.NodeName, network.Plan))
		how = Enforced
		if network.Plan.ISCSIPath == netconf.ISCSIAuto {
			how = Expected
		}
	}
	dump := ifaces(entries, network, policy == netconf.ISCSIStorageIP)
	if len(dump) == 0 {
		dump = []iscsipath.Iface{{Name: "eth0", Addrs: podIP(pod)}}
	}
	address, by, ok := iscsipath.Dialed(dump)
	switch {
	case !ok:
		return Dial{How: Unknown}
	case by == "eth1":
		how = ByName
	case len(dump) == 1:
		how = OnlyOne
	case how == Unknown:
		return Dial{How: Unknown}
	}
	return Dial{address.String(), by, how}
}

// reported is what the node's agent saw lately in the pod. A pod that was made anew under its name has other addresses: what is none of
// its own was said of the one before.
func (b builder) reported(pod *corev1.Pod, entries []snapshot.Interface) (Dial, bool) {
	own := podIP(pod)
	for _, e := range entries {
		own = append(own, e.Addrs()...)
	}
	for _, r := range b.c.ProbeReports {
		if r.Spec.Node != pod.Spec.NodeName || b.s.Time.Sub(r.Status.Time.Time) > probereport.Stale {
			continue
		}
		for _, d := range r.Status.ISCSI {
			if address, err := netip.ParseAddr(d.Address); err == nil && d.Pod == snapshot.Ref(pod) && slices.Contains(own, address) {
				return Dial{d.Address, d.Interface, SeenOnNode}, true
			}
		}
	}
	return Dial{}, false
}

// reaches says whether the host of a node has a healthy shim, as the plugin's own policy wants to know it.
func (b builder) reaches(node string, plan *netconf.Plan) bool {
	return plan.HostShim != nil && slices.ContainsFunc(b.c.Shims(plan.Parent.Name), func(h v1alpha1.HostShim) bool {
		return h.Spec.Node == node && h.Status.Ready != metav1.ConditionFalse
	})
}

// ifaces are a pod's interfaces in the order in which its kernel lists them if the policy was had: the storage network's first, or last.
func ifaces(entries []snapshot.Interface, network agent.Network, storageFirst bool) []iscsipath.Iface {
	var first, last []iscsipath.Iface
	for _, e := range entries {
		if len(e.Addrs()) == 0 {
			continue
		}
		one := iscsipath.Iface{Name: e.Interface, Addrs: e.Addrs()}
		if (network.Plan != nil && e.Name == network.Ref()) == storageFirst {
			first = append(first, one)
		} else {
			last = append(last, one)
		}
	}
	return append(first, last...)
}

func podIP(pod *corev1.Pod) []netip.Addr {
	addr, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return nil
	}
	return []netip.Addr{addr}
}
