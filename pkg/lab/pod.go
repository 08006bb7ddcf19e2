package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/uuid"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Ways in which a pod gets an eth0 before its storage interface. Which of the
// two has the lower ifindex decides what Longhorn's initiator dials.
const (
	Eth0None   = ""
	Eth0Inside = "inside" // made in the pod's namespace: a low ifindex (bridge, flannel)
	Eth0Moved  = "moved"  // made on the node and moved in: a high one (Cilium)
)

// Pod is an attached pod.
type Pod struct {
	Node        string         `json:"node"`
	Name        string         `json:"name"`
	UID         string         `json:"uid"`
	ContainerID string         `json:"containerID"`
	Netns       string         `json:"netns"` // its name below /run/netns
	IfName      string         `json:"ifname"`
	Eth0        string         `json:"eth0,omitempty"`
	Eth0Place   int            `json:"eth0Place,omitempty"` // its number among the node's pods with an eth0
	Static      netip.Prefix   `json:"static,omitzero"`     // the address that the lab chose, with ipam static
	Addresses   []netip.Prefix `json:"addresses"`           // what ADD returned; empty until it has
	MAC         string         `json:"mac,omitempty"`
}

// PodOptions are optional.
type PodOptions struct {
	Eth0   string      // Eth0None, Eth0Inside or Eth0Moved
	IfName string      // default lhnet1
	Args   [][2]string // more CNI_ARGS
}

var podName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// AddPod makes a pod on a node and attaches it. If that fails, or ctx is done
// first, the pod is removed again.
func (l *Lab) AddPod(ctx context.Context, node, name string, o PodOptions) (Pod, error) {
	pod, err := l.reserve(node, name, o)
	if err != nil {
		return pod, err
	}
	if err := l.attach(ctx, &pod, o); err != nil {
		err = fmt.Errorf("pod %s/%s: %w", node, name, err)
		return pod, errors.Join(err, l.undo(ctx, func(ctx context.Context) error { return l.discard(ctx, pod) }))
	}
	_, err = l.store.change(func(s *State) error {
		i := s.pod(node, name)
		if i < 0 {
			return fmt.Errorf("pod %s/%s was deleted while it was being added", node, name)
		}
		s.Pods[i] = pod
		return nil
	})
	return pod, err
}

// DelPod detaches a pod by DEL and removes it.
func (l *Lab) DelPod(ctx context.Context, node, name string) error {
	pod, err := l.Pod(node, name)
	if err != nil {
		return err
	}
	if err := l.discard(ctx, pod); err != nil {
		return fmt.Errorf("pod %s/%s: %w", node, name, err)
	}
	return nil
}

// Pods are the pods of all nodes, those that are just being added included.
func (l *Lab) Pods() ([]Pod, error) {
	state, err := l.store.load()
	return state.Pods, err
}

// Pod finds one pod.
func (l *Lab) Pod(node, name string) (Pod, error) {
	state, err := l.store.load()
	if err != nil {
		return Pod{}, err
	}
	i := state.pod(node, name)
	if i < 0 {
		return Pod{}, fmt.Errorf("lab %s has no pod %s on %s", l.opts.Name, name, node)
	}
	return state.Pods[i], nil
}

// reserve writes the pod down before anything of it is made.
func (l *Lab) reserve(node, name string, o PodOptions) (Pod, error) {
	n, err := l.Node(node)
	if err != nil {
		return Pod{}, err
	}
	if !podName.MatchString(name) || len(name) > maxNameLen {
		return Pod{}, fmt.Errorf("pod name %q: want at most %d lower-case letters, digits and dashes", name, maxNameLen)
	}
	pod := Pod{Node: node, Name: name, Netns: n.Netns + "." + name, IfName: o.IfName, Eth0: o.Eth0, UID: uuid.NewString(), ContainerID: uuid.NewString()}
	setDefault(&pod.IfName, podDevice)
	if err := netnsFree(pod.Netns); err != nil {
		return pod, fmt.Errorf("pod %s/%s: %w", node, name, err)
	}
	_, err = l.store.change(func(s *State) error { return s.take(&pod, n) })
	return pod, err
}

// take adds a pod to the state, with what has to be unique on its node.
func (s *State) take(pod *Pod, node Node) (err error) {
	switch {
	case s.Closing:
		return fmt.Errorf("lab %s is going down", s.Options.Name)
	case s.pod(pod.Node, pod.Name) >= 0:
		return fmt.Errorf("pod %s/%s is there already", pod.Node, pod.Name)
	}
	if s.Options.IPAM == IPAMStatic {
		if pod.Static, err = freeAddress(s.Options.Range, node, s.Pods); err != nil {
			return err
		}
	}
	if pod.Eth0 != Eth0None {
		if pod.Eth0Place, err = freePlace(pod.Node, s.Pods); err != nil {
			return err
		}
	}
	s.Pods = append(s.Pods, *pod)
	return nil
}

