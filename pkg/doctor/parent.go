package doctor

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const mendedByAgent = "the node's agent mends it within seconds, and so does the next pod that starts; kubectl logs of the agent says what keeps it. By hand: "

var parentChecks = []Check{
	{
		Code: "LHS110", Severity: Error, Title: "The parent isn't there",
		Why:  "No pod of the network can start on this node, and the interfaces of those that ran are gone with the parent.",
		Fix:  mendedByAgent + "for a vlan or device parent bring up the device below it (ip link set DEV up). Pods whose interface is gone must be made anew (LHS140)",
		look: func(v *view) []hit { return append(v.pending("parent.create"), v.noDevice()...) },
	},
	{
		Code: "LHS111", Severity: Error, Title: "The parent differs in what the kernel can't change",
		Why: "Making it again would take every pod's lhnet1 with it, so that is refused while pods hang on it (other overlays delete and make again, and cut every volume of the node).",
		Fix: "set the definition to what `ip -d link show` says; or drain the node, then `ip link del` the parent: the next attachment makes it anew",
		look: func(v *view) []hit {
			return append(v.pending("parent.recreate"), v.faulty(func(f snapshot.Fault) bool { return f.Code == cnierr.IncompatibleParent && parentFault(f) })...)
		},
	},
	{
		Code: "LHS112", Severity: Error, Title: "The parent is down",
		Why:  "Nothing leaves the node; its volumes lose all replicas on other nodes.",
		Fix:  "ip link set PARENT up; find out what set it down (LHS127)",
		look: func(v *view) []hit { return append(v.pending("parent.up"), v.downDevices()...) },
	},
	{
		Code: "LHS113", Severity: Error, Title: "No route leads to a peer's VTEP",
		Why: "Nothing reaches that node over the tunnel.",
		Fix: `mend the underlay, or let lhstorage keep the routes: "vtep": {"routes": "static", "via": {"PEER": "NEXT HOP OR DEVICE"}}`,
		look: func(v *view) []hit {
			return append(v.lostPeers(), v.pending("route.add", "route.del")...)
		},
	},
	{
		Code: "LHS114", Severity: Error, Title: "Forwarding entries of peers are missing",
		Why:  "Broadcasts, ARP among them, don't reach these nodes: nothing here finds their pods. The classic cause: something made the VXLAN device anew and didn't add its peers again.",
		Fix:  mendedByAgent + "bridge fdb append 00:00:00:00:00:00 dev PARENT dst VTEP self permanent (append: the kernel refuses replace)",
		look: func(v *view) []hit { return v.fdb(true) },
	},
	{
		Code: "LHS115", Severity: Warning, Title: "Forwarding entries of nobody are there",
		Why:  "Every broadcast goes there too; when the address is given to another machine, that hears the storage network.",
		Fix:  mendedByAgent + "bridge fdb del 00:00:00:00:00:00 dev PARENT dst VTEP self",
		look: func(v *view) []hit { return v.fdb(false) },
	},
	{
		Code: "LHS116", Severity: Warning, Title: "Every frame goes to every node",
		Why:  "With learning off and nothing but entries for 00:00:00:00:00:00, each unicast frame is sent to all peers: of three nodes one byte is wasted for each byte carried.",
		Fix:  "ip link set PARENT type vxlan learning",
		look: func(v *view) []hit { return v.pending("parent.learning") },
	},
	{
		Code: "LHS117", Severity: Error, Title: "The parent's MTU isn't what the network carries",
		Why:  "Too large: full packets are lost or sent in fragments, so pings pass and volumes hang. Too small: each block costs more packets. Without its own, a VXLAN device has 1500.",
		Fix:  "ip link set PARENT mtu N; raise the underlay's MTU (N + 50 over IPv4, + 70 over IPv6), or set parent.mtu",
		look: func(v *view) []hit { return append(v.pending("parent.mtu"), v.oversized()...) },
	},
	{
		Code: "LHS118", Severity: Error, Title: "The VTEP isn't on the node",
		Why:  "Other nodes send to this address, and nobody takes it.",
		Fix:  mendedByAgent + "ip addr add VTEP/32 dev dummy0",
		look: func(v *view) []hit { return v.pending("vtep.create", "vtep.up", "vtep.address", "parent.local") },
	},
	{
		Code: "LHS119", Severity: Error, Title: "The parent answers for the shim",
		Why:  "Without arp_ignore=8 (and with IPv6 on) an address-less parent answers ARP for the shim's address, in four of five tries before the shim: peers learn the wrong MAC, and their frames walk around what guards the shim.",
		Fix:  mendedByAgent + "sysctl -w net.ipv4.conf.PARENT.arp_ignore=8 net.ipv6.conf.PARENT.disable_ipv6=1",
		look: func(v *view) []hit { return v.pending("parent.sysctl") },
	},
	{
		Code: "LHS120", Severity: Warning, Title: "An interrupted deletion left a device on the parent",
		Why:  "As long as it is there no pod can be attached.",
		Fix:  "ip link del the lhsdel device that is named here",
		look: func(v *view) []hit { return v.pending("parent.unguard") },
	},
	{
		Code: "LHS121", Severity: Warning, Title: "The tunnel hangs on one device",
		Why:  "A VXLAN made with `dev` is deleted by the kernel together with that device, and every pod's lhnet1 with it.",
		Fix:  "with the node drained: ip link del PARENT; lhstorage makes it anew without a device",
		look: (*view).tied,
	},
	{
		Code: "LHS122", Severity: Warning, Title: "Another tunnel uses the same UDP port",
		Why:  "Flannel and Cilium use 8472, Open vSwitch 4789: with the same VNI the kernel refuses the second device, with other flags (VXLAN-GPE, external) too, whichever comes first after a reboot.",
		Fix:  "set parent.port to another port in a new definition (all nodes at once: the port can't be changed in place)",
		look: (*view).portClash,
	},
	{
		Code: "LHS123", Severity: Warning, Title: "The parent is a bridge",
		Why:  "macvlan on a bridge makes some kernels report errors (bugzilla.kernel.org 217777) and doubles the work for each frame.",
		Fix:  "name the bridge's NIC, bond or VLAN as the parent, or use the bridge plugin there",
		look: (*view).bridges,
	},
	{
		Code: "LHS124", Severity: Info, Title: "The parent has another MAC than lhstorage gives",
		Why:  "Either a script made it, which is kept as it is, or systemd-udevd's MACAddressPolicy=persistent changed it after it was made: then peers keep sending to the old one for a while.",
		Fix:  "if no script made it: a .link file for it with MACAddressPolicy=none (systemd.link(5))",
		look: (*view).foreignMAC,
	},
	{
		Code: "LHS125", Severity: Warning, Title: "Checksums of tunnelled packets may be wrong",
		Why:  "Kernels before 5.7, and vmxnet3, send wrong checksums of packets inside a VXLAN in some set-ups: pings pass and TCP stalls (flannel 1279, calico 3145, kube-ovn 4639).",
		Fix:  "if TCP stalls while pings pass: ethtool -K PARENT tx-checksum-ip-generic off. It costs throughput, so lhstorage doesn't do it unasked",
		look: (*view).checksums,
	},
	{
		Code: "LHS127", Severity: Warning, Title: "A network manager has our device in its hands",
		Why:  "systemd-networkd or NetworkManager may take addresses off it, set it down or change its MAC whenever it reloads.",
		Fix:  "NetworkManager: [keyfile] unmanaged-devices=interface-name:NAME in /etc/NetworkManager/conf.d/lhstorage.conf; networkd: a .network file with [Match] Name=NAME and [Link] Unmanaged=yes",
		look: (*view).managed,
	},
	{
		Code: "LHS128", Severity: Error, Title: "The node can't be made ready",
		Why:  "Something about it contradicts the definition, or the kernel refused.",
		Fix:  "the text says what to do",
		look: func(v *view) []hit { return v.faulty(func(f snapshot.Fault) bool { return !classified(f) }) },
	},
}

