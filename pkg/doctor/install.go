package doctor

import (
	"fmt"
	"slices"
	"time"

	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const leaseFresh = time.Minute

var installChecks = []Check{
	{
		Code: "LHS100", Severity: Error, Title: "A program or file isn't as it was installed",
		Why:  "The plugins don't run, or another release or program runs in their name; with an expired token every ADD fails.",
		Fix:  "kubectl -n lhstorage-system delete pod of this node's agent: its init container installs again; /opt/lhstorage/install-cni check says what it sees",
		look: func(v *view) []hit { return each(v.local.Install, v.atHere) },
	},
	{
		Code: "LHS101", Severity: Warning, Title: "Something of the node can't be looked at",
		Why:  "Checks that need it found nothing because they saw nothing.",
		Fix:  "run doctor --local as root in the node's own namespaces (nsenter -t 1 -m -n from a pod)",
		look: func(v *view) []hit { return each(v.local.Faults, v.atHere) },
	},
	{
		Code: "LHS102", Severity: Error, Title: "The kernel lacks a kind of device",
		Why:  "Parents or pods' interfaces can't be made.",
		Fix:  "modprobe NAME (and a line in /etc/modules-load.d); on an immutable system take the image or extension that has the module. Talos has vxlan and macvlan built in: look in /sys/module, not in /proc/modules",
		look: (*view).unknownKinds,
	},
	{
		Code: "LHS103", Severity: Error, Title: "The node has never claimed its place",
		Why:  "It has neither VTEP nor shim; no pod of the network can start here while the API server is away.",
		Fix:  "start the agent on the node, or a pod of the network: either claims a place",
		look: func(v *view) []hit { return v.pending(node.StepClaim) },
	},
	{
		Code: "LHS104", Severity: Warning, Title: "Releases of addresses wait for the API server",
		Why: "Pods are gone whose addresses are still held, because the API server was away or refuses.",
		Fix: "start the node's agent: it carries them out within seconds; each file in /var/lib/lhstorage/release-queue says why it waits",
		look: func(v *view) []hit {
			if v.local.Queue == 0 {
				return nil
			}
			return one(v.here(), "%d releases wait", v.local.Queue)
		},
	},
	{
		Code: "LHS105", Severity: Warning, Title: "Nobody records addresses for this node",
		Why:  "Its node file leaves recording to the elected agent (record: agent), whose Lease isn't fresh: each ADD records by itself, as with record: sync, more slowly.",
		Fix:  "look why no agent leads (kubectl get lease -A), or set record to sync in the node file",
		look: (*view).unrecordedPools,
	},
}

func (v *view) atHere(text string) []hit { return one(v.here(), "%s", text) }

// kindOf is the kind of device that a network's parent is.
func kindOf(p netconf.Parent) string {
	switch p.Type {
	case netconf.ParentVXLAN:
		return "vxlan"
	case netconf.ParentVLAN:
		return "vlan"
	default:
		return ""
	}
}

func (v *view) unknownKinds() []hit {
	lacks := func(kind string) bool { known, told := v.local.Kinds[kind]; return told && !known }
	var found []hit
	for _, n := range v.local.Networks {
		if kind := kindOf(n.Plan.Parent); kind != "" && lacks(kind) {
			found = append(found, hit{where: v.here(), what: fmt.Sprintf("kernel %s knows no %s, which the parent of network %s is", v.local.Release, kind, n.Ref())})
		}
	}
	if len(v.local.Networks) > 0 && lacks("macvlan") {
		found = append(found, hit{where: v.here(), what: fmt.Sprintf("kernel %s knows no macvlan, which pods' interfaces are", v.local.Release)})
	}
	return found
}

func (v *view) unrecordedPools() []hit {
	ours := slices.ContainsFunc(v.local.Networks, func(n snapshot.LocalNetwork) bool { return n.Plan.IPAM.Type == lhstorageIPM })
	if v.Cluster == nil || v.local.Node.Record != nodefile.RecordAgent || !ours {
		return nil
	}
	lease := v.cluster.Recorder
	if lease != nil && lease.Spec.RenewTime != nil && v.Time.Sub(lease.Spec.RenewTime.Time) < leaseFresh {
		return nil
	}
	return one(v.here(), "record: agent, and no recorder renewed its Lease within the last %s", leaseFresh)
}

// pending finds what isn't as it must be, by the names of the steps that would mend it.
func (v *view) pending(steps ...string) []hit {
	return each(v.local.Networks, func(n snapshot.LocalNetwork) []hit {
		return each(n.Pending, func(c node.Change) []hit {
			if !slices.Contains(steps, c.Step) {
				return nil
			}
			return on(n.Plan, one(v.here(), "network %s: it must yet %s", n.Ref(), c.Text))
		})
	})
}
