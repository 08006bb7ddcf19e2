package kernel

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Fake is a stateful model of one network namespace for tests. It keeps the
// kernel's rules that lhstorage is built around, each seen on a real kernel:
//
//   - deleting a parent deletes its macvlan children, also those in other namespaces;
//   - lowering a parent's MTU lowers its children's, raising it doesn't restore them;
//   - a child's MTU can't exceed its parent's;
//   - only one passthru child, and none beside it;
//   - two children of one parent can't be up with one MAC;
//   - a device that is down has no routes; setting it down removes them, and its
//     IPv6 addresses unless keep_addr_on_down is set;
//   - disable_ipv6 takes a device's IPv6 addresses away and keeps new ones off;
//   - an address brings its connected route, and routes with it as source go with
//     it; an IPv4 address takes along those added later to the same device and
//     prefix, a device's last one takes all its IPv4 routes;
//   - addresses are listed by family and device, IPv6 newest first;
//   - a route's source must be an address of the namespace, its next hop on the link;
//   - a second VXLAN device with the same VNI, port and family is refused, and a
//     VXLAN can't change its family.
//
// The test TestFakeAndKernelAgree holds it against the real one.
type Fake struct {
	links   []Link
	foreign []Link // macvlan children in other namespaces; Lower is their parent here
	addrs   []Addr
	routes  []Route
	floods  map[int][]netip.Addr
	sysctls map[string]string
	next    int

	// NoDummy, NoVLAN make the kernel lack these kinds of device.
	NoDummy, NoVLAN bool
	// Fail makes a mutating call fail: it is given the call in Log's form.
	Fail func(call string) error
	// Log has each mutating call in order, a line each.
	Log []string
}

var _ Kernel = (*Fake)(nil)

// NewFake returns a namespace with lo in it.
func NewFake() *Fake {
	f := &Fake{floods: map[int][]netip.Addr{}, sysctls: map[string]string{}, next: 1}
	f.Have(Link{Name: "lo", Kind: "device", MTU: 65536, Up: true})
	f.AddrOn("lo", "127.0.0.1/8")
	return f
}

// Have puts a device there as if somebody else had made it.
func (f *Fake) Have(l Link) int {
	f.insert(&l)
	return l.Index
}

// Alter changes a device as if somebody else had.
func (f *Fake) Alter(device string, change func(*Link)) { change(f.must(device)) }

// ForeignChild makes a macvlan child of parent in another namespace.
func (f *Fake) ForeignChild(parent string, mtu int) {
	p := f.must(parent)
	f.foreign = append(f.foreign, Link{Name: "child", Kind: "macvlan", Lower: p.Index, MTU: min(mtu, p.MTU)})
}

// ForeignMTUs gives the MTUs of parent's children in other namespaces, -1 for a
// child that died.
func (f *Fake) ForeignMTUs(parent string) []int {
	var mtus []int
	for _, c := range f.foreign {
		if p, err := f.Link(parent); err == nil && c.Lower == p.Index {
			mtus = append(mtus, c.MTU)
		}
	}
	return mtus
}

// AddrOn puts an address on a device as if somebody else had.
func (f *Fake) AddrOn(device, prefix string) {
	f.putAddr(Addr{Link: f.must(device).Index, Prefix: netip.MustParsePrefix(prefix)})
}

// DAD says how far the kernel is with duplicate address detection for an IPv6
// address: still at it, found a duplicate (then the address stays tentative), or
// neither.
func (f *Fake) DAD(addr string, tentative, failed bool) {
	for i := range f.addrs {
		if f.addrs[i].Prefix.Addr() == netip.MustParseAddr(addr) {
			f.addrs[i].Tentative, f.addrs[i].DADFailed = tentative || failed, failed
		}
	}
}

