package doctor

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

var networkChecks = []Check{
	{
		Code: "LHS001", Severity: Error, Title: "lhstorage's resources aren't installed",
		Why: "Nodes have nowhere to claim their place and pods nowhere to claim addresses: no pod can be attached.",
		Fix: "kubectl apply -f deploy/crds (the Helm chart does it: helm upgrade --install lhstorage deploy/chart/lhstorage -n lhstorage-system)",
		look: func(v *view) []hit {
			return each([]string{snapshot.HostShims, snapshot.Claims, snapshot.ProbeReports}, v.missing)
		},
	},
	{
		Code: "LHS002", Severity: Error, Title: "Multus isn't installed",
		Why:  "Pods get their second interface from Multus; without it the networks annotation is ignored and Longhorn goes on over the pod network, silently.",
		Fix:  "install Multus as your distribution does it (RKE2: `cni: [multus, …]`; else kubectl apply -f the daemonset of github.com/k8snetworkplumbingwg/multus-cni)",
		look: func(v *view) []hit { return v.missing(snapshot.Definitions) },
	},
	{
		Code: "LHS003", Severity: Error, Title: "A network definition can't be read",
		Why:  "Agents leave the network alone and each pod that asks for it fails to start.",
		Fix:  "kubectl edit the definition: each fault names its key and value (docs/netconf.md has all keys); a NAD that was changed in place isn't noticed by Longhorn",
		look: func(v *view) []hit { return v.faults(agent.ReasonInvalidNetwork) },
	},
	{
		Code: "LHS004", Severity: Error, Title: "Two definitions contradict each other",
		Why:  "The older one counts; pods of the younger one are refused as long as pods of the older one are on their node.",
		Fix:  "say the same in both definitions, or name another parent in one of them: kubectl edit net-attach-def",
		look: func(v *view) []hit { return v.faults(agent.ReasonContradiction) },
	},
	{
		Code: "LHS005", Severity: Warning, Title: "A network has no host shim",
		Why: "A macvlan parent can't talk to its children, on any kind of parent (vxlan, VLAN, bond, plain NIC): the node's iSCSI or NVMe initiator doesn't reach the pods of its own node, and volumes don't attach " +
			"unless v1 volumes happen to be dialled over the pod network.",
		Fix: "set hostShim.range to a part of the range that no pod has yet (lhstoragectl plan works it out)",
		look: func(v *view) []hit {
			return each(v.compiled.Networks, func(n agent.Network) []hit {
				if n.Plan.HostShim != nil || n.Plan.Mode != "bridge" {
					return nil
				}
				return one(networkAt(n), "it keeps no addresses for nodes")
			})
		},
	},
	{
		Code: "LHS006", Severity: Warning, Title: "A definition has no cniVersion",
		Why: "Multus strips a plugin's own fields from a DEL when the list has no cniVersion, and the configuration counts as version 0.1.0.",
		Fix: `add "cniVersion": "1.1.0" to the definition's config`,
		look: func(v *view) []hit {
			return each(v.cluster.Definitions, func(d agent.Definition) []hit {
				var conf struct {
					Version string `json:"cniVersion"`
				}
				if !v.compiled.Ours[d.Ref()] || json.Unmarshal([]byte(d.Config), &conf) != nil || conf.Version != "" {
					return nil
				}
				return one("network "+d.Ref(), "its config names no cniVersion")
			})
		},
	},
	{
		Code: "LHS007", Severity: Warning, Title: "A definition says something else than may be meant",
		Why: "What is written is taken otherwise, or has no effect. Host bits in an exclude list are the classic: 192.168.14.1/23 keeps the whole /23 from pods.",
		Fix: "kubectl edit the definition to what is meant",
		look: func(v *view) []hit {
			return each(v.compiled.Networks, func(n agent.Network) []hit {
				return each(n.Plan.Warnings, func(text string) []hit {
					if n.Plan.HostShim == nil && strings.Contains(text, "no host range") {
						return nil // LHS005
					}
					return one(networkAt(n), "%s", text)
				})
			})
		},
	},
	{
		Code: "LHS008", Severity: Error, Title: "A range overlaps a network of the cluster",
		Why:  "Nodes route pods', Services' or other nodes' traffic into the storage network, or the other way round: whatever has an address in both is unreachable.",
		Fix:  "choose another range (lhstoragectl plan names a free one), make a new definition with it and switch to that with lhstoragectl enable",
		look: (*view).overlaps,
	},
	{
		Code: "LHS009", Severity: Warning, Title: "A range is one of Harvester's reserved ranges",
		Why:  "Harvester keeps 10.42.0.0/16, 10.43.0.0/16, 10.52.0.0/16 and 10.53.0.0/16 for itself and guest clusters; its webhook doesn't check that.",
		Fix:  "choose a range outside them",
		look: (*view).reserved,
	},
	{
		Code: "LHS010", Severity: Warning, Title: "Two networks share addresses",
		Why:  "A node can have a route to the range over one parent only, so hosts reach one of the two networks.",
		Fix:  "give each network a range of its own",
		look: (*view).shared,
	},
	{
		Code: "LHS011", Severity: Error, Title: "Whereabouts' resources aren't installed",
		Why: "Addresses are recorded in Whereabouts' IPPools and reservations, so that it and Harvester see them: without these resources no address is given out.",
		Fix: "kubectl apply -f the doc/crds of github.com/k8snetworkplumbingwg/whereabouts (v0.9.2)",
		look: func(v *view) []hit {
			needs := slices.ContainsFunc(v.compiled.Networks, func(n agent.Network) bool {
				return n.Plan.IPAM.Type == "lhstorage-ipam" || n.Plan.IPAM.Type == "whereabouts"
			})
			if !needs {
				return nil
			}
			return each([]string{snapshot.Pools, snapshot.Reservations}, v.missing)
		},
	},
	{
		Code: "LHS012", Severity: Warning, Title: "Something of the cluster may not be read",
		Why: "Checks that need it found nothing because they saw nothing.",
		Fix: "run doctor with the rights of a cluster administrator, or allow get and list of it",
		look: func(v *view) []hit {
			return each(v.cluster.Denied, func(d snapshot.Denial) []hit { return one(d.What, "%s", d.Why) })
		},
	},
}

