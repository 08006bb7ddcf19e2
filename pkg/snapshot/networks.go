package snapshot

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// Compiled is what the definitions come to, as agents read them.
func (c *Cluster) Compiled() agent.Compiled { return agent.Compile(c.Definitions) }

// Named is the network with a name, as a definition's reference (namespace/name) gives it.
func (c *Cluster) Named(ref string) (agent.Network, bool) {
	i := slices.IndexFunc(c.Definitions, func(d agent.Definition) bool { return d.Ref() == ref })
	if i < 0 {
		return agent.Network{}, false
	}
	compiled := agent.Compile(c.Definitions[i : i+1]) // alone: a second definition of a network counts once among all
	if len(compiled.Networks) == 0 {
		return agent.Network{}, false
	}
	return compiled.Networks[0], true
}

// Shims are the places on a parent.
func (c *Cluster) Shims(parent string) []v1alpha1.HostShim {
	return slices.DeleteFunc(slices.Clone(c.HostShims), func(h v1alpha1.HostShim) bool { return h.Spec.Parent != parent })
}

// HasNode says whether there is a Node of that name.
func (c *Cluster) HasNode(name string) bool {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return true
		}
	}
	return false
}

// Pool is how full a range is.
type Pool struct {
	Name     string       `json:"name"` // of the IPPool
	Networks []string     `json:"networks"`
	Range    netip.Prefix `json:"range"`
	Size     uint64       `json:"size"` // addresses that pods can get; at most 2^62
	Used     uint64       `json:"used"` // of them
	Declined int          `json:"quarantined"`
	Entries  int          `json:"entries"` // of the IPPool object
	Recent   int          `json:"recent"`  // claims that were made within the last day and are live
}

// Free is how many addresses are left.
func (p Pool) Free() uint64 {
	if p.Used >= p.Size {
		return 0
	}
	return p.Size - p.Used
}

// UsedPart is the used part of the pool, from 0 to 1.
func (p Pool) UsedPart() float64 {
	if p.Size == 0 {
		return 1
	}
	return float64(p.Used) / float64(p.Size)
}

// Fill says how full the pools of the networks are: of lhstorage-ipam and whereabouts, whose objects the cluster has. Networks with
// node slices are left out.
func (s *Snapshot) Fill() []Pool {
	var pools []Pool
	if s.Cluster == nil {
		return nil
	}
	claimed := kube.Claimed(s.Cluster.Claims)
	for _, n := range s.Cluster.Compiled().Networks {
		for _, p := range poolsOf(n.Plan) {
			i := slices.IndexFunc(pools, func(o Pool) bool { return o.Name == p.Name })
			if i < 0 {
				pools = append(pools, s.fill(p, claimed[p.Name]))
				i = len(pools) - 1
			}
			pools[i].Networks = append(pools[i].Networks, n.Ref())
		}
	}
	slices.SortFunc(pools, func(a, b Pool) int { return cmp.Compare(a.Name, b.Name) })
	return pools
}

// poolsOf are the pools of a network, as the IPAM plugin makes them of its configuration.
func poolsOf(plan *netconf.Plan) []ipam.Pool {
	if plan.IPAM.Type != "lhstorage-ipam" && plan.IPAM.Type != "whereabouts" {
		return nil
	}
	conf, err := ipam.Parse(ipam.Input{NetConf: plan.IPAM.Delegate, Cluster: true})
	if err != nil || conf.NodeSlice > 0 {
		return nil // its faults are told elsewhere; of slices each node has a pool of its own
	}
	return conf.Pools
}

// fill counts by the claims, and by what a real Whereabouts put into the IPPool.
func (s *Snapshot) fill(p ipam.Pool, taken []netip.Addr) Pool {
	pool := Pool{Name: p.Name, Range: p.Range}
	for _, c := range s.Cluster.Claims {
		switch {
		case c.Spec.Pool != p.Name:
		case c.Spec.Declined != nil:
			pool.Declined++
		case s.Time.Sub(c.CreationTimestamp.Time) < day:
			pool.Recent++
		}
	}
	for _, o := range s.Cluster.Pools {
		if o.Name != p.Name {
			continue
		}
		pool.Entries = len(o.Spec.Allocations)
		taken = append(taken, kube.Recorded(p, o)...)
	}
	usage := p.Usage(taken)
	pool.Size, pool.Used = uint64(min(usage.Addresses, most)), uint64(min(usage.Allocated, most))
	return pool
}

const (
	day  = 24 * time.Hour
	most = 1 << 62 // of addresses: nobody counts further
)

// Denies says that a resource could not be read.
func (c *Cluster) Denies(resource string) bool {
	return slices.ContainsFunc(c.Denied, func(d Denial) bool { return d.What == resource })
}

// StorageAddress is what Longhorn takes as a pod's storage address: of the entry of its network-status that has the
// network's name, the first address, sorted as texts. Empty: there is no such pod or entry.
func (c *Cluster) StorageAddress(pod, network string) string {
	for i := range c.Pods {
		p := &c.Pods[i]
		if p.Namespace != c.Longhorn.Namespace || p.Name != pod {
			continue
		}
		entries, err := Interfaces(p)
		if err != nil {
			return ""
		}
		for _, e := range entries {
			if e.Name == network && len(e.IPs) > 0 {
				return slices.Min(e.IPs)
			}
		}
	}
	return ""
}
