package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/integration/rights"
	"github.com/lhstorage/lhstorage/integration/tools"
)

// What the chart promises: a minute from `helm install` to attached pods.
const helmPromise = time.Minute

// example is the network of deploy/examples/source-design.
var example = controlplane.Network{Namespace: namespace, Name: "longhorn-storage", Interface: StorageInterface}

// The way of docs/install.md, on nodes that have never seen lhstorage: the chart is installed, upgraded while pods come and go, removed while
// pods run, and installed again.
func TestHelm(t *testing.T) {
	b := newBed(t, Options{Nodes: 2, Untouched: true, Audit: true, Primary: Moved})
	for _, step := range []struct {
		name string
		run  func(*testing.T, bed)
	}{
		{"install", helmInstall},
		{"the agent's pod", helmAgent},
		{"upgrade while pods come and go", helmUpgrade},
		{"uninstall while pods run", helmUninstall},
		{"install again", helmAgain},
		{"take it off the nodes", helmOff},
		{"README: from zero to a verified network", readme},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, b) }) {
			return // each step begins with what the one before has left
		}
	}
}

// helm runs helm on the chart with the source design's values.
func (b bed) helm(t *testing.T, verb, tag string, more ...string) string {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	chart, err := b.HelmChart(t.Context())
	require.NoError(t, err)
	out, err := b.Helm(t.Context(), append([]string{
		verb, "lhstorage", chart, "--namespace", deploy.Namespace,
		"--values", filepath.Join(root, "deploy/examples/source-design/values.yaml"),
		"--set", "image.repository=" + ImageLhstorage, "--set", "image.tag=" + tag, "--set", "image.pullPolicy=Never",
	}, more...)...)
	require.NoError(t, err)
	return out
}

// rolledOut waits until the DaemonSet runs in its newest form on all nodes.
func (b bed) rolledOut(t *testing.T) {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "--namespace", deploy.Namespace, "rollout", "status", "daemonset/lhstorage", "--timeout=120s")
	if err != nil {
		describe, _ := b.Kubectl(t.Context(), "--namespace", deploy.Namespace, "describe", "pods")
		logs, _ := b.Kubectl(t.Context(), "--namespace", deploy.Namespace, "logs", "--prefix", "--all-containers", "--selector=app.kubernetes.io/name=lhstorage")
		t.Log(describe, logs)
	}
	require.NoError(t, err, out)
}

// failedAttaches are the runtime's complaints about pods, of the namespace of the tests.
func (b bed) failedAttaches(t *testing.T) (all []string) {
	t.Helper()
	for _, reason := range []string{"FailedCreatePodSandBox", "FailedKillPod"} {
		list, err := b.Kube.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
		require.NoError(t, err)
		for _, e := range list.Items {
			all = append(all, fmt.Sprintf("%s %s (%d times): %s", e.Reason, e.InvolvedObject.Name, max(e.Count, 1), e.Message))
		}
	}
	return all
}

// wantPrograms checks that the node's runtime finds the programs of the image with a tag.
func (b bed) wantPrograms(t *testing.T, tag string) {
	t.Helper()
	for _, name := range pluginNames {
		want, err := os.ReadFile(b.ReleaseProgram(tag, name))
		require.NoError(t, err)
		for _, n := range b.on() {
			have, err := n.ReadFile(filepath.Join(binDir, name))
			require.NoError(t, err)
			assert.Equal(t, sha256.Sum256(want), sha256.Sum256(have), "%s on %s isn't that of image %s", name, n.Name, tag)
		}
	}
}

