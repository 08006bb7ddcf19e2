// Package attach gives a pod its interface on the storage network and takes it
// away again: the verbs of the CNI plugin (CNI specification 1.1).
//
// ADD, in order: node ready (package node), record, IPAM, macvlan child made
// directly in the pod's namespace, up without an address, duplicate probe, address,
// routes, announcement, record, result. Every step that makes something pushes
// its undo first; whatever fails, the stack is run to its end. A process that is
// killed leaves its record behind in state "pending": the next ADD or DEL of the
// same attachment takes back what that one made.
package attach

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types020 "github.com/containernetworking/cni/pkg/types/020"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Bounds of a call. A runtime gives a plugin a minute or more; a pod that can't
// start should say so sooner.
const (
	addTime  = 30 * time.Second
	delTime  = 30 * time.Second
	undoTime = 25 * time.Second // more than lhstorage-ipam takes (20 s): a release that it can't do it must come to queueing
	lockWait = 20 * time.Second
	grace    = 50 * time.Millisecond // frames under way to a MAC that neighbours have just left
	declines = 3                     // how many duplicate addresses one ADD gives back
)

// Request is what the runtime asks: the CNI_* environment.
type Request struct {
	ContainerID string
	Netns       string
	IfName      string
	Path        string // CNI_PATH
}

// Plugin serves the CNI verbs on this node.
type Plugin struct {
	Node   nodefile.File
	Kernel *kernel.Netlink // the host's network namespace
	Out    io.Writer       // where the result goes
}

func (p *Plugin) records() record.Dir {
	return record.Dir(filepath.Join(p.Node.RunDir, "attachments"))
}

// Ensurer is what makes the node ready for plan's network. How the cluster is asked
// for the node's place is the caller's.
func (p *Plugin) Ensurer(plan *netconf.Plan) *node.Ensurer {
	return &node.Ensurer{
		Kernel: p.Kernel, Node: p.Node, LockWait: lockWait, Grace: grace, RestoreMTU: p.restoreMTU, InUse: p.networkInUse,
		Neighbours: hostNeighbours{p.Kernel, plan.Conflict.Window},
		Warn:       func(text string) { fmt.Fprintf(os.Stderr, "lhstorage: %s\n", text) },
	}
}

func (p *Plugin) ensurer(plan *netconf.Plan, path string) *node.Ensurer {
	e := p.Ensurer(plan)
	if p.Node.Kubeconfig != "" {
		e.Claim = claimer(path)
	}
	return e
}

// add is one ADD.
type add struct {
	*Plugin
	Request
	plan   *netconf.Plan
	pod    *pod
	ipam   delegate
	undo   undo
	begun  bool // the record is written
	record record.Attachment
	parent kernel.Link
	link   kernel.Link // the child
	result *types100.Result
}

// Add attaches a pod and prints the result. On an error nothing of it is left.
func (p *Plugin) Add(ctx context.Context, plan *netconf.Plan, req Request) (err error) {
	ctx, cancel := context.WithTimeout(ctx, addTime)
	defer cancel()
	a := &add{Plugin: p, Request: req, plan: plan, ipam: delegate{kind: plan.IPAM.Type, conf: plan.IPAM.Delegate, path: req.Path}}
	if a.pod, err = openPod(req.Netns); err != nil {
		return err
	}
	defer a.pod.close()
	if err := a.pod.lock(ctx); err != nil {
		return err
	}
	if !plan.Chained {
		a.ipam.prepare(ctx)
		defer a.ipam.drop()
	}
	if err := a.run(ctx); err != nil {
		if undone := a.takeBackAll(); undone != nil {
			return cnierr.New(cnierr.CodeOf(err), "%w\nand what was done could not all be undone (DEL will try again): %w", err, undone)
		}
		return err
	}
	return nil
}

// takeBackAll runs the undo stack. The record goes last, and stays when
// something could not be undone: DEL finishes the work by it.
func (a *add) takeBackAll() error {
	if err := a.undo.run(); err != nil || !a.begun {
		return err
	}
	if err := fault.At("undo.record"); err != nil {
		return err
	}
	return a.records().Forget(a.ContainerID, a.IfName)
}

// step is a part of ADD, named by its fault point.
type step struct {
	point   string
	do      func(context.Context) error
	chained bool // also behind another main plugin
}

