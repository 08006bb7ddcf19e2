package ipam

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

const (
	defaultTimeout = 20 * time.Second
	longestTimeout = 2 * time.Minute
	maxNetworkName = 100 // with a pool's name and an address it stays a legal name of a file and of a Kubernetes object
)

// Input is all that a configuration is made of.
type Input struct {
	NetConf  []byte // what the runtime gives on stdin
	Args     string // CNI_ARGS
	Flat     []byte // the flat file; nil when there is none
	FlatPath string // where it was found, for messages
	Cluster  bool   // the node file names a kubeconfig
}

// Config is a validated configuration.
type Config struct {
	CNIVersion string
	Network    string // the NetConf's name
	Pools      []Pool
	Order      Order
	Gateway    netip.Addr // given with each address of its family
	Routes     []*types.Route
	DNS        types.DNS
	Static     []Static       // added to the result and claimed nowhere
	Timeout    time.Duration  // for one call
	Kubeconfig string         // kubernetes.kubeconfig
	NodeSlice  int            // prefix length of a node's slice of the range; 0: no slices
	Previous   []netip.Prefix // addresses of prevResult; nil when there is no prevResult
	Pod        Pod
	Valid      *[]Attachment // of GC; nil when the key is absent: then nothing may be given up
	Warnings   []string      // what is allowed but should be known, one sentence each
}

// Static is an address that the configuration or CNI_ARGS give by hand.
type Static struct {
	Address netip.Prefix
	Gateway netip.Addr // invalid: none
}

// Attachment is an entry of cni.dev/valid-attachments.
type Attachment = netconf.Attachment

// Parse reads a configuration. All faults come at once, as a [netconf.Error] whose code is 6 when the
// input isn't a JSON object and else 7. What could be read is returned even then: DEL and GC must
// work with a configuration that an ADD would be refused.
func Parse(in Input) (Config, error) {
	p := parser{in: in, cfg: Config{Order: Lowest, Timeout: defaultTimeout}}
	p.parse()
	if len(p.faults) == 0 {
		return p.cfg, nil
	}
	return p.cfg, &netconf.Error{Network: p.cfg.Network, Faults: p.faults}
}

type parser struct {
	in     Input
	cfg    Config
	faults []netconf.Fault
}

// fault notes that raw, found at key, can't be used; a nil value is a missing one.
func (p *parser) fault(key string, raw json.RawMessage, format string, args ...any) {
	p.add(cnierr.InvalidConfig, key, written(raw), format, args...)
}

func (p *parser) add(code cnierr.Code, key, value, format string, args ...any) {
	p.faults = append(p.faults, netconf.Fault{Code: code, Key: key, Value: value, Problem: fmt.Sprintf(format, args...)})
}

func (p *parser) warn(format string, args ...any) {
	p.cfg.Warnings = append(p.cfg.Warnings, fmt.Sprintf(format, args...))
}

func (p *parser) parse() {
	top, ok := p.object("", p.in.NetConf)
	if !ok {
		p.faults = []netconf.Fault{{Code: cnierr.Decode, Key: "network configuration", Value: written(p.in.NetConf), Problem: "isn't a JSON object"}}
		return
	}
	top.read("cniVersion", &p.cfg.CNIVersion)
	top.read("name", &p.cfg.Network)
	p.attachments(top)
	p.args()
	ipam, ok := p.section(top)
	if !ok {
		return
	}
	p.plain(ipam)
	p.ranges(ipam)
	p.static(ipam)
	p.prevResult(top)
	ipam.warnUnknown()
}

// section is the ipam section, with the flat file's values where it has none.
func (p *parser) section(top *object) (*object, bool) {
	raw, given := top.take("ipam")
	if !given {
		p.fault("ipam", nil, "is missing; at least \"ipam\": {\"type\": \"lhstorage-ipam\", \"range\": \"10.0.0.0/24\"} is needed")
		return nil, false
	}
	ipam, ok := p.object("ipam", raw)
	if !ok {
		p.fault("ipam", raw, "must be an object")
		return nil, false
	}
	if p.in.Flat == nil {
		return ipam, true
	}
	flat, ok := p.object(p.in.FlatPath, p.in.Flat)
	if !ok {
		p.fault(p.in.FlatPath, p.in.Flat, "isn't a JSON object")
		return ipam, true
	}
	ipam.fill(flat)
	return ipam, true
}

