package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

var shimChecks = []Check{
	{
		Code: "LHS130", Severity: Error, Title: "The host shim isn't there",
		Why:  "The node reaches no pod of its own on the storage network: volumes don't attach.",
		Fix:  mendedByAgent + "ip link add lhnet1-host link PARENT type macvlan mode bridge",
		look: func(v *view) []hit { return v.pending("shim.create") },
	},
	{
		Code: "LHS131", Severity: Error, Title: "A device has the shim's name and can't be one",
		Why: "It is on another parent, of another kind or mode; it isn't deleted, for the node's sessions may run over it.",
		Fix: "choose another hostShim.name, or, with no volume of this node attached, ip link del it",
		look: func(v *view) []hit {
			return v.faulty(func(f snapshot.Fault) bool { return f.Code == cnierr.IncompatibleParent && !parentFault(f) })
		},
	},
	{
		Code: "LHS132", Severity: Error, Title: "The host shim is down",
		Why:  "The node reaches no pod on the storage network; sessions that run over it hang.",
		Fix:  mendedByAgent + "ip link set lhnet1-host up",
		look: func(v *view) []hit { return v.pending("shim.up") },
	},
	{
		Code: "LHS133", Severity: Error, Title: "The host shim lacks its address",
		Why:  "Pods and other nodes send to an address that nobody has.",
		Fix:  mendedByAgent + "ip addr add ADDRESS dev lhnet1-host",
		look: func(v *view) []hit { return v.pending("shim.address", "shim.settle") },
	},
	{
		Code: "LHS134", Severity: Error, Title: "Another device has the shim's address",
		Why: "Two devices answer for it. A probe from this node never sees one of its own parent.",
		Fix: "give the node another index (annotation lhstorage.io/index), or take the address off the other device: its name or MAC is in the text",
		look: func(v *view) []hit {
			return append(v.pending("shim.duplicate"), v.faulty(func(f snapshot.Fault) bool { return f.Code == cnierr.DuplicateAddress })...)
		},
	},
	{
		Code: "LHS135", Severity: Warning, Title: "The parent has an address of the storage network",
		Why:  "With the same network on parent and shim the kernel answers and sends by either; with rp_filter 1 two thirds of the packets are lost.",
		Fix:  "let the agent move it, which loses no packet; take it out of whatever script sets it, or it comes back",
		look: func(v *view) []hit { return v.pending("shim.move", "shim.length") },
	},
	{
		Code: "LHS136", Severity: Error, Title: "The shim's settings aren't what they must be",
		Why:  "With rp_filter 1 answers to pods are dropped; without arp_ignore and arp_announce peers learn a wrong MAC. Something sets them back whenever an interface appears (submariner 2423).",
		Fix:  mendedByAgent + "sysctl -w net.ipv4.conf.lhnet1-host.rp_filter=2 (and the others named here); find who sets them: grep -r rp_filter /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d",
		look: func(v *view) []hit { return v.pending("shim.sysctl") },
	},
	{
		Code: "LHS137", Severity: Warning, Title: "The shim's MTU isn't its parent's",
		Why:  "When a parent's MTU is lowered its children's are for good, and raising it doesn't raise them.",
		Fix:  mendedByAgent + "ip link set lhnet1-host mtu N",
		look: func(v *view) []hit { return v.pending("shim.mtu") },
	},
	{
		Code: "LHS138", Severity: Error, Title: "Pods aren't routed over the shim",
		Why:  "Beside a NIC with an address of the same network only routes over the shim lead to pods of this node; without them the node sends by the NIC, which its pods never hear.",
		Fix:  mendedByAgent + "ip route add RANGE dev lhnet1-host src SHIM proto 211",
		look: func(v *view) []hit { return v.pending("shim.route.add", "shim.route.del", "shim.route") },
	},
}

