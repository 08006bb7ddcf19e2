// Package testnode makes a node for tests and benchmarks of the plugins: a netns
// that is the host, others that are its pods, and directories in place of /run
// and /var/lib.
package testnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Parent is the name of the device that [Node.AddParent] makes.
const Parent = "eth0"

// Node is a simulated node.
type Node struct {
	Host ns.NetNS
	Dir  string // of its files
	Run  string // its /run/lhstorage

	mu     sync.Mutex
	spaces []ns.NetNS
}

// New makes a node whose node file says index, with its files in the directories
// dir and, what a reboot would clear, run. They are made if need be. Close removes
// the node's namespaces.
func New(dir, run string, index int) (*Node, error) {
	n := &Node{Dir: dir, Run: run}
	content, err := json.Marshal(nodefile.File{
		NodeName: "node" + fmt.Sprint(index), Index: index, RunDir: n.Run, StateDir: n.StateDir(),
	})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the node's directory: %w", err)
	}
	if err := os.WriteFile(n.nodeFile(), content, 0o600); err != nil {
		return nil, fmt.Errorf("write the node file: %w", err)
	}
	n.Host, err = n.NewNetns()
	if err != nil {
		return nil, err
	}
	return n, n.Host.Do(func(ns.NetNS) error { return setUp("lo") })
}

// StateDir is the node's /var/lib/lhstorage.
func (n *Node) StateDir() string { return filepath.Join(n.Dir, "state") }

func (n *Node) nodeFile() string { return filepath.Join(n.Dir, "node.json") }

// Env is what makes lhstorage's programs take this node for theirs.
func (n *Node) Env() []string { return []string{nodefile.PathEnv + "=" + n.nodeFile()} }

// NewNetns makes a netns that Close removes: a pod's.
func (n *Node) NewNetns() (ns.NetNS, error) {
	netns, err := testutils.NewNS()
	if err != nil {
		return nil, fmt.Errorf("make a netns: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spaces = append(n.spaces, netns)
	return netns, nil
}

// Close removes the node's namespaces, with what is in them. They are detached: a
// mount namespace that another program has just made may hold a copy.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var faults []error
	for _, netns := range n.spaces {
		faults = append(faults, netns.Close(), unix.Unmount(netns.Path(), unix.MNT_DETACH), os.Remove(netns.Path()))
	}
	n.spaces = nil
	return errors.Join(faults...)
}

// AddParent gives the node a device that can be a parent: one end of a veth pair,
// up, with the other end beside it, as a cable that leads nowhere.
func (n *Node) AddParent() error {
	return n.Host.Do(func(ns.NetNS) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Parent
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: Parent + "-peer"}); err != nil {
			return fmt.Errorf("make the parent device: %w", err)
		}
		return errors.Join(setUp(Parent), setUp(Parent+"-peer"))
	})
}

// AddVXLAN gives the node a VXLAN device, up, without peers, with the local
// address vtep: what a script would have made for stock macvlan, which makes no
// parent itself.
func (n *Node) AddVXLAN(name string, vni int, vtep net.IP) error {
	return n.Host.Do(func(ns.NetNS) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		vxlan := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: 4789, SrcAddr: vtep, Learning: true}
		if err := netlink.LinkAdd(vxlan); err != nil {
			return fmt.Errorf("make the VXLAN parent: %w", err)
		}
		return setUp(name)
	})
}

// AddAddress gives a device of the node an address, in CIDR notation.
func (n *Node) AddAddress(device, address string) error {
	return n.Host.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
}

// Links are the names of the devices in a netns, lo left out.
func Links(netns ns.NetNS) ([]string, error) {
	var names []string
	err := netns.Do(func(ns.NetNS) error {
		links, err := netlinksafe.LinkList()
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	return names, err
}

// Addresses are the IPv4 addresses of a device in a netns, as the kernel has them.
func Addresses(netns ns.NetNS, device string) ([]netip.Addr, error) {
	var addresses []netip.Addr
	err := netns.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		list, err := netlinksafe.AddrList(link, netlink.FAMILY_V4)
		for _, a := range list {
			addr, _ := netip.AddrFromSlice(a.IP)
			addresses = append(addresses, addr.Unmap())
		}
		return err
	})
	return addresses, err
}

// Files are the paths below dir, relative to it, of all that is no directory. A
// dir that isn't there has none.
func Files(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil || d.IsDir():
			return err
		}
		files = append(files, strings.TrimPrefix(path, dir+"/"))
		return nil
	})
	return files, err
}

func setUp(name string) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// TB is what [RequireRoot] needs of a *testing.T.
type TB interface {
	Helper()
	Fatal(args ...any)
	Skip(args ...any)
}

// InsideVM is set in the environment of tests inside the VM that `make test-vm` boots.
const InsideVM = "LHSTORAGE_INSIDE_VM"

// VMKubeconfig is set in the environment of those tests inside the VM whose machine is
// a node of a cluster: its kubeconfig's path.
const VMKubeconfig = "LHSTORAGE_TEST_VM_KUBECONFIG"

// RequireVM skips a test that is not run inside the VM: it uses what a machine has
// once, or the kernel's modules.
func RequireVM(tb TB) {
	tb.Helper()
	if os.Getenv(InsideVM) == "" {
		tb.Skip("only inside a VM: `make test-vm`")
	}
}

// trials are what a kernel can do only if it can do what it is asked for by name.
var trials = map[string]string{
	"bond":  "ip link add trial type bond",
	"dummy": "ip link add trial type dummy",
	"netem": "tc qdisc add dev lo root netem delay 1ms",
	"vlan":  "ip link add below type bridge && ip link add trial link below type vlan id 5",
}

// RequireKernel skips a test where the kernel can't do what is asked for (bond,
// dummy, netem, vlan). The kernel of the VM can, so there it fails.
func RequireKernel(tb TB, abilities ...string) {
	tb.Helper()
	RequireRoot(tb)
	for _, ability := range abilities {
		out, err := inFreshNetns(trials[ability])
		switch {
		case err == nil:
		case os.Getenv(InsideVM) != "":
			tb.Fatal("the VM's kernel must know " + ability + ": " + out)
		default:
			tb.Skip("the kernel knows no " + ability + "; `make test-vm` has one that does: " + out)
		}
	}
}

// inFreshNetns runs a shell script in a netns that ends with it.
func inFreshNetns(script string) (string, error) {
	cmd := exec.Command("sh", "-c", script) //nolint:noctx // ours, and nothing to wait for
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// RequireRoot skips a test that is not run by root; where CI is set, which says
// that nothing may be skipped unseen, it fails it.
func RequireRoot(tb TB) {
	tb.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		tb.Fatal("network namespaces need root, and with CI set the test must not be skipped")
	default:
		tb.Skip("network namespaces need root")
	}
}
