package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// block is a part of a range that is kept out of it.
type block struct {
	prefix  netip.Prefix
	written string
}

// ranges reads what addresses there are: range with its companions, then ipRanges.
func (p *parser) ranges(ipam *object) {
	var networkName string
	overlapping := true
	raw := ipam.read("network_name", &networkName)
	if networkName != "" && !legalName(networkName) {
		p.fault("ipam.network_name", raw, "becomes a part of names in Kubernetes: it may have lower-case letters, digits, '-' and '.', must begin and end with a letter or digit, and is at most %d long", maxNetworkName)
		networkName = ""
	}
	ipam.read("enable_overlapping_ranges", &overlapping)

	host := p.blocks(ipam, "host_shim_range", true)
	entries := ipam.list("ipRanges")
	r := rangeReader{p, networkName, !overlapping, host}
	// An exclude without a range beside it would have no effect. Whoever writes it wants no
	// pod to have these addresses, so it counts for all ranges.
	if whole, given := ipam.keys["range"]; !given || empty(whole) {
		r.exclude = append(r.exclude, p.blocks(ipam, "exclude", false)...)
		ipam.ignore("range")
		for _, key := range []string{"range_start", "range_end"} {
			if addr := ipam.addr(key); addr.IsValid() {
				p.warn("ipam.%s %s has no effect without ipam.range", key, addr)
			}
		}
		if len(entries) == 0 {
			p.fault("ipam.range", nil, "is missing: say which addresses may be given, such as \"10.0.0.0/24\" (ipRanges for several ranges)%s", p.flatHint())
		}
	} else {
		r.read(ipam)
	}
	for i, raw := range entries {
		key := fmt.Sprintf("ipam.ipRanges[%d]", i)
		entry, ok := p.object(key, raw)
		if !ok {
			p.fault(key, raw, "must be an object {\"range\", \"range_start\", \"range_end\", \"exclude\"}")
			continue
		}
		if r.read(entry) {
			entry.warnUnknown()
		}
	}
	p.hostRangeInside(host)
	p.gatewayInside()
}

func (p *parser) flatHint() string {
	if p.in.Flat == nil {
		return ""
	}
	return "; " + p.in.FlatPath + " doesn't say it either"
}

// rangeReader reads ranges of one network.
type rangeReader struct {
	p           *parser
	networkName string
	isolated    bool
	exclude     []block // from every range
}

// read adds the pool of one entry; false when it is faulty.
func (r rangeReader) read(o *object) bool {
	p, good := r.p, len(r.p.faults)
	var text string
	raw := o.read("range", &text)
	start, end := o.addr("range_start"), o.addr("range_end")
	exclude := slices.Concat(p.blocks(o, "exclude", false), r.exclude)
	pool, notes, err := r.pool(text, start, end)
	switch {
	case raw == nil:
		p.fault(o.key("range"), nil, "is missing")
	case err != nil && json.Unmarshal(raw, &text) == nil: // else its type is the fault
		p.fault(o.key("range"), raw, "%v", err)
	}
	if len(p.faults) > good {
		return false
	}
	for _, note := range notes {
		p.warn("%s %s: %s", o.key("range"), raw, note)
	}
	for _, b := range exclude {
		pool.Exclude = append(pool.Exclude, b.prefix)
		pool.Written = append(pool.Written, b.written)
	}
	p.cfg.Pools = append(p.cfg.Pools, pool)
	return true
}

func (r rangeReader) pool(text string, start, end netip.Addr) (Pool, []string, error) {
	parsed, err := netconf.ParseRange(text)
	if err != nil {
		return Pool{}, nil, err
	}
	if parsed.First.IsValid() {
		start, end = parsed.First, parsed.Last
	}
	return NewPool(r.networkName, r.isolated, parsed.Prefix, start, end)
}

// blocks reads addresses and CIDRs.
func (p *parser) blocks(o *object, key string, single bool) []block {
	var blocks []block
	for i, text := range o.texts(key, single) {
		prefix, masked, err := parseBlock(text)
		if err != nil {
			where := fmt.Sprintf("%s[%d]", o.key(key), i)
			p.fault(where, json.RawMessage(strconv.Quote(text)), "could not parse %s range, err: %q", strings.TrimSuffix(key, "_range"), err)
			continue
		}
		if masked {
			p.warn("%s %q has host bits: all of %s is meant", o.key(key), text, prefix)
		}
		blocks = append(blocks, block{prefix, text})
	}
	return blocks
}

// hostRangeInside: a host range elsewhere is a slip, and would keep no pod off the hosts' addresses.
func (p *parser) hostRangeInside(host []block) {
	if len(p.cfg.Pools) == 0 {
		return
	}
	for _, h := range host {
		inside := slices.ContainsFunc(p.cfg.Pools, func(pool Pool) bool {
			return pool.Range.Bits() <= h.prefix.Bits() && pool.Range.Contains(h.prefix.Addr())
		})
		if !inside {
			p.fault("ipam.host_shim_range", json.RawMessage(strconv.Quote(h.written)), "must lie inside of one of the ranges: it is the part of it that hosts get")
		}
	}
}

// gatewayInside: Whereabouts gives the gateway's address to a pod, and so must we, but nobody wants it.
func (p *parser) gatewayInside() {
	for _, pool := range p.cfg.Pools {
		if gw := p.cfg.Gateway; gw.IsValid() && pool.Window().Contains(gw) && !pool.Excluded(gw) {
			p.warn("ipam.gateway %s can be given to a pod: it lies in %s and isn't excluded", gw, pool.Range)
		}
	}
}

// parseAddr reads an address as Whereabouts does: leading zeros are decimal.
func parseAddr(text string) (netip.Addr, error) {
	full := "/32"
	if strings.Contains(text, ":") {
		full = "/128"
	}
	if strings.ContainsAny(text, "-/") {
		return netip.Addr{}, errors.New("invalid IP address: " + text)
	}
	parsed, err := netconf.ParseRange(text + full)
	if err != nil {
		return netip.Addr{}, errors.New("invalid IP address: " + text)
	}
	return parsed.Prefix.Addr(), nil
}

// parseHost reads an address with the prefix length of its network.
func parseHost(text string) (netip.Prefix, error) {
	ip, _, _ := strings.Cut(text, "/")
	addr, err := parseAddr(ip)
	if err != nil {
		return netip.Prefix{}, err
	}
	network, err := netconf.ParseRange(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, network.Prefix.Bits()), nil
}

// parseBlock reads a CIDR or an address; masked says that the CIDR's address isn't its network's.
func parseBlock(text string) (prefix netip.Prefix, masked bool, err error) {
	host, err := parseHost(text)
	if err != nil {
		addr, addrErr := parseAddr(text)
		if addrErr != nil {
			return netip.Prefix{}, false, errors.New("invalid CIDR address: " + text)
		}
		host = netip.PrefixFrom(addr, addr.BitLen())
	}
	return host.Masked(), host != host.Masked(), nil
}

// legalName says whether a name can be a part of names of Kubernetes objects.
func legalName(name string) bool {
	edge := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	for i := range len(name) {
		if c := name[i]; !edge(c) && c != '-' && c != '.' {
			return false
		}
	}
	return name != "" && len(name) <= maxNetworkName && edge(name[0]) && edge(name[len(name)-1])
}

func splitList(text string) []string {
	if text == "" {
		return nil
	}
	list := strings.Split(text, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
