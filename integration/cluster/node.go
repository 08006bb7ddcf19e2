package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/image"
)

// bootScript is the first process of a node: it ends no sooner than the node does
// and takes in the processes that lost their parent, as an init does. /run/netns
// is the node's own, and what is mounted on the node can be shared with its pods.
const bootScript = `set -e
mount --make-rshared /
mount -t proc none /proc
mount -t tmpfs none /run/netns
mount --make-rshared /run/netns
: >/run/booted
while :; do sleep 3600; done
`

// Node is a machine of the cluster: a network, mount and process namespace. One
// that is off has the first two alone, and its disk.
type Node struct {
	*controlplane.Node

	cluster *Cluster

	mu                        sync.Mutex
	init, containerd, kubelet *controlplane.Process
	handle                    int // pidfd of init, by which the namespaces are entered; -1: off
	booted                    bool
}

// Boot switches the node on: containerd and kubelet run when it returns, but the
// node may not be Ready yet. What is kept on its disk is there again.
func (n *Node) Boot(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handle >= 0 {
		return fmt.Errorf("boot %s: it is on", n.Name)
	}
	if err := n.boot(ctx); err != nil {
		return errors.Join(fmt.Errorf("boot %s: %w", n.Name, err), n.off())
	}
	return nil
}

func (n *Node) boot(ctx context.Context) error {
	if n.booted {
		if err := n.Restart(); err != nil {
			return err
		}
	}
	n.booted = true
	if err := n.startInit(ctx); err != nil {
		return err
	}
	if err := n.route(); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	if err := n.importImages(ctx); err != nil {
		return err
	}
	return n.startKubelet()
}

// Kill cuts the node's power: its cables fall silent, all its processes are gone,
// and what was in memory. Its disk stays, and its Node object, until somebody
// removes that.
func (n *Node) Kill() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handle < 0 {
		return nil
	}
	if err := n.off(); err != nil {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	return nil
}

func (n *Node) off() error {
	faults := []error{n.SetCables(false), n.init.Kill()} // the kernel ends all that are in its process namespace
	for _, p := range []*controlplane.Process{n.containerd, n.kubelet} {
		faults = append(faults, p.Kill())
	}
	if n.handle >= 0 {
		faults = append(faults, unix.Close(n.handle))
	}
	n.init, n.containerd, n.kubelet, n.handle = nil, nil, nil, -1
	return errors.Join(append(faults, n.RemoveCgroup())...)
}

// Reboot cuts the node's power and switches it on again.
func (n *Node) Reboot(ctx context.Context) error {
	return errors.Join(n.Kill(), n.Boot(ctx))
}

func (n *Node) startInit(ctx context.Context) error {
	_ = n.Do(func() error { return os.Remove("/run/booted") })
	p, err := controlplane.Launch("init on "+n.Name, n.Log("init"), func() error {
		if err := n.Host.Enter(); err != nil {
			return err
		}
		return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWPID)
	}, []string{busybox, "sh", "-c", bootScript}, environ())
	if err != nil {
		return err
	}
	n.init = p
	if n.handle, err = unix.PidfdOpen(p.PID(), 0); err != nil {
		n.handle = -1
		return fmt.Errorf("open process %d: %w", p.PID(), err)
	}
	return controlplane.Until(ctx, nil, "the node's first process is ready", func(context.Context) error {
		return n.Do(func() error {
			_, err := os.Stat("/run/booted")
			return err
		})
	})
}

// enter puts the current thread on the node, for good, and the processes that it
// starts into the node's process namespace, too.
func (n *Node) enter() error {
	if n.handle < 0 {
		return fmt.Errorf("%s is off", n.Name)
	}
	// A thread can't change its mounts while it shares its root and working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's working directory: %w", err)
	}
	if err := unix.Setns(n.handle, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter the namespaces of %s: %w", n.Name, err)
	}
	return nil
}

