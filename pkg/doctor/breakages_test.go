package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/leak"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// breakages are, for each check, what it looks for, done to a healthy world.
var breakages = map[string]func(*world){
	// networks
	"LHS001": func(w *world) { w.cluster.Absent, w.cluster.ProbeReports = []string{snapshot.ProbeReports}, nil },
	"LHS002": func(w *world) { w.bare(); w.cluster.Absent = []string{snapshot.Definitions} },
	"LHS003": func(w *world) { w.second("other", strings.Replace(definition, `"vni": 100`, `"vni": -1`, 1)) },
	"LHS004": func(w *world) { w.second("other", strings.Replace(definition, `"vni": 100`, `"vni": 101`, 1)) },
	"LHS005": func(w *world) {
		w.define(strings.Replace(definition, `"hostShim": {"range": "10.100.1.0/28"},`, "", 1))
		w.delete(shimName)
	},
	"LHS006": func(w *world) {
		w.second("chained", `{"name": "chained", "plugins": [{"type": "bridge"}, {"type": "lhstorage", "hostShim": {"range": "10.9.0.0/28"}}]}`)
	},
	"LHS007": func(w *world) { w.define(strings.Replace(definition, "10.100.100.0/24", "10.100.100.7/24", 1)) },
	"LHS008": func(w *world) { w.cluster.Services = []string{"10.100.0.0/16"} },
	"LHS009": func(w *world) {
		w.cluster.Harvester = &snapshot.HarvesterSetting{}
		w.second("other", strings.NewReplacer("10.100.1.0", "10.52.1.0", "longhorn-storage", "other", vx, "eth0").Replace(withoutPlace))
	},
	"LHS010": func(w *world) {
		w.second("other", strings.NewReplacer("longhorn-storage", "other", vx, "eth0").Replace(withoutPlace))
	},
	"LHS011": func(w *world) { w.cluster.Absent = []string{snapshot.Reservations} },
	"LHS012": func(w *world) {
		w.cluster.Denied = []snapshot.Denial{{What: "events", Why: "forbidden"}}
	},

	// addresses
	"LHS020": func(w *world) { w.fill(239) },
	"LHS021": func(w *world) { w.fill(220) },
	"LHS022": func(w *world) {
		entries := w.cluster.Pools[0].Spec.Allocations
		for i := range manyEntries {
			entries[fmt.Sprint(20000+i)] = whereabouts.IPAllocation{}
		}
	},
	"LHS023": func(w *world) {
		claim(w.cluster, "10.100.1.40", "default/gone", here, "x")
		delete(w.cluster.Leaks.Pods, "default/gone")
	},
	"LHS024": func(w *world) {
		twin := *w.manager(3)
		twin.Name, twin.Labels = "twin", nil
		w.cluster.Pods = append(w.cluster.Pods, twin)
		claim(w.cluster, "10.100.1.18", longhorn+"/twin", "node3", "uid3")
	},
	"LHS025": func(w *world) {
		w.cluster.Claims = slices.DeleteFunc(w.cluster.Claims, func(c v1alpha1.AddressClaim) bool { return c.Spec.Address == "10.100.1.18" })
	},
	"LHS026": func(w *world) {
		w.manager(3).Annotations[nad.StatusAnnotation] = status(nadRef, "10.100.1.9")
		w.cluster.Longhorn.Replicas = w.cluster.Longhorn.Replicas[:1]
		claim(w.cluster, "10.100.1.9", longhorn+"/im3", "node3", "uid3")
		w.cluster.Claims = slices.DeleteFunc(w.cluster.Claims, func(c v1alpha1.AddressClaim) bool { return c.Spec.Address == "10.100.1.18" })
	},
	"LHS027": func(w *world) {
		claim(w.cluster, "10.100.1.40", "", here, "")
		w.cluster.Claims[3].Spec.Declined = &v1alpha1.Declined{MAC: "02:00:00:00:00:99", Until: metav1.NewTime(now.Add(time.Minute))}
	},

	// nodes
	"LHS030": func(w *world) { w.cluster.DaemonSets = w.cluster.DaemonSets[1:] },
	"LHS031": func(w *world) {
		w.cluster.DaemonSets[0].Status.NumberReady = 2
		w.podNamed("lhstorage-node3").Status.Conditions = nil
	},
	"LHS032": func(w *world) {
		w.cluster.HostShims = w.cluster.HostShims[:2]
		w.flood("10.100.100.3", false)
	},
	"LHS033": func(w *world) {
		w.cluster.HostShims[2].Status = v1alpha1.HostShimStatus{Ready: metav1.ConditionFalse, Reason: "parent is down"}
	},
	"LHS034": func(w *world) {
		gone := w.cluster.HostShims[2]
		gone.Name, gone.Spec.Node, gone.Spec.Index, gone.Spec.VTEP, gone.Spec.Networks = vx+"-4", "node4", 4, "10.100.100.4", nil
		w.cluster.HostShims = append(w.cluster.HostShims, gone)
	},
	"LHS035": func(w *world) { w.cluster.HostShims[2].Spec.Networks = w.cluster.HostShims[0].Spec.Networks },
	"LHS036": func(w *world) { w.cluster.Nodes[2].Annotations = map[string]string{v1alpha1.IndexAnnotation: "9"} },
	"LHS037": func(w *world) { w.cluster.DaemonSets[1].Status.NumberReady = 1 },
	"LHS038": func(w *world) {
		w.podNamed("multus-node1").Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "kube-multus", RestartCount: 4,
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}}}
	},

	// legs
	"LHS040": func(w *world) { w.leg(v1alpha1.LegHostLocal, "") },
	"LHS041": func(w *world) { w.leg(v1alpha1.LegPodRemote, "") },
	"LHS042": func(w *world) { w.leg(v1alpha1.LegHostShim, "") },
	"LHS043": func(w *world) { w.cluster.ProbeReports[1].Status.Time = metav1.NewTime(now.Add(-time.Hour)) },
	"LHS044": func(w *world) { w.leg(v1alpha1.LegHostRemote, "network is unreachable") },

	// pods
	"LHS050": func(w *world) {
		p := w.other(3)
		p.Annotations[nad.StatusAnnotation] = `[{"name": "cbr0", "interface": "eth0", "ips": ["10.42.0.9"], "default": true}]`
	},
	"LHS051": func(w *world) {
		w.other(3).Annotations[nad.StatusAnnotation] = fmt.Sprintf(`[{"name": %q, "interface": "lhnet1", "ips": []}]`, nadRef)
	},
	"LHS052": func(w *world) {
		p := w.other(3)
		delete(p.Annotations, nad.StatusAnnotation)
		p.Status.Phase = corev1.PodPending
		w.cluster.Events = []corev1.Event{{Reason: "FailedCreatePodSandBox", LastTimestamp: metav1.NewTime(now), InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: longhorn, Name: p.Name},
			Message: `error at storage engine: Could not allocate IP in range: ip: 10.100.1.16 / - 10.100.1.254 / range: 10.100.1.0/24 / excludeRanges: []`}}
	},
	"LHS053": func(w *world) {
		w.other(3).Annotations[nad.StatusAnnotation] = fmt.Sprintf(`[{"name": %q, "interface": "lhnet1", "ips": ["10.100.1.60", "fd00::1"]}]`, nadRef)
		claim(w.cluster, "10.100.1.60", longhorn+"/other3", "node3", "uid3")
		claim6 := w.cluster.Claims[len(w.cluster.Claims)-1]
		claim6.Name, claim6.Spec.Address = "fd00--1", "fd00::1"
		w.cluster.Claims = append(w.cluster.Claims, claim6)
		w.cluster.Leaks.Pods[longhorn+"/other3"] = leak.Pod{Node: "node3", UIDs: []string{"uid3"}}
	},
	"LHS054": func(w *world) { w.other(3).Annotations[nad.NetworksAnnotation] = `[{"name":` },

	// Longhorn
	"LHS060": func(w *world) { w.setting(snapshot.StorageNetworkSetting, " "+nadRef); w.withoutManagers() },
	"LHS061": func(w *world) { *w.cluster.Longhorn.Settings[0].Status.Applied = false },
	"LHS062": func(w *world) { delete(w.manager(3).Annotations, nad.NetworksAnnotation) },
	"LHS063": func(w *world) { w.cluster.Longhorn.Replicas[1].Status.StorageIP = "10.42.3.18" },
	"LHS064": func(w *world) { w.cluster.Longhorn.Engines[0].Status.StorageIP = "10.100.1.99" },
	"LHS065": func(w *world) {
		w.define(strings.Replace(definition, `"ipam"`, `"iscsiPath": "pod-ip", "ipam"`, 1))
		port := metav1.ObjectMeta{Namespace: longhorn, Name: "instance-manager"}
		w.cluster.NetworkPolicies = []networkingv1.NetworkPolicy{{ObjectMeta: port, Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{snapshot.LonghornComponent: snapshot.InstanceManagers}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}}
	},
	"LHS066": func(w *world) {
		w.cluster.DaemonSets = slices.DeleteFunc(w.cluster.DaemonSets, func(d appsv1.DaemonSet) bool { return d.Name == csiPlugin })
	},
	"LHS067": func(w *world) { w.setting(snapshot.RWXNetworkSetting, longhorn+"/absent") },
	"LHS068": func(w *world) { w.setting(snapshot.StorageNetworkSetting, "") },
	"LHS069": func(w *world) {
		w.setting(snapshot.V2EngineSetting, "true")
		w.bare()
		w.cluster.Definitions[0].Config = strings.NewReplacer("10.100.1.0/28", "fd00::/124", "10.100.1.0/24", "fd00::/64").Replace(definition)
		w.edit = func(l *snapshot.Local) { l.Networks = nil }
		w.cluster.HostShims[0].Spec.Networks = nil
	},
	"LHS070": func(w *world) {
		w.cluster.Harvester = &snapshot.HarvesterSetting{}
		w.cluster.Harvester.Status.Conditions = append(w.cluster.Harvester.Status.Conditions, struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Reason  string `json:"reason,omitempty"`
			Message string `json:"message,omitempty"`
		}{"configured", "False", "In Progress", "waiting for all volumes detached: pvc-1"})
	},
	"LHS071": func(w *world) {
		w.second("macvlan", `{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "10.9.0.0/24"}}`)
		w.setting(snapshot.StorageNetworkSetting, longhorn+"/macvlan")
		w.withoutManagers()
	},
	"LHS072": func(w *world) {
		*w.cluster.Longhorn.Settings[0].Status.Applied = false
		w.cluster.Longhorn.Volumes[0].Status.State = "detached"
	},

	// the installation of a node
	"LHS100": func(w *world) {
		w.install = errors.New("program /opt/cni/bin/lhstorage of release v1.0.0: it has sha256 …")
	},
	"LHS101": func(w *world) {
		w.file("../run/attachments/x@lhnet1.json", "torn")
	},
	"LHS102": func(w *world) { w.edit = func(l *snapshot.Local) { l.Kinds["vxlan"] = false } },
	"LHS103": func(w *world) { require.NoError(w.t, os.RemoveAll(filepath.Join(w.host.Node.StateDir, "place"))) },
	"LHS104": func(w *world) {
		require.NoError(w.t, queue.Open(filepath.Join(w.host.Node.StateDir, queue.DirName)).Put(queue.Release{Owner: ipam.Owner{ContainerID: "c", IfName: "lhnet1"}, All: true, Why: "the API server is away"}))
	},
	"LHS105": func(w *world) { w.host.Node.Record = nodefile.RecordAgent },

	// the parent
	"LHS110": func(w *world) { w.delete(vx) },
	"LHS111": func(w *world) { w.kernel.Alter(vx, func(l *kernel.Link) { l.VXLAN.VNI = 7 }) },
	"LHS112": func(w *world) { w.kernel.Alter(vx, func(l *kernel.Link) { l.Up = false }) },
	"LHS113": func(w *world) {
		w.kernel.RouteVia("10.100.100.1/32", "eth0", 0)
		routes, err := w.kernel.Routes(3)
		require.NoError(w.t, err)
		require.NoError(w.t, w.kernel.DelRoute(routes[0]))
	},
	"LHS114": func(w *world) { w.flood("10.100.100.3", false) },
	"LHS115": func(w *world) { w.flood("10.100.100.77", true) },
	"LHS116": func(w *world) { w.kernel.Alter(vx, func(l *kernel.Link) { l.VXLAN.Learning = false }) },
	"LHS117": func(w *world) { w.kernel.Alter("eth0", func(l *kernel.Link) { l.MTU = 1400 }) },
	"LHS118": func(w *world) { w.unaddress("10.100.100.2") },
	"LHS119": func(w *world) { w.sysctl(vx, "arp_ignore", "0") },
	"LHS120": func(w *world) {
		w.kernel.Have(kernel.Link{Name: kernel.Guard(w.index(vx)), Kind: "macvlan", Lower: w.index(vx)})
	},
	"LHS121": func(w *world) { w.kernel.Alter(vx, func(l *kernel.Link) { l.Lower = w.index("eth0") }) },
	"LHS122": func(w *world) {
		w.kernel.Have(kernel.Link{Name: "flannel.1", Kind: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 4789, Local: addr("192.168.7.2")}})
	},
	"LHS123": func(w *world) {
		w.second("other", strings.NewReplacer("longhorn-storage", "other", vx, "eth0", "10.100.1.0", "10.9.0.0").Replace(withoutPlace))
		w.kernel.Alter("eth0", func(l *kernel.Link) { l.Kind = "bridge" })
	},
	"LHS124": func(w *world) { w.kernel.Alter(vx, func(l *kernel.Link) { l.MAC = []byte{2, 1, 2, 3, 4, 5} }) },
	"LHS125": func(w *world) { w.drivers["eth0"] = "vmxnet3" },
	"LHS127": func(w *world) {
		w.file(fmt.Sprintf("run/systemd/netif/links/%d", w.index(shimName)), "# This is private data.\nADMIN_STATE=configured\n")
	},
	"LHS128": func(w *world) {
		w.define(strings.Replace(definition, `"cidr"`, `"routes": "static", "via": {"10.100.100.3": "eth9"}, "cidr"`, 1))
	},

	// the shim
	"LHS130": func(w *world) { w.delete(shimName) },
	"LHS131": func(w *world) { w.kernel.Alter(shimName, func(l *kernel.Link) { l.Macvlan.Mode = "vepa" }) },
	"LHS132": func(w *world) { w.kernel.Alter(shimName, func(l *kernel.Link) { l.Up = false }) },
	"LHS133": func(w *world) { w.unaddress("10.100.1.2") },
	"LHS134": func(w *world) { w.kernel.AddrOn("eth0", "10.100.1.2/24") },
	"LHS135": func(w *world) { w.kernel.AddrOn(vx, "10.100.1.77/24") },
	"LHS136": func(w *world) { w.sysctl(shimName, "rp_filter", "1") },
	"LHS137": func(w *world) { w.kernel.Alter(shimName, func(l *kernel.Link) { l.MTU = 1300 }) },
	"LHS138": func(w *world) {
		w.kernel.RouteVia("10.100.1.64/26", shimName, 0)
		routes, err := w.kernel.Routes(3)
		require.NoError(w.t, err)
		ours := routes[len(routes)-1]
		require.NoError(w.t, w.kernel.DelRoute(ours))
		ours.Protocol = kernel.RouteProtocol
		require.NoError(w.t, w.kernel.AddRoute(ours))
	},

	// attachments
	"LHS140": func(w *world) { w.podDelete("lhnet1") },
	"LHS141": func(w *world) { w.pod.Alter("lhnet1", func(l *kernel.Link) { l.Up = false }) },
	"LHS142": func(w *world) {
		addrs, err := w.pod.Addrs()
		require.NoError(w.t, err)
		for _, a := range addrs {
			if a.Prefix.Addr() == addr("10.100.1.17") {
				require.NoError(w.t, w.pod.DelAddr(a))
			}
		}
	},
	"LHS143": func(w *world) { w.pod.Alter("lhnet1", func(l *kernel.Link) { l.MTU = 1300 }) },
	"LHS144": func(w *world) { w.netns = nil },
	"LHS145": func(w *world) {
		w.rewrite(func(a *record.Attachment) { a.ISCSINote = "eth1 wins: Longhorn asks for it by name" })
	},
	"LHS146": func(w *world) {
		w.pod.Have(kernel.Link{Name: "eth1", Kind: "veth", Up: true})
		w.pod.AddrOn("eth1", "172.16.0.9/24")
	},
}