var attachmentChecks = []Check{
	{
		Code: "LHS140", Severity: Error, Title: "A pod has lost its interface",
		Why: "Its parent was deleted, or somebody deleted it inside the pod. The pod runs on, and what it serves can't be reached.",
		Fix: "delete the pod, so that it is attached anew (an instance manager only when no volume is attached on this node)",
		look: func(v *view) []hit {
			return v.attachedHere(func(a snapshot.Attachment) string {
				if a.Gone != "" || a.Link != nil {
					return ""
				}
				return "there is no " + a.IfName + " in its namespace"
			})
		},
	},
	{
		Code: "LHS141", Severity: Error, Title: "A pod's interface is down",
		Why: "Nothing reaches the pod on the storage network.",
		Fix: "nsenter --net=NETNS ip link set lhnet1 up, or delete the pod",
		look: func(v *view) []hit {
			return v.attachedHere(func(a snapshot.Attachment) string {
				if a.Link == nil || a.Link.Up {
					return ""
				}
				return a.IfName + " is down"
			})
		},
	},
	{
		Code: "LHS142", Severity: Error, Title: "A pod doesn't have the address that it was given",
		Why:  "Others dial it in vain; the address may be given to another pod.",
		Fix:  "delete the pod, so that it is attached anew",
		look: (*view).lostAddresses,
	},
	{
		Code: "LHS143", Severity: Warning, Title: "A pod's interface is smaller than its parent",
		Why:  "The kernel lowers children's MTU with their parent's and never raises it again: full-size packets to this pod are lost or small ones cost throughput.",
		Fix:  mendedByAgent + "nsenter --net=NETNS ip link set lhnet1 mtu N",
		look: (*view).smallerChildren,
	},
	{
		Code: "LHS144", Severity: Warning, Title: "An attachment is left of a pod that is gone",
		Why: "No DEL came for it; its address is held.",
		Fix: "the runtime's GC, or `lhstoragectl doctor` later: the elected agent gives the address back when the pod's object is gone",
		look: func(v *view) []hit {
			return v.attachedHere(func(a snapshot.Attachment) string { return a.Gone })
		},
	},
	{
		Code: "LHS145", Severity: Info, Title: "Longhorn dials another address of a pod than its network would like",
		Why: "With iscsiPath auto a pod is attached all the same. v1 volumes attach over the other network: Longhorn takes eth1's address, else the first that the kernel lists, and where the cluster network makes eth0 first (bridge, flannel, Canal) that is eth0's.",
		Fix: "nothing, if iSCSI may go over the pod network; else a cluster network that makes its interface on the host (Cilium), or v2 volumes, which always dial the storage address",
		look: func(v *view) []hit {
			return v.attachedHere(func(a snapshot.Attachment) string { return a.ISCSINote })
		},
	},
	{
		Code: "LHS146", Severity: Warning, Title: "Longhorn dials another address of a pod than when it was attached",
		Why:  "An interface or address came to the pod, or went, since: after the next restart of its engine v1 volumes attach elsewhere.",
		Fix:  "delete the pod when no volume is attached on this node, so that the order is made anew",
		look: (*view).otherDial,
	},
}

// attachedHere calls of for all attachments of this node.
func (v *view) attachedHere(of func(snapshot.Attachment) string) []hit {
	return each(v.local.Attachments, func(a snapshot.Attachment) []hit {
		text := of(a)
		if text == "" {
			return nil
		}
		who := a.PodRef
		if who == "" {
			who = "container " + a.ContainerID
		}
		return one(v.here()+", pod "+who, "network %s: %s", a.Network, text)
	})
}

func (v *view) lostAddresses() []hit {
	return v.attachedHere(func(a snapshot.Attachment) string {
		if addr, lost := lost(a); lost {
			return addr.String() + " isn't on " + a.IfName
		}
		return ""
	})
}

// lost is an address that the pod was given and doesn't have.
func lost(a snapshot.Attachment) (netip.Addr, bool) {
	for _, p := range a.Addresses {
		if a.Link != nil && !slices.Contains(a.Addrs, p.Addr()) {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func (v *view) smallerChildren() []hit {
	return v.attachedHere(func(a snapshot.Attachment) string {
		parent, ok := v.local.Link(a.Parent)
		if !ok || a.Link == nil || a.MTU != 0 || a.Link.MTU >= parent.MTU {
			return ""
		}
		return sizes(*a.Link, parent)
	})
}

func (v *view) otherDial() []hit {
	return v.attachedHere(func(a snapshot.Attachment) string {
		if _, lost := lost(a); lost || a.Link == nil || a.ISCSIDial == "" || !a.Dial.IsValid() || a.Dial.String() == a.ISCSIDial {
			return ""
		}
		return "it dialled " + a.ISCSIDial + " then, and dials " + a.Dial.String() + " of " + a.By + " now"
	})
}

func sizes(child, parent kernel.Link) string {
	return fmt.Sprintf("the MTU of %s is %d, and that of %s %d", child.Name, child.MTU, parent.Name, parent.MTU)
}