// Run runs a program on the node and returns what it printed.
func (n *Node) Run(ctx context.Context, argv ...string) ([]byte, error) {
	var out bytes.Buffer
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is on the node and ends with this goroutine
		err := n.enter()
		if err == nil {
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Env, cmd.Stdout, cmd.Stderr = environ(), &out, &out
			err = cmd.Run()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("%s on %s: %w: %s", filepath.Base(argv[0]), n.Name, err, bytes.TrimSpace(out.Bytes()))
	}
	return out.Bytes(), nil
}

// path is where this process finds a file of the node, the ones that are mounted
// on the node included.
func (n *Node) path(file string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.init.PID()), file)
}

func (n *Node) launch(name string, argv ...string) (*controlplane.Process, error) {
	program, err := image.FindProgram(filepath.Base(argv[0]))
	if err != nil {
		program = argv[0]
	}
	return controlplane.LaunchInside(name+" on "+n.Name, n.Log(name), n.enter, append([]string{program}, argv[1:]...), environ())
}

// environ is the environment of the nodes' programs: nothing of this process's.
func environ() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + imagePause + `"
  disable_apparmor = true
  restrict_oom_score_adj = true # a machine may not let us make a process less likely to be killed
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

const (
	containerdFile   = "/etc/containerd/config.toml"
	containerdSocket = "/run/containerd/containerd.sock"
)

func (n *Node) startContainerd(ctx context.Context) error {
	if err := n.WriteFile(containerdFile, []byte(containerdConfig)); err != nil {
		return err
	}
	p, err := n.launch("containerd", "containerd", "--config", containerdFile)
	if err != nil {
		return err
	}
	n.containerd = p
	return controlplane.Until(ctx, p, "containerd answers", func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", n.path(containerdSocket))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// importImages gives containerd the images, which its disk keeps.
func (n *Node) importImages(ctx context.Context) error {
	const done = "/var/lib/containerd/images-imported"
	if _, err := n.ReadFile(done); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(n.cluster.images(), "*.tar"))
	if err != nil {
		return err
	}
	ctr, err := image.FindProgram("ctr")
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := n.Run(ctx, ctr, "--namespace", "k8s.io", "images", "import", archive); err != nil {
			return err
		}
	}
	return n.WriteFile(done, nil)
}

// RestartContainerd ends containerd and starts it again. Pods go on meanwhile.
func (n *Node) RestartContainerd(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.containerd.Stop(); err != nil {
		return err
	}
	return n.startContainerd(ctx)
}

// RestartKubelet ends kubelet and starts it again.
func (n *Node) RestartKubelet() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.kubelet.Stop(); err != nil {
		return err
	}
	return n.startKubelet()
}

// kubeletConfig is for a machine that is shared: no node may think that its disk
// is full, or that it has to make room.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://` + containerdSocket + `
resolvConf: ""
imageGCHighThresholdPercent: 100
evictionHard: {"nodefs.available": "0%%", "nodefs.inodesFree": "0%%", "imagefs.available": "0%%", "imagefs.inodesFree": "0%%"}
`

const (
	kubeletFile   = "/var/lib/kubelet/config.yaml"
	kubeletAccess = "/var/lib/kubelet/kubeconfig"
)

func (n *Node) startKubelet() error {
	cgroup, err := n.MakeCgroup()
	if err != nil {
		return err
	}
	access, err := n.cluster.NodeKubeconfig(n.Name)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(kubeletConfig, n.cluster.File("ca.crt"), cgroup)
	if err := errors.Join(n.WriteFile(kubeletFile, []byte(config)), n.WriteFile(kubeletAccess, access)); err != nil {
		return err
	}
	n.kubelet, err = n.launch("kubelet", n.cluster.Program("kubelet"),
		"--config="+kubeletFile, "--kubeconfig="+kubeletAccess, "--hostname-override="+n.Name, "--node-ip="+n.Address.String())
	return err
}

// Off says whether the node has no power.
func (n *Node) Off() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.handle < 0
}