// withoutPlace is a network that nodes need no place for.
const withoutPlace = `{
  "cniVersion": "1.1.0", "name": "longhorn-storage", "type": "lhstorage", "mode": "private",
  "parent": {"type": "device", "name": "vxlan-storage"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`

// second adds a younger definition.
func (w *world) second(name, config string) {
	w.cluster.Definitions = append(w.cluster.Definitions, agent.Definition{Namespace: longhorn, Name: name, UID: name, Created: now.Add(-time.Hour), Config: config})
}

// bare is a cluster whose pods have no storage network.
func (w *world) bare() {
	w.withoutManagers()
	w.cluster.Definitions[0].Config = "{}"
	w.setting(snapshot.StorageNetworkSetting, nadRef)
	w.cluster.Longhorn.Volumes = nil
}

func (w *world) withoutManagers() {
	w.cluster.Pods = slices.DeleteFunc(w.cluster.Pods, func(p corev1.Pod) bool { return snapshot.IsInstanceManager(p.Labels) })
	w.cluster.Longhorn.Engines, w.cluster.Longhorn.Replicas, w.cluster.Claims = nil, nil, nil
}

func (w *world) setting(name, value string) {
	for i := range w.cluster.Longhorn.Settings {
		if w.cluster.Longhorn.Settings[i].Name == name {
			w.cluster.Longhorn.Settings[i].Value = value
			return
		}
	}
	w.cluster.Longhorn.Settings = append(w.cluster.Longhorn.Settings, snapshot.LonghornSetting{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value})
}