// classified says that another check is about a fault.
func classified(f snapshot.Fault) bool {
	return f.Code == cnierr.IncompatibleParent || f.Code == cnierr.DuplicateAddress || absentDevice(f)
}

// parentFault tells a fault of the parent from one of the shim, which have one code.
func parentFault(f snapshot.Fault) bool { return strings.HasPrefix(f.Text, "parent ") }

func absentDevice(f snapshot.Fault) bool { return strings.Contains(f.Text, "isn't on this node") }

// faulty finds what can't be put right.
func (v *view) faulty(is func(snapshot.Fault) bool) []hit {
	return each(v.local.Networks, func(n snapshot.LocalNetwork) []hit {
		return each(n.Faults, func(f snapshot.Fault) []hit {
			if !is(f) {
				return nil
			}
			return on(n.Plan, one(v.here(), "network %s: %s", n.Ref(), f.Text))
		})
	})
}

func (v *view) noDevice() []hit { return v.faulty(absentDevice) }

// parentsHere calls of for the parent of each network that is there, once for each device.
func (v *view) parentsHere(of func(n snapshot.LocalNetwork, link kernel.Link) string) []hit {
	seen := map[string]bool{}
	return each(v.local.Networks, func(n snapshot.LocalNetwork) []hit {
		link, ok := v.local.Link(n.Plan.Parent.Name)
		if !ok || seen[link.Name] {
			return nil
		}
		seen[link.Name] = true
		if text := of(n, link); text != "" {
			return on(n.Plan, one(v.here()+", parent "+link.Name, "%s", text))
		}
		return nil
	})
}

func (v *view) downDevices() []hit {
	return v.parentsHere(func(n snapshot.LocalNetwork, link kernel.Link) string {
		if n.Plan.Parent.Type != netconf.ParentDevice || link.Up {
			return ""
		}
		return "it is down, and lhstorage doesn't touch a device that isn't its own"
	})
}

func (v *view) lostPeers() []hit {
	return each(v.local.Networks, func(n snapshot.LocalNetwork) []hit {
		return each(n.Lost, func(u snapshot.Unreached) []hit {
			return one(v.here(), "to %s, a peer on %s: %s", u.VTEP, n.Plan.Parent.Name, u.Why)
		})
	})
}

