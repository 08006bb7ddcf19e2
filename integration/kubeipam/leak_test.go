package kubeipam

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/leak"
)

// collector is what the elected agent runs, a pass at a time.
type collector struct {
	*leak.Collector
	t        *testing.T
	registry *prometheus.Registry
}

func (b *bed) collector(t *testing.T) collector {
	registry := prometheus.NewRegistry()
	return collector{&leak.Collector{
		Settings: leak.Settings{Interval: 20 * time.Millisecond, MinAge: time.Nanosecond, NodeGrace: time.Nanosecond}, API: b.client(t, ""),
		Metrics: leak.NewMetrics(registry), Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}, t, registry}
}

// passes makes two passes, of which only the second collects, and returns what it did, as "address reason".
func (c collector) passes() (collected []string) {
	c.t.Helper()
	time.Sleep(time.Second) // the age of claims is known to the second
	for i := range 2 {
		verdicts, err := c.Pass(c.t.Context())
		require.NoError(c.t, err)
		if i == 0 {
			require.Empty(c.t, verdicts, "the first time that something is found leaked")
		}
		for _, v := range verdicts {
			collected = append(collected, v.Claim.Spec.Address+" "+string(v.Reason))
		}
		time.Sleep(c.Interval)
	}
	return collected
}

// pod makes a pod object in the namespace that calls are for.
func (b *bed) pod(t *testing.T, node, name string) *corev1.Pod {
	pod, err := b.CreatePod(t.Context(), node, "ns", name)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.DeletePod(context.WithoutCancel(t.Context()), "ns", name) })
	return pod
}

// report writes a pod's network-status as Multus does.
func (b *bed) report(t *testing.T, name, address string) {
	ip, _, _ := strings.Cut(address, "/")
	status, err := json.Marshal([]controlplane.NetworkStatus{{Name: "cluster", Interface: "eth0", IPs: []string{"10.244.0.2"}, Default: true}, {Name: "default/net", Interface: "net1", IPs: []string{ip}}})
	require.NoError(t, err)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{controlplane.NetworkStatusAnnotation: string(status)}}})
	require.NoError(t, err)
	_, err = b.Kube.CoreV1().Pods("ns").Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	require.NoError(t, err)
}

// end is the kubelet's word that a pod has ended, and perhaps that its sandbox is gone.
func (b *bed) end(t *testing.T, name string, sandbox corev1.ConditionStatus) {
	pod, err := b.Kube.CoreV1().Pods("ns").Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	pod.Status.Phase = corev1.PodFailed
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: sandbox}}
	_, err = b.Kube.CoreV1().Pods("ns").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// heard sets whether a node's kubelet is heard of.