// fill uses so many addresses of the range.
func (w *world) fill(n int) {
	entries := w.cluster.Pools[0].Spec.Allocations
	for i := 16; len(entries) < n; i++ {
		entries[fmt.Sprint(i)] = whereabouts.IPAllocation{}
	}
}

// leg makes the second node lose packets to its first target.
func (w *world) leg(kind v1alpha1.LegKind, refused string) {
	l := &w.cluster.ProbeReports[1].Status.Legs[0]
	l.Kind, l.Lost, l.Error = kind, 2, refused
}

// other adds a pod that asks for the network, beside Longhorn's.
func (w *world) other(i int) *corev1.Pod {
	p := *w.manager(i)
	p.Name, p.Labels = fmt.Sprintf("other%d", i), nil
	p.Annotations = map[string]string{nad.NetworksAnnotation: asked}
	w.cluster.Pods = append(w.cluster.Pods, p)
	return &w.cluster.Pods[len(w.cluster.Pods)-1]
}

func (w *world) delete(device string) { require.NoError(w.t, w.kernel.DelLink(w.index(device))) }

func (w *world) podDelete(device string) {
	l, err := w.pod.Link(device)
	require.NoError(w.t, err)
	require.NoError(w.t, w.pod.DelLink(l.Index))
}

func (w *world) unaddress(address string) {
	addrs, err := w.kernel.Addrs()
	require.NoError(w.t, err)
	for _, a := range addrs {
		if a.Prefix.Addr() == addr(address) {
			require.NoError(w.t, w.kernel.DelAddr(a))
		}
	}
}

// flood adds or removes a forwarding entry.
func (w *world) flood(vtep string, add bool) {
	if add {
		w.kernel.FloodOn(vx, vtep)
		return
	}
	require.NoError(w.t, w.kernel.DelFlood(w.index(vx), addr(vtep)))
}
