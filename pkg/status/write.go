package status

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/terminal"
)

const none = "–"

// Write writes a report for people.
func Write(s terminal.Screen, r Report) {
	writeNetworks(s, r.Networks)
	writeNodes(s, r.Nodes)
	writePools(s, r.Pools)
	writeAttachments(s, r.Attachments)
	if r.Longhorn != nil {
		writeLonghorn(s, *r.Longhorn)
	}
}

func writeNetworks(s terminal.Screen, list []Network) {
	s.Title("Networks")
	if len(list) == 0 {
		fmt.Fprintln(s.W, "none: no NetworkAttachmentDefinition is of type lhstorage")
		return
	}
	t := s.Table([]int{7}, "definition", "parent", "type", "range", "for nodes", "iscsiPath", "attached", "state")
	for _, n := range list {
		t.AppendRow([]any{n.Definition, or(n.Parent), or(n.Type), prefixes(n.Ranges), prefixes(n.Hosts), or(n.ISCSIPath), n.Attachments, verdict(s, n.State == "ok", n.State)})
	}
	s.Render(t)
}

func writeNodes(s terminal.Screen, list []Node) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(s.W)
	s.Title("Nodes")
	t := s.Table([]int{3, 6, 7, 8}, "node", "parent", "index", "shim", "VTEP", "peers", "MTU", "legs", "ready", "")
	for _, n := range list {
		mtu, index := "auto", none
		if n.MTU > 0 {
			mtu = strconv.Itoa(n.MTU)
		}
		if n.Index > 0 {
			index = strconv.Itoa(n.Index)
		}
		t.AppendRow([]any{n.Name, n.Parent, index, or(strings.Join(n.Shim, ", ")), or(n.VTEP), n.Peers, mtu, legs(n), verdict(s, n.Ready == "True", n.Ready), n.Reason})
	}
	s.Render(t)
}

func legs(n Node) string {
	switch {
	case n.Legs == 0:
		return none
	case n.Failed == 0:
		return fmt.Sprintf("%d ok", n.Legs)
	}
	return fmt.Sprintf("%d of %d FAIL", n.Failed, n.Legs)
}

func writePools(s terminal.Screen, list []Pool) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(s.W)
	s.Title("Pools")
	t := s.Table([]int{3, 4, 5, 6}, "pool", "range", "size", "used", "free", "quarantined", "full in", "Longhorn's upgrade")
	for _, p := range list {
		full, upgrade := none, "fits"
		if p.Days > 0 {
			full = fmt.Sprintf("%.0f days at the last day's pace", p.Days)
		}
		if p.Upgrade > 0 {
			upgrade = fmt.Sprintf("lacks %d addresses", p.Upgrade)
		}
		t.AppendRow([]any{p.Name, p.Range, p.Size, fmt.Sprintf("%d (%.0f %%)", p.Used, 100*p.UsedPart()), p.Free, p.Declined, full, verdict(s, p.Upgrade == 0, upgrade)})
	}
	s.Render(t)
}

func writeAttachments(s terminal.Screen, list []Attachment) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(s.W)
	s.Title("Attachments")
	t := s.Table(nil, "network", "node", "pod", "interface", "addresses", "claimed")
	for _, a := range list {
		claimed := "yes"
		if !a.Claimed {
			claimed = "NO"
		}
		t.AppendRow([]any{a.Network, a.Node, a.Pod, a.Interface, or(strings.Join(a.Addresses, ", ")), verdict(s, a.Claimed, claimed)})
	}
	s.Render(t)
}

func writeLonghorn(s terminal.Screen, l Longhorn) {
	fmt.Fprintln(s.W)
	applied := "Longhorn doesn't say whether it is applied"
	if l.Applied != nil {
		applied = fmt.Sprintf("applied: %t", *l.Applied)
	}
	s.Title("Longhorn: storage-network %q, %s", l.Network, applied)
	if len(l.InstanceManagers) > 0 {
		t := s.Table(nil, "instance manager", "node", "engine", "state", "storage address", "pod address", "iSCSI dials", "on", "how that is known")
		for _, m := range l.InstanceManagers {
			t.AppendRow([]any{m.Name, m.Node, or(m.Engine), or(m.State), or(m.Storage), or(m.PodIP), or(m.Dial.Address), or(m.Dial.Interface), m.Dial.How})
		}
		s.Render(t)
	}
	if len(l.Instances) == 0 {
		return
	}
	fmt.Fprintln(s.W)
	t := s.Table(nil, "volume", "", "name", "node", "state", "STORAGEIP", "")
	for _, i := range l.Instances {
		said := i.Fault
		if said == "" && i.StorageIP != "" {
			said = "ok"
		}
		t.AppendRow([]any{i.Volume, i.Kind, i.Name, or(i.Node), or(i.State), or(i.StorageIP), verdict(s, i.Fault == "", said)})
	}
	s.Render(t)
}

// verdict colours a word by whether it is a good one.
func verdict(s terminal.Screen, good bool, word string) string {
	if good {
		return s.Paint(terminal.Good, word)
	}
	return s.Paint(terminal.Bad, word)
}

func or(text string) string {
	if text == "" {
		return none
	}
	return text
}

func prefixes(list []netip.Prefix) string {
	texts := make([]string, 0, len(list))
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return or(strings.Join(texts, ", "))
}
