package longhorn

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// TestTrouble meets what goes wrong on the way.
func TestTrouble(t *testing.T) {
	b := newBed(t)
	for name, test := range map[string]func(*testing.T, *bed){
		"a volume stays attached":              straggler,
		"a volume is attached at the last":     lastMoment,
		"a node isn't ready":                   nodeNotReady,
		"the network is taken away":            networkGone,
		"an address of another network":        wrongAddress,
		"Multus didn't attach":                 notAttached,
		"longhorn-manager sleeps":              asleep,
		"two at once":                          twoAtOnce,
		"somebody else changes the setting":    foreignChange,
		"from one network to another and back": fromAnother,
		"a definition that nobody uses":        changedInPlace,
		"shared volumes":                       shared,
		"interrupted":                          interrupted,
		"a finding is passed over":             passedOver,
		"a user comes meanwhile":               newUser,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

func (w *world) value(t *testing.T) string {
	setting, err := w.double.lh("settings").Get(t.Context(), storageNetwork, metav1.GetOptions{})
	require.NoError(t, err)
	value, _, _ := unstructured.NestedString(setting.Object, "value")
	return value
}

// stopped is the error of a run that ended at a step.
func stopped(t *testing.T, err error, at longhorn.Step) string {
	t.Helper()
	e, ok := errors.AsType[*longhorn.StoppedError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, at, e.Step, "%v", err)
	assert.Contains(t, err.Error(), "lhstoragectl resume")
	assert.Contains(t, err.Error(), "lhstoragectl rollback")
	return err.Error()
}

func straggler(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.hold("web", true)
	s := w.workflow(t)
	s.Timeouts.Detach = 5 * time.Second // in which the others are detached
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepDetach)
	assert.Contains(t, text, "volume pvc-web is attached to node1 (claim "+w.app+"/web): a pod on node1 uses it through CSI")
	assert.NotContains(t, text, "pvc-db")
	assert.Empty(t, w.value(t))
	w.hold("web", false)
	require.NoError(t, w.workflow(t).Resume(t.Context()))
	w.enabled(t)
}

// lastMoment attaches a volume after the journal says that the setting will be changed: no look but the very last can see it.
func lastMoment(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	late := false
	w.writes.hook = func(path string) {
		j, err := (&longhorn.Cluster{API: w.api, Namespace: w.ns}).Journal(context.Background())
		if late || err != nil || !j.Switched || !strings.Contains(path, "configmaps") {
			return
		}
		late = true
		w.object(t, "Volume", "volumes", "v-late", nil, map[string]any{"state": "attaching", "currentNodeID": "node2"})
	}
	text := stopped(t, w.workflow(t).Run(t.Context(), w.request()), longhorn.StepSetting)
	require.True(t, late)
	assert.Contains(t, text, "volume v-late is attaching to node2")
	assert.Empty(t, w.value(t), "never while a volume is attached")
	w.writes.hook = nil
	w.edit(t, "volumes", "v-late", func(o map[string]any) { o["status"] = map[string]any{"state": "detached"} })
	require.NoError(t, w.workflow(t).Resume(t.Context()))
	w.enabled(t)
}

func nodeNotReady(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	b.shim(t, "node2", 2, "False")
	defer b.shim(t, "node2", 2, "True")
	s := w.workflow(t)
	s.Timeouts.Nodes = 300 * time.Millisecond
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepNodes)
	assert.Contains(t, text, "node2 isn't ready: parent vxlan-storage is down")
	assert.NotContains(t, text, "node1")
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	assert.Equal(t, before, w.state(t), "nothing was stopped")
}

// networkGone has pods that can't start: the event that says why must be in the error. The way back works.
func networkGone(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	w.writes.hook = func(path string) {
		if strings.HasSuffix(path, "/settings/"+storageNetwork) && w.writes.hook != nil {
			w.writes.hook = nil
			assert.NoError(t, w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(w.ns).Delete(t.Context(), "storage", metav1.DeleteOptions{}))
		}
	}
	s := w.workflow(t)
	s.Timeouts.Pods = 5 * time.Second
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepPods)
	assert.Contains(t, text, "instance-manager-node1: FailedCreatePodSandBox: error getting k8s client and network-attachment-definition")
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t))
}

func wrongAddress(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	for address, says := range map[string]string{"10.200.0.1": "the address 10.200.0.1, which isn't one of 10.100.1.0/24", "10.100.1.5": "10.100.1.5"} { // the second is kept for nodes
		w.become(odd{address: address})
		s := w.workflow(t)
		s.Timeouts.Pods = 5 * time.Second
		text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepPods)
		assert.Contains(t, text, says)
		require.NoError(t, w.workflow(t).Rollback(t.Context()))
	}
	w.become(odd{})
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()), "a finished journal is in nobody's way")
	w.enabled(t)
}

func notAttached(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.become(odd{noStatus: true})
	s := w.workflow(t)
	s.Timeouts.Pods = 5 * time.Second
	text := stopped(t, s.Run(t.Context(), w.request()), longhorn.StepPods)
	assert.Contains(t, text, "pod instance-manager-node1 on node1 runs without the network")
	w.become(odd{})
	for _, node := range nodes { // what the text says
		require.NoError(t, w.DeletePod(t.Context(), w.ns, "instance-manager-"+node))
	}
	require.NoError(t, w.workflow(t).Resume(t.Context()))
	w.enabled(t)
}

func asleep(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.become(odd{deaf: true})
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()))
	w.enabled(t)
}

func (w *world) reaches(t *testing.T, what func(*longhorn.Journal) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		j, err := (&longhorn.Cluster{API: w.api, Namespace: w.ns}).Journal(t.Context())
		return err == nil && what(j)
	}, time.Minute, beat)
}