// freeAddress is the lowest address of the node's window that no pod has.
func freeAddress(network netip.Prefix, node Node, pods []Pod) (netip.Prefix, error) {
	taken := map[netip.Addr]bool{}
	for _, pod := range pods {
		taken[pod.Static.Addr()] = true
	}
	for a := node.Window.First; node.Window.contains(a); a = a.Next() {
		if !taken[a] {
			return netip.PrefixFrom(a, network.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("node %s has no address left between %s and %s", node.Name, node.Window.First, node.Window.Last)
}

func (l *Lab) attach(ctx context.Context, pod *Pod, o PodOptions) error {
	node, err := l.Node(pod.Node)
	if err != nil {
		return err
	}
	if err := makeNetns(pod.Netns); err != nil {
		return err
	}
	if err := l.addEth0(node, *pod); err != nil {
		return fmt.Errorf("add eth0: %w", err)
	}
	cni, list, err := l.cni(node, *pod)
	if err != nil {
		return err
	}
	runtime := pod.runtimeConf()
	runtime.Args = append(runtime.Args, o.Args...)
	raw, err := cni.AddNetworkList(ctx, list, runtime)
	if err != nil {
		return fmt.Errorf("ADD: %w", described(ctx, err))
	}
	result, err := types100.NewResultFromResult(raw)
	if err != nil {
		return fmt.Errorf("read ADD's result: %w", err)
	}
	return pod.takeResult(result)
}

// takeResult notes what the sandboxed interface got.
func (p *Pod) takeResult(result *types100.Result) error {
	for _, ip := range result.IPs {
		ones, _ := ip.Address.Mask.Size()
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("ADD's result has an address that is none: %v", ip.Address)
		}
		p.Addresses = append(p.Addresses, netip.PrefixFrom(addr.Unmap(), ones))
	}
	for _, i := range result.Interfaces {
		if i.Sandbox != "" && i.Name == p.IfName {
			p.MAC = i.Mac
		}
	}
	return nil
}

// discard detaches a pod and forgets it.
func (l *Lab) discard(ctx context.Context, pod Pod) error {
	err := l.detach(ctx, pod)
	_, changeErr := l.store.change(func(s *State) error {
		if i := s.pod(pod.Node, pod.Name); i >= 0 && s.Pods[i].UID == pod.UID {
			s.Pods = append(s.Pods[:i], s.Pods[i+1:]...)
		}
		return nil
	})
	if errors.Is(changeErr, errNoState) { // the lab went down meanwhile
		changeErr = nil
	}
	return errors.Join(err, changeErr)
}

// detach calls DEL and removes the pod's namespace, whether DEL worked or not.
func (l *Lab) detach(ctx context.Context, pod Pod) error {
	node, err := l.Node(pod.Node)
	if err != nil {
		return err
	}
	return errors.Join(l.del(ctx, node, pod), deleteNetns(pod.Netns))
}

func (l *Lab) del(ctx context.Context, node Node, pod Pod) error {
	if _, err := os.Lstat(netnsPath(node.Netns)); err != nil {
		return nil //nolint:nilerr // the node was never made, so nothing was ever attached to it
	}
	cni, list, err := l.cni(node, pod)
	if err != nil {
		return err
	}
	if err := cni.DelNetworkList(ctx, list, pod.runtimeConf()); err != nil {
		return fmt.Errorf("DEL: %w", described(ctx, err))
	}
	return nil
}

// Check calls CHECK for a pod.
func (l *Lab) Check(ctx context.Context, node, name string) error {
	pod, err := l.Pod(node, name)
	if err != nil {
		return err
	}
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	cni, list, err := l.cni(n, pod)
	if err != nil {
		return err
	}
	if err := cni.CheckNetworkList(ctx, list, pod.runtimeConf()); err != nil {
		return fmt.Errorf("pod %s/%s: CHECK: %w", node, name, described(ctx, err))
	}
	return nil
}

// cni is libcni as the node's runtime would set it up, for one pod.
func (l *Lab) cni(node Node, pod Pod) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	list, err := conf(node, pod.Static)
	if err != nil {
		return nil, nil, err
	}
	return libcni.NewCNIConfigWithCacheDir(l.opts.BinDirs, node.CacheDir(), l.exec(node)), list, nil
}

func (p Pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.ContainerID, NetNS: netnsPath(p.Netns), IfName: p.IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID}, {"K8S_POD_UID", p.UID},
		},
	}
}

// nodeExec runs CNI plugins in a node's network namespace.
type nodeExec struct {
	invoke.RawExec
	version.PluginDecoder
	node Node
}

func (l *Lab) exec(node Node) invoke.Exec {
	stderr := l.opts.Stderr
	if stderr == nil {
		stderr = logFile(node.LogFile())
	}
	return &nodeExec{RawExec: invoke.RawExec{Stderr: stderr}, node: node}
}

// ExecPlugin starts the plugin from a thread that is in the node's namespace: a
// child process inherits it.
func (e *nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var out []byte
	err := within(e.node.Netns, func() (err error) {
		out, err = e.RawExec.ExecPlugin(ctx, path, stdin, append(env, nodefile.PathEnv+"="+e.node.NodeFile()))
		return err
	})
	return out, err
}

// logFile is a writer that appends each piece to the file, which need not be
// closed.
type logFile string

func (path logFile) Write(p []byte) (int, error) {
	f, err := os.OpenFile(string(path), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for anyone to read
	if err != nil {
		return 0, err
	}
	n, err := f.Write(p)
	return n, errors.Join(err, f.Close())
}

// described adds what libcni leaves out: a CNI error's details, and that the
// plugin was killed because of an interrupt.
func described(ctx context.Context, err error) error {
	if cause := stopped(ctx); cause != nil {
		return errors.Join(cause, err)
	}
	var cni *types.Error
	if errors.As(err, &cni) {
		return fmt.Errorf("%w (code %d)", err, cni.Code)
	}
	return err
}