func (a *add) steps() []step {
	return []step{
		{"add.leftovers", a.leftovers, true},
		{"add.node", a.ready, true},
		{"add.record", a.begin, true},
		{"add.ipam", a.allocate, false},
		{"add.child", a.makeChild, false},
		{"add.prepare", a.prepare, false},
		{"add.up", a.up, false},
		{"add.addresses", a.addresses, false},
		{"add.routes", a.routes, false},
		{"add.announce", a.announce, false},
		{"add.iscsi", a.dialed, true},
		{"add.attached", a.attached, true},
		{"add.result", a.print, true},
	}
}

func (a *add) run(ctx context.Context) error {
	for _, s := range a.steps() {
		if a.plan.Chained && !s.chained {
			continue
		}
		if err := fault.At(s.point); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	_ = fault.At("add.done") // to be killed at: the result is out, an error would come too late
	return nil
}

// leftovers takes back what a killed ADD of the same attachment made, and
// refuses an attachment that is there.
func (a *add) leftovers(ctx context.Context) error {
	old, found, err := a.records().Load(a.ContainerID, a.IfName)
	if err != nil {
		return err
	}
	_, err = a.pod.k.Link(a.IfName)
	halfGone := old.State == record.StateAttached && kernel.IsNotFound(err)
	if found && (old.State == record.StatePending || halfGone) {
		if err := a.takeBack(ctx, a.pod, old, a.Path); err != nil {
			return fmt.Errorf("take back what an interrupted call for this attachment left: %w", err)
		}
		_, err = a.pod.k.Link(a.IfName)
	}
	switch {
	case a.plan.Chained && err == nil, !a.plan.Chained && kernel.IsNotFound(err):
		return nil
	case err == nil:
		return cnierr.New(cnierr.InvalidEnvironment, "CNI_IFNAME %s: the pod %s already has an interface of that name: "+
			"DEL it first, or ask for another name", a.IfName, a.Netns)
	case kernel.IsNotFound(err):
		return cnierr.New(cnierr.InvalidConfig, "CNI_IFNAME %s isn't in the pod %s, though prevResult says so: "+
			"in a plugin list lhstorage comes after the main plugin that makes it", a.IfName, a.Netns)
	default:
		return cnierr.New(cnierr.IO, "%w", err)
	}
}

// ready makes the node ready and finds the parent.
func (a *add) ready(ctx context.Context) error {
	if a.plan.Chained {
		if err := a.chain(); err != nil {
			return err
		}
	}
	if a.plan.LinkInContainer {
		link, err := a.pod.k.Link(a.plan.Parent.Name)
		if err != nil {
			return cnierr.New(cnierr.InvalidConfig, "master %s (linkInContainer) isn't in the pod's namespace: %w", a.plan.Parent.Name, err)
		}
		a.parent = link
		return a.fitsMTU()
	}
	if err := a.knowsNetwork(); err != nil {
		return err
	}
	state, err := a.ensurer(a.plan, a.Path).Ensure(ctx, a.plan)
	if err != nil {
		return err
	}
	for _, text := range state.Changed {
		fmt.Fprintf(os.Stderr, "lhstorage: %s\n", text)
	}
	a.parent = state.Parent
	if a.parent.Kind == "bridge" {
		fmt.Fprintf(os.Stderr, "lhstorage: parent %s is a bridge; macvlan on bridges has brought kernels down (kernel bug 217777): use a port's device, or a veth\n", a.parent.Name)
	}
	return a.fitsMTU()
}

// knowsNetwork refuses a host shim whose network's length can't be told: it would
// get an address that reaches nobody.
func (a *add) knowsNetwork() error {
	if a.plan.HostShim == nil {
		return nil
	}
	if hosts, found := a.plan.HostShim.Unplaced(); found {
		return cnierr.New(cnierr.InvalidConfig, "hostShim.range %s: which network it is part of can't be read from IPAM plugin %q "+
			"or the previous result: use lhstorage-ipam, whereabouts, host-local or static", hosts, a.plan.IPAM.Type)
	}
	return nil
}

func (a *add) fitsMTU() error {
	if !a.plan.Chained && a.plan.MTU > a.parent.MTU {
		return cnierr.New(cnierr.MTUMismatch, "mtu %d is more than parent %s carries (%d): lower it, or raise the parent's (parent.mtu) and what is below it",
			a.plan.MTU, a.parent.Name, a.parent.MTU)
	}
	return nil
}

// begin writes the record before anything is made.
func (a *add) begin(context.Context) error {
	a.record = record.Attachment{
		Version: record.Version, State: record.StatePending, Created: time.Now().UTC(),
		Node: a.Node.NodeName, Network: a.plan.Name, PodUID: a.plan.Pod.UID,
		ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns,
		MTU: a.plan.MTU, Parent: a.plan.Parent.Name, ParentDown: !a.parent.Up, Chained: a.plan.Chained,
		IPAM: a.plan.IPAM.Type, Delegate: a.plan.IPAM.Delegate, Warnings: a.plan.Warnings,
	}
	if a.plan.LinkInContainer { // its master is no device of the host's, whatever its name
		a.record.Parent = ""
	}
	if a.plan.Pod.Name != "" {
		a.record.PodRef = a.plan.Pod.Namespace + "/" + a.plan.Pod.Name
	}
	if a.plan.HostShim != nil {
		a.record.Shim = a.plan.HostShim.Name
	}
	if a.plan.Chained { // the main plugin made the interface and has the address
		a.record.IPAM, a.record.Delegate = "", nil
		a.record.MAC, a.record.IfIndex, a.record.Addresses = a.link.MAC.String(), a.link.Index, addressesOf(a.plan.PrevResult)
		if a.link.MTU < a.parent.MTU { // as that plugin was asked
			a.record.MTU = a.link.MTU
		}
	}
	for _, w := range a.plan.Warnings {
		fmt.Fprintf(os.Stderr, "lhstorage: %s\n", w)
	}
	if err := a.records().Save(a.record); err != nil {
		return err
	}
	a.begun = true
	return nil
}

func (a *add) allocate(ctx context.Context) error {
	a.result = &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if a.ipam.none() {
		return nil
	}
	if err := a.ipam.find(); err != nil {
		return err
	}
	a.undo.push(undoStep{"undo.address", "release the address", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		return a.ipam.del(ctx)
	}})
	return a.ask(ctx)
}

