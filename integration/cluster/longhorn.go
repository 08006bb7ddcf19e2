package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/image"
)

// What of Longhorn is stood in for: see shared names in its manifests.
const (
	StorageInterface = "lhnet1"

	targetName = "iqn.2019-10.io.longhorn:stand-in"
	targetLUN  = 1 // LUN 0 is tgtd's controller
	iscsiPort  = 3260
	diskBytes  = 4 << 20

	dialTime = 5 * time.Second // for each step of the initiator
)

// serveScript is what an instance manager runs.
var serveScript = fmt.Sprintf(`set -e
mkdir -p /var/run/tgtd
tgtd --foreground &
trap 'kill -9 $!; exit 0' TERM
tries=0
until tgtadm --lld iscsi --mode sys --op show >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1
done
tgtadm --lld iscsi --op new --mode target --tid 1 --targetname %s
tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun %d --backing-store /disk
tgtadm --lld iscsi --op bind --mode target --tid 1 --initiator-address ALL
touch /tmp/serving
wait
`, targetName, targetLUN)

// InstanceManager is a pod as Longhorn makes one on each node, by its labels and
// annotation: tgtd on all addresses, with one disk. It can run anywhere in a test:
// no part of Longhorn has to be there.
func InstanceManager(node, name string, network controlplane.Network) *corev1.Pod {
	pod := Pod(node, name, network)
	pod.Labels = map[string]string{"longhorn.io/component": "instance-manager", "longhorn.io/node": node}
	pod.Spec.Containers[0].Name = "instance-manager"
	pod.Spec.Containers[0].Image = ImageInstanceManager
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/serving"}}},
		PeriodSeconds: 1,
	}
	return pod
}

// Pod is a pod that does nothing, on a node (empty: the scheduler's choice), with
// the networks of its annotation as Longhorn writes that.
func Pod(node, name string, networks ...controlplane.Network) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: ptr.To(false),
			EnableServiceLinks:           ptr.To(false),
			DNSPolicy:                    corev1.DNSDefault, // the cluster has none of its own
			Containers:                   []corev1.Container{{Name: "main", Image: ImageBusybox, ImagePullPolicy: corev1.PullNever}},
			// So that a pod waits for its node to come back, as Longhorn's do.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	if node != "" {
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	if len(networks) > 0 {
		list, err := json.Marshal(networks)
		if err != nil {
			panic(err) // three strings
		}
		pod.Annotations[controlplane.NetworksAnnotation] = string(list)
	}
	return pod
}

// Running is a pod that runs, and how to get into its network.
type Running struct {
	*corev1.Pod
	Node    *Node
	Netns   string     // the path of its network namespace
	Storage netip.Addr // on StorageInterface; invalid: it has none
}

// In runs f on a thread that is in the pod's network namespace.
func (r Running) In(f func() error) error {
	return ns.WithNetNSPath(r.Netns, func(ns.NetNS) error { return f() })
}

// Create makes a pod.
func (c *Cluster) Create(ctx context.Context, namespace string, pod *corev1.Pod) error {
	if _, err := c.Kube.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create pod %s/%s: %w", namespace, pod.Name, err)
	}
	return nil
}

// WaitRunning waits until a pod is Ready and finds its network namespace.
func (c *Cluster) WaitRunning(ctx context.Context, namespace, name string) (Running, error) {
	var r Running
	err := controlplane.Until(ctx, nil, fmt.Sprintf("pod %s/%s is Ready", namespace, name), func(ctx context.Context) (err error) {
		if r.Pod, err = c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		return c.podReady(ctx, r.Pod)
	})
	if err != nil {
		return r, err
	}
	for _, n := range c.Nodes {
		if n.Name == r.Spec.NodeName {
			r.Node = n
		}
	}
	return r, r.find()
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podReady fails unless a pod is Ready, with the last warning about it.
func (c *Cluster) podReady(ctx context.Context, pod *corev1.Pod) error {
	if isReady(pod) {
		return nil
	}
	text := fmt.Sprintf("phase %s", pod.Status.Phase)
	events, err := c.Kube.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod.Name})
	if err != nil {
		return err
	}
	for _, event := range events.Items {
		if event.Type == corev1.EventTypeWarning {
			text += "; " + event.Reason + ": " + event.Message
		}
	}
	return errors.New(text)
}

// find looks for the network namespace with the pod's address among the node's.
func (r *Running) find() error {
	dir := r.Node.path("/run/netns")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		r.Netns = filepath.Join(dir, e.Name())
		found, err := r.look()
		if found || err != nil {
			return err
		}
	}
	return fmt.Errorf("no network namespace on %s has the address %s of pod %s", r.Node.Name, r.Status.PodIP, r.Name)
}

// look says whether the namespace is the pod's, and notes its storage address.
func (r *Running) look() (bool, error) {
	found := false
	err := r.In(func() error {
		for _, device := range []string{"eth0", StorageInterface} {
			addrs, err := addressesOf(device)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				switch {
				case device == "eth0" && a.String() == r.Status.PodIP:
					found = true
				case device == StorageInterface:
					r.Storage = a
				}
			}
		}
		return nil
	})
	var gone ns.NSPathNotNSErr
	if errors.As(err, &gone) || errors.Is(err, os.ErrNotExist) { // of a pod that was just removed
		return false, nil
	}
	return found, err
}

// addressesOf are the IPv4 addresses of a device of the current namespace; of one
// that isn't there, none.
func addressesOf(device string) ([]netip.Addr, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, nil //nolint:nilerr // net has no error of its own for that
	}
	list, err := i.Addrs()
	return unicast(list), err
}

// unicast are the global unicast IPv4 addresses of a list.
func unicast(list []net.Addr) []netip.Addr {
	var all []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			all = append(all, p.Addr())
		}
	}
	return all
}

// DialAddress is the address of a pod that Longhorn's v1 initiator dials, found in
// the pod as go-iscsi-helper's GetIPToHost finds it.
func DialAddress(r Running) (netip.Addr, error) {
	var addrs []netip.Addr
	err := r.In(func() (err error) {
		if addrs, err = addressesOf("eth1"); err != nil || len(addrs) > 0 {
			return err
		}
		list, err := net.InterfaceAddrs()
		addrs = unicast(list)
		return err
	})
	if err == nil && len(addrs) == 0 {
		err = fmt.Errorf("pod %s has no address that could be dialled", r.Name)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	return addrs[0], nil
}

// Attach does from a node's network what attaching a volume takes: libiscsi asks
// the pod's target what it is, and its whole disk is read and compared.
func (n *Node) Attach(ctx context.Context, to netip.Addr) error {
	portal := netip.AddrPortFrom(to, iscsiPort)
	program, err := image.FindProgram("iscsi-inq")
	if err != nil {
		return err
	}
	err = n.Do(func() error {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		out, err := exec.CommandContext(ctx, program, fmt.Sprintf("iscsi://%s/%s/%d", portal, targetName, targetLUN)).CombinedOutput()
		if err == nil && !strings.Contains(string(out), "Product:") {
			err = errors.New("it doesn't say what it is")
		}
		if err != nil {
			return fmt.Errorf("ask for it: %w: %s", errors.Join(err, ctx.Err()), strings.TrimSpace(string(out)))
		}
		return readDisk(ctx, portal)
	})
	if err != nil {
		return fmt.Errorf("attach the disk at %s from %s: %w", portal, n.Name, err)
	}
	return nil
}
