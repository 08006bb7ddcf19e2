package plan

import (
	"errors"
	"fmt"
)

// What is more is a slip of the keyboard.
const (
	maxCount  = 1_000_000
	maxGrowth = 10_000
)

// Demand is the cluster that the network is for. The rules are Longhorn's: which of
// its pods ask for the storage network, and how many of them run at once.
type Demand struct {
	Nodes   int  // nodes that run Longhorn
	Disks   int  // disks of all nodes together
	Images  int  // backing images that are uploaded or downloaded at the same time
	V1, V2  bool // data engines
	Upgrade bool // room for an upgrade of Longhorn, during which old and new managers run side by side
	RWX     bool // volumes for many pods use this network, too
	Shares  int  // with RWX: such volumes in use at the same time
	Shims   bool // each node has a host shim, in a part of the range kept for nodes
}

func (d Demand) check() error {
	var faults []error
	for _, n := range []struct {
		what       string
		value, min int
	}{{"nodes", d.Nodes, 1}, {"disks", d.Disks, 0}, {"images", d.Images, 0}, {"shared volumes", d.Shares, 0}} {
		if n.value < n.min || n.value > maxCount {
			faults = append(faults, fmt.Errorf("%d %s: want %d to %d", n.value, n.what, n.min, maxCount))
		}
	}
	if !d.V1 && !d.V2 {
		faults = append(faults, errors.New("neither data engine is used: want v1, v2 or both"))
	}
	if d.Shares > 0 && !d.RWX {
		faults = append(faults, fmt.Errorf("%d shared volumes, but they don't use this network", d.Shares))
	}
	return errors.Join(faults...)
}

// grown is the cluster with percent more of everything.
func (d Demand) grown(percent int) Demand {
	for _, n := range []*int{&d.Nodes, &d.Disks, &d.Images, &d.Shares} {
		*n += (*n*percent + 99) / 100
	}
	return d
}

// Item is one kind of what needs addresses.
type Item struct {
	What  string `json:"what"`
	Count int    `json:"count"`
	Each  int    `json:"each"` // addresses for each
	IPs   int    `json:"ips"`
	Host  bool   `json:"host,omitempty"` // the address is a node's, out of the host range
	Why   string `json:"why"`
}

// Items are all that need addresses, those that need none left out.
func (d Demand) Items() []Item {
	versions, during := 1, ""
	if d.Upgrade {
		versions, during = 2, "; an upgrade runs the old one beside the new one"
	}
	all := []Item{
		{What: "instance managers, v1", Count: when(d.V1, d.Nodes), Each: versions, Why: "one on each node" + during},
		{What: "instance managers, v2", Count: when(d.V2, d.Nodes), Each: versions, Why: "one more on each node for the v2 engine" + during},
		{What: "backing image managers", Count: d.Disks, Each: versions, Why: "one for each disk" + during},
		{What: "backing image data sources", Count: d.Images, Each: 1, Why: "one for each image while it is uploaded or downloaded"},
		{What: "CSI plugins", Count: when(d.RWX, d.Nodes), Each: 1, Why: "one on each node: the NFS client of shared volumes"},
		{What: "share managers", Count: when(d.RWX, d.Shares), Each: 1, Why: "one for each shared volume in use: its NFS server"},
		{What: "host shims", Count: when(d.Shims, d.Nodes), Each: 1, Host: true, Why: "one on each node: the host's iSCSI or NVMe initiator"},
	}
	var items []Item
	for _, i := range all {
		if i.IPs = i.Count * i.Each; i.IPs > 0 {
			items = append(items, i)
		}
	}
	return items
}

func when(used bool, count int) int {
	if used {
		return count
	}
	return 0
}

// Need is how many addresses are needed, for pods and for the nodes themselves.
type Need struct {
	Pods  int `json:"pods"`
	Hosts int `json:"hosts"`
}

func need(items []Item) Need {
	var n Need
	for _, i := range items {
		if i.Host {
			n.Hosts += i.IPs
		} else {
			n.Pods += i.IPs
		}
	}
	return n
}

// Compare is what somebody else counts for the same cluster.
type Compare struct {
	Who string `json:"who"`
	IPs int    `json:"ips"`
	Why string `json:"why"`
}

// harvester is what Harvester's documents (Storage Network, 1.4 and later) and its
// webhook (checkStorageNetworkRangeValid) count. The documents' example of five nodes
// with two disks each and ten images comes to "(5 * 2) + (5 * 2) + 10 = 30", each disk
// counted once, though their formula counts each disk twice: 40, which is what the /26
// that they conclude with is for.
func (d Demand) harvester() []Compare {
	webhook := 2*d.Nodes + 2*d.Disks
	if d.RWX {
		webhook += d.Nodes + 32
	}
	return []Compare{
		{"Harvester's documents, their example's sum", 2*d.Nodes + d.Disks + d.Images, "nodes*2 + disks + images"},
		{"Harvester's documents, their formula", 2*d.Nodes + 2*d.Disks + d.Images, "nodes*2 + disks*2 + images"},
		{"Harvester's webhook, the least that it accepts", webhook, "nodes*2 + disks*2, no images; shared volumes: + nodes + 32"},
	}
}
