package snapshot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/install"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/parent"
	"github.com/lhstorage/lhstorage/pkg/place"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Local is one node, seen from the node itself.
type Local struct {
	Node      nodefile.File `json:"node"`
	Release   string        `json:"release"`             // of the kernel
	Installed string        `json:"installed,omitempty"` // lhstorage's release
	Install   []string      `json:"install,omitempty"`   // what isn't as it was installed
	Faults    []string      `json:"faults,omitempty"`    // what could not be looked at

	Links    []kernel.Link           `json:"links"`
	Addrs    []kernel.Addr           `json:"addrs"`
	Flood    map[string][]netip.Addr `json:"flood,omitempty"`    // of VXLAN devices: the VTEPs that broadcasts go to
	Kinds    map[string]bool         `json:"kinds,omitempty"`    // whether the kernel knows a kind of device; absent: it can't be told
	Managers map[string]string       `json:"managers,omitempty"` // what else manages a device
	Drivers  map[string]string       `json:"drivers,omitempty"`  // of the devices that a tunnel goes out by

	Networks    []LocalNetwork `json:"networks,omitempty"`
	Attachments []Attachment   `json:"attachments,omitempty"`
	Queue       int            `json:"queue"` // releases that wait for the API server
}

// LocalNetwork is a network as this node has it.
type LocalNetwork struct {
	agent.Network

	State   node.State    `json:"state"`
	Pending []node.Change `json:"pending,omitempty"` // what isn't as it must be
	Faults  []Fault       `json:"faults,omitempty"`  // what can't be put right
	MAC     string        `json:"mac,omitempty"`     // that lhstorage would have given the parent

	Carries int         `json:"carries,omitempty"` // the MTU that the underlay leaves for a VXLAN parent, bytes; 0: not known
	Lost    []Unreached `json:"lost,omitempty"`    // peers that no route leads to
	Lower   []string    `json:"lower,omitempty"`   // devices that the tunnel goes out by
}

// Unreached is a peer that the kernel has no way to.
type Unreached struct {
	VTEP netip.Addr `json:"vtep"`
	Why  string     `json:"why"`
}

// Fault is an error with its CNI code.
type Fault struct {
	Code cnierr.Code `json:"code"`
	Text string      `json:"text"`
}

// Attachment is what is attached on this node, and what its pod has.
type Attachment struct {
	record.Attachment

	Gone  string       `json:"gone,omitempty"` // why its network namespace can't be looked into
	Link  *kernel.Link `json:"link,omitempty"` // its interface; nil: it has none
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Dial  netip.Addr   `json:"dial,omitzero"` // what Longhorn's v1 initiator dials now
	By    string       `json:"by,omitempty"`  // the interface that has it
}

// Host is the node that is looked at.
type Host struct {
	Kernel kernel.Kernel
	Root   string // of the host's files; "/" on the host
	Node   nodefile.File

	// Inside opens the network namespace of a pod.
	Inside func(path string) (k kernel.Kernel, done func(), err error)
	// Check says what isn't as it was installed; nil: that isn't looked at.
	Check func(ctx context.Context) (release string, err error)
	// Driver names the driver of a device; empty: not known.
	Driver func(device string) string
	// Release of the kernel; empty: the running one's.
	Release string
}

