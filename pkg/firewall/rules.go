package firewall

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// Family of IP.
type Family int

// The families, each with tables of its own.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("ipv%d", int(f)) }

func (f Family) of(a netip.Addr) bool { return a.Is4() == (f == IPv4) }

// The chains that base chains lead to, and those that they lead to.
const (
	chainPrerouting = Prefix + "PREROUTING"
	chainInput      = Prefix + "INPUT"
	chainForward    = Prefix + "FORWARD"
	chainShim       = Prefix + "SHIM"
	chainAddress    = Prefix + "ADDRESS"
	chainPeers      = Prefix + "VXLAN-" // and the UDP port
)

// bases are the base chains that a jump is in, each with the chain it leads to.
var bases = []struct{ base, chain string }{
	{"PREROUTING", chainPrerouting},
	{"INPUT", chainInput},
	{"FORWARD", chainForward},
}

// Chain is one of our chains with its rules.
type Chain struct {
	Name  string
	Rules []Rule
}

// Rule is a rule of ours.
type Rule struct {
	// Text is the rule as iptables-restore reads it, comment included.
	Text string
	// Mark is the part of the comment that tells this rule from all others: by it a
	// rule is known again, since no two versions of iptables print one alike.
	Mark string
}

// Rules are the chains that a family must have, in the order in which they are
// made: those that are jumped to come first.
func (d Desired) Rules(f Family) ([]Chain, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	b := builder{Desired: d, family: f}
	return slices.Concat(b.peers(), []Chain{b.shim(), b.address(), b.prerouting(), b.input(), b.forward()}), nil
}

// builder makes the chains of one family.
type builder struct {
	Desired
	family Family
}

// prerouting drops what enters by a parent of ours itself, before it is routed:
// frames to the parent's MAC would walk around what guards the shim, and into
// the host or, forwarded, into other networks. Children take theirs earlier.
func (b builder) prerouting() Chain {
	c := chain(chainPrerouting)
	for _, p := range b.Parents {
		if p.Own {
			c.add("enters by a parent", "DROP", "-i", p.Name)
		}
	}
	return c.done()
}

// input guards what is for this host. The tunnel comes before loopback is let
// go: no local process is a peer.
func (b builder) input() Chain {
	c := chain(chainInput)
	for _, port := range b.ports() {
		c.add("the tunnel", "-j "+b.peerChain(port.number), "-p", "udp", "-m", "udp", "--dport", strconv.Itoa(int(port.number)), port.only)
	}
	c.add("this host itself", "RETURN", "-i", "lo")
	for _, s := range b.Shims {
		c.add("by the shim", "-j "+chainShim, "-i", s.Name)
		for _, a := range b.own(s.Addresses) {
			c.add("for the shim", "-j "+chainAddress, "-d", host(a))
		}
	}
	return c.done()
}

