package examine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	packets     = 5 // that count; one goes before them
	gap         = 20 * time.Millisecond
	firstAnswer = 500 * time.Millisecond // of the one before: it waits for ARP
	patience    = time.Second            // for the last answer

	smallPayload = 56
)

// headers that a VXLAN puts around an IP packet of its own, in bytes: inner Ethernet, VXLAN, UDP, outer IP.
func vxlanHeaders(vtep netip.Addr) int {
	if vtep.Is4() {
		return 50
	}
	return 70
}

// small sends small packets on all legs.
func (r *run) small(ctx context.Context, targets []Target) []*leg {
	legs := make([]*leg, len(targets))
	for i, t := range targets {
		legs[i] = &leg{Target: t, VerifiedLeg: v1alpha1.VerifiedLeg{
			Kind: t.Kind, Network: t.Network, From: t.From, Node: t.Node, Pod: t.Pod, Address: v1alpha1.VerifiedAddress(t.Address.String()),
		}}
		if t.Netns == "" {
			legs[i].Device = r.deviceTo(t.Address)
		}
	}
	r.each(legs, func(l *leg) { l.Small = r.pings(ctx, l.Target, smallPayload+sizeOf(l.Target.Address), false) })
	return legs
}

// sizeOf are the IP and ICMP headers to an address.
func sizeOf(a netip.Addr) int { return -probe.PayloadFor(a, 0) }

// deviceTo is the device by which the host sends to an address.
func (r *run) deviceTo(a netip.Addr) string {
	route, err := r.Kernel.RouteTo(a)
	if err != nil {
		return ""
	}
	link, err := r.Kernel.LinkByIndex(route.Link)
	if err != nil {
		return ""
	}
	return link.Name
}

func (r *run) each(legs []*leg, do func(*leg)) {
	var group errgroup.Group
	group.SetLimit(legsAtOne)
	for _, l := range legs {
		group.Go(func() error { do(l); return nil })
	}
	_ = group.Wait() // none returns an error
}

// pings sends a row of packets of a size, the first of which doesn't count.
func (r *run) pings(ctx context.Context, t Target, size int, whole bool) v1alpha1.VerifiedPings {
	v := v1alpha1.VerifiedPings{Size: size, Sent: packets, Lost: packets}
	o := probe.PingOptions{Target: t.Address, Source: t.Source, Count: 1, Wait: firstAnswer, Payload: size - sizeOf(t.Address), DontFragment: whole}
	var result probe.PingResult
	err := r.in(t, func() error {
		_, _ = probe.Ping(ctx, o) // what is in its way is in the way of the next ones
		o.Count, o.Interval, o.Wait = packets, gap, patience
		var err error
		result, err = probe.Ping(ctx, o)
		return err
	})
	if err == nil {
		v.Lost = max(0, result.Wanted-result.Received)
		v.Microseconds = result.Median.Microseconds()
		err = result.SendErr
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(next) {
		err = next // what the kernel said is the last of it
	}
	if err != nil {
		v.Error = cut(err.Error(), maxText)
	}
	return v
}

// fullSize is what fills the MTU of a leg's sender; 0 where it isn't known.
func (r *run) fullSize(t Target) int {
	f := r.facts[t.Network]
	switch {
	case t.Kind == v1alpha1.LegUnderlay && f.parent.MTU > 0:
		return f.parent.MTU + vxlanHeaders(t.Address)
	case t.Kind == v1alpha1.LegUnderlay:
		return 0
	case t.Netns != "":
		return r.mtu[podKey(t.Network, t.From)]
	default:
		return f.shim.MTU
	}
}

// full sends packets that fill the MTU: on the legs of this node and of the underlay all at once, then on those to one other node after the other, and counts
// meanwhile. Where not even a small packet came through none is sent.
func (r *run) full(ctx context.Context, legs []*leg, answer *v1alpha1.VerificationStatus) error {
	measure := func(l *leg) {
		if size := r.fullSize(l.Target); size > sizeOf(l.Target.Address)+smallPayload && l.Small.Lost < l.Small.Sent && ctx.Err() == nil {
			pings := r.pings(ctx, l.Target, size, true)
			l.Full = &pings
		}
	}
	var near []*leg
	far := map[string][]*leg{}
	var nodes []string
	for _, l := range legs {
		if l.Target.Node == r.Node || l.Target.Kind == v1alpha1.LegUnderlay {
			near = append(near, l)
			continue
		}
		if !slices.Contains(nodes, l.Target.Node) {
			nodes = append(nodes, l.Target.Node)
		}
		far[l.Target.Node] = append(far[l.Target.Node], l)
	}
	r.each(near, measure)
	before, err := r.count()
	var fragments int64
	for _, node := range nodes {
		fragments, err = r.fragments(err)
		r.each(far[node], measure)
		var after int64
		after, err = r.fragments(err)
		for _, l := range far[node] {
			if l.Full != nil {
				l.Full.Fragments = after - fragments
			}
		}
	}
	if err != nil || len(nodes) == 0 {
		return err
	}
	after, err := r.count()
	answer.Traffic = r.traffic(before, after)
	return err
}

// fragments is how many fragments the host has made since it was started.
func (r *run) fragments(before error) (n int64, err error) {
	if before != nil {
		return 0, before
	}
	err = r.Host(func() error {
		for _, file := range []string{"snmp", "snmp6"} {
			content, err := os.ReadFile("/proc/thread-self/net/" + file) //nolint:gosec // G304: one of two
			if err != nil && file == "snmp" {                            // a host without IPv6 has no other
				return fmt.Errorf("read how many fragments the host makes: %w", err)
			}
			n += FragmentsIn(string(content))
		}
		return nil
	})
	return n, err
}

// FragmentsIn reads FragCreates from the text of /proc/net/snmp or snmp6.
func FragmentsIn(text string) int64 {
	var heads []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "Ip6FragCreates":
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		case len(fields) == 0 || fields[0] != "Ip:":
		case heads == nil:
			heads = fields
		default:
			if i := slices.Index(heads, "FragCreates"); i >= 0 && i < len(fields) {
				n, _ := strconv.ParseInt(fields[i], 10, 64)
				return n
			}
		}
	}
	return 0
}

