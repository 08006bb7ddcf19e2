package attach

import (
	"errors"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// chain completes the plan of a plugin that comes after another main plugin: the
// parent is whatever that one hung its macvlan on, the network the one of the
// addresses that it was given.
func (a *add) chain() error {
	if !inSandbox(a.plan.PrevResult, a.IfName, a.Netns) {
		return cnierr.New(cnierr.InvalidConfig, "prevResult has no interface %s in the pod %s: "+
			"in a plugin list lhstorage comes right after the macvlan plugin whose host it gives access to", a.IfName, a.Netns)
	}
	child, err := a.pod.k.Link(a.IfName)
	if err != nil {
		return cnierr.New(cnierr.InvalidConfig, "%s, named by prevResult: %w", a.IfName, err)
	}
	if child.Kind != "macvlan" {
		return cnierr.New(cnierr.InvalidConfig, "%s is a %s: a host shim serves macvlan interfaces alone; "+
			"chain lhstorage after the macvlan plugin, or leave it out (a %s's host can be reached otherwise)", a.IfName, child.Kind, child.Kind)
	}
	if child.Macvlan.Mode != "bridge" {
		return cnierr.New(cnierr.InvalidConfig, "%s is a macvlan in mode %s: only in mode bridge can a host shim reach it", a.IfName, child.Macvlan.Mode)
	}
	master, err := a.Kernel.LinkByIndex(child.Lower)
	if err != nil {
		return cnierr.New(cnierr.InvalidConfig, "the master of %s isn't in the host's namespace (linkInContainer?): %w", a.IfName, err)
	}
	if name := a.plan.Parent.Name; name != "" && name != master.Name {
		return cnierr.New(cnierr.InvalidConfig, "master is %s, but %s was made on %s: leave master out, or set both plugins to the same", name, a.IfName, master.Name)
	}
	a.plan.Parent.Type, a.plan.Parent.Name = netconf.ParentDevice, master.Name
	a.link = child
	a.networks()
	return nil
}

func inSandbox(result *types100.Result, name, netns string) bool {
	return result != nil && slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool {
		return i.Name == name && i.Sandbox == netns
	})
}

// networks fills in the networks that the host ranges lie in, from the addresses
// of the previous result.
func (a *add) networks() {
	if a.plan.HostShim == nil {
		return
	}
	shim := a.plan.HostShim
	shim.Networks = slices.Grow(shim.Networks, len(shim.Ranges))[:max(len(shim.Networks), len(shim.Ranges))]
	for _, ip := range a.plan.PrevResult.IPs {
		p, ok := prefixOf(ip.Address)
		for i, hosts := range shim.Ranges {
			if ok && p.Masked().Contains(hosts.Addr()) {
				shim.Networks[i] = p.Masked()
			}
		}
	}
}

// addressesOf are the addresses of a result, for the record.
func addressesOf(result *types100.Result) []netip.Prefix {
	var list []netip.Prefix
	for _, ip := range result.IPs {
		if p, ok := prefixOf(ip.Address); ok {
			list = append(list, p)
		}
	}
	return list
}

// restoreMTU gives this node's pods the MTU that they were made with, or the
// parent's. A pod that is gone, or an interface that isn't ours any more, is
// passed over. What is in one pod's way isn't in the others'.
func (p *Plugin) restoreMTU(parent kernel.Link) error {
	attachments, err := p.records().List()
	faults := []error{err}
	for _, at := range attachments {
		if at.Parent != parent.Name || isGone(at.Netns) {
			continue
		}
		if err := raiseMTU(at, parent.MTU); err != nil {
			faults = append(faults, cnierr.New(cnierr.Kernel, "restore the MTU of %s in pod %s (%s): %w", at.IfName, at.PodRef, at.Netns, err))
		}
	}
	return errors.Join(faults...)
}

func raiseMTU(at record.Attachment, parent int) error {
	pod, err := openPod(at.Netns)
	if err != nil {
		return err
	}
	defer pod.close()
	link, err := pod.k.Link(at.IfName)
	if kernel.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	mtu := parent
	if at.MTU != 0 {
		mtu = min(at.MTU, parent)
	}
	if link.Kind != "macvlan" || link.MTU == mtu || pod.isAnothers(at) {
		return nil
	}
	return pod.k.SetLink(link.Index, kernel.Change{MTU: &mtu})
}