// helmInstall installs the chart for pods that wait for it.
func helmInstall(t *testing.T, b bed) {
	ctx := t.Context()
	for _, n := range b.on() {
		_, err := n.ReadFile(filepath.Join(binDir, "lhstorage"))
		require.ErrorIs(t, err, os.ErrNotExist, "the test shows nothing")
		// The cables decide which place is a node's: the network's comment says so.
		_, err = b.Kubectl(ctx, "annotate", "node", n.Name, fmt.Sprintf("lhstorage.io/index=%d", n.Lab.Index))
		require.NoError(t, err)
	}
	require.NoError(t, b.ImportLhstorage(ctx, "v1"))
	require.NoError(t, b.CreateNamespace(ctx, deploy.Namespace))
	_, err := b.Kubectl(ctx, "label", "namespace", deploy.Namespace, "pod-security.kubernetes.io/enforce=privileged")
	require.NoError(t, err)
	root, err := tools.Root()
	require.NoError(t, err)
	require.NoError(t, b.ApplyFiles(ctx, nil, filepath.Join(root, "deploy/examples/source-design/nad.yaml")))

	begin := time.Now()
	said := b.helm(t, "install", "v1")
	assert.Contains(t, said, "`helm uninstall` leaves", "what will stay is said")
	pods := b.managers(t, example)
	took := time.Since(begin)
	assert.Less(t, took, helmPromise)
	t.Logf("an instance manager is attached on each node %s after helm install", took.Round(100*time.Millisecond))
	b.rolledOut(t)
	b.untilPeers(t, pods)
	b.wantLegs(t, pods, "")
	b.wantPrograms(t, "v1")
	for i, addr := range dialled(t, pods) {
		require.Equal(t, pods[i].Storage, addr)
		b.wantAttached(t, addr)
	}
	ready, err := b.Kubectl(ctx, "get", "hostshims", "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.node} {end}`)
	require.NoError(t, err)
	assert.Equal(t, "vxlan-storage-1=node1 vxlan-storage-2=node2 ", ready)
}

// helmAgent looks at what the agent's process may do, and whether that is enough to put a node right.
func helmAgent(t *testing.T, b bed) {
	n := b.Nodes[0]
	pid, err := n.Run(t.Context(), busybox, "pidof", "lhstorage-agent")
	require.NoError(t, err)
	status, err := n.Run(t.Context(), busybox, "cat", "/proc/"+strings.TrimSpace(string(pid))+"/status")
	require.NoError(t, err)
	granted := uint64(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_ADMIN)
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		assert.Regexp(t, fmt.Sprintf(`(?m)^%s:\s+%016x$`, set, granted), string(status))
	}
	assert.Regexp(t, `(?m)^Seccomp:\s+2$`, string(status), "a filter")
	mounts, err := n.Run(t.Context(), busybox, "cat", "/proc/"+strings.TrimSpace(string(pid))+"/mounts")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^overlay / overlay ro,`, string(mounts))

	pods := b.running(t, "instance-manager-node1", "instance-manager-node2")
	for _, script := range []string{
		"ip link del lhnet1-host", "ip link set vxlan-storage down", "echo 0 >/proc/sys/net/ipv4/conf/vxlan-storage/arp_ignore",
		"bridge fdb del 00:00:00:00:00:00 dev vxlan-storage dst 10.100.100.2",
	} {
		before := n.storageState(t, "true")
		b.until(t, script+" is seen", func(context.Context) error { // the agent may be quicker than the look
			if n.storageState(t, script) == before {
				return errors.New("nothing has changed")
			}
			return nil
		})
		begin := time.Now()
		b.until(t, script+" is put right", func(context.Context) error {
			if now := n.storageState(t, "true"); now != before {
				return fmt.Errorf("it is %s", now)
			}
			return nil
		})
		t.Logf("%s: put right after %s", script, time.Since(begin).Round(10*time.Millisecond))
	}
	b.wantLegs(t, pods, "")
}

// storageState runs a script on the node; the state right after it is that of all that helmAgent breaks.
func (n *Node) storageState(t *testing.T, script string) string {
	t.Helper()
	out, err := n.Run(t.Context(), "/bin/sh", "-c", script+` || exit 1
ip -br link show vxlan-storage | sed 's/@.*//; s/<.*//'; ip -br -4 addr show lhnet1-host 2>&1 | sed 's/@[^ ]*//'
cat /proc/sys/net/ipv4/conf/vxlan-storage/arp_ignore; bridge fdb show dev vxlan-storage | grep ^00:00:00:00:00:00 | sort; ip link show vxlan-storage | grep -o '[<,]UP[,>]' | tr -d '<,>'`)
	require.NoError(t, err)
	return string(out)
}

// churn lets pods come and go on each node until it is told to stop, and says how many there were.
func (b bed) churn(t *testing.T, network controlplane.Network) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := 0
	for _, n := range b.on() {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if !b.comeAndGo(t, n, fmt.Sprintf("churn-%s-%d", n.Name, i), network) {
					return
				}
				mu.Lock()
				count++
				mu.Unlock()
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return count
	}
}

// comeAndGo lets one pod start and end on a node.
func (b bed) comeAndGo(t *testing.T, n *Node, name string, network controlplane.Network) bool {
	if err := b.Create(t.Context(), namespace, Pod(n.Name, name, network)); !assert.NoError(t, err) {
		return false
	}
	pod, err := b.WaitRunning(t.Context(), namespace, name)
	if !assert.NoError(t, err) || !assert.True(t, pod.Storage.IsValid(), "%s has no %s", name, StorageInterface) {
		return false
	}
	return assert.NoError(t, b.Kube.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1)}))
}

// helmUpgrade changes image and values while pods come and go.
func helmUpgrade(t *testing.T, b bed) {
	require.NoError(t, b.ImportLhstorage(t.Context(), "v2"))
	pods := b.running(t, "instance-manager-node1", "instance-manager-node2")
	before := b.failedAttaches(t)
	stopChurn, stopTalk := b.churn(t, example), b.talk(t, b.Nodes[0], pods[0].Storage)
	begin := time.Now()
	b.helm(t, "upgrade", "v2", "--set", "agent.logLevel=debug,record=agent")
	b.rolledOut(t)
	took := time.Since(begin)
	time.Sleep(2 * time.Second) // pods by the new release alone
	churned := stopChurn()
	sent, lost := stopTalk()
	assert.Zero(t, lost, "of %d packets from a host to its own pod", sent)
	assert.Equal(t, before, b.failedAttaches(t))
	assert.GreaterOrEqual(t, churned, 10)
	t.Logf("upgraded in %s; %d pods came and went meanwhile, and no attach failed; of %d packets none was lost", took.Round(100*time.Millisecond), churned, sent)
	b.wantPrograms(t, "v2")
	node, err := b.Nodes[0].ReadFile("/etc/lhstorage/node.json")
	require.NoError(t, err)
	assert.Contains(t, string(node), `"record": "agent"`)
	b.wantLegs(t, pods, "")
	b.wantNothingRefused(t)
}

// wantNothingRefused goes through all requests of the chart's accounts so far: none was refused, and none took another right than the chart's.
func (b bed) wantNothingRefused(t *testing.T) {
	t.Helper()
	chart, err := deploy.NewChart(t.Context())
	require.NoError(t, err)
	rendered, err := chart.Template(t.Context())
	require.NoError(t, err)
	given, err := rights.Of(rendered)
	require.NoError(t, err)
	requests, err := rights.Requests(b.AuditLog(), rights.Users(given)...)
	require.NoError(t, err)
	assert.Greater(t, len(requests), 100, "the test shows nothing")
	assert.Empty(t, rights.Refused(requests))
	assert.Empty(t, rights.Beyond(given, requests))
	t.Logf("%d requests by the chart's accounts, none refused", len(requests))
}

// helmUninstall removes the chart under running pods, and one pod after that.
func helmUninstall(t *testing.T, b bed) {
	pods := b.running(t, "instance-manager-node1", "instance-manager-node2")
	stop := b.talk(t, b.Nodes[1], pods[0].Storage)
	said, err := b.Helm(t.Context(), "uninstall", "lhstorage", "--namespace", deploy.Namespace, "--wait")
	require.NoError(t, err)
	for _, crd := range []string{"addressclaims.lhstorage.io", "hostshims.lhstorage.io"} {
		assert.Contains(t, said, "[CustomResourceDefinition] "+crd, "what stays is said")
	}
	b.until(t, "the agents are gone", func(ctx context.Context) error {
		list, err := b.Kube.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
	b.wantLegs(t, pods, "")
	for _, p := range pods {
		b.wantAttached(t, p.Storage)
	}
	// The plugins' account is gone: a pod can end all the same.
	last := pods[1]
	require.NoError(t, b.Kube.CoreV1().Pods(namespace).Delete(t.Context(), last.Name, metav1.DeleteOptions{}))
	b.until(t, last.Name+" is gone", func(ctx context.Context) error {
		if _, err := b.Kube.CoreV1().Pods(namespace).Get(ctx, last.Name, metav1.GetOptions{}); err == nil {
			return fmt.Errorf("it is there: %v", b.failedAttaches(t))
		}
		return nil
	})
	sent, lost := stop()
	assert.Zero(t, lost, "of %d packets between nodes", sent)
	t.Logf("%d packets between nodes, none lost", sent)
}

// helmAgain installs the chart anew: what was left is taken up, and what was released meanwhile given back.
func helmAgain(t *testing.T, b bed) {
	b.helm(t, "install", "v2")
	b.rolledOut(t)
	// Under another name: one of the same name would take over what the old one left.
	require.NoError(t, b.Create(t.Context(), namespace, InstanceManager("node2", "again", example)))
	pods := b.running(t, "instance-manager-node1", "again")
	b.untilPeers(t, pods)
	b.wantLegs(t, pods, "")
	// What the recorder of the old release was about to remove when it was ended is old enough for the collector of leaks after five minutes.
	var held []string
	require.Eventually(t, func() bool {
		var err error
		held, err = b.Held(t.Context())
		return err == nil && len(held) == 3*len(pods)
	}, 9*time.Minute, 100*time.Millisecond, "what was released meanwhile is free: claim, reservation and pool entry for each pod: %v", &held)
}

// onHost runs the installer on a node as docs/install.md says, and returns what it printed and whether it was content.
func (b bed) onHost(t *testing.T, n *Node, args ...string) (string, bool) {
	t.Helper()
	ctx := t.Context()
	_, err := b.Kubectl(ctx, append([]string{
		"--namespace", deploy.Namespace, "debug", "node/" + n.Name, "--image=" + ImageLhstorage + ":v2", "--image-pull-policy=Never", "--profile=sysadmin", "--attach=false", "--quiet",
		"--", "/opt/lhstorage/install-cni", "--node-name", n.Name,
	}, args...)...)
	require.NoError(t, err)
	pods := b.Kube.CoreV1().Pods(deploy.Namespace)
	var pod *corev1.Pod
	b.until(t, "the installer has ended", func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name!=lhstorage"})
		if err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%d pods of it: %w", len(list.Items), err)
		}
		if pod = &list.Items[0]; pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("its pod's phase is %s", pod.Status.Phase)
		}
		return nil
	})
	log, err := pods.GetLogs(pod.Name, &corev1.PodLogOptions{}).Do(ctx).Raw()
	require.NoError(t, err)
	require.NoError(t, pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
	return string(bytes.TrimSpace(log)), pod.Status.Phase == corev1.PodSucceeded
}

// helmOff removes all that can be removed from the nodes.
func helmOff(t *testing.T, b bed) {
	n := b.Nodes[0]
	said, ok := b.onHost(t, n, "--check")
	assert.True(t, ok, said)
	assert.Contains(t, said, "is installed: /opt/cni/bin, /etc/lhstorage")
	said, ok = b.onHost(t, n, "--uninstall")
	assert.False(t, ok, "a pod is attached: %s", said)
	assert.Contains(t, said, namespace+"/instance-manager-node1 has lhnet1 on network longhorn-storage")
	b.remove(t)
	b.wantNoneHeld(t)
	_, err := b.Helm(t.Context(), "uninstall", "lhstorage", "--namespace", deploy.Namespace)
	require.NoError(t, err)
	said, ok = b.onHost(t, n, "--uninstall")
	assert.True(t, ok, said)
	for _, stays := range []string{"stays: parent devices, host shims", "stays: /var/lib/lhstorage", "stays: this node's HostShim"} {
		assert.Contains(t, said, stays)
	}
	for _, path := range []string{binDir + "/lhstorage", binDir + "/lhstorage-ipam", "/etc/lhstorage/node.json", "/etc/lhstorage/kubeconfig"} {
		_, err := n.ReadFile(path)
		assert.ErrorIs(t, err, os.ErrNotExist)
	}
}
