package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// harmless is what looks like a breakage and is none, or not yet.
var harmless = map[string]func(*world){
	"a pod that has just begun": func(w *world) {
		breakages["LHS050"](w)
		start := metav1.NewTime(now.Add(-attachGrace + time.Second))
		w.podNamed("other3").Status.StartTime = &start
	},
	"a pod that is being deleted": func(w *world) {
		breakages["LHS050"](w)
		w.podNamed("other3").DeletionTimestamp = &metav1.Time{Time: now}
	},
	"a warning about a pod that runs by now": func(w *world) {
		breakages["LHS052"](w)
		w.podNamed("other3").Status.Phase = corev1.PodRunning
		w.podNamed("other3").Annotations = nil
	},
	"a quarantine that is over": func(w *world) {
		breakages["LHS027"](w)
		w.cluster.Claims[3].Spec.Declined.Until = metav1.NewTime(now.Add(-time.Second))
	},
	"a young claim of nobody": func(w *world) {
		breakages["LHS023"](w)
		w.cluster.Claims[3].CreationTimestamp = metav1.NewTime(now.Add(-oldLeak + time.Minute))
	},
	"a range that isn't nearly full": func(w *world) { w.fill(200) },
	"a node that hasn't reported its verdict": func(w *world) {
		w.cluster.HostShims[2].Status = v1alpha1.HostShimStatus{}
	},
	"a pinned index that is the node's": func(w *world) {
		w.cluster.Nodes[2].Annotations = map[string]string{v1alpha1.IndexAnnotation: "3"}
	},
	"a node without an agent": func(w *world) { // not a member: it needs no place
		w.cluster.Nodes = append(w.cluster.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node4"}})
	},
	"no node measures": func(w *world) { w.cluster.ProbeReports = nil },
	"addresses of another IPAM": func(w *world) {
		w.define(strings.Replace(definition, "lhstorage-ipam", "whereabouts", 1))
		breakages["LHS025"](w)
	},
	"a policy that lets iSCSI in": func(w *world) {
		breakages["LHS065"](w)
		port, end := intstr.FromInt32(3000), int32(4000)
		w.cluster.NetworkPolicies[0].Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port, EndPort: &end}}}}
	},
	"a policy for other pods": func(w *world) {
		breakages["LHS065"](w)
		w.cluster.NetworkPolicies[0].Spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	},
	"a policy where iSCSI goes over the storage network": func(w *world) {
		breakages["LHS065"](w)
		w.define(definition)
	},
	"an instance that is stopped": func(w *world) {
		breakages["LHS063"](w)
		w.cluster.Longhorn.Replicas[1].Status.State = "stopped"
	},
	"a cluster without Longhorn": func(w *world) {
		w.cluster.Longhorn = snapshot.Longhorn{Namespace: longhorn}
	},
	"the setting applied while a volume is attached": func(w *world) { *w.cluster.Longhorn.Settings[0].Status.Applied = true },
	"a recorder that is alive": func(w *world) {
		w.host.Node.Record = nodefile.RecordAgent
		renewed := metav1.NewMicroTime(now.Add(-leaseFresh + time.Second))
		w.cluster.Recorder = &kube.Lease{Spec: kube.LeaseSpec{HolderIdentity: "x", RenewTime: &renewed}}
	},
	"another tunnel on another port": func(w *world) {
		w.kernel.Have(kernel.Link{Name: "flannel.1", Kind: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 8472}})
	},
	"a manager of the NIC": func(w *world) { w.file("run/systemd/netif/links/2", "ADMIN_STATE=configured\n") },
	"an MTU that the pod's network asked for": func(w *world) {
		w.rewrite(func(a *record.Attachment) { a.MTU = 1300 })
		w.pod.Alter("lhnet1", func(l *kernel.Link) { l.MTU = 1300 })
	},
}

func TestHarmless(t *testing.T) {
	for name, alter := range harmless {
		t.Run(name, func(t *testing.T) {
			w := healthy(t)
			alter(w)
			assert.Empty(t, Diagnose(w.snapshot()))
		})
	}
}

// While a node has no place yet an entry that nobody knows may be a script's, for that node.
func TestUnknownEntriesWhileANodeIsMissing(t *testing.T) {
	w := healthy(t)
	breakages["LHS032"](w)
	w.kernel.FloodOn(vx, "10.100.100.3")
	found := Diagnose(w.snapshot())
	if assert.Len(t, found, 1) {
		assert.Equal(t, "LHS032", found[0].Code)
	}
}

// What a report said half an hour ago isn't how it is now.
func TestOldReports(t *testing.T) {
	w := healthy(t)
	breakages["LHS040"](w)
	breakages["LHS043"](w)
	found := Diagnose(w.snapshot())
	if assert.Len(t, found, 1) {
		assert.Equal(t, "LHS043", found[0].Code)
	}
}

// Without a cluster the node's own answer counts, and without a node nothing of a node is said.
func TestPartsOfASnapshot(t *testing.T) {
	w := healthy(t)
	breakages["LHS114"](w)
	breakages["LHS033"](w)
	whole := w.snapshot()
	only := func(s snapshot.Snapshot) (list []string) {
		for _, f := range Diagnose(&s) {
			list = append(list, f.Code)
		}
		return list
	}
	assert.Equal(t, []string{"LHS033", "LHS114"}, only(*whole))
	assert.Equal(t, []string{"LHS114"}, only(snapshot.Snapshot{Time: now, Local: whole.Local}))
	assert.Equal(t, []string{"LHS033"}, only(snapshot.Snapshot{Time: now, Cluster: whole.Cluster}))
	assert.Empty(t, only(snapshot.Snapshot{Time: now}))
}

func TestBefore(t *testing.T) {
	for release, want := range map[string]bool{"5.6.19": true, "5.7.0": false, "5.10.0-28-amd64": false, "4.19.0": true, "6.1-rc3": false, "5.6": true, "": false, "x.y": false} {
		assert.Equal(t, want, before(release, 5, 7), release)
	}
}