// counted are the counters of the host's devices and of the pods' interfaces.
type counted struct {
	host map[string]probe.LinkBytes
	pods map[string]probe.LinkBytes // by podKey
}

func (r *run) count() (counted, error) {
	c := counted{pods: map[string]probe.LinkBytes{}}
	err := r.Host(func() (err error) {
		c.host, err = probe.Counters()
		return err
	})
	for _, pod := range r.pods {
		_ = r.in(Target{Netns: pod.Netns}, func() error { // one that is gone sends nothing more
			all, err := probe.Counters()
			c.pods[podKey(pod.Network, refOf(pod))] = all[pod.IfName]
			return err
		})
	}
	return c, err
}

// traffic is what was counted between two looks, for each parent.
func (r *run) traffic(before, after counted) []v1alpha1.VerifiedTraffic {
	management := r.management()
	byParent := map[string]*v1alpha1.VerifiedTraffic{}
	shims := map[string]bool{}
	for _, f := range r.facts {
		if f.parent.Name == "" {
			continue
		}
		t := byParent[f.parent.Name]
		if t == nil {
			t = &v1alpha1.VerifiedTraffic{Parent: f.parent.Name, Management: management}
			t.Sent, t.Received = since(before.host, after.host, f.parent.Name)
			t.ManagementSent, _ = since(before.host, after.host, management)
			byParent[f.parent.Name] = t
		}
		if f.shim.Name != "" && !shims[f.shim.Name] {
			shims[f.shim.Name] = true
			addChild(t, before.host, after.host, f.shim.Name)
		}
	}
	for _, pod := range r.pods {
		if t := byParent[pod.Parent]; t != nil {
			addChild(t, before.pods, after.pods, podKey(pod.Network, refOf(pod)))
		}
	}
	var list []v1alpha1.VerifiedTraffic
	for _, parent := range slices.Sorted(maps.Keys(byParent)) {
		list = append(list, *byParent[parent])
	}
	return list
}

func addChild(t *v1alpha1.VerifiedTraffic, before, after map[string]probe.LinkBytes, name string) {
	sent, received := since(before, after, name)
	t.ChildrenSent += sent
	t.ChildrenReceived += received
}

// since is what a device sent and received between two looks; nothing where it was made, or made anew, between them.
func since(before, after map[string]probe.LinkBytes, name string) (sent, received int64) {
	b, a := before[name], after[name]
	if a.Tx < b.Tx || a.Rx < b.Rx {
		return 0, 0
	}
	return int64(a.Tx - b.Tx), int64(a.Rx - b.Rx)
}

// management is the device that has the node's own address in Kubernetes.
func (r *run) management() string {
	addrs, err := r.Kernel.Addrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if !slices.Contains(r.known.Addresses, a.Prefix.Addr()) {
			continue
		}
		if link, err := r.Kernel.LinkByIndex(a.Link); err == nil {
			return link.Name
		}
	}
	return ""
}
