package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Check verifies an attachment against prevResult and the kernel: the interface
// and its parent, the addresses, the routes that are ours (later plugins may have
// added others), the node's own part, and the IPAM's reservation. All faults are
// reported at once.
func (p *Plugin) Check(ctx context.Context, plan *netconf.Plan, req Request) error {
	if plan.PrevResult == nil {
		return cnierr.New(cnierr.InvalidConfig, "CHECK needs prevResult: the runtime must pass the result of ADD")
	}
	sandbox, err := openPod(req.Netns)
	if err != nil {
		return err
	}
	defer sandbox.close()
	at, found, err := p.records().Load(req.ContainerID, req.IfName)
	if err != nil {
		return err
	}
	if found && at.Chained {
		plan.Chained = true
	}
	c := &check{Plugin: p, Request: req, plan: plan, pod: sandbox, at: at}
	if !found || at.State != record.StateAttached {
		c.fault("this node has no record of the attachment: it was made by another plugin, or /run was emptied")
	}
	c.child()
	c.addresses()
	c.routes()
	c.node(ctx)
	if !plan.Chained {
		c.faults = append(c.faults, delegate{kind: plan.IPAM.Type, conf: plan.IPAM.Delegate, path: req.Path}.check(ctx))
	}
	if err := errors.Join(c.faults...); err != nil {
		return cnierr.New(cnierr.InvalidConfig, "attachment %s of container %s isn't as ADD left it:\n%w", req.IfName, req.ContainerID, err)
	}
	return nil
}

type check struct {
	*Plugin
	Request
	plan   *netconf.Plan
	pod    *pod
	at     record.Attachment
	link   kernel.Link
	faults []error
}

func (c *check) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf(format, args...))
}

func (c *check) child() {
	link, err := c.pod.k.Link(c.IfName)
	if err != nil {
		c.fault("in the pod: %w", err)
		return
	}
	c.link = link
	if link.Kind != "macvlan" {
		c.fault("%s in the pod is a %s, not a macvlan", c.IfName, link.Kind)
		return
	}
	if !c.plan.Chained && link.Macvlan.Mode != c.plan.Mode {
		c.fault("%s has mode %s, not %s", c.IfName, link.Macvlan.Mode, c.plan.Mode)
	}
	if !link.Up {
		c.fault("%s is down", c.IfName)
	}
	if !c.named() {
		c.fault("prevResult has no interface %s in %s", c.IfName, c.Netns)
	}
	c.parent()
}

// named compares the interface with the one in prevResult.
func (c *check) named() bool {
	for _, i := range c.plan.PrevResult.Interfaces {
		if i.Name != c.IfName || i.Sandbox != c.Netns {
			continue
		}
		if i.Mac != "" && i.Mac != c.link.MAC.String() {
			c.fault("%s has MAC %s, ADD gave it %s", c.IfName, c.link.MAC, i.Mac)
		}
		return true
	}
	return false
}

func (c *check) parent() {
	k := kernel.Kernel(c.Kernel)
	if c.plan.LinkInContainer {
		k = c.pod.k
	}
	if c.plan.Parent.Name == "" {
		c.plan.Parent.Name = c.at.Parent // chained: the record knows
	}
	parent, err := k.Link(c.plan.Parent.Name)
	if err != nil {
		c.fault("the parent: %w", err)
		return
	}
	if c.link.Lower != parent.Index {
		c.fault("%s isn't a child of %s", c.IfName, parent.Name)
	}
	if !parent.Up && !c.at.ParentDown {
		c.fault("parent %s is down: `ip link set %s up`", parent.Name, parent.Name)
	}
}

func (c *check) addresses() {
	all, err := c.pod.k.Addrs()
	if err != nil {
		c.fault("%w", err)
		return
	}
	for _, want := range addressesOf(c.plan.PrevResult) {
		has := slices.ContainsFunc(all, func(a kernel.Addr) bool { return a.Link == c.link.Index && a.Prefix == want })
		if !has {
			c.fault("%s has lost its address %s", c.IfName, want)
		}
	}
}