// attachments reads the list of GC. The specification once had another name for the
// key, and runtimes give both.
func (p *parser) attachments(top *object) {
	for _, key := range []string{"cni.dev/attachments", "cni.dev/valid-attachments"} {
		raw, given := top.take(key)
		if !given {
			continue
		}
		list := []Attachment{}
		if err := json.Unmarshal(raw, &list); err != nil {
			p.fault(key, raw, "must be a list of {\"containerID\", \"ifname\"}")
			continue
		}
		p.cfg.Valid = &list
	}
}

func (p *parser) plain(ipam *object) {
	p.kubeconfig(ipam)
	p.routes(ipam)
	ipam.read("dns", &p.cfg.DNS)
	p.cfg.Gateway = ipam.addr("gateway")

	var order, timeout string
	raw := ipam.read("allocation", &order)
	switch Order(order) {
	case "", Lowest:
	case Sticky:
		p.cfg.Order = Sticky
	default:
		p.fault("ipam.allocation", raw, "must be %q or %q", Lowest, Sticky)
	}
	raw = ipam.read("timeout", &timeout)
	if timeout != "" {
		d, err := time.ParseDuration(timeout)
		if err != nil || d <= 0 || d > longestTimeout {
			p.fault("ipam.timeout", raw, "must be a duration such as \"10s\", at most %s", longestTimeout)
		} else {
			p.cfg.Timeout = d
		}
	}
	p.nodeSlice(ipam)
	ipam.ignore(accepted...)
}

// accepted are keys of Whereabouts and of the CNI project that have no meaning here.
var accepted = []string{
	"type", "name", "configuration_path", "log_file", "log_level", "datastore", "sleep_for_race", "reconciler_cron_expression",
	"leader_lease_duration", "leader_renew_deadline", "leader_retry_period",
	"etcd_host", "etcd_username", "etcd_password", "etcd_key_file", "etcd_cert_file", "etcd_ca_cert_file",
	"podname", "podnamespace",
}

// kubeconfig keeps an unreadable value too: it still says that a cluster is meant, and DEL
// must not look elsewhere.
func (p *parser) kubeconfig(ipam *object) {
	raw, given := ipam.take("kubernetes")
	if !given {
		return
	}
	section, ok := p.object("ipam.kubernetes", raw)
	if !ok {
		p.fault("ipam.kubernetes", raw, "must be an object")
		p.cfg.Kubeconfig = written(raw)
		return
	}
	if raw := section.read("kubeconfig", &p.cfg.Kubeconfig); p.cfg.Kubeconfig == "" && raw != nil && string(raw) != `""` {
		p.cfg.Kubeconfig = written(raw)
	}
}

// routes reads each route by itself: types.Route names neither key nor value, and
// accepts a route to nowhere.
func (p *parser) routes(ipam *object) {
	for i, raw := range ipam.list("routes") {
		key := fmt.Sprintf("ipam.routes[%d]", i)
		route := new(types.Route)
		switch err := json.Unmarshal(raw, route); {
		case err != nil:
			p.fault(key, raw, "%v", err)
		case route.Dst.IP == nil:
			p.fault(key, raw, "dst is missing; the default route's is \"0.0.0.0/0\" or \"::/0\"")
		default:
			p.cfg.Routes = append(p.cfg.Routes, route)
		}
	}
}

func (p *parser) nodeSlice(ipam *object) {
	raw, given := ipam.take("node_slice_size")
	if !given {
		return
	}
	text := strings.Trim(string(raw), `"`)
	if text == "" {
		return
	}
	bits, err := strconv.Atoi(strings.TrimPrefix(text, "/"))
	switch {
	case err != nil || bits < 1 || bits > 32:
		p.fault("ipam.node_slice_size", raw, "must be a prefix length such as \"/26\", from 1 to 32")
	case p.cfg.Kubeconfig == "" && !p.in.Cluster:
		p.fault("ipam.node_slice_size", raw, "slices are kept in the cluster's NodeSlicePool, and this node has no cluster: neither ipam.kubernetes.kubeconfig nor the node file's kubeconfig is set; leave the key out to allocate from the whole range")
	default:
		p.cfg.NodeSlice = bits
	}
}