func (f *Fake) putAddr(a Addr) {
	at := len(f.addrs)
	switch i := slices.IndexFunc(f.addrs, func(o Addr) bool { return o.Link == a.Link && f.secondary(o) }); {
	case a.Prefix.Addr().Is6():
		at = 0
	case i >= 0 && !f.secondary(a):
		at = i
	}
	f.addrs = slices.Insert(f.addrs, at, a)
	slices.SortStableFunc(f.addrs, func(a, b Addr) int {
		return cmp.Or(cmp.Compare(a.Prefix.Addr().BitLen(), b.Prefix.Addr().BitLen()), cmp.Compare(a.Link, b.Link))
	})
}

// FloodOn puts a flood entry there as if somebody else had.
func (f *Fake) FloodOn(device, vtep string) {
	i := f.must(device).Index
	f.floods[i] = append(f.floods[i], netip.MustParseAddr(vtep))
}

// RouteVia makes the kernel route dst over a device, with a route MTU (0: the device's).
func (f *Fake) RouteVia(dst, device string, mtu int) {
	f.routes = append(f.routes, Route{Dst: netip.MustParsePrefix(dst), Link: f.must(device).Index, Protocol: 3, MTU: mtu})
}

func (f *Fake) must(name string) *Link {
	for i := range f.links {
		if f.links[i].Name == name {
			return &f.links[i]
		}
	}
	panic("the fake kernel has no device " + name)
}

func (f *Fake) insert(l *Link) {
	if l.Index == 0 {
		l.Index = f.next
	}
	f.next = max(f.next, l.Index) + 1
	if l.MTU == 0 {
		l.MTU = 1500
		if l.Kind == "macvlan" {
			l.MTU = f.at(l.Lower).MTU
		}
	}
	if l.MAC == nil {
		l.MAC = net.HardwareAddr{2, 0, 0, 0, 0, byte(l.Index)}
	}
	f.links = append(f.links, *l)
}

func (f *Fake) at(index int) *Link {
	for i := range f.links {
		if f.links[i].Index == index {
			return &f.links[i]
		}
	}
	return nil
}

func (f *Fake) call(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if f.Fail != nil {
		if err := f.Fail(line); err != nil {
			return err
		}
	}
	f.Log = append(f.Log, line)
	return nil
}

// Link implements Kernel.
func (f *Fake) Link(name string) (Link, error) {
	for _, l := range f.links {
		if l.Name == name {
			return l, nil
		}
	}
	return Link{}, fmt.Errorf("device %s: %w", name, errNotFound)
}

// LinkByIndex implements Kernel.
func (f *Fake) LinkByIndex(index int) (Link, error) {
	if l := f.at(index); l != nil {
		return *l, nil
	}
	return Link{}, fmt.Errorf("device #%d: %w", index, errNotFound)
}

// Links implements Kernel.
func (f *Fake) Links() ([]Link, error) { return slices.Clone(f.links), nil }

// AddLink implements Kernel.
func (f *Fake) AddLink(l Link) error {
	if err := f.call("add %s %s", l.Kind, l.Name); err != nil {
		return err
	}
	if err := f.refuse(l); err != nil {
		return fmt.Errorf("create %s %s: %w", l.Kind, l.Name, err)
	}
	if l.InNetns != 0 {
		if l.MTU == 0 {
			l.MTU = f.at(l.Lower).MTU
		}
		f.foreign = append(f.foreign, l)
		return nil
	}
	f.insert(&l)
	return nil
}

func (f *Fake) refuse(l Link) error {
	lower := f.at(l.Lower)
	switch {
	case l.Kind == "dummy" && f.NoDummy, l.Kind == "vlan" && f.NoVLAN:
		return syscall.EOPNOTSUPP
	case slices.ContainsFunc(f.links, func(o Link) bool { return o.Name == l.Name }):
		return syscall.EEXIST
	case l.Kind == "vxlan" && slices.ContainsFunc(f.links, func(o Link) bool {
		return o.Kind == "vxlan" && o.VXLAN.VNI == l.VXLAN.VNI && o.VXLAN.Port == l.VXLAN.Port && o.VXLAN.Local.Is6() == l.VXLAN.Local.Is6()
	}):
		return syscall.EEXIST
	case (l.Kind == "macvlan" || l.Kind == "vlan") && lower == nil:
		return syscall.ENODEV
	case l.Kind == "vlan" && slices.ContainsFunc(f.links, func(o Link) bool { return o.Kind == "vlan" && o.Lower == l.Lower && o.VLAN == l.VLAN }):
		return syscall.EEXIST
	case l.Kind == "macvlan" && l.MTU > lower.MTU:
		return syscall.EINVAL
	case l.Kind == "macvlan" && slices.ContainsFunc(f.children(l.Lower), func(o Link) bool {
		return o.Macvlan.Mode == "passthru" || l.Macvlan.Mode == "passthru"
	}):
		return syscall.EINVAL
	}
	return nil
}

