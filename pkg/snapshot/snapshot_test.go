package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// server is an API server that has these answers; a number is a status.
func server(t *testing.T, answers map[string]any) *kubeapi.Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			answer = http.StatusNotFound
		}
		w.Header().Set("Content-Type", "application/json")
		if code, refused := answer.(int); refused {
			w.WriteHeader(code)
			reason := map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusUnauthorized: metav1.StatusReasonUnauthorized}[code]
			answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)}
		}
		assert.NoError(t, json.NewEncoder(w).Encode(answer))
	}))
	t.Cleanup(s.Close)
	api, err := kubeapi.New(&rest.Config{Host: s.URL})
	require.NoError(t, err)
	api.Patience = time.Millisecond
	return api
}

func items(objects ...any) map[string]any { return map[string]any{"items": objects} }

func TestLook(t *testing.T) {
	secret := corev1.Container{Name: "c", Env: []corev1.EnvVar{{Name: "PASSWORD", Value: "hunter2"}}, Args: []string{"--token=hunter2"}}
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "longhorn-system", Name: "im", Labels: map[string]string{LonghornComponent: InstanceManagers},
		Annotations: map[string]string{nad.NetworksAnnotation: "x", "kubectl.kubernetes.io/last-applied-configuration": "hunter2"}}, Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{secret}}}
	stranger := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	recent := corev1.Event{Type: "Warning", Reason: "FailedCreatePodSandBox", InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "longhorn-system", Name: "im"}, LastTimestamp: metav1.Now()}
	old, other := recent, recent
	old.LastTimestamp = metav1.NewTime(time.Now().Add(-2 * time.Hour))
	other.InvolvedObject.Name = "somebody"
	api := server(t, map[string]any{
		"/apis/k8s.cni.cncf.io/v1/network-attachment-definitions": items(map[string]any{"metadata": map[string]any{"namespace": "ns", "name": "net"}, "spec": map[string]any{"config": "{}"}}),
		"/api/v1/nodes":                                                 items(corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"lhstorage.io/index": "3", "other": "x"}}}),
		"/api/v1/pods":                                                  items(pod, stranger),
		"/apis/apps/v1/daemonsets":                                      http.StatusForbidden,
		"/apis/lhstorage.io/v1alpha1/hostshims":                         items(),
		"/api/v1/namespaces/longhorn-system/events":                     items(recent, old, other),
		"/api/v1/namespaces/default/services/kubernetes":                corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}}},
		"/apis/longhorn.io/v1beta2/namespaces/longhorn-system/settings": items(map[string]any{"metadata": map[string]any{"name": StorageNetworkSetting}, "value": "ns/net", "status": map[string]any{"applied": false}}, map[string]any{"metadata": map[string]any{"name": "registry-secret"}, "value": "hunter2"}),
	})
	c, err := Look(context.Background(), api, Options{})
	require.NoError(t, err)
	require.Len(t, c.Definitions, 1)
	assert.Equal(t, "ns/net", c.Definitions[0].Ref())
	require.Len(t, c.Pods, 1)
	assert.Equal(t, "n1", c.Pods[0].Spec.NodeName)
	assert.Len(t, c.Events, 1, "of an hour, and about pods that matter")
	assert.Equal(t, map[string]string{"lhstorage.io/index": "3"}, c.Nodes[0].Annotations)
	assert.Equal(t, []string{"10.96.0.1"}, c.Services)
	assert.Contains(t, c.Absent, Claims)
	assert.NotContains(t, c.Absent, HostShims)
	assert.True(t, c.Denies("daemonsets.apps"))
	value, applied := c.Longhorn.Setting(StorageNetworkSetting)
	assert.Equal(t, "ns/net", value)
	require.NotNil(t, applied)
	assert.False(t, *applied)
	assert.Nil(t, c.Harvester)
	all, err := json.Marshal(c)
	require.NoError(t, err)
	assert.NotContains(t, string(all), "hunter2", "nothing of environments, arguments, other annotations and other settings is kept")
}

// A cluster that doesn't answer, or takes us for nobody, is an error and not an empty snapshot.
func TestLookAtNothing(t *testing.T) {
	api, err := kubeapi.New(&rest.Config{Host: "http://127.0.0.1:1"})
	require.NoError(t, err)
	api.Patience = time.Millisecond
	_, err = Look(context.Background(), api, Options{})
	require.ErrorContains(t, err, "ask the cluster")
	_, err = Look(context.Background(), server(t, map[string]any{"/apis/k8s.cni.cncf.io/v1/network-attachment-definitions": http.StatusUnauthorized}), Options{})
	require.ErrorContains(t, err, "ask the cluster")
}

func TestStorageAddress(t *testing.T) {
	c := &Cluster{Longhorn: Longhorn{Namespace: "lh"}, Pods: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "lh", Name: "im",
		Annotations: map[string]string{nad.LegacyStatusAnnotation: `[{"name": "cbr0", "ips": ["10.42.0.1"], "default": true}, {"name": "a/b", "ips": ["10.9.0.9", "10.10.0.1"]}]`}}}}}
	assert.Equal(t, "10.10.0.1", c.StorageAddress("im", "a/b"), "sorted as texts, as Longhorn does, of the legacy annotation, too")
	assert.Empty(t, c.StorageAddress("im", "a/c"))
	assert.Empty(t, c.StorageAddress("other", "a/b"))
}

func TestKinds(t *testing.T) {
	root := t.TempDir()
	at := func(path, content string) {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(content), 0o600))
	}
	look := func() map[string]bool {
		h := Host{Kernel: kernel.NewFake(), Root: root, Release: "6.1.0-x", Node: nodefile.File{RunDir: root, StateDir: root}, Inside: func(string) (kernel.Kernel, func(), error) { return nil, nil, errors.New("none") }}
		return LookHere(context.Background(), h, nil).Kinds
	}
	assert.Empty(t, look(), "without the modules' lists nothing is known")
	at("sys/module/vxlan/version", "") // built in: /proc/modules doesn't have it
	assert.Equal(t, map[string]bool{"vxlan": true}, look())
	at("lib/modules/6.1.0-x/modules.dep", "kernel/drivers/net/macvlan.ko: \n")
	assert.Equal(t, map[string]bool{"vxlan": true, "macvlan": true, "vlan": false}, look())
	at("lib/modules/6.1.0-x/modules.builtin", "kernel/net/8021q/8021q.ko\n")
	assert.True(t, look()["vlan"])
}

func TestManagers(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(content), 0o600))
	}
	assert.Empty(t, managerOf(root, 7))
	for content, want := range map[string]string{"ADMIN_STATE=unmanaged\n": "", "ADMIN_STATE=configured\nOPER_STATE=routable\n": "systemd-networkd"} {
		write("run/systemd/netif/links/7", content)
		assert.Equal(t, want, managerOf(root, 7), content)
	}
	for i, content := range []string{"[device]\nmanaged=false\n", "[device]\nmanaged=true\n", "[device]\nmanaged=1\n"} {
		write(fmt.Sprintf("run/NetworkManager/devices/%d", 10+i), content)
		assert.Equal(t, strings.Repeat("NetworkManager", min(i, 1)), managerOf(root, 10+i), content)
	}
}