// prevResult reads no more than CHECK needs: the addresses, which are written alike in all
// versions that have CHECK (0.4.0 and later).
func (p *parser) prevResult(top *object) {
	raw, given := top.take("prevResult")
	if !given {
		return
	}
	var prev struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	p.cfg.Previous = []netip.Prefix{}
	if json.Unmarshal(raw, &prev) != nil {
		return // CHECK alone reads it, and then finds no address
	}
	for _, ip := range prev.IPs {
		if addr, err := parseHost(ip.Address); err == nil {
			p.cfg.Previous = append(p.cfg.Previous, addr)
		}
	}
}

// static reads the addresses given by hand.
func (p *parser) static(ipam *object) {
	for i, raw := range ipam.list("addresses") {
		key := fmt.Sprintf("ipam.addresses[%d]", i)
		entry, ok := p.object(key, raw)
		if !ok {
			p.fault(key, raw, "must be an object {\"address\", \"gateway\"}")
			continue
		}
		var text string
		raw := entry.read("address", &text)
		addr, err := parseHost(text)
		if err != nil {
			p.fault(key+".address", raw, "must be an address with a prefix length, such as \"10.0.0.9/24\"")
			continue
		}
		p.cfg.Static = append(p.cfg.Static, Static{addr, entry.addr("gateway")})
		entry.warnUnknown()
	}
	p.staticArgs()
	p.oldVersion()
}

// staticArgs adds the addresses of CNI_ARGS; a gateway there is that of the addresses whose network it lies in.
func (p *parser) staticArgs() {
	for _, text := range splitList(p.cfg.Pod.ip) {
		addr, err := parseHost(text)
		if err != nil {
			p.add(cnierr.InvalidEnvironment, "CNI_ARGS IP", strconv.Quote(text), "must be an address with a prefix length, such as 10.0.0.9/24")
			continue
		}
		p.cfg.Static = append(p.cfg.Static, Static{Address: addr})
	}
	for _, text := range splitList(p.cfg.Pod.gateway) {
		gateway, err := parseAddr(text)
		if err != nil {
			p.add(cnierr.InvalidEnvironment, "CNI_ARGS GATEWAY", strconv.Quote(text), "must be an address")
			continue
		}
		for i := range p.cfg.Static {
			if p.cfg.Static[i].Address.Masked().Contains(gateway) {
				p.cfg.Static[i].Gateway = gateway
			}
		}
	}
}

// oldVersion: results before 0.3.0 hold one address per family.
func (p *parser) oldVersion() {
	switch p.cfg.CNIVersion {
	case "", "0.1.0", "0.2.0":
	default:
		return
	}
	var v4, v6 int
	count := func(is4 bool) {
		if is4 {
			v4++
		} else {
			v6++
		}
	}
	for _, pool := range p.cfg.Pools {
		count(pool.Range.Addr().Is4())
	}
	for _, s := range p.cfg.Static {
		count(s.Address.Addr().Is4())
	}
	if v4 > 1 || v6 > 1 {
		p.fault("cniVersion", json.RawMessage(strconv.Quote(p.cfg.CNIVersion)), "CNI version %s does not support more than 1 address per family; 0.3.0 and later do", p.cfg.CNIVersion)
	}
}

// Result is what an ADD answers: the addresses granted and those given by hand.
func (c Config) Result(granted []netip.Prefix) *types100.Result {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: c.Routes, DNS: c.DNS}
	for _, addr := range granted {
		gateway := netip.Addr{}
		if c.Gateway.BitLen() == addr.Addr().BitLen() {
			gateway = c.Gateway
		}
		result.IPs = append(result.IPs, ipConfig(addr, gateway))
	}
	for _, s := range c.Static {
		result.IPs = append(result.IPs, ipConfig(s.Address, s.Gateway))
	}
	return result
}

func ipConfig(addr netip.Prefix, gateway netip.Addr) *types100.IPConfig {
	return &types100.IPConfig{
		Address: net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())},
		Gateway: gateway.AsSlice(),
	}
}

// Claimed is the addresses of prevResult that pools may have given: all but those given by hand.
func (c Config) Claimed() []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(c.Previous), func(addr netip.Prefix) bool {
		return slices.ContainsFunc(c.Static, func(s Static) bool { return s.Address == addr })
	})
}