func detaching(j *longhorn.Journal) bool { return j.Step == longhorn.StepDetach }

// twoAtOnce has a second process take over while the first waits; the first must change nothing any more.
func twoAtOnce(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.hold("web", true)
	first, second := make(chan error, 1), make(chan error, 1)
	holder := ""
	go func() { first <- w.workflow(t).Run(t.Context(), w.request()) }()
	w.reaches(t, func(j *longhorn.Journal) bool { holder = j.Holder; return detaching(j) })
	go func() { second <- w.workflow(t).Resume(t.Context()) }()
	w.reaches(t, func(j *longhorn.Journal) bool { return j.Holder != holder })
	w.hold("web", false)
	err := <-first
	_, taken := errors.AsType[*longhorn.TakenError](err)
	assert.True(t, taken, "%v", err)
	require.NoError(t, <-second)
	w.enabled(t)
}

func foreignChange(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.hold("web", true)
	s := w.workflow(t)
	s.Timeouts.Detach = 200 * time.Millisecond
	stopped(t, s.Run(t.Context(), w.request()), longhorn.StepDetach)
	w.hold("web", false)
	require.Eventually(t, func() bool { return !strings.Contains(w.state(t), "is attached") }, time.Minute, beat)
	w.edit(t, "settings", storageNetwork, func(o map[string]any) { o["value"] = "helm/other" })
	text := stopped(t, w.workflow(t).Resume(t.Context()), longhorn.StepSetting)
	assert.Contains(t, text, `it says "helm/other"`)
	assert.Equal(t, "helm/other", w.value(t))
	w.edit(t, "settings", storageNetwork, func(o map[string]any) { o["value"] = "" })
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	w.waitHealthy(t, "")
}

// fromAnother starts on a network that somebody else made: it stays when Longhorn has left it.
func fromAnother(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	old := strings.NewReplacer("10.100.1.0", "10.100.2.0", `"storage"`, `"old"`).Replace(networkConfig)
	require.NoError(t, w.CreateNetwork(t.Context(), w.ns, "old", old))
	require.NoError(t, w.workflow(t).Run(t.Context(), longhorn.Request{Network: longhorn.Ref{Namespace: w.ns, Name: "old"}}))
	w.waitHealthy(t, w.ns+"/old")
	before := w.state(t)
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()))
	w.enabled(t)
	assert.Contains(t, w.state(t), "network old ")
	require.NoError(t, w.Dynamic.Resource(controlplane.NetworkAttachments).Namespace(w.ns).Delete(t.Context(), "old", metav1.DeleteOptions{}))
	require.NoError(t, w.workflow(t).Rollback(t.Context()), "though it was removed meanwhile")
	w.waitHealthy(t, w.ns+"/old")
	assert.Equal(t, before, w.state(t))
}

func changedInPlace(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	require.NoError(t, w.CreateNetwork(t.Context(), w.ns, "storage", strings.Replace(networkConfig, `"vni": 100`, `"vni": 1001`, 1)))
	before := w.state(t)
	require.NoError(t, w.workflow(t).Run(t.Context(), w.request()))
	w.enabled(t)
	assert.NotEqual(t, before, w.state(t))
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t), "it was there, so it is as it was")
}

func shared(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	req := w.request()
	req.RWX = ptr.To(true)
	w.become(odd{csiStuck: true})
	s := w.workflow(t)
	s.Timeouts.Pods = 5 * time.Second
	text := stopped(t, s.Run(t.Context(), req), longhorn.StepPods)
	assert.Contains(t, text, "DaemonSet longhorn-csi-plugin: of 2 pods 2 are made anew and 1 available")
	assert.NotContains(t, text, "instance-manager", "these are well")
	w.become(odd{})
	require.NoError(t, w.workflow(t).Resume(t.Context()))
	plugin, err := w.Kube.AppsV1().DaemonSets(w.ns).Get(t.Context(), "longhorn-csi-plugin", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, annotationFor(w.ns+"/storage"), plugin.Spec.Template.Annotations[controlplane.NetworksAnnotation])
	w.enabled(t)
	assert.Contains(t, w.state(t), "storage-network-for-rwx-volume-enabled=true")
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	w.waitHealthy(t, "")
	assert.Equal(t, before, w.state(t))
}

func interrupted(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	w.hold("web", true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.workflow(t).Run(ctx, w.request()) }()
	w.reaches(t, detaching)
	cancel()
	text := stopped(t, <-ended, longhorn.StepDetach)
	assert.Contains(t, text, "interrupted while waiting so that all volumes are detached")
}

func passedOver(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	req := w.request()
	gone := pod("bare", func(*corev1.Pod) {})(t, w, &req)
	defer gone()
	_, refused := errors.AsType[*longhorn.RefusedError](w.workflow(t).Run(t.Context(), req))
	require.True(t, refused)
	req.Ignore = []longhorn.Code{longhorn.CannotStop}
	require.NoError(t, w.workflow(t).Run(t.Context(), req))
	w.enabled(t)
}

// newUser has a pod that can't be stopped come after preflight: nothing may be stopped then.
func newUser(t *testing.T, b *bed) {
	w := b.newWorld(t, "")
	before := w.state(t)
	req := w.request()
	var gone func()
	w.writes.hook = func(path string) {
		if strings.HasSuffix(path, "network-attachment-definitions") {
			gone = pod("bare", func(*corev1.Pod) {})(t, w, &req)
		}
	}
	text := stopped(t, w.workflow(t).Run(t.Context(), req), longhorn.StepStop)
	w.writes.hook = nil
	assert.Contains(t, text, "pod "+w.app+"/bare has no owner")
	gone()
	require.NoError(t, w.workflow(t).Rollback(t.Context()))
	assert.Equal(t, before, w.state(t), "nothing was stopped")
}
