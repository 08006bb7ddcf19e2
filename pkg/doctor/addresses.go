package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/leak"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const (
	nearlyFull   = 0.85
	manyEntries  = 5000 // of an IPPool; at 7000 lhstorage-ipam refuses (docs/ipam.md)
	oldLeak      = 15 * time.Minute
	lhstorageIPM = "lhstorage-ipam"
)

var addressChecks = []Check{
	{
		Code: "LHS020", Severity: Error, Title: "A range is exhausted",
		Why: "The next pod that asks for the network fails with FailedCreatePodSandBox, “Could not allocate IP in range”; during an upgrade Longhorn needs twice as many addresses.",
		Fix: "lhstoragectl plan says how many are needed; make a definition with a larger range and switch with lhstoragectl enable. Leaked claims (LHS023) come back by themselves",
		look: func(v *view) []hit {
			return each(v.Fill(), func(p snapshot.Pool) []hit {
				if p.Free() > 0 {
					return nil
				}
				return one("pool "+p.Name, "all %d addresses that pods can get of %s are in use, %d of them in quarantine", p.Size, p.Range, p.Declined)
			})
		},
	},
	{
		Code: "LHS021", Severity: Warning, Title: "A range is nearly exhausted",
		Why: "Longhorn's upgrade starts new instance managers beside the old ones: it needs twice the addresses.",
		Fix: "lhstoragectl plan says how many are needed; plan a larger range before the next upgrade",
		look: func(v *view) []hit {
			return each(v.Fill(), func(p snapshot.Pool) []hit {
				if p.Free() == 0 || p.UsedPart() < nearlyFull {
					return nil
				}
				return one("pool "+p.Name, "%d of %d addresses of %s are in use, %d are left", p.Used, p.Size, p.Range, p.Free())
			})
		},
	},
	{
		Code: "LHS022", Severity: Warning, Title: "An IPPool object grows too big",
		Why: "All addresses of a range are one object: each change gets dearer, above 7000 entries lhstorage-ipam refuses, and etcd takes none above some 8000.",
		Fix: "use node slices (node_slice_size, docs/ipam.md) or several ranges",
		look: func(v *view) []hit {
			return each(v.Fill(), func(p snapshot.Pool) []hit {
				if p.Entries < manyEntries {
					return nil
				}
				return one("pool "+p.Name, "it has %d entries", p.Entries)
			})
		},
	},
	{
		Code: "LHS023", Severity: Warning, Title: "An address is held for nobody",
		Why:  "It leaked: no DEL came for it (a node died, a runtime forgot the sandbox). Enough of them exhaust the range.",
		Fix:  "the elected agent gives such claims back by itself; while it isn't there: kubectl delete addressclaim NAME, after a look that no pod has the address",
		look: (*view).leaks,
	},
	{
		Code: "LHS024", Severity: Error, Title: "Two pods have one address",
		Why:  "Both answer for it: connections break at random, and a replica may talk to a stranger.",
		Fix:  "find out which IPAM gave it twice (two networks that share addresses without a common network_name, host-local on several nodes, static), then delete the younger pod",
		look: (*view).duplicates,
	},
	{
		Code: "LHS025", Severity: Error, Title: "An address in use isn't recorded",
		Why:  "The next pod may be given the same address.",
		Fix:  "restart the pod (kubectl delete pod; for an instance manager only when no volume is attached on its node): its new address is claimed and recorded",
		look: (*view).unrecorded,
	},
	{
		Code: "LHS026", Severity: Error, Title: "A pod has an address that is kept for nodes",
		Why:  "A node's shim has, or will have, the same address: host-local and static IPAMs ignore `exclude`, and behind another main plugin nobody adds it to the ipam section.",
		Fix:  "keep hostShim.range out of the ipam section's range (exclude, rangeStart), then delete the pod",
		look: (*view).inHostRange,
	},
	{
		Code: "LHS027", Severity: Warning, Title: "An address is in quarantine",
		Why:  "A device that lhstorage doesn't know answered for it when it was to be given out. It may answer for others, too.",
		Fix:  "find the device with this MAC (bridge fdb show | grep MAC on the nodes, the switch's table) and take the address off it, or exclude the address; the quarantine ends by itself",
		look: (*view).quarantined,
	},
}

func (v *view) leaks() []hit {
	if v.cluster.Leaks == nil {
		return nil
	}
	leaked, _ := new(leak.Memory).Pass(leak.Settings{MinAge: oldLeak}, v.Time, v.cluster.Leaks)
	return each(leaked, func(l leak.Verdict) []hit {
		return remedied("kubectl delete addressclaim "+l.Claim.Name+" (the elected agent does it by itself when it runs)", "address "+l.Claim.Spec.Address, "%s", l.Why)
	})
}

func (v *view) duplicates() []hit {
	var found []hit
	holders := map[string][]string{} // network and address
	for _, a := range v.attachments() {
		for _, addr := range a.entry.Addrs() {
			key := a.network.Plan.Name + " " + addr.String()
			if who := a.ref() + " on " + a.pod.Spec.NodeName; !slices.Contains(holders[key], who) {
				holders[key] = append(holders[key], who)
			}
			if len(holders[key]) == 2 {
				found = append(found, hit{where: "address " + addr.String(), what: fmt.Sprintf("network %s: pods %s", a.network.Plan.Name, strings.Join(holders[key], " and "))})
			}
		}
	}
	return found
}

// unrecorded looks for a claim, and with our IPAM plugin alone: whereabouts, host-local and static make none.
func (v *view) unrecorded() []hit {
	if v.absent(snapshot.Claims) {
		return nil // LHS001
	}
	claimed := map[string]bool{}
	for _, c := range v.cluster.Claims {
		if c.Spec.Declined == nil {
			claimed[c.Spec.PodRef+" "+c.Spec.Address] = true
		}
	}
	return each(v.attachments(), func(a attached) []hit {
		if a.network.Plan.IPAM.Type != lhstorageIPM {
			return nil
		}
		return each(a.entry.Addrs(), func(addr netip.Addr) []hit {
			if claimed[a.ref()+" "+addr.String()] || v.cluster.Denies(snapshot.Claims) {
				return nil
			}
			return one("pod "+a.ref(), "it has %s on network %s, and no claim says so", addr, a.network.Ref())
		})
	})
}

func (v *view) inHostRange() []hit {
	shims := v.shimAddrs()
	return each(v.attachments(), func(a attached) []hit {
		return each(a.entry.Addrs(), func(addr netip.Addr) []hit {
			if node, ok := shims[addr]; ok {
				return one("pod "+a.ref(), "its address %s is that of node %s's host shim", addr, node)
			}
			if shim := a.network.Plan.HostShim; shim != nil && slices.ContainsFunc(shim.Ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) {
				return one("pod "+a.ref(), "its address %s is inside hostShim.range of network %s", addr, a.network.Ref())
			}
			return nil
		})
	})
}

func (v *view) quarantined() []hit {
	return each(v.cluster.Claims, func(c v1alpha1.AddressClaim) []hit {
		if c.Spec.Declined == nil || v.Time.After(c.Spec.Declined.Until.Time) {
			return nil
		}
		return one("address "+c.Spec.Address, "%s answered for it on network %s; it is given to nobody until %s", c.Spec.Declined.MAC, c.Spec.Network, c.Spec.Declined.Until.UTC().Format(time.RFC3339))
	})
}
