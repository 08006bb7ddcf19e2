package longhorn

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// broken is a world in which one thing is wrong.
type broken struct {
	code longhorn.Code
	says string // is part of the text: the straggler's name
	// wrong makes it so, and may change what is asked for; what it returns mends it.
	wrong   func(*testing.T, *world, *longhorn.Request) (mend func())
	warning bool
}

func noMend() {}

// field sets a field of a Longhorn object, and back.
func field(plural, name string, value any, path ...string) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, _ *longhorn.Request) func() {
		before, err := w.double.lh(plural).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		old, had, _ := unstructured.NestedFieldCopy(before.Object, path...)
		w.edit(t, plural, name, func(o map[string]any) { require.NoError(t, unstructured.SetNestedField(o, value, path...)) })
		return func() {
			w.edit(t, plural, name, func(o map[string]any) {
				unstructured.RemoveNestedField(o, path...)
				if had {
					require.NoError(t, unstructured.SetNestedField(o, old, path...))
				}
			})
		}
	}
}

// extra makes one of Longhorn's objects, and removes it.
func extra(kind, plural, name string, status map[string]any) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, _ *longhorn.Request) func() {
		w.object(t, kind, plural, name, nil, status)
		return func() { require.NoError(t, w.double.lh(plural).Delete(t.Context(), name, metav1.DeleteOptions{})) }
	}
}

// other makes an object of another group, and removes it.
func other(group, version, kind, plural, name string, fields map[string]any) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, _ *longhorn.Request) func() {
		gvr := schema.GroupVersionResource{Group: group, Version: version, Resource: plural}
		object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": gvr.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}}}
		for key, value := range fields {
			object.Object[key] = value
		}
		client := w.Dynamic.Resource(gvr).Namespace(w.app)
		if group == "harvesterhci.io" && kind == "Setting" {
			client = w.Dynamic.Resource(gvr)
		}
		_, err := client.Create(t.Context(), object, metav1.CreateOptions{})
		require.NoError(t, err)
		return func() { require.NoError(t, client.Delete(t.Context(), name, metav1.DeleteOptions{})) }
	}
}

// pod makes a pod that uses a claim, and removes it.
func pod(name string, change func(*corev1.Pod)) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, _ *longhorn.Request) func() {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: w.template("web").Spec}
		p.Spec.AutomountServiceAccountToken = ptr.To(false)
		change(p)
		_, err := w.Kube.CoreV1().Pods(w.app).Create(t.Context(), p, metav1.CreateOptions{})
		require.NoError(t, err)
		return func() { require.NoError(t, w.DeletePod(t.Context(), w.app, name)) }
	}
}

// both does two things; the second one's request counts too.
func both(a, b func(*testing.T, *world, *longhorn.Request) func()) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, req *longhorn.Request) func() {
		mendA := a(t, w, req)
		mendB := b(t, w, req)
		return func() { mendB(); mendA() }
	}
}

func asks(change func(*longhorn.Request)) func(*testing.T, *world, *longhorn.Request) func() {
	return func(_ *testing.T, _ *world, req *longhorn.Request) func() { change(req); return noMend }
}

func harvesterSetting(conditions ...any) func(*testing.T, *world, *longhorn.Request) func() {
	return other("harvesterhci.io", "v1beta1", "Setting", "settings", storageNetwork, map[string]any{"value": "", "status": map[string]any{"conditions": conditions}})
}

var onHarvester = asks(func(r *longhorn.Request) { r.Harvester = true })

func owner(apiVersion, kind, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: "u", Controller: ptr.To(true)}}
	}
}

