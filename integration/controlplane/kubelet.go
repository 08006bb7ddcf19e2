package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	podDevice   = "eth0" // the cluster network's interface
	cleanUpWait = time.Minute
)

// Sandbox is what a runtime keeps of a pod: its network namespace, and by what
// name the CNI plugins know it.
type Sandbox struct {
	ID     string // CNI_CONTAINERID
	Netns  ns.NetNS
	Result *types100.Result // of ADD: the cluster network's, as the runtime sees it

	node *Node
	pod  *corev1.Pod
	name string // of the network namespace
}

// RunPod does for a pod's network what kubelet and runtime do: it makes the
// sandbox's network namespace and calls ADD of the node's first CNI
// configuration, which is Multus'. Nothing is written to the API: what is there
// afterwards Multus wrote. If ADD fails, DEL is called and the namespace removed,
// as a runtime does.
func (n *Node) RunPod(ctx context.Context, namespace, name string) (*Sandbox, error) {
	pod, err := n.cluster.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	s, err := n.newSandbox(pod)
	if err != nil {
		return nil, err
	}
	if err := s.Add(ctx); err != nil {
		// An interrupt must not cut the clean-up short.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpWait)
		defer cancel()
		return nil, errors.Join(err, s.Remove(ctx))
	}
	return s, nil
}

func (n *Node) newSandbox(pod *corev1.Pod) (*Sandbox, error) {
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	s := &Sandbox{ID: hex.EncodeToString(id[:]), node: n, pod: pod}
	s.name = n.Lab.Netns + "." + s.ID[:12]
	if err := makeNetns(s.name); err != nil {
		return nil, err
	}
	netns, err := ns.GetNS(s.path())
	if err != nil {
		return nil, errors.Join(err, removeNetns(s.name))
	}
	s.Netns = netns
	return s, nil
}

// path is where the network namespace is mounted, on the node as elsewhere.
func (s *Sandbox) path() string { return filepath.Join(netnsDir, s.name) }

// Add calls ADD, as a runtime does once and a test may do again.
func (s *Sandbox) Add(ctx context.Context) error {
	return s.call("ADD", func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		raw, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		s.Result, err = types100.NewResultFromResult(raw)
		return err
	})
}

// Del calls DEL. The network namespace stays.
func (s *Sandbox) Del(ctx context.Context) error {
	return s.call("DEL", func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return cni.DelNetworkList(ctx, list, rt)
	})
}

// RemoveNetns removes the network namespace, as a reboot would.
func (s *Sandbox) RemoveNetns() error {
	return errors.Join(s.Netns.Close(), removeNetns(s.name))
}

// Remove calls DEL and removes the network namespace, whether DEL worked or not.
func (s *Sandbox) Remove(ctx context.Context) error {
	return errors.Join(s.Del(ctx), s.RemoveNetns())
}

// Status is what Multus wrote into the pod's network-status annotation.
func (s *Sandbox) Status(ctx context.Context) ([]NetworkStatus, error) {
	pod, err := s.node.cluster.Kube.CoreV1().Pods(s.pod.Namespace).Get(ctx, s.pod.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	text, ok := pod.Annotations[NetworkStatusAnnotation]
	if !ok {
		return nil, fmt.Errorf("pod %s/%s has no annotation %s", pod.Namespace, pod.Name, NetworkStatusAnnotation)
	}
	var status []NetworkStatus
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return nil, fmt.Errorf("pod %s/%s: annotation %s: %w: %s", pod.Namespace, pod.Name, NetworkStatusAnnotation, err, text)
	}
	return status, nil
}

// call lets f use libcni on the node, set up as the node's runtime has it.
func (s *Sandbox) call(verb string, f func(*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	err := s.node.Do(func() error {
		list, err := firstConfig()
		if err != nil {
			return err
		}
		log, err := os.OpenFile(s.node.runtimeLog(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		defer log.Close() //nolint:errcheck // a log
		exec := &runtimeExec{RawExec: invoke.RawExec{Stderr: log}, env: environ(s.node.Env...)}
		return f(libcni.NewCNIConfig([]string{binDir}, exec), list, s.runtimeConf())
	})
	if err != nil {
		return fmt.Errorf("%s of pod %s/%s on %s: %w", verb, s.pod.Namespace, s.pod.Name, s.node.Name, err)
	}
	return nil
}

// runtimeExec starts plugins with a runtime's environment: nothing of this
// process's, which may name a proxy or another cluster.
type runtimeExec struct {
	invoke.RawExec
	version.PluginDecoder
	env []string
}

// ExecPlugin is invoke.Exec's.
func (e *runtimeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	own := slices.Clone(e.env)
	for _, variable := range env {
		if strings.HasPrefix(variable, "CNI_") {
			own = append(own, variable)
		}
	}
	return e.RawExec.ExecPlugin(ctx, path, stdin, own)
}

// runtimeLog gets what the plugins wrote to stderr.
func (n *Node) runtimeLog() string { return n.Log("runtime") }

// runtimeConf is what containerd gives.
func (s *Sandbox) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: s.ID, NetNS: s.path(), IfName: podDevice,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", s.pod.Namespace},
			{"K8S_POD_NAME", s.pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.ID},
			{"K8S_POD_UID", string(s.pod.UID)},
		},
	}
}

// firstConfig is the configuration that a runtime takes: the first one by name.
func firstConfig() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(confDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s", confDir)
	}
	slices.Sort(files)
	if filepath.Ext(files[0]) == ".conflist" {
		return libcni.ConfListFromFile(files[0])
	}
	conf, err := libcni.ConfFromFile(files[0]) //nolint:staticcheck // Multus' is of this kind
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // the same
}