func (v *view) missing(resource string) []hit {
	if !v.absent(resource) {
		return nil
	}
	return one("cluster", "the API server knows no %s", resource)
}

func (v *view) faults(reason string) []hit {
	return each(v.compiled.Faults, func(f agent.Fault) []hit {
		if f.Reason != reason {
			return nil
		}
		return one("network "+f.Ref(), "%v", f.Err)
	})
}

// taken is a range that something of the cluster has.
type taken struct {
	what   string
	prefix netip.Prefix
	node   bool // it is a node's address
}

// inUse are the cluster's own ranges.
func (v *view) inUse() []taken {
	var list []taken
	add := func(what, text string, node bool) {
		if p, err := netip.ParsePrefix(text); err == nil {
			list = append(list, taken{what, p.Masked(), node})
		} else if a, err := netip.ParseAddr(text); err == nil {
			list = append(list, taken{what, netip.PrefixFrom(a, a.BitLen()), node})
		}
	}
	for i := range v.cluster.Nodes {
		n := &v.cluster.Nodes[i]
		for _, cidr := range n.Spec.PodCIDRs {
			add("the pod range of node "+n.Name, cidr, false)
		}
		for _, a := range n.Status.Addresses {
			add("an address of node "+n.Name, a.Address, true)
		}
	}
	for _, s := range v.cluster.Services {
		add("the Services' network", s, false)
	}
	return list
}

// overlaps finds ranges and VTEP ranges that meet the cluster's own; that they don't meet each other the configuration's own check sees. A node's address inside a range is no overlap
// where the parent is the node's own NIC or VLAN: there nodes, too, are on the storage network. Nor is it inside a VTEP range: a node's address may be its VTEP.
func (v *view) overlaps() []hit {
	all := v.inUse()
	meets := func(n agent.Network, what string, r netip.Prefix, nodesBelong bool) []hit {
		i := slices.IndexFunc(all, func(t taken) bool { return t.prefix.Overlaps(r) && (!nodesBelong || !t.node) })
		if i < 0 {
			return nil
		}
		return one(networkAt(n), "%s %s overlaps %s, %s", what, r, all[i].what, all[i].prefix)
	}
	return each(v.compiled.Networks, func(n agent.Network) []hit {
		found := each(n.Plan.IPAM.Ranges, func(r netip.Prefix) []hit {
			return meets(n, "range", r, n.Plan.Parent.Type != netconf.ParentVXLAN)
		})
		if vtep := n.Plan.Parent.VTEP.CIDR; vtep.IsValid() {
			found = append(found, meets(n, "the VTEPs' range", vtep, true)...)
		}
		return found
	})
}

var harvesterReserved = []netip.Prefix{
	netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("10.52.0.0/16"), netip.MustParsePrefix("10.53.0.0/16"),
}

func (v *view) reserved() []hit {
	if v.cluster.Harvester == nil {
		return nil
	}
	return each(v.compiled.Networks, func(n agent.Network) []hit {
		return each(n.Plan.IPAM.Ranges, func(r netip.Prefix) []hit {
			i := slices.IndexFunc(harvesterReserved, r.Overlaps)
			if i < 0 {
				return nil
			}
			return one(networkAt(n), "range %s overlaps %s", r, harvesterReserved[i])
		})
	})
}

func (v *view) shared() []hit {
	var found []hit
	for i, a := range v.compiled.Networks {
		for _, b := range v.compiled.Networks[i+1:] {
			if a.Plan.Parent.Name == b.Plan.Parent.Name {
				continue
			}
			for _, r := range a.Plan.IPAM.Ranges {
				if j := slices.IndexFunc(b.Plan.IPAM.Ranges, r.Overlaps); j >= 0 {
					found = append(found, hit{where: networkAt(b), what: fmt.Sprintf("its range %s overlaps %s of %s, which is on another parent", b.Plan.IPAM.Ranges[j], r, networkAt(a))})
				}
			}
		}
	}
	return found
}