// Inside opens the network namespace of a pod on this machine.
func Inside(path string) (kernel.Kernel, func(), error) {
	netns, err := ns.GetNS(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	k, err := kernel.In(netns)
	if err != nil {
		return nil, nil, errors.Join(err, netns.Close())
	}
	return k, func() { k.Close(); _ = netns.Close() }, nil
}

// LookHere looks at a node, for the networks of these definitions.
func LookHere(ctx context.Context, h Host, definitions []agent.Definition) *Local {
	l := &Local{Node: h.Node, Release: h.Release, Flood: map[string][]netip.Addr{}, Kinds: map[string]bool{}, Managers: map[string]string{}, Drivers: map[string]string{}}
	if l.Release == "" {
		var u unix.Utsname
		if unix.Uname(&u) == nil {
			l.Release = unix.ByteSliceToString(u.Release[:])
		}
	}
	if h.Check != nil {
		release, err := h.Check(ctx)
		l.Installed, l.Install = release, lines(err)
	}
	l.devices(h)
	l.kinds(h)
	for _, n := range agent.Compile(definitions).Networks {
		l.Networks = append(l.Networks, l.network(ctx, h, n))
	}
	l.attachments(h)
	waiting, err := queue.Open(filepath.Join(h.Node.StateDir, queue.DirName)).Len()
	l.fault("look for releases that wait", err)
	l.Queue = waiting
	return l
}

func (l *Local) fault(what string, err error) {
	if err != nil {
		l.Faults = append(l.Faults, what+": "+err.Error())
	}
}

// lines are the parts of a joined error.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

func (l *Local) devices(h Host) {
	var err error
	l.Links, err = h.Kernel.Links()
	l.fault("list the devices", err)
	l.Addrs, err = h.Kernel.Addrs()
	l.fault("list the addresses", err)
	for _, link := range l.Links {
		if manager := managerOf(h.Root, link.Index); manager != "" {
			l.Managers[link.Name] = manager
		}
		if link.Kind != "vxlan" {
			continue
		}
		flood, err := h.Kernel.Flood(link.Index)
		l.fault("list the forwarding entries of "+link.Name, err)
		l.Flood[link.Name] = flood
	}
}

// managerOf says which network manager has a device in its hands, by what they tell of it in /run.
func managerOf(root string, index int) string {
	networkd := state(fmt.Sprintf("%s/run/systemd/netif/links/%d", root, index))
	if admin := networkd["ADMIN_STATE"]; admin == "configuring" || admin == "configured" {
		return "systemd-networkd"
	}
	manager := state(fmt.Sprintf("%s/run/NetworkManager/devices/%d", root, index))
	if managed := manager["managed"]; managed == "true" || managed == "1" {
		return "NetworkManager"
	}
	return ""
}

// state reads a file of KEY=value lines; none is an empty one.
func state(path string) map[string]string {
	data, _ := os.ReadFile(path) //nolint:gosec // below the host's root
	values := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = value
		}
	}
	return values
}

// modules that make the kinds of device. What is built into the kernel is in /sys/module, not in /proc/modules.
var modules = map[string]string{"macvlan": "macvlan", "vxlan": "vxlan", "vlan": "8021q"}

// kinds finds out which kinds of device the kernel knows, without making one.
func (l *Local) kinds(h Host) {
	dir := filepath.Join(h.Root, "lib", "modules", l.Release)
	var known strings.Builder
	for _, file := range []string{"modules.dep", "modules.builtin"} {
		data, err := os.ReadFile(filepath.Join(dir, file)) //nolint:gosec // below the host's root
		if err == nil {
			known.Write(data)
		}
	}
	for kind, module := range modules {
		_, err := os.Stat(filepath.Join(h.Root, "sys", "module", module))
		there := err == nil || slices.ContainsFunc(l.Links, func(k kernel.Link) bool { return k.Kind == kind })
		if there || known.Len() > 0 {
			l.Kinds[kind] = there || strings.Contains(known.String(), "/"+module+".ko")
		}
	}
}

func (l *Local) network(ctx context.Context, h Host, n agent.Network) LocalNetwork {
	e := &node.Ensurer{Kernel: h.Kernel, Node: h.Node}
	if h.Node.Kubeconfig != "" {
		e.Claim = unasked
	}
	state, pending, faults := e.Pending(ctx, n.Plan)
	out := LocalNetwork{Network: n, State: state, Pending: pending}
	for _, err := range faults {
		out.Faults = append(out.Faults, Fault{cnierr.CodeOf(err), err.Error()})
	}
	if n.Plan.Parent.Type == netconf.ParentVXLAN && state.Place.VTEP.IsValid() {
		out.MAC = place.MAC(h.Node, n.Plan.Parent.Name, "parent", state.Place.VTEP).String()
		l.underlay(h, &out)
	}
	return out
}