// ask gets addresses from the IPAM plugin.
func (a *add) ask(ctx context.Context) error {
	got, err := a.ipam.add(ctx)
	if err != nil {
		return err
	}
	a.result.IPs, a.result.Routes, a.result.DNS = got.IPs, got.Routes, got.DNS
	if !a.plan.DNS.IsEmpty() {
		a.result.DNS = a.plan.DNS
	}
	a.record.Addresses = nil
	for _, ip := range got.IPs {
		prefix, ok := prefixOf(ip.Address)
		if !ok {
			return cnierr.New(cnierr.Decode, "IPAM plugin %s gave the address %v, which isn't one", a.ipam.kind, ip.Address)
		}
		if hosts, inside := a.hostRange(prefix.Addr()); inside {
			return cnierr.New(cnierr.InvalidConfig, "IPAM plugin %s gave %s, which lies in the host range %s (hostShim.range): "+
				"exclude that range in its configuration", a.ipam.kind, prefix.Addr(), hosts)
		}
		a.record.Addresses = append(a.record.Addresses, prefix)
	}
	return nil
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

func (a *add) hostRange(addr netip.Addr) (netip.Prefix, bool) {
	if a.plan.HostShim == nil {
		return netip.Prefix{}, false
	}
	for _, hosts := range a.plan.HostShim.Ranges {
		if hosts.Contains(addr) {
			return hosts, true
		}
	}
	return netip.Prefix{}, false
}

// makeChild makes the macvlan child in the pod's namespace at once: moving it
// there later costs the host a grace period of RCU for each pod. Its MAC and
// ifindex are given at creation for the same reason.
func (a *add) makeChild(context.Context) error {
	choice, err := a.chooseIndex()
	if err != nil {
		return err
	}
	k, inNetns := a.Kernel, int(a.pod.netns.Fd())
	if a.plan.LinkInContainer {
		k, inNetns = a.pod.k, 0
	}
	a.undo.push(undoStep{"undo.interface", "delete the interface", func() error { return deleteChild(a.pod, a.IfName) }})
	child := kernel.Link{
		Name: a.IfName, Kind: "macvlan", Index: choice.Index, Lower: a.parent.Index, MAC: a.plan.MAC, MTU: a.mtu(),
		Macvlan: kernel.Macvlan{Mode: a.plan.Mode, BcQueueLen: a.plan.BcQueueLen}, InNetns: inNetns,
	}
	err = k.AddLink(child)
	if kernel.IsExists(err) && choice.Index != 0 { // somebody took the index meanwhile
		child.Index = 0
		err = k.AddLink(child)
	}
	if err != nil {
		return cnierr.New(cnierr.Kernel, "make %s a macvlan child of %s in the pod: %w%s", a.IfName, a.parent.Name, err, a.hint())
	}
	if a.link, err = a.pod.k.Link(a.IfName); err != nil {
		return cnierr.New(cnierr.Kernel, "%w", err)
	}
	a.record.MAC, a.record.IfIndex = a.link.MAC.String(), a.link.Index
	return nil
}

func (a *add) mtu() int {
	if a.plan.MTU != 0 {
		return a.plan.MTU
	}
	return a.parent.MTU
}

func (a *add) hint() string {
	if a.parent.Master != 0 {
		return fmt.Sprintf(" (%s is a port of another device; name that one as the parent)", a.parent.Name)
	}
	return ""
}

// deleteChild deletes our interface in the pod; one that isn't a macvlan was not
// made by us and stays.
func deleteChild(p *pod, name string) error {
	link, err := p.k.Link(name)
	if kernel.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return cnierr.New(cnierr.IO, "%w", err)
	}
	if link.Kind != "macvlan" {
		return nil
	}
	if err := p.k.DelLink(link.Index); err != nil && !kernel.IsNotFound(err) {
		return cnierr.New(cnierr.Kernel, "%s in the pod: %w", name, err)
	}
	return nil
}