// children are the macvlan children of a device in all namespaces.
func (f *Fake) children(index int) []Link {
	return slices.DeleteFunc(slices.Concat(f.links, f.foreign), func(l Link) bool { return l.Kind != "macvlan" || l.Lower != index || l.MTU < 0 })
}

// SetLink implements Kernel.
func (f *Fake) SetLink(index int, c Change) error {
	l := f.at(index)
	if l == nil {
		return fmt.Errorf("device #%d: %w", index, errNotFound)
	}
	if err := f.call("set %s%s", l.Name, describe(c)); err != nil {
		return err
	}
	if c.Name != nil {
		l.Name = *c.Name
	}
	if c.MAC != nil {
		l.MAC = c.MAC
	}
	if c.MTU != nil {
		if lower := f.at(l.Lower); l.Kind == "macvlan" && lower != nil && *c.MTU > lower.MTU {
			return fmt.Errorf("set the MTU of %s to %d: %w", l.Name, *c.MTU, syscall.EINVAL)
		}
		l.MTU = *c.MTU
		for _, list := range [][]Link{f.links, f.foreign} {
			for i := range list {
				if list[i].Kind == "macvlan" && list[i].Lower == index {
					list[i].MTU = min(list[i].MTU, *c.MTU)
				}
			}
		}
	}
	if c.Learning != nil {
		l.VXLAN.Learning = *c.Learning
	}
	if c.Local != nil {
		if c.Local.Is6() != l.VXLAN.Local.Is6() {
			return fmt.Errorf("set the source address of %s to %s: %w", l.Name, *c.Local, syscall.EOPNOTSUPP)
		}
		l.VXLAN.Local = *c.Local
	}
	if c.Up != nil && *c.Up {
		return f.up(l)
	}
	if c.Up != nil {
		f.down(l)
	}
	return nil
}

func (f *Fake) up(l *Link) error {
	sameMAC := func(o Link) bool { return o.Up && o.Index != l.Index && slices.Equal(o.MAC, l.MAC) }
	if l.Kind == "macvlan" && slices.ContainsFunc(f.children(l.Lower), sameMAC) {
		return fmt.Errorf("set %s up: %w", l.Name, syscall.EADDRINUSE)
	}
	l.Up = true
	return nil
}

func (f *Fake) down(l *Link) {
	l.Up = false
	f.routes = slices.DeleteFunc(f.routes, func(r Route) bool { return r.Link == l.Index })
	if f.sysctls[ConfPath("ipv6", l.Name, "keep_addr_on_down")] != "1" {
		f.dropIPv6(l.Index)
	}
}

func (f *Fake) dropIPv6(link int) {
	for _, a := range AddrsOf(f.addrs, link) {
		if a.Prefix.Addr().Is6() {
			f.dropAddr(a)
		}
	}
}

func describe(c Change) string {
	var b strings.Builder
	if c.Name != nil {
		fmt.Fprintf(&b, " name=%s", *c.Name)
	}
	if c.MAC != nil {
		fmt.Fprintf(&b, " mac=%s", c.MAC)
	}
	if c.MTU != nil {
		fmt.Fprintf(&b, " mtu=%d", *c.MTU)
	}
	if c.Learning != nil {
		fmt.Fprintf(&b, " learning=%t", *c.Learning)
	}
	if c.Local != nil {
		fmt.Fprintf(&b, " local=%s", *c.Local)
	}
	if c.Up != nil {
		fmt.Fprintf(&b, " up=%t", *c.Up)
	}
	return b.String()
}