func (c *check) routes() {
	have, err := c.pod.k.Routes(0)
	if err != nil {
		c.fault("%w", err)
		return
	}
	for _, r := range c.plan.PrevResult.Routes {
		if r.Table != nil {
			continue // only the main table is read
		}
		dst, _ := prefixOf(r.Dst)
		gw, _ := netip.AddrFromSlice(r.GW)
		if !slices.ContainsFunc(have, func(h kernel.Route) bool {
			return h.Dst == dst.Masked() && (!gw.IsValid() || h.Via == gw.Unmap())
		}) {
			c.fault("the pod has lost its route to %s", dst)
		}
	}
}

// node checks this node's part: a network whose shim is gone has pods that the
// host can't reach.
func (c *check) node(ctx context.Context) {
	if c.plan.LinkInContainer {
		return
	}
	if c.plan.Chained {
		a := &add{Plugin: c.Plugin, Request: c.Request, plan: c.plan, pod: c.pod}
		if err := a.chain(); err != nil {
			c.faults = append(c.faults, err)
			return
		}
	}
	_, pending, err := c.ensurer(c.plan, c.Path).Look(ctx, c.plan)
	if err != nil {
		c.faults = append(c.faults, err)
	} else if pending != "" {
		c.fault("the node isn't ready for the network: still to do: %s", pending)
	}
}

// Status says whether an ADD could be served: code 50 if not, 51 if pods that
// are attached suffer too (CNI specification, section STATUS).
func (p *Plugin) Status(ctx context.Context, plan *netconf.Plan, path string) error {
	var faults []error
	impaired := false
	if plan.Parent.Name != "" && !plan.LinkInContainer {
		down, err := p.parentStatus(ctx, plan, path)
		impaired = down
		faults = append(faults, err)
	}
	faults = append(faults, delegate{kind: plan.IPAM.Type, conf: plan.IPAM.Delegate, path: path}.status(ctx))
	err := errors.Join(faults...)
	if err == nil {
		return nil
	}
	code := cnierr.NotAvailable
	if impaired {
		code = cnierr.Limited
	}
	return cnierr.New(code, "network %s can't serve an ADD: %w", plan.Name, err)
}

// parentStatus looks at the parent and at what an ADD would have to change.
func (p *Plugin) parentStatus(ctx context.Context, plan *netconf.Plan, path string) (impaired bool, err error) {
	link, err := p.Kernel.Link(plan.Parent.Name)
	missing := kernel.IsNotFound(err)
	if err != nil && !missing {
		return false, err
	}
	used := p.inUse(plan.Parent.Name)
	if !missing && !link.Up && plan.Parent.Type == netconf.ParentDevice && (plan.HostShim != nil || p.cutOff(link.Name)) {
		return used, fmt.Errorf("parent %s is down: `ip link set %s up`", link.Name, link.Name)
	}
	if _, _, err := p.ensurer(plan, path).Look(ctx, plan); err != nil {
		return used && missing, err
	}
	if missing && used {
		return true, fmt.Errorf("parent %s is gone, and the pods' interfaces with it: delete those pods, so that they are attached anew", plan.Parent.Name)
	}
	return false, nil
}

// inUse says that a pod of this node that still exists has an interface on parent.
func (p *Plugin) inUse(parent string) bool {
	return p.any(func(at record.Attachment) bool { return at.Parent == parent })
}

// cutOff says that pods were attached while parent was up. A stock macvlan
// network may have a parent that is down from the start, and has no fault then.
func (p *Plugin) cutOff(parent string) bool {
	return p.any(func(at record.Attachment) bool { return at.Parent == parent && !at.ParentDown })
}

// networkInUse says the same of one of the networks on a parent.
func (p *Plugin) networkInUse(network, parent string) bool {
	return p.any(func(at record.Attachment) bool { return at.Parent == parent && at.Network == network })
}

func (p *Plugin) any(match func(record.Attachment) bool) bool {
	all, err := p.records().List()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lhstorage: %v\n", err)
	}
	return slices.ContainsFunc(all, func(at record.Attachment) bool { return match(at) && !isGone(at.Netns) })
}
