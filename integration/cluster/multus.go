package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/lhstorage/lhstorage/integration/tools"
)

const (
	confDir = "/etc/cni/net.d"
	binDir  = "/opt/cni/bin"

	multusConfFile = confDir + "/00-multus.conf"
	multusSocket   = "/run/multus/multus.sock"
	multusModule   = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
)

// deployMultus applies what makes Multus run from its own manifest for the thick
// form. Definitions and rights are there already.
func (c *Cluster) deployMultus(ctx context.Context) error {
	source, err := tools.Source(ctx, "multus", multusModule)
	if err != nil {
		return err
	}
	manifest, err := os.ReadFile(filepath.Join(source, "deployments", "multus-daemonset-thick.yml"))
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, []string{"ConfigMap"}, manifest); err != nil {
		return err
	}
	set, err := daemonSet(manifest)
	if err != nil {
		return err
	}
	// As shipped it may use a tenth of a CPU and 50 MiB, its delegates included: enough
	// for a pod now and then, and each measurement would be one of that limit.
	for i := range set.Spec.Template.Spec.Containers {
		set.Spec.Template.Spec.Containers[i].Resources = corev1.ResourceRequirements{}
	}
	if _, err := c.Kube.AppsV1().DaemonSets(set.Namespace).Create(ctx, set, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the DaemonSet of Multus: %w", err)
	}
	return nil
}

// daemonSet is the first DaemonSet of a manifest.
func daemonSet(manifest []byte) (*appsv1.DaemonSet, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var set appsv1.DaemonSet
		err := decoder.Decode(&set)
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the manifest has no DaemonSet")
		}
		if err != nil {
			return nil, err
		}
		if set.Kind == "DaemonSet" {
			return &set, nil
		}
	}
}

// multusAnswers fails until the runtime calls Multus and its daemon listens.
func (n *Node) multusAnswers(ctx context.Context) error {
	if _, err := n.ReadFile(multusConfFile); err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", n.path(multusSocket))
	if err != nil {
		return err
	}
	return conn.Close()
}

// MultusPod is the pod of the Multus daemon on the node.
func (n *Node) MultusPod(ctx context.Context) (*corev1.Pod, error) {
	list, err := n.cluster.Kube.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		LabelSelector: "name=multus", FieldSelector: "spec.nodeName=" + n.Name,
	})
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("%d Multus pods on %s", len(list.Items), n.Name)
	}
	return &list.Items[0], nil
}

// MultusMemoryPeak is the most memory, in bytes, that the pod of the Multus daemon
// has had since it started: its own, and that of the plugins it calls, which run in
// its cgroup.
func (n *Node) MultusMemoryPeak(ctx context.Context) (int64, error) {
	pod, err := n.MultusPod(ctx)
	if err != nil {
		return 0, err
	}
	var files []string
	for _, pattern := range []string{"/sys/fs/cgroup/memory/%s/kubepods/*/pod%s/memory.max_usage_in_bytes", "/sys/fs/cgroup/memory/%s/kubepods/pod%s/memory.max_usage_in_bytes", "/sys/fs/cgroup/%s/kubepods/*/pod%s/memory.peak"} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, n.Lab.Netns, pod.UID))
		if err != nil {
			return 0, err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("the Multus pod on %s has no memory cgroup", n.Name)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return 0, err
	}
	var peak int64
	_, err = fmt.Sscan(strings.TrimSpace(string(text)), &peak)
	return peak, err
}