var wrongs = []broken{
	{code: longhorn.NoLonghorn, says: "-n", wrong: func(_ *testing.T, w *world, _ *longhorn.Request) func() {
		w.looksIn = "nowhere"
		return func() { w.looksIn = w.ns }
	}},
	{code: longhorn.JournalOpen, says: "lhstoragectl resume", wrong: func(t *testing.T, w *world, req *longhorn.Request) func() {
		require.Error(t, w.workflow(t).Run(w.dieAfter(t, 1), *req))
		return func() { require.NoError(t, w.workflow(t).Rollback(t.Context())) }
	}},
	{code: longhorn.NothingToDo, says: "pod network", warning: true, wrong: asks(func(r *longhorn.Request) { *r = longhorn.Request{} })},
	{code: longhorn.MultusNode, says: "node2", wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		require.NoError(t, w.DeletePod(t.Context(), metav1.NamespaceSystem, "multus-node2"))
		return func() { w.multus(t, "node2") }
	}},
	{code: longhorn.NoNetwork, says: "--config", wrong: asks(func(r *longhorn.Request) { r.Config = "" })},
	{code: longhorn.NetworkFault, says: "hostShim.range", wrong: asks(func(r *longhorn.Request) { r.Config = strings.Replace(r.Config, "10.100.1.0/28", "10.200.1.0/28", 1) })},
	{code: longhorn.NetworkFault, says: "JSON", wrong: asks(func(r *longhorn.Request) { r.Config = "{" })},
	{code: longhorn.NetworkInUse, says: "other-user", wrong: func(t *testing.T, w *world, req *longhorn.Request) func() {
		require.NoError(t, w.CreateNetwork(t.Context(), w.ns, "storage", strings.Replace(networkConfig, `"vni": 100`, `"vni": 101`, 1)))
		gone := pod("other-user", func(p *corev1.Pod) {
			p.Spec.Volumes = nil
			p.Annotations = map[string]string{controlplane.NetworksAnnotation: w.ns + "/storage@net1"}
		})(t, w, req)
		return func() {
			gone()
			require.NoError(t, w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(w.ns).Delete(t.Context(), "storage", metav1.DeleteOptions{}))
		}
	}},
	{code: longhorn.RangeTooSmall, says: "7 addresses for pods, and Longhorn needs 8", wrong: asks(func(r *longhorn.Request) {
		r.Config = strings.NewReplacer("10.100.1.0/24", "10.100.1.0/28", "10.100.1.0/28", "10.100.1.8/29").Replace(r.Config)
	})},
	{code: longhorn.NodeNotReady, says: "node2", wrong: field("nodes", "node2", []any{map[string]any{"type": "Ready", "status": "False", "message": "kubelet is away"}}, "status", "conditions")},
	{code: longhorn.NoCSIPlugin, says: "longhorn-csi-plugin", wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		require.NoError(t, w.Kube.AppsV1().DaemonSets(w.ns).Delete(t.Context(), "longhorn-csi-plugin", metav1.DeleteOptions{}))
		return func() { w.daemonSet(t, w.ns, "longhorn-csi-plugin", "") }
	}},
	{code: longhorn.VolumeBusy, says: "v-busy", wrong: extra("Volume", "volumes", "v-busy", map[string]any{"state": "attaching"})},
	{code: longhorn.VolumeBusy, says: "migrated", wrong: extra("Volume", "volumes", "v-moves", map[string]any{"state": "attached", "currentMigrationNodeID": "node2"})},
	{code: longhorn.VolumeBusy, says: "upgraded", wrong: both(field("volumes", "pvc-web", "engine:2", "spec", "image"), field("volumes", "pvc-web", "engine:1", "status", "currentImage"))},
	{code: longhorn.VolumeFaulted, says: "v-bad", warning: true, wrong: extra("Volume", "volumes", "v-bad", map[string]any{"state": "detached", "robustness": "faulted"})},
	{code: longhorn.Rebuilding, says: "pvc-web", wrong: field("engines", "pvc-web", map[string]any{"tcp://10.42.0.7:10000": map[string]any{"isRebuilding": true}}, "status", "rebuildStatus")},
	{code: longhorn.Restoring, says: "pvc-web", wrong: field("engines", "pvc-web", map[string]any{"tcp://10.42.0.7:10000": map[string]any{"isRestoring": true}}, "status", "restoreStatus")},
	{code: longhorn.Restoring, says: "v-new", wrong: extra("Volume", "volumes", "v-new", map[string]any{"state": "detached", "restoreRequired": true})},
	{code: longhorn.Expanding, says: "pvc-db", wrong: field("engines", "pvc-db", true, "status", "isExpanding")},
	{code: longhorn.Expanding, says: "v-grows", wrong: extra("Volume", "volumes", "v-grows", map[string]any{"state": "detached", "expansionRequired": true})},
	{code: longhorn.BackupRunning, says: "backup-1", wrong: extra("Backup", "backups", "backup-1", map[string]any{"state": "InProgress", "volumeName": "pvc-web"})},
	{code: longhorn.ImageTransfer, says: "image-1", wrong: extra("BackingImage", "backingimages", "image-1", map[string]any{"diskFileStatusMap": map[string]any{"disk-1": map[string]any{"state": "in-progress", "progress": int64(40)}}})},
	{code: longhorn.HandAttached, says: "v-hand", wrong: both(
		extra("Volume", "volumes", "v-hand", map[string]any{"state": "attached", "currentNodeID": "node1"}),
		func(t *testing.T, w *world, _ *longhorn.Request) func() {
			w.object(t, "VolumeAttachment", "volumeattachments", "v-hand", map[string]any{"spec": map[string]any{"volume": "v-hand", "attachmentTickets": map[string]any{"ui": map[string]any{"type": "longhorn-api", "nodeID": "node1"}}}}, nil)
			return func() {
				require.NoError(t, w.double.lh("volumeattachments").Delete(t.Context(), "v-hand", metav1.DeleteOptions{}))
			}
		})},
	{code: longhorn.CannotStop, says: "bare", wrong: pod("bare", func(*corev1.Pod) {})},
	{code: longhorn.CannotStop, says: "shut the virtual machine down", wrong: pod("virt-launcher", owner("kubevirt.io/v1", "VirtualMachineInstance", "vm"))},
	{code: longhorn.CannotStop, says: "Job nightly", wrong: pod("nightly-1", owner("batch/v1", "Job", "nightly"))},
	{code: longhorn.CannotStop, says: "Cluster pg", wrong: pod("pg-1", owner("postgresql.cnpg.io/v1", "Cluster", "pg"))},
	{code: longhorn.CannotStop, says: "Deployment odd", wrong: pod("odd-1", owner("example.com/v1", "Deployment", "odd"))},
	{code: longhorn.ClaimsDeleted, says: "StatefulSet", wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		set := func(policy appsv1.PersistentVolumeClaimRetentionPolicyType) {
			s, err := w.Kube.AppsV1().StatefulSets(w.app).Get(t.Context(), "db", metav1.GetOptions{})
			require.NoError(t, err)
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: policy, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType}
			_, err = w.Kube.AppsV1().StatefulSets(w.app).Update(t.Context(), s, metav1.UpdateOptions{})
			require.NoError(t, err)
		}
		set(appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
		return func() { set(appsv1.RetainPersistentVolumeClaimRetentionPolicyType) }
	}},
	{code: longhorn.EmptyAddresses, says: "instance-manager-node2", warning: true, wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		set := func(status string) {
			p, err := w.Kube.CoreV1().Pods(w.ns).Get(t.Context(), "instance-manager-node2", metav1.GetOptions{})
			require.NoError(t, err)
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[controlplane.NetworkStatusAnnotation] = status
			_, err = w.Kube.CoreV1().Pods(w.ns).Update(t.Context(), p, metav1.UpdateOptions{})
			require.NoError(t, err)
		}
		set(`[{"name": "x/y", "ips": [ ]}]`)
		return func() { set("") }
	}},
	{code: longhorn.LegFails, says: "host-local loses 3 of 5 packets from node1 to longhorn/im on node1 (10.100.1.16)", wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		gvr := schema.GroupVersionResource{Group: "lhstorage.io", Version: "v1alpha1", Resource: "probereports"}
		_, err := w.Dynamic.Resource(gvr).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": gvr.GroupVersion().String(), "kind": "ProbeReport", "metadata": map[string]any{"name": "node1"}, "spec": map[string]any{"node": "node1"},
			"status": map[string]any{"time": time.Now().UTC().Format(time.RFC3339), "measured": int64(1), "failing": int64(1), "legs": []any{map[string]any{
				"kind": "host-local", "network": "storage", "node": "node1", "pod": "longhorn/im", "address": "10.100.1.16", "sent": int64(5), "lost": int64(3),
			}}},
		}}, metav1.CreateOptions{})
		require.NoError(t, err)
		return func() {
			require.NoError(t, w.Dynamic.Resource(gvr).Delete(t.Context(), "node1", metav1.DeleteOptions{}))
		}
	}},
	{code: longhorn.NoRWXSetting, says: "1.7", wrong: func(t *testing.T, w *world, req *longhorn.Request) func() {
		const name = "storage-network-for-rwx-volume-enabled"
		req.RWX = ptr.To(true)
		require.NoError(t, w.double.lh("settings").Delete(t.Context(), name, metav1.DeleteOptions{}))
		return func() { w.object(t, "Setting", "settings", name, map[string]any{"value": "false"}, nil) }
	}},
	{code: longhorn.SettingManaged, says: "Flux", warning: true, wrong: field("settings", storageNetwork, map[string]any{"kustomize.toolkit.fluxcd.io/name": "storage"}, "metadata", "labels")},
	{code: longhorn.SettingManaged, says: "defaultSettings.storageNetwork", warning: true, wrong: func(t *testing.T, w *world, _ *longhorn.Request) func() {
		_, err := w.Kube.CoreV1().ConfigMaps(w.ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "longhorn-default-setting"}, Data: map[string]string{"default-setting.yaml": "a: b\nstorage-network: x/y\n"}}, metav1.CreateOptions{})
		require.NoError(t, err)
		return func() {
			require.NoError(t, w.Kube.CoreV1().ConfigMaps(w.ns).Delete(t.Context(), "longhorn-default-setting", metav1.DeleteOptions{}))
		}
	}},
	{code: longhorn.NoHarvester, says: "isn't Harvester", wrong: onHarvester},
	{code: longhorn.IsHarvester, says: "--harvester", wrong: harvesterSetting()},
	{code: longhorn.HarvesterBusy, says: "Stopping Pods", wrong: both(onHarvester, harvesterSetting(map[string]any{"type": "configured", "status": "False", "reason": "In Progress", "message": "Stopping Pods"}))},
	{code: longhorn.VMRunning, says: "vm-1", wrong: both(both(onHarvester, harvesterSetting()), other("kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances", "vm-1", map[string]any{"status": map[string]any{"phase": "Running"}}))},
	{code: longhorn.VMImageTransfer, says: "image-x", wrong: both(both(onHarvester, harvesterSetting()), other("harvesterhci.io", "v1beta1", "VirtualMachineImage", "virtualmachineimages", "image-x",
		map[string]any{"status": map[string]any{"progress": int64(30), "conditions": []any{map[string]any{"type": "Imported", "status": "Unknown"}}}}))},
	// What is taken away here doesn't come back.
	{code: longhorn.NoWhereaboutsCRD, says: "3168", wrong: without("ippools.whereabouts.cni.cncf.io")},
	{code: longhorn.NoAgent, says: "docs/install.md", wrong: without("hostshims.lhstorage.io")},
	{code: longhorn.NoMultus, says: "install Multus", wrong: without("network-attachment-definitions.k8s.cni.cncf.io")},
}