// shim lets nothing but replies, ICMP (neighbour discovery is a part of it) and
// allowed services in. A TCP connection is told by its flags: one that was open
// when the firewall came, or that conntrack has forgotten, isn't cut, and no TCP
// service accepts one without a SYN.
func (b builder) shim() Chain {
	c := chain(chainShim)
	c.add("no new connection", "RETURN", "-p", "tcp", "-m", "tcp", "!", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN")
	c.add("a reply", "RETURN", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
	icmp := map[Family]string{IPv4: "icmp", IPv6: "ipv6-icmp"}[b.family]
	c.add("icmp", "RETURN", "-p", icmp)
	for _, port := range b.Allowed {
		for _, network := range b.ranges() {
			c.add("allowed", "RETURN", "-s", network.String(), "-p", port.Protocol, "-m", port.Protocol, "--dport", strconv.Itoa(int(port.Port)))
		}
	}
	c.add("a service of the host", "DROP")
	return c.done()
}

// address is for packets to a shim's address: one that comes by another device
// was routed into the storage network's address by somebody. A parent that isn't
// ours answers ARP for its child's address too (arp_ignore 0), so packets may
// come by it, and get no more than those that come by the shim.
func (b builder) address() Chain {
	c := chain(chainAddress)
	for _, s := range b.Shims {
		c.add("by the shim", "RETURN", "-i", s.Name)
	}
	for _, s := range b.Shims {
		if s.Parent != "" && !b.isOwn(s.Parent) {
			c.add("by its parent", "-g "+chainShim, "-i", s.Parent)
		}
	}
	c.add("by another device", "DROP")
	return c.done()
}

func (b builder) isOwn(parent string) bool {
	return slices.ContainsFunc(b.Parents, func(p Parent) bool { return p.Name == parent && p.Own })
}

// forward keeps the host from being a router for the storage network. What would
// enter by a parent of ours is gone by now.
func (b builder) forward() Chain {
	c := chain(chainForward)
	for _, s := range b.Shims {
		c.add("out of the storage network", "DROP", "-i", s.Name)
		c.add("into the storage network", "DROP", "-o", s.Name)
	}
	for _, p := range b.Parents {
		if p.Own {
			c.add("into the storage network", "DROP", "-o", p.Name)
		}
	}
	return c.done()
}

// guarded is a UDP port with the tunnels of this family on it.
type guarded struct {
	number uint16
	only   string // the match for our VNI where the port is shared, else ""
}

// ports are the guarded ones, with an entry for each VNI where the port is
// shared. The peers of all tunnels on a port are the peers of each.
func (b builder) ports() []guarded {
	var list []guarded
	for _, p := range b.tunnels() {
		only := ""
		if p.Shared {
			only = b.vni(p.VNI)
		}
		if g := (guarded{number: p.Port, only: only}); !slices.Contains(list, g) {
			list = append(list, g)
		}
	}
	return list
}

// tunnels are the guarded tunnels of this family, in a stable order. One whose
// peers aren't known opens the port for all: their frames can't be told apart.
func (b builder) tunnels() []Parent {
	open := map[uint16]bool{}
	var list []Parent
	for _, p := range b.Parents {
		switch {
		case p.Port == 0 || p.VTEP.Is6() != (b.family == IPv6):
		case p.Peers == nil:
			open[p.Port] = true
		default:
			list = append(list, p)
		}
	}
	list = slices.DeleteFunc(list, func(p Parent) bool { return open[p.Port] })
	slices.SortFunc(list, func(x, y Parent) int { return cmp.Or(cmp.Compare(x.Port, y.Port), cmp.Compare(x.VNI, y.VNI)) })
	return list
}

// vni matches the VNI behind the UDP header of a VXLAN packet (RFC 7348, 5).
// IPv6 headers between are none that a kernel's tunnel sends.
func (b builder) vni(vni int) string {
	at := "0>>22&0x3C@12" // behind as many bytes as IHL says
	if b.family == IPv6 {
		at = "52"
	}
	return fmt.Sprintf(`-m u32 --u32 "%s>>8=%d"`, at, vni)
}

func (b builder) peerChain(port uint16) string { return chainPeers + strconv.Itoa(int(port)) }

// peers are the chains that know who may send. Neighbouring addresses are one
// prefix: VTEPs that follow from indexes stand close together, so a thousand of
// them make about twenty rules.
func (b builder) peers() []Chain {
	sets := map[uint16]*netipx.IPSetBuilder{}
	var order []uint16
	for _, p := range b.tunnels() {
		if sets[p.Port] == nil {
			sets[p.Port] = &netipx.IPSetBuilder{}
			order = append(order, p.Port)
		}
		for _, peer := range b.own(p.Peers) {
			sets[p.Port].Add(peer)
		}
	}
	var chains []Chain
	for _, port := range order {
		if set, err := sets[port].IPSet(); err == nil { // an error only of addresses that are none
			chains = append(chains, mayEnter(b.peerChain(port), set.Prefixes())...)
		}
	}
	return chains
}

// few is how many rules a packet is held against one after the other.
const few = 32

// mayEnter are the chains that let prefixes pass and drop all else, the one called
// name last. More than a few prefixes are parted by the block that they lie in,
// with a chain for each: 800 rules in a row cost each packet 8 µs (measured, nft).
// A packet goes to its block's chain for good (-g), so that RETURN there leads
// back to where name was called from.
func mayEnter(name string, list []netip.Prefix) []Chain {
	length := blockLength(list)
	c := chain(name)
	var order []netip.Prefix
	blocks := map[netip.Prefix]*chainBuilder{}
	for _, p := range list {
		if p.Bits() < length || length == 0 {
			c.add("peer", "RETURN", "-s", p.String())
			continue
		}
		block, err := p.Addr().Prefix(length)
		if err != nil {
			continue // the length is one of the address's
		}
		if blocks[block] == nil {
			blocks[block] = chain(fmt.Sprintf("%s-%d", name, len(order)))
			c.add("peers", "-g "+blocks[block].chain.Name, "-s", block.String())
			order = append(order, block)
		}
		blocks[block].add("peer", "RETURN", "-s", p.String())
	}
	c.add("no peer", "DROP")
	var chains []Chain
	for _, block := range order {
		blocks[block].add("no peer", "DROP")
		chains = append(chains, blocks[block].done())
	}
	return append(chains, c.done())
}

// blockLength is the length of the blocks by which a packet is held against the
// fewest rules, at worst; 0 where it needs no blocks.
func blockLength(list []netip.Prefix) int {
	if len(list) <= few {
		return 0
	}
	best, least := 0, len(list)
	for length := 1; length <= list[0].Addr().BitLen(); length++ {
		in, fullest, above := map[netip.Prefix]int{}, 0, 0
		for _, p := range list {
			if p.Bits() < length {
				above++
			} else if block, err := p.Addr().Prefix(length); err == nil {
				in[block]++
				fullest = max(fullest, in[block])
			}
		}
		if rules := above + len(in) + fullest; rules < least {
			best, least = length, rules
		}
	}
	return best
}

// own picks the addresses of this family.
func (b builder) own(addrs []netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() && b.family.of(a) {
			list = append(list, a)
		}
	}
	return list
}

func (b builder) ranges() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range b.Shims {
		for _, r := range s.Ranges {
			if r.IsValid() && b.family.of(r.Addr()) && !slices.Contains(list, r.Masked()) {
				list = append(list, r.Masked())
			}
		}
	}
	return list
}

func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// chainBuilder collects a chain's rules.
type chainBuilder struct {
	chain Chain
	seen  []string
}

func chain(name string) *chainBuilder { return &chainBuilder{chain: Chain{Name: name}} }

// add appends a rule unless the chain has it. target is a verdict, or "-j chain"
// or "-g chain"; why is for people, in letters.
func (c *chainBuilder) add(why, target string, match ...string) {
	if !strings.HasPrefix(target, "-") {
		target = "-j " + target
	}
	match = slices.DeleteFunc(match, func(s string) bool { return s == "" })
	spec := strings.Join(append(match, target), " ")
	if slices.Contains(c.seen, spec) {
		return
	}
	c.seen = append(c.seen, spec)
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s %s", c.chain.Name, len(c.seen), spec, why))
	mark := "lhstorage:" + hex.EncodeToString(sum[:5])
	parts := append([]string{"-A", c.chain.Name}, match...)
	parts = append(parts, `-m comment --comment "`+mark+" "+why+`"`, target)
	c.chain.Rules = append(c.chain.Rules, Rule{Text: strings.Join(parts, " "), Mark: mark})
}

func (c *chainBuilder) done() Chain { return c.chain }