// fdb compares the forwarding entries with what the cluster says now; without a cluster, with what the node was told.
func (v *view) fdb(missing bool) []hit {
	if v.Cluster == nil || v.cluster.Denies(snapshot.HostShims) {
		if missing {
			return v.pending("parent.flood.add")
		}
		return v.pending("parent.flood.del")
	}
	return v.parentsHere(func(n snapshot.LocalNetwork, link kernel.Link) string {
		if n.Plan.Parent.Type != netconf.ParentVXLAN {
			return ""
		}
		peers, complete := v.vteps(link.Name)
		maps.DeleteFunc(peers, func(_ netip.Addr, node string) bool { return node == v.local.Node.NodeName })
		have := v.local.Flood[link.Name]
		if missing {
			return lacking(peers, have)
		}
		return unknown(peers, have, complete)
	})
}

func lacking(peers map[netip.Addr]string, have []netip.Addr) string {
	var names []string
	for addr, node := range peers {
		if !slices.Contains(have, addr) {
			names = append(names, fmt.Sprintf("%s (%s)", node, addr))
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return ""
	}
	return "none for " + few(names)
}

func unknown(peers map[netip.Addr]string, have []netip.Addr, complete bool) string {
	var names []string
	for _, addr := range have {
		if peers[addr] == "" && complete {
			names = append(names, addr.String())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "no node has the VTEP " + few(names)
}

// oversized are parents that are larger than the underlay carries. A smaller one is pending, or was set so.
func (v *view) oversized() []hit {
	return v.parentsHere(func(n snapshot.LocalNetwork, link kernel.Link) string {
		if n.Carries == 0 || link.MTU <= n.Carries || slices.ContainsFunc(n.Pending, func(c node.Change) bool { return c.Step == "parent.mtu" }) {
			return ""
		}
		return fmt.Sprintf("its MTU is %d, and the way to its peers carries %d", link.MTU, n.Carries)
	})
}

func (v *view) tied() []hit {
	return v.parentsHere(func(_ snapshot.LocalNetwork, link kernel.Link) string {
		if link.Kind != "vxlan" || link.Lower == 0 {
			return ""
		}
		return "it was made with `dev " + v.local.Name(link.Lower) + "`"
	})
}

func (v *view) portClash() []hit {
	return v.parentsHere(func(_ snapshot.LocalNetwork, link kernel.Link) string {
		for _, other := range v.local.Links {
			ours := slices.ContainsFunc(v.local.Networks, func(o snapshot.LocalNetwork) bool { return o.Plan.Parent.Name == other.Name })
			if !ours && other.Kind == "vxlan" && link.Kind == "vxlan" && other.VXLAN.Port == link.VXLAN.Port {
				return fmt.Sprintf("%s, which isn't lhstorage's, has UDP port %d, too (VNI %d)", other.Name, other.VXLAN.Port, other.VXLAN.VNI)
			}
		}
		return ""
	})
}

func (v *view) bridges() []hit {
	return v.parentsHere(func(_ snapshot.LocalNetwork, link kernel.Link) string {
		if link.Kind != "bridge" {
			return ""
		}
		return "it is a bridge"
	})
}

func (v *view) foreignMAC() []hit {
	return v.parentsHere(func(n snapshot.LocalNetwork, link kernel.Link) string {
		if n.MAC == "" || link.MAC.String() == n.MAC {
			return ""
		}
		return fmt.Sprintf("its MAC is %s, not %s", link.MAC, n.MAC)
	})
}

// checksums goes by what is known to be broken: where it is, Felix switches the offload off for the same reason.
func (v *view) checksums() []hit {
	return v.parentsHere(func(n snapshot.LocalNetwork, link kernel.Link) string {
		if link.Kind != "vxlan" {
			return ""
		}
		if before(v.local.Release, 5, 7) {
			return "this is kernel " + v.local.Release
		}
		for _, lower := range n.Lower {
			if v.local.Drivers[lower] == "vmxnet3" {
				return "its packets leave by " + lower + ", whose driver is vmxnet3"
			}
		}
		return ""
	})
}

// before says whether a kernel's release, as `uname -r` prints it, is an older one; what can't be read isn't.
func before(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second, _, _ := strings.Cut(rest, ".")
	second, _, _ = strings.Cut(second, "-")
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(second)
	return errA == nil && errB == nil && (a < major || a == major && b < minor)
}

func (v *view) managed() []hit {
	names := map[string]bool{}
	for _, n := range v.local.Networks {
		if n.Plan.Parent.Type != netconf.ParentDevice { // a NIC is its manager's
			names[n.Plan.Parent.Name] = true
		}
		if n.Plan.HostShim != nil {
			names[n.Plan.HostShim.Name] = true
		}
	}
	return each(v.local.Links, func(l kernel.Link) []hit {
		manager := v.local.Managers[l.Name]
		if !names[l.Name] || manager == "" {
			return nil
		}
		return one(v.here()+", device "+l.Name, "%s manages it", manager)
	})
}