func (b *bed) heard(t *testing.T, name string, ready corev1.ConditionStatus) {
	node, err := b.Kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	_, err = b.Kube.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// forgetBoot is what a reboot does to a node's notes.
func (m *machine) forgetBoot(t *testing.T) {
	require.NoError(t, m.Do(func() error { return os.RemoveAll("/run/lhstorage") }))
}

// die makes a call that is killed at a fault point.
func (m *machine) die(t *testing.T, verb, container, pod, conf, point string) {
	binary := filepath.Join(tools.Ours(t, "faultpoints"), "lhstorage-ipam")
	_, dead, err := m.run(verb, attachment{plugin: binary, container: container, pod: pod}, conf, 0, "LHSTORAGE_FAULT="+point+"=kill")
	require.True(t, dead, "%v", err)
}

// byHand makes a call for a container without a pod.
func (m *machine) byHand(t *testing.T, verb, conf string) string {
	got, _, err := m.run(verb, attachment{plugin: m.binary, container: "by-hand"}, conf, 0, "CNI_ARGS=IgnoreUnknown=1")
	require.NoError(t, err)
	return strings.TrimSuffix(got, "/24")
}

// leaks: what no DEL comes for is given back, with all that belongs to it, and what lives stays.
func leaks(record string) func(*testing.T, *bed) {
	return func(t *testing.T, b *bed) {
		_ = b.CreateNamespace(t.Context(), "ns") // the other mode's run may have made it
		m := b.machines(t, record)[0]
		m.forgetBoot(t)
		c := b.collector(t)
		config := conf(shared10)
		add := func(m *machine, name string) string {
			got, _, err := m.call(t, "ADD", "c-"+name, name, config)
			require.NoError(t, err)
			return strings.TrimSuffix(got, "/24")
		}
		attach := func(m *machine, name string) string {
			b.pod(t, m.Name, name)
			got := add(m, name)
			b.report(t, name, got)
			return got
		}

		// Each of these keeps its claim.
		live := attach(m, "live")
		b.pod(t, m.Name, "being-made")
		made := add(m, "being-made")
		evicted := attach(m, "evicted")
		b.end(t, "evicted", corev1.ConditionTrue)
		byHand := m.byHand(t, "ADD", config)
		require.Empty(t, c.passes())

		// A pod that was killed without a DEL, one that has ended, and one that came back under its name.
		gone, ended := attach(m, "gone"), attach(m, "ended")
		require.NoError(t, b.DeletePod(t.Context(), "ns", "gone"))
		b.end(t, "ended", corev1.ConditionFalse)
		require.ElementsMatch(t, []string{gone + " pod-gone", ended + " pod-finished"}, c.passes())

		// A node that isn't heard of keeps what it has; one that is gone doesn't.
		b.addNode(t, "lost", nil)
		onLost := func(name string) {
			require.NoError(t, m.WriteFile(nodeFile, fmt.Appendf(nil, `{"nodeName": %q, "kubeconfig": %q, "record": %q}`, name, kubeconfig, record)))
		}
		onLost("lost")
		b.pod(t, "lost", "on-lost")
		onNode := add(m, "on-lost")
		b.report(t, "on-lost", onNode)
		onLost(m.Name)
		b.heard(t, "lost", corev1.ConditionUnknown)
		require.NoError(t, b.DeletePod(t.Context(), "ns", "on-lost"))
		require.Empty(t, c.passes())
		b.removeNode(t, "lost")
		_, err := c.Pass(t.Context()) // from here on it is missed
		require.NoError(t, err)
		require.Equal(t, []string{onNode + " node-gone"}, c.passes())

		// An ADD is killed, the node's notes are lost, and the next one doesn't see the address that the first one claimed. With a recorder
		// it does, by the pool's entry, and takes it over.
		b.pod(t, m.Name, "twice")
		m.die(t, "ADD", "c1-twice", "twice", conf(shared10+`, "range_start": "10.0.0.100"`), "ipam.add.claimed")
		m.forgetBoot(t)
		if record == "agent" {
			require.Eventually(t, func() bool { return b.settled(t) == 5 }, callTime, 50*time.Millisecond, "%s", b.objects(t))
		}
		second := add(m, "twice")
		b.report(t, "twice", second)
		if record == "agent" {
			require.Equal(t, "10.0.0.100", second)
			require.Empty(t, c.passes())
		} else {
			require.Equal(t, []string{"10.0.0.100 superseded"}, c.passes())
		}

		for _, keeps := range []string{live, made, evicted, byHand, second} {
			assert.Contains(t, b.objects(t), "claim "+keeps+" ")
		}
		require.Eventually(t, func() bool { return b.settled(t) == 5 }, callTime, 50*time.Millisecond, "%s", b.objects(t))

		// A sandbox that takes a claim over between the reading and the writing keeps it.
		late := attach(m, "late")
		require.NoError(t, b.DeletePod(t.Context(), "ns", "late"))
		var claim v1alpha1.AddressClaim
		require.NoError(t, b.api.Get(t.Context(), kube.Claims, late, &claim))
		got, _, err := m.call(t, "ADD", "newer", "late", config)
		require.NoError(t, err)
		require.Equal(t, late+"/24", got)
		done, err := kube.New(kube.Options{API: b.api}).ReleaseAsRead(t.Context(), claim)
		require.NoError(t, err)
		require.False(t, done)

		// A release that was begun and never finished is finished.
		m.die(t, "DEL", "c-live", "live", config, "ipam.del.marked")
		if record == "sync" {
			require.ElementsMatch(t, []string{live + " unfinished", late + " pod-gone"}, c.passes())
		} else { // the recorder does that
			require.Equal(t, []string{late + " pod-gone"}, c.passes())
		}

		for _, name := range []string{"being-made", "evicted", "twice"} {
			require.NoError(t, b.DeletePod(t.Context(), "ns", name))
		}
		require.Len(t, c.passes(), 3)
		m.byHand(t, "DEL", config)
		b.eventually(t, "")
		require.NoError(t, testutil.GatherAndCompare(c.registry, strings.NewReader("# HELP lhstorage_leaked_claims Claims that the last pass found leaked, whether or not they are due.\n"+
			"# TYPE lhstorage_leaked_claims gauge\nlhstorage_leaked_claims 3\n"), "lhstorage_leaked_claims"))
	}
}