func without(name string) func(*testing.T, *world, *longhorn.Request) func() {
	return func(t *testing.T, w *world, _ *longhorn.Request) func() {
		crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
		require.NoError(t, w.Dynamic.Resource(crds).Delete(t.Context(), name, metav1.DeleteOptions{}))
		plural, group, _ := strings.Cut(name, ".")
		version := map[string]string{"k8s.cni.cncf.io": "v1"}[group]
		if version == "" {
			version = "v1alpha1"
		}
		require.Eventually(t, func() bool {
			_, err := w.Dynamic.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural}).List(t.Context(), metav1.ListOptions{})
			return apierrors.IsNotFound(err)
		}, 20*time.Second, 20*time.Millisecond)
		return noMend
	}
}

// TestRefusals breaks one thing after the other. Each time the run must say exactly that, and change nothing.
func TestRefusals(t *testing.T) {
	b := newBed(t)
	w := b.newWorld(t, "")
	before := w.state(t)
	covered := map[longhorn.Code]bool{}
	for _, c := range wrongs {
		covered[c.code] = true
		t.Run(string(c.code)+" "+c.says, func(t *testing.T) {
			req := w.request()
			mend := c.wrong(t, w, &req)
			w.dieAfter(t, 0)
			_, findings, err := w.workflow(t).Plan(t.Context(), req)
			require.NoError(t, err)
			var texts []string
			for _, f := range findings {
				texts = append(texts, f.String())
				if f.Code == c.code {
					assert.Equal(t, c.warning, f.Warning)
				}
			}
			found := strings.Join(texts, "\n")
			assert.Contains(t, found, "["+string(c.code)+"]")
			assert.Contains(t, found, c.says)
			if !c.warning {
				refused, ok := errors.AsType[*longhorn.RefusedError](w.workflow(t).Run(t.Context(), req))
				require.True(t, ok)
				assert.Contains(t, refused.Error(), c.says)
			}
			assert.Empty(t, w.writes.log, "nothing is written")
			mend()
			if c.code != longhorn.NoMultus {
				assert.Equal(t, before, w.state(t))
			}
		})
	}
	for _, code := range longhorn.Codes() {
		assert.True(t, covered[code], "no test breaks %s", code)
	}
}

// TestAllAtOnce sees that one finding doesn't hide another.
func TestAllAtOnce(t *testing.T) {
	b := newBed(t)
	w := b.newWorld(t, "")
	req := w.request()
	for _, c := range wrongs {
		switch c.code {
		case longhorn.Rebuilding, longhorn.NodeNotReady, longhorn.BackupRunning, longhorn.ImageTransfer, longhorn.MultusNode, longhorn.RangeTooSmall, longhorn.NoCSIPlugin:
			c.wrong(t, w, &req)
		}
	}
	_, findings, err := w.workflow(t).Plan(t.Context(), req)
	require.NoError(t, err)
	assert.Len(t, findings, 7, "%v", findings)
	req.Ignore = longhorn.Codes()
	journal, _, err := w.workflow(t).Plan(t.Context(), req)
	require.NoError(t, err)
	require.NotNil(t, journal, "what may be ignored is")
	assert.Len(t, w.workflow(t).Preview(journal), len(steps))
}
