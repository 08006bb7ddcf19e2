package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/lab"
)

// Where a node's programs look for things.
const (
	binDir  = "/opt/cni/bin"
	confDir = "/etc/cni/net.d"

	multusKubeconfig      = confDir + "/multus.d/multus.kubeconfig"
	whereaboutsKubeconfig = confDir + "/whereabouts.d/whereabouts.kubeconfig"
	clusterNetworkFile    = confDir + "/10-cluster.conf"
)

// Node is a simulated node.
type Node struct {
	Name    string
	Host    *Host      // where its programs run
	Address netip.Addr // its InternalIP
	Lab     lab.Node   // its place on the storage network

	MachineID string
	Env       []string // more of the environment of the plugins that its runtime calls; a Multus daemon takes it when it starts

	cluster *Cluster
	disk    string
	cables  []cable

	mu     sync.Mutex
	multus *Process // the thick daemon
}

// makeNodes makes the nodes' file systems and Node objects.
func (c *Cluster) makeNodes(ctx context.Context, nodes []lab.Node) error {
	for _, l := range nodes {
		if err := c.makeNode(ctx, l); err != nil {
			return fmt.Errorf("make %s: %w", l.Name, err)
		}
	}
	return nil
}

func (c *Cluster) makeNode(ctx context.Context, l lab.Node) error {
	n := &Node{
		Name: l.Name, Address: nodeAddress(l.Index), Lab: l, cluster: c,
		MachineID: strings.ReplaceAll(uuid.NewString(), "-", ""),
		disk:      filepath.Join(c.Dir, l.Name),
	}
	var err error
	if n.Host, err = newHost(l.Netns, n.disk); err != nil {
		return err
	}
	c.Nodes = append(c.Nodes, n)
	if n.cables, err = findCables(n.Host.NetNS); err != nil {
		return err
	}
	if err := n.furnish(ctx); err != nil || c.opts.Bare {
		return err
	}
	return n.Register(ctx)
}

// furnish puts onto the node what installers and the administrator do.
func (n *Node) furnish(ctx context.Context) error {
	if err := n.linkPrograms(); err != nil {
		return err
	}
	if err := n.writeIdentity(); err != nil {
		return err
	}
	files := map[string]string{
		// What whereabouts' own installer writes.
		confDir + "/whereabouts.d/whereabouts.conf": fmt.Sprintf(`{"datastore": "kubernetes", "kubernetes": {"kubeconfig": %q}}`, whereaboutsKubeconfig),
		confDir + "/whereabouts.d/nodename":         n.Name,
	}
	accounts := map[string]string{whereaboutsKubeconfig: "whereabouts"}
	if !n.cluster.opts.Bare {
		files[clusterNetworkFile], accounts[multusKubeconfig] = n.clusterNetwork(), "multus"
	}
	for path, account := range accounts {
		content, err := n.cluster.ServiceAccountKubeconfig(ctx, metav1.NamespaceSystem, account, "")
		if err != nil {
			return err
		}
		files[path] = string(content)
	}
	for path, content := range files {
		if err := n.WriteFile(path, []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

// writeIdentity writes who the node is. It isn't on the disk.
func (n *Node) writeIdentity() error {
	return errors.Join(n.WriteFile("/etc/hostname", []byte(n.Name+"\n")), n.WriteFile("/etc/machine-id", []byte(n.MachineID+"\n")))
}

// linkPrograms fills the node's CNI directory; of two programs of one name the
// later directory's is taken.
func (n *Node) linkPrograms() error {
	where := map[string]string{}
	for _, dir := range n.cluster.programs.cni {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			where[e.Name()] = filepath.Join(dir, e.Name())
		}
	}
	dir := filepath.Join(n.disk, binDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, path := range where {
		if err := link(path, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// link makes a second name for a program, on another disk a copy. A symbolic link
// would lead nowhere in a container that has the directory mounted.
func link(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// clusterNetwork is the configuration of the pods' first network. It is no list of
// plugins: of a list in a file Multus 4.2.3 gives DEL no more than what every
// plugin knows, so host-local finds no ranges there and keeps the address.
func (n *Node) clusterNetwork() string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "cluster", "type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.%d.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`, n.Lab.Index)
}

// Register makes the Node object, with what a kubelet says of itself.
func (n *Node) Register(ctx context.Context) error {
	nodes := n.cluster.Kube.CoreV1().Nodes()
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux"}}}
	made, err := nodes.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create node %s: %w", n.Name, err)
	}
	made.Status = corev1.NodeStatus{
		NodeInfo:   corev1.NodeSystemInfo{MachineID: n.MachineID, OperatingSystem: "linux"},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: n.Address.String()},
			{Type: corev1.NodeHostName, Address: n.Name},
		},
	}
	if _, err := nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("write the status of node %s: %w", n.Name, err)
	}
	return nil
}

// Do runs f on a thread that is on the node: in its network and its file system.
func (n *Node) Do(f func() error) error {
	return n.Host.Do(func(ns.NetNS) error { return f() })
}

// WriteFile writes a file on the node, readable by root alone.
func (n *Node) WriteFile(path string, content []byte) error {
	return n.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, content, 0o600)
	})
}

// ReadFile reads a file on the node.
func (n *Node) ReadFile(path string) ([]byte, error) {
	var content []byte
	err := n.Do(func() (err error) {
		content, err = os.ReadFile(path)
		return err
	})
	return content, err
}

// Files are the paths of all files on the node below dir. A dir that isn't there
// has none.
func (n *Node) Files(dir string) ([]string, error) {
	var files []string
	err := n.Do(func() error {
		return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			switch {
			case errors.Is(err, os.ErrNotExist):
				return nil
			case err == nil && !d.IsDir():
				files = append(files, path)
			}
			return err
		})
	})
	return files, err
}

// Daemon is a program of a pod of the host's network: a DaemonSet's.
type Daemon struct {
	Name           string   // of its log too
	ServiceAccount string   // namespace/name; its token is where a pod finds it
	Args           []string // program and arguments
	Env            []string
}

// StartDaemon starts a daemon on the node, with the in-cluster configuration of
// its service account. It ends with the cluster, if not before.
func (n *Node) StartDaemon(ctx context.Context, d Daemon) (*Process, error) {
	namespace, account, _ := strings.Cut(d.ServiceAccount, "/")
	token, err := n.cluster.Token(ctx, namespace, account, nil)
	if err != nil {
		return nil, err
	}
	secrets := map[string]string{"token": token, "ca.crt": string(n.cluster.pki.pem), "namespace": namespace}
	env := environ(append([]string{
		"KUBERNETES_SERVICE_HOST=" + APIAddress.String(), fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", apiPort),
	}, slices.Concat(n.Env, d.Env)...)...)
	log := n.Log(d.Name)
	p, err := Launch(d.Name+" on "+n.Name, log, func() error { return n.enterPod(secrets) }, d.Args, env)
	if err != nil {
		return nil, err
	}
	n.cluster.keep(p)
	return p, nil
}

// enterPod puts the current thread on the node, for good, with a pod's service
// account directory that no other has.
func (n *Node) enterPod(secrets map[string]string) error {
	if err := n.Host.Enter(); err != nil {
		return err
	}
	return mountSecrets("/run/secrets/kubernetes.io/serviceaccount", secrets)
}