// DelLink implements Kernel.
func (f *Fake) DelLink(index int) error {
	l := f.at(index)
	if l == nil {
		return fmt.Errorf("device #%d: %w", index, errNotFound)
	}
	if err := f.call("del %s", l.Name); err != nil {
		return err
	}
	f.remove(index)
	return nil
}

func (f *Fake) remove(index int) {
	for _, l := range slices.Clone(f.links) {
		if (l.Kind == "macvlan" || l.Kind == "vlan") && l.Lower == index {
			f.remove(l.Index)
		}
	}
	for i := range f.foreign {
		if f.foreign[i].Lower == index {
			f.foreign[i].MTU = -1
		}
	}
	delete(f.floods, index)
	if l := f.at(index); l != nil { // its sysctls go too
		maps.DeleteFunc(f.sysctls, func(path, _ string) bool { return strings.Contains(path, "/conf/"+l.Name+"/") })
	}
	f.links = slices.DeleteFunc(f.links, func(l Link) bool { return l.Index == index })
	f.addrs = slices.DeleteFunc(f.addrs, func(a Addr) bool { return a.Link == index })
	f.routes = slices.DeleteFunc(f.routes, func(r Route) bool { return r.Link == index })
}

// DelChildless implements Kernel.
func (f *Fake) DelChildless(index int) error {
	if len(f.children(index)) > 0 {
		return fmt.Errorf("delete device #%d: %w", index, ErrHasChildren)
	}
	return f.DelLink(index)
}

// Addrs implements Kernel.
func (f *Fake) Addrs() ([]Addr, error) { return slices.Clone(f.addrs), nil }

func (f *Fake) findAddr(a Addr) int {
	return slices.IndexFunc(f.addrs, func(o Addr) bool {
		return o.Link == a.Link && o.Prefix.Addr() == a.Prefix.Addr() && (a.Prefix.Addr().Is6() || o.Prefix == a.Prefix)
	})
}

// AddAddr implements Kernel.
func (f *Fake) AddAddr(a Addr) error {
	if err := f.call("add address %s to %s", a.Prefix, f.nameOf(a.Link)); err != nil {
		return err
	}
	switch l := f.at(a.Link); {
	case l == nil:
		return fmt.Errorf("add address %s: %w", a.Prefix, syscall.ENODEV)
	case a.Prefix.Addr().Is6() && f.sysctls[ConfPath("ipv6", l.Name, "disable_ipv6")] == "1":
		return fmt.Errorf("add address %s: %w", a.Prefix, syscall.EACCES)
	case f.findAddr(a) >= 0:
		return fmt.Errorf("add address %s: %w", a.Prefix, syscall.EEXIST)
	}
	f.putAddr(a)
	return nil
}

// DelAddr implements Kernel.
func (f *Fake) DelAddr(a Addr) error {
	if err := f.call("del address %s from %s", a.Prefix, f.nameOf(a.Link)); err != nil {
		return err
	}
	i := f.findAddr(a)
	if i < 0 {
		return fmt.Errorf("delete address %s: %w", a.Prefix, syscall.EADDRNOTAVAIL)
	}
	a = f.addrs[i]
	if a.Prefix.Addr().Is4() && !f.secondary(a) {
		for _, o := range AddrsOf(f.addrs, a.Link) {
			if o.Prefix.Masked() == a.Prefix.Masked() && o != a {
				f.dropAddr(o)
			}
		}
	}
	f.dropAddr(a)
	return nil
}

// secondary says that an IPv4 address came, or would come, after another of its
// device and prefix.
func (f *Fake) secondary(a Addr) bool {
	i := slices.IndexFunc(f.addrs, func(o Addr) bool { return o.Link == a.Link && o.Prefix.Masked() == a.Prefix.Masked() })
	return i >= 0 && f.addrs[i].Prefix != a.Prefix && a.Prefix.Addr().Is4()
}

