package probereport

import (
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// maxDials bounds ProbeReportStatus.ISCSI: a node has two instance managers, and four during an upgrade.
const maxDials = 64

// dials are what the initiator dials on this node, each pod once. One that can't be looked into is on its way out, and left out.
func (p *Prober) dials(local []Pod) []v1alpha1.ProbeDial {
	var list []v1alpha1.ProbeDial
	for _, pod := range local {
		known := slices.ContainsFunc(list, func(d v1alpha1.ProbeDial) bool { return d.Pod == pod.Ref })
		if !p.FromPods || known || len(list) == maxDials || !iscsipath.IsTarget(pod.Ref) {
			continue
		}
		ifaces, err := interfaces(pod.Netns)
		if err != nil {
			p.Log.Debug("which address of a pod Longhorn dials can't be told", "pod", pod.Ref, "error", err)
			continue
		}
		if address, by, ok := iscsipath.Dialed(ifaces); ok {
			list = append(list, v1alpha1.ProbeDial{Pod: pod.Ref, Address: address.String(), Interface: by})
		}
	}
	slices.SortFunc(list, func(a, b v1alpha1.ProbeDial) int { return strings.Compare(a.Pod, b.Pod) })
	return list
}

// interfaces are those of a network namespace.
func interfaces(netns string) ([]iscsipath.Iface, error) {
	target, err := ns.GetNS(netns)
	if err != nil {
		return nil, err
	}
	defer target.Close() //nolint:errcheck // nothing was written
	k, err := kernel.In(target)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	links, err := k.Links()
	if err != nil {
		return nil, err
	}
	addrs, err := k.Addrs()
	return iscsipath.Dump(links, addrs), err
}