// chooseIndex picks the ifindex that decides which address Longhorn's initiator
// dials. A wish that can't be had is noted under "auto" and refused otherwise.
func (a *add) chooseIndex() (iscsipath.Choice, error) {
	ifaces, err := a.pod.ifaces()
	if err != nil {
		return iscsipath.Choice{}, cnierr.New(cnierr.IO, "%w", err)
	}
	own := iscsipath.Iface{Name: a.IfName, Addrs: plain(a.record.Addresses)}
	choice := iscsipath.Choose(a.plan.ISCSIPath, a.plan.HostShim != nil, own, ifaces, kernelOrder())
	if choice.Possible || a.ipam.none() {
		return choice, nil
	}
	if a.plan.ISCSIPath != netconf.ISCSIAuto {
		return choice, cnierr.New(cnierr.InvalidConfig, "iscsiPath %q can't be had in this pod: %s", a.plan.ISCSIPath, choice.Reason)
	}
	a.record.ISCSINote = choice.Reason
	return iscsipath.Choice{}, nil
}

func (a *add) prepare(context.Context) error {
	dad := time.Duration(0)
	if a.plan.Conflict.Enabled {
		dad = a.plan.Conflict.Window
	}
	if err := a.pod.prepare(a.IfName, a.hasIPv6(), a.plan.HostShim != nil, dad); err != nil {
		return cnierr.New(cnierr.Kernel, "%w", err)
	}
	return nil
}