func (f *Fake) dropAddr(a Addr) {
	i := f.findAddr(a)
	f.addrs = slices.Delete(f.addrs, i, i+1)
	if !f.local(a.Prefix.Addr()) {
		f.routes = slices.DeleteFunc(f.routes, func(r Route) bool { return r.Src == a.Prefix.Addr() })
	}
	if isIPv4 := func(o Addr) bool { return o.Prefix.Addr().Is4() }; isIPv4(a) && !slices.ContainsFunc(AddrsOf(f.addrs, a.Link), isIPv4) {
		f.routes = slices.DeleteFunc(f.routes, func(r Route) bool { return r.Link == a.Link && r.Dst.Addr().Is4() })
	}
}

func (f *Fake) local(addr netip.Addr) bool {
	return slices.ContainsFunc(f.addrs, func(a Addr) bool { return a.Prefix.Addr() == addr })
}

// connected are the routes that the addresses bring.
func (f *Fake) connected() []Route {
	const byKernel = 2 // RTPROT_KERNEL
	var routes []Route
	for _, a := range f.addrs {
		if l := f.at(a.Link); l.Up && l.Name != "lo" && !a.NoPrefixRoute && (a.Prefix.Addr().Is6() || !a.Prefix.IsSingleIP()) {
			routes = append(routes, Route{Dst: a.Prefix.Masked(), Link: a.Link, Protocol: byKernel})
		}
	}
	return routes
}

// Routes implements Kernel.
func (f *Fake) Routes(protocol int) ([]Route, error) {
	return slices.DeleteFunc(slices.Concat(f.routes, f.connected()), func(r Route) bool { return protocol != 0 && r.Protocol != protocol }), nil
}

// AddRoute implements Kernel.
func (f *Fake) AddRoute(r Route) error {
	if err := f.call("add route %s", f.route(r)); err != nil {
		return err
	}
	if l := f.at(r.Link); l == nil || !l.Up {
		return fmt.Errorf("add route %s: %w", r, syscall.ENETDOWN)
	}
	switch {
	case r.Src.IsValid() && !f.local(r.Src):
		return fmt.Errorf("add route %s: %w", r, syscall.EINVAL)
	case r.Via.IsValid() && !slices.ContainsFunc(f.connected(), func(o Route) bool { return o.Link == r.Link && o.Dst.Contains(r.Via) }):
		return fmt.Errorf("add route %s: %w", r, syscall.ENETUNREACH)
	case slices.ContainsFunc(f.routes, func(o Route) bool { return o.Dst == r.Dst }):
		return fmt.Errorf("add route %s: %w", r, syscall.EEXIST)
	}
	f.routes = append(f.routes, r)
	return nil
}

// DelRoute implements Kernel.
func (f *Fake) DelRoute(r Route) error {
	if err := f.call("del route %s", f.route(r)); err != nil {
		return err
	}
	i := slices.IndexFunc(f.routes, func(o Route) bool { return o.Dst == r.Dst && o.Link == r.Link })
	if i < 0 {
		return fmt.Errorf("delete route %s: %w", r, syscall.ESRCH)
	}
	f.routes = slices.Delete(f.routes, i, i+1)
	return nil
}

// RouteTo implements Kernel: lo for an address of the namespace, else the longest match.
func (f *Fake) RouteTo(dst netip.Addr) (Route, error) {
	best := Route{}
	consider := func(r Route) {
		if r.Dst.Contains(dst) && (!best.Dst.IsValid() || r.Dst.Bits() > best.Dst.Bits()) {
			best = r
		}
	}
	for _, r := range slices.Concat(f.routes, f.connected()) {
		consider(r)
	}
	if f.local(dst) {
		best = Route{Dst: netip.PrefixFrom(dst, dst.BitLen()), Link: f.must("lo").Index}
	}
	if !best.Dst.IsValid() {
		return Route{}, fmt.Errorf("find the route to %s: %w", dst, syscall.ENETUNREACH)
	}
	return best, nil
}