// unasked stands for the cluster, which Pending never asks.
func unasked(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
	return place.Place{}, cnierr.New(cnierr.TryAgain, "the cluster isn't asked")
}

// underlay looks what the tunnel goes over.
func (l *Local) underlay(h Host, n *LocalNetwork) {
	var reached []netip.Addr
	for _, peer := range n.State.Place.Peers {
		if peer == n.State.Place.VTEP {
			continue
		}
		route, err := h.Kernel.RouteTo(peer)
		if err != nil {
			n.Lost = append(n.Lost, Unreached{peer, err.Error()})
			continue
		}
		reached = append(reached, peer)
		if link, err := h.Kernel.LinkByIndex(route.Link); err == nil && !slices.Contains(n.Lower, link.Name) {
			n.Lower = append(n.Lower, link.Name)
			if h.Driver != nil {
				l.Drivers[link.Name] = h.Driver(link.Name)
			}
		}
	}
	if mtu, err := parent.AutoMTU(h.Kernel, n.State.Place.VTEP, reached); err == nil && len(reached) > 0 {
		n.Carries = mtu
	}
}

func (l *Local) attachments(h Host) {
	list, err := record.Dir(filepath.Join(h.Node.RunDir, "attachments")).List()
	l.fault("read the attachment records", err)
	for _, a := range list {
		l.Attachments = append(l.Attachments, inside(h, a))
	}
}

func inside(h Host, a record.Attachment) Attachment {
	out := Attachment{Attachment: a}
	out.Delegate = nil // the network's configuration, which the definition has
	k, done, err := h.Inside(a.Netns)
	if err != nil {
		out.Gone = err.Error()
		return out
	}
	defer done()
	links, err := k.Links()
	if err != nil {
		out.Gone = err.Error()
		return out
	}
	addrs, err := k.Addrs()
	if err != nil {
		out.Gone = err.Error()
		return out
	}
	for _, link := range links {
		if link.Name == a.IfName {
			out.Link = &link
			for _, addr := range kernel.AddrsOf(addrs, link.Index) {
				out.Addrs = append(out.Addrs, addr.Prefix.Addr())
			}
		}
	}
	out.Dial, out.By, _ = iscsipath.Dialed(iscsipath.Dump(links, addrs))
	return out
}

// Here is the machine that this program runs on, in whose network namespace it must be. The caller closes the kernel.
func Here(file nodefile.File) (Host, *kernel.Netlink, error) {
	k, err := kernel.Host()
	if err != nil {
		return Host{}, nil, fmt.Errorf("look at this machine's network: %w", err)
	}
	host := install.Host{Root: "/"}
	check := func(ctx context.Context) (string, error) {
		layout, err := install.FindLayout(host, install.Layout{})
		if err != nil {
			return "", err
		}
		return (&install.Installer{Host: host, Layout: layout}).Check(ctx)
	}
	return Host{Kernel: k, Root: "/", Node: file, Inside: Inside, Check: check, Driver: driver}, k, nil
}

// driver names a device's driver.
func driver(device string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, device)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// Link is the device of a name.
func (l *Local) Link(name string) (kernel.Link, bool) {
	i := slices.IndexFunc(l.Links, func(k kernel.Link) bool { return k.Name == name })
	if i < 0 {
		return kernel.Link{}, false
	}
	return l.Links[i], true
}

// Name is that of the device with an index.
func (l *Local) Name(index int) string {
	i := slices.IndexFunc(l.Links, func(k kernel.Link) bool { return k.Index == index })
	if i < 0 {
		return fmt.Sprintf("#%d", index)
	}
	return l.Links[i].Name
}
