package doctor

import (
	"slices"
	"time"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// Reports are written every ten minutes at least (docs/probes.md).
const oldReport = 25 * time.Minute

var legChecks = []Check{
	{
		Code: "LHS040", Severity: Error, Title: "A node doesn't reach its own pods",
		Why:  "This is the leg of iSCSI and NVMe: volumes of the node don't attach. Without a shim it is the rule, since a macvlan parent can't talk to its children.",
		Fix:  "on the node: lhstoragectl doctor --local (shim there, up, with its address, rp_filter?)",
		look: func(v *view) []hit { return v.lossy(v1alpha1.LegHostLocal) },
	},
	{
		Code: "LHS041", Severity: Error, Title: "Traffic to another node's pods is lost",
		Why:  "Replicas on that node can't be reached or rebuilt (“Failed rebuilding of replica … no route to host”), and volumes get degraded.",
		Fix:  "compare both nodes: lhstoragectl doctor --local on each (forwarding entries, VTEP, MTU), and UDP 4789 between them through every firewall",
		look: func(v *view) []hit { return v.lossy(v1alpha1.LegHostRemote, v1alpha1.LegPodRemote) },
	},
	{
		Code: "LHS042", Severity: Error, Title: "A node doesn't reach another node's shim",
		Why:  "The tunnel, or the L2 network, doesn't carry between these two nodes.",
		Fix:  "ping the other node's VTEP first (LHS113 when that fails), then lhstoragectl doctor --local on both nodes",
		look: func(v *view) []hit { return v.lossy(v1alpha1.LegHostShim) },
	},
	{
		Code: "LHS043", Severity: Warning, Title: "A node's measurements are old or missing",
		Why:  "Nobody knows how its legs are; its agent is away, or can't write to the API server.",
		Fix:  "kubectl logs of the node's agent",
		look: (*view).unmeasured,
	},
	{
		Code: "LHS044", Severity: Error, Title: "The kernel refuses to send on a leg",
		Why: "No packet left the node: a route is missing, a device is down, or packets are larger than the MTU.",
		Fix: "on the node: ip route get ADDRESS and lhstoragectl doctor --local",
		look: func(v *view) []hit {
			return v.legs(func(l v1alpha1.ProbeLeg) bool { return l.Error != "" })
		},
	},
}

func (v *view) lossy(kinds ...v1alpha1.LegKind) []hit {
	return v.legs(func(l v1alpha1.ProbeLeg) bool { return l.Lost > 0 && l.Error == "" && slices.Contains(kinds, l.Kind) })
}

// legs are those of reports that are young enough to say how it is now.
func (v *view) legs(of func(v1alpha1.ProbeLeg) bool) []hit {
	return each(v.cluster.ProbeReports, func(r v1alpha1.ProbeReport) []hit {
		if v.Time.Sub(r.Status.Time.Time) > oldReport {
			return nil // LHS043
		}
		return each(r.Status.Legs, func(l v1alpha1.ProbeLeg) []hit {
			if !of(l) {
				return nil
			}
			from, to := "node "+r.Spec.Node, "node "+l.Node+"'s shim"
			if l.From != "" {
				from = "pod " + l.From + " on node " + r.Spec.Node
			}
			if l.Pod != "" {
				to = "pod " + l.Pod + " on node " + l.Node
			}
			if l.Error != "" {
				return one(from, "to %s (%s, network %s): %s", to, l.Address, l.Network, l.Error)
			}
			return one(from, "to %s (%s, network %s): %d of %d packets lost", to, l.Address, l.Network, l.Lost, l.Sent)
		})
	})
}

func (v *view) unmeasured() []hit {
	if v.absent(snapshot.ProbeReports) || len(v.cluster.ProbeReports) == 0 {
		return nil // nothing measures here
	}
	return each(v.members(), func(node string) []hit {
		i := slices.IndexFunc(v.cluster.ProbeReports, func(r v1alpha1.ProbeReport) bool { return r.Spec.Node == node })
		if i < 0 {
			return one("node "+node, "it has no ProbeReport")
		}
		if age := v.Time.Sub(v.cluster.ProbeReports[i].Status.Time.Time); age > oldReport {
			return one("node "+node, "its ProbeReport is %s old", age.Round(time.Minute))
		}
		return nil
	})
}