// RoutesTo implements Kernel.
func (f *Fake) RoutesTo(dsts []netip.Addr) (routes []Route, err error) {
	for _, dst := range dsts {
		if r, err := f.RouteTo(dst); err == nil {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

// Flood implements Kernel.
func (f *Fake) Flood(index int) ([]netip.Addr, error) {
	vteps := slices.Clone(f.floods[index])
	slices.SortFunc(vteps, netip.Addr.Compare)
	return vteps, nil
}

// AddFlood implements Kernel.
func (f *Fake) AddFlood(index int, vtep netip.Addr) error {
	if err := f.call("add flood %s to %s", vtep, f.nameOf(index)); err != nil {
		return err
	}
	if !slices.Contains(f.floods[index], vtep) { // appending it again is no error
		f.floods[index] = append(f.floods[index], vtep)
	}
	return nil
}

// DelFlood implements Kernel.
func (f *Fake) DelFlood(index int, vtep netip.Addr) error {
	if err := f.call("del flood %s from %s", vtep, f.nameOf(index)); err != nil {
		return err
	}
	if len(f.floods[index]) == 0 { // among others a missing one is no error
		return fmt.Errorf("delete flood %s: %w", vtep, syscall.ENOENT)
	}
	f.floods[index] = slices.DeleteFunc(f.floods[index], func(v netip.Addr) bool { return v == vtep })
	return nil
}

// Sysctl implements Kernel; what was never set reads 0.
func (f *Fake) Sysctl(path string) (string, error) {
	if v, ok := f.sysctls[path]; ok {
		return v, nil
	}
	return "0", nil
}

// SetSysctl implements Kernel.
func (f *Fake) SetSysctl(path, value string) error {
	if err := f.call("sysctl %s=%s", path, value); err != nil {
		return err
	}
	f.sysctls[path] = value
	for _, l := range f.links {
		if path == ConfPath("ipv6", l.Name, "disable_ipv6") && value == "1" {
			f.dropIPv6(l.Index)
		}
	}
	return nil
}

func (f *Fake) nameOf(index int) string {
	if l := f.at(index); l != nil {
		return l.Name
	}
	return fmt.Sprintf("#%d", index)
}

func (f *Fake) route(r Route) string {
	return strings.Replace(r.String(), fmt.Sprintf("dev #%d", r.Link), "dev "+f.nameOf(r.Link), 1)
}

// Dump is the whole state as text, in a stable order; lo's loopback address and
// sysctls that read 0 are left out.
func (f *Fake) Dump() string {
	var lines []string
	links := slices.SortedFunc(slices.Values(f.links), func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	for _, l := range links {
		lines = append(lines, f.dumpLink(l))
		addrs := AddrsOf(f.addrs, l.Index)
		slices.SortFunc(addrs, func(a, b Addr) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
		for _, a := range addrs {
			if !a.Prefix.Addr().IsLoopback() {
				lines = append(lines, "  address "+a.Prefix.String())
			}
		}
		vteps, _ := f.Flood(l.Index)
		for _, v := range vteps {
			lines = append(lines, "  flood "+v.String())
		}
	}
	lines = append(lines, f.dumpRest()...)
	return strings.Join(lines, "\n") + "\n"
}

func (f *Fake) dumpLink(l Link) string {
	state := "down"
	if l.Up {
		state = "up"
	}
	line := fmt.Sprintf("%s %s mtu %d %s", l.Kind, l.Name, l.MTU, state)
	switch l.Kind {
	case "vxlan":
		line += fmt.Sprintf(" vni %d port %d local %s learning %t", l.VXLAN.VNI, l.VXLAN.Port, l.VXLAN.Local, l.VXLAN.Learning)
	case "macvlan":
		line += fmt.Sprintf(" on %s mode %s", f.nameOf(l.Lower), l.Macvlan.Mode)
	case "vlan":
		line += fmt.Sprintf(" on %s id %d", f.nameOf(l.Lower), l.VLAN)
	}
	return line
}

func (f *Fake) dumpRest() []string {
	var lines []string
	for _, r := range f.routes {
		if r.Protocol == RouteProtocol {
			lines = append(lines, "route "+f.route(r))
		}
	}
	for path, value := range f.sysctls {
		if value != "0" {
			lines = append(lines, "sysctl "+path+"="+value)
		}
	}
	slices.Sort(lines)
	return lines
}