func (a *add) hasIPv6() bool {
	return slices.ContainsFunc(a.record.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// up comes before the addresses: a probe needs the link, and an address that is
// set on a link that is down would be announced before it was probed for.
func (a *add) up(context.Context) error {
	if err := a.pod.k.SetLink(a.link.Index, kernel.Change{Up: new(true)}); err != nil {
		return cnierr.New(cnierr.Kernel, "%s in the pod: %w", a.IfName, err)
	}
	return nil
}

// addresses sets what the IPAM plugin gave, unless somebody has it. Our own IPAM
// is then asked for another, a bounded number of times; others can't be.
func (a *add) addresses(ctx context.Context) error {
	for try := 0; ; try++ {
		taken, err := a.setAddresses(ctx)
		if err != nil {
			return err
		}
		if taken == nil {
			return nil
		}
		if !a.ipam.canDecline() || try == declines {
			return cnierr.New(cnierr.DuplicateAddress, "address %s is held by another device: MAC %s, seen on %s. "+
				"Find it (`ip neigh`, `bridge fdb`, the switch's table) and take the address off it, or exclude the address in the ipam section",
				taken.addr, taken.mac, taken.where)
		}
		fmt.Fprintf(os.Stderr, "lhstorage: address %s is held by %s, seen on %s: asking for another\n", taken.addr, taken.mac, taken.where)
		if err := fault.At("add.decline"); err != nil {
			return err
		}
		if err := a.clearAddresses(); err != nil {
			return err
		}
		if err := a.ipam.decline(ctx, taken.addr, taken.mac); err != nil {
			return err
		}
		if err := fault.At("add.declined"); err != nil {
			return err
		}
		if err := a.ask(ctx); err != nil {
			return err
		}
	}
}

// holder is another device that has an address that we were given.
type holder struct {
	addr  netip.Addr
	mac   string
	where string
}

func (a *add) setAddresses(ctx context.Context) (*holder, error) {
	if a.plan.Conflict.Enabled {
		if taken, err := a.taken(ctx); err != nil || taken != nil {
			return taken, err
		}
	}
	for _, prefix := range a.record.Addresses {
		if err := fault.At("add.address"); err != nil {
			return nil, err
		}
		addr := kernel.Addr{Link: a.link.Index, Prefix: prefix, NoDAD: !a.plan.Conflict.Enabled}
		if err := a.pod.k.AddAddr(addr); err != nil {
			return nil, cnierr.New(cnierr.Kernel, "%s in the pod: %w", a.IfName, err)
		}
	}
	if !a.hasIPv6() || !a.plan.Conflict.Enabled {
		return nil, nil
	}
	return a.detected(ctx)
}

// taken looks for the addresses on this host, whose own answers a probe would
// not see, and on the network.
func (a *add) taken(ctx context.Context) (*holder, error) {
	local, err := a.Kernel.Addrs()
	if err != nil {
		return nil, cnierr.New(cnierr.IO, "%w", err)
	}
	for _, l := range local {
		for _, prefix := range a.record.Addresses {
			if l.Prefix.Addr() == prefix.Addr() {
				link, _ := a.Kernel.LinkByIndex(l.Link)
				return &holder{prefix.Addr(), link.MAC.String(), link.Name + " of this node"}, nil
			}
		}
	}
	conflicts, err := a.pod.probe(ctx, a.link, plain(a.record.Addresses), a.plan.Conflict.Window)
	if err != nil {
		return nil, cnierr.New(cnierr.Kernel, "probe for the address on %s: %w", a.IfName, err)
	}
	if len(conflicts) > 0 {
		return &holder{conflicts[0].Addr, conflicts[0].MAC.String(), a.IfName + " (parent " + a.parent.Name + ")"}, nil
	}
	return nil, nil
}

// detected waits for the kernel's duplicate address detection for IPv6. Who the
// other one is, the kernel doesn't say; it is asked for.
func (a *add) detected(ctx context.Context) (*holder, error) {
	failed, err := a.pod.waitDAD(ctx, a.link, plain(a.record.Addresses))
	if err != nil {
		return nil, cnierr.New(cnierr.Kernel, "%w", err)
	}
	if len(failed) > 0 {
		return &holder{failed[0], a.pod.whoHas(ctx, a.link, failed[0], a.plan.Conflict.Window), a.IfName + " (parent " + a.parent.Name + ")"}, nil
	}
	if err := a.pod.settled(a.IfName); err != nil {
		return nil, cnierr.New(cnierr.Kernel, "%w", err)
	}
	return nil, nil
}

func plain(prefixes []netip.Prefix) []netip.Addr {
	list := make([]netip.Addr, 0, len(prefixes))
	for _, p := range prefixes {
		list = append(list, p.Addr())
	}
	return list
}

// clearAddresses takes off what was set before a later address turned out taken.
func (a *add) clearAddresses() error {
	for _, prefix := range a.record.Addresses {
		err := a.pod.k.DelAddr(kernel.Addr{Link: a.link.Index, Prefix: prefix})
		if err != nil && !kernel.IsNotFound(err) {
			return cnierr.New(cnierr.Kernel, "%w", err)
		}
	}
	return nil
}

// routes makes the routes of the IPAM's result in the pod. One without a gateway
// goes by the first gateway of its family that an address came with.
func (a *add) routes(context.Context) error {
	for _, r := range a.result.Routes {
		if err := fault.At("add.route"); err != nil {
			return err
		}
		dst, ok := prefixOf(r.Dst)
		if !ok {
			return cnierr.New(cnierr.Decode, "IPAM plugin %s gave a route to %v, which isn't a network", a.ipam.kind, r.Dst)
		}
		route := kernel.Route{
			Dst: dst, Link: a.link.Index, Via: a.gateway(r, dst.Addr().Is4()),
			Metric: r.Priority, MTU: r.MTU, AdvMSS: r.AdvMSS, Scope: r.Scope,
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if err := a.pod.k.AddRoute(route); err != nil {
			return cnierr.New(cnierr.Kernel, "%s in the pod: %w", a.IfName, err)
		}
	}
	return nil
}

func (a *add) gateway(r *types.Route, ipv4 bool) netip.Addr {
	if gw, ok := netip.AddrFromSlice(r.GW); ok {
		return gw.Unmap()
	}
	for _, ip := range a.result.IPs {
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && gw.Unmap().Is4() == ipv4 {
			return gw.Unmap()
		}
	}
	return netip.Addr{}
}

// announce makes neighbours that knew the address under another MAC (a pod that
// had it before) take ours at once. Setting the MAC that the interface has makes
// the kernel send a gratuitous ARP and an unsolicited neighbour advertisement for
// every address (NETDEV_CHANGEADDR, with arp_notify and ndisc_notify on). A packet
// socket would do the same, but closing one waits for a grace period of RCU:
// 12 of 20 ms of an ADD. At the time when the interface comes up, the kernel's
// own announcement knows no address yet, which leaves neighbours stale for some
// 10 s (plugins 756).
func (a *add) announce(context.Context) error {
	if len(a.record.Addresses) == 0 {
		return nil
	}
	if err := a.pod.k.SetLink(a.link.Index, kernel.Change{MAC: a.link.MAC}); err != nil {
		return cnierr.New(cnierr.Kernel, "announce %s: %w", texts(a.record.Addresses), err)
	}
	return nil
}

// dialed notes the address that Longhorn's v1 initiator will dial, from what the
// kernel now lists, and holds it against the policy.
func (a *add) dialed(context.Context) error {
	ifaces, err := a.pod.ifaces()
	if err != nil {
		return cnierr.New(cnierr.IO, "%w", err)
	}
	addr, winner, ok := iscsipath.Dialed(ifaces)
	if !ok {
		return nil
	}
	a.record.ISCSIDial = addr.String()
	want := iscsipath.Wanted(a.plan.ISCSIPath, a.plan.HostShim != nil)
	alone := !slices.ContainsFunc(ifaces, func(i iscsipath.Iface) bool {
		return i.Name != a.IfName && slices.ContainsFunc(i.Addrs, netip.Addr.IsGlobalUnicast)
	})
	if alone || (winner == a.IfName) == (want == netconf.ISCSIStorageIP) {
		return nil
	}
	if a.plan.ISCSIPath != netconf.ISCSIAuto {
		return cnierr.New(cnierr.InvalidConfig, "iscsiPath %q wasn't had in this pod: %s wins with %s", a.plan.ISCSIPath, winner, addr)
	}
	if a.record.ISCSINote == "" {
		a.record.ISCSINote = fmt.Sprintf("%s wins with %s", winner, addr)
	}
	return nil
}

func (a *add) attached(context.Context) error {
	a.record.State = record.StateAttached
	return a.records().Save(a.record)
}

// print writes the result, with the pod's interface as the only one that has a
// sandbox: Multus maps sandboxed interfaces to network-status by index. An error
// in printing is an error of ADD: the runtime would not know the pod as attached.
func (a *add) print(context.Context) error {
	if a.plan.Chained {
		return printResult(a.Out, a.plan.PrevResult, a.plan.CNIVersion)
	}
	a.result.Interfaces = []*types100.Interface{{
		Name: a.IfName, Mac: a.link.MAC.String(), Mtu: a.link.MTU, Sandbox: a.Netns,
	}}
	for _, ip := range a.result.IPs {
		ip.Interface = types100.Int(0)
	}
	return printResult(a.Out, a.result, a.plan.CNIVersion)
}

func printResult(out io.Writer, result *types100.Result, version string) error {
	converted, err := result.GetAsVersion(version)
	if len(result.IPs) == 0 && slices.Contains([]string{"0.1.0", types020.ImplementedSpecVersion}, version) {
		// Those versions have addresses and nothing else, and the library refuses
		// to convert a result that has none.
		converted, err = &types020.Result{CNIVersion: version, DNS: result.DNS}, nil
	}
	if err != nil {
		return cnierr.New(cnierr.IncompatibleVersion, "write the result as version %s: %w", version, err)
	}
	if err := converted.PrintTo(out); err != nil {
		return cnierr.New(cnierr.IO, "write the result: %w", err)
	}
	return nil
}
