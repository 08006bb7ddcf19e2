package examine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/neigh"
)

// netFacts are the devices of a network.
type netFacts struct{ parent, shim kernel.Link }

// networks reads what the kernel has for each network that this node has a place on.
func (r *run) networks() ([]v1alpha1.VerifiedNetwork, error) {
	r.facts = map[string]netFacts{}
	addrs, err := r.Kernel.Addrs()
	if err != nil {
		return nil, fmt.Errorf("read the node's addresses: %w", err)
	}
	var list []v1alpha1.VerifiedNetwork
	var faults []error
	for _, place := range r.known.HostShims {
		if place.Spec.Node != r.Node {
			continue
		}
		for _, n := range place.Spec.Networks {
			v, f, err := r.network(place.Spec.Parent, n, addrs)
			r.facts[n.Name] = f
			list, faults = append(list, v), append(faults, err)
		}
	}
	return list, errors.Join(faults...)
}

func (r *run) network(parent string, n v1alpha1.ShimNetwork, addrs []kernel.Addr) (v1alpha1.VerifiedNetwork, netFacts, error) {
	v := v1alpha1.VerifiedNetwork{Name: n.Name, Parent: parent}
	var f netFacts
	var err error
	if f.parent, err = r.Kernel.Link(parent); err != nil {
		if kernel.IsNotFound(err) {
			return v, f, nil // that it isn't there is the answer
		}
		return v, f, fmt.Errorf("look at the parent %s: %w", parent, err)
	}
	v.ParentKind, v.ParentMTU = f.parent.Kind, f.parent.MTU
	if f.parent.Kind == "vxlan" {
		learning := f.parent.VXLAN.Learning
		v.Learning = &learning
		if f.parent.VXLAN.Local.IsValid() {
			v.VTEP = f.parent.VXLAN.Local.String()
		}
		flood, err := r.Kernel.Flood(f.parent.Index)
		if err != nil {
			return v, f, fmt.Errorf("read the flood entries of %s: %w", parent, err)
		}
		slices.SortFunc(flood, netip.Addr.Compare)
		for _, a := range flood[:min(len(flood), 4096)] {
			v.Flood = append(v.Flood, v1alpha1.VerifiedAddress(a.String()))
		}
	}
	return v, f, r.shim(&v, &f, n, addrs)
}

// shim finds the shim by the node's own addresses: a child of the parent that has one.
func (r *run) shim(v *v1alpha1.VerifiedNetwork, f *netFacts, n v1alpha1.ShimNetwork, addrs []kernel.Addr) error {
	for _, a := range addrs {
		if !slices.Contains(n.Addresses, v1alpha1.ShimAddress(a.Prefix.Addr().String())) {
			continue
		}
		link, err := r.Kernel.LinkByIndex(a.Link)
		if err != nil {
			return fmt.Errorf("look at the device that has %s: %w", a.Prefix, err)
		}
		if link.Kind != "macvlan" || link.Lower != f.parent.Index || !link.Up {
			continue
		}
		f.shim = link
		v.Shim, v.ShimMAC, v.ShimMTU = link.Name, link.MAC.String(), link.MTU
		v.ShimAddresses = append(v.ShimAddresses, v1alpha1.VerifiedAddress(a.Prefix.Addr().String()))
	}
	return nil
}

// podFacts looks into the pods' network namespaces.
func (r *run) podFacts() []v1alpha1.VerifiedPod {
	r.mtu, r.macs = map[string]int{}, map[string]string{}
	var list []v1alpha1.VerifiedPod
	for _, a := range r.pods {
		v := v1alpha1.VerifiedPod{Pod: refOf(a), Network: a.Network, ISCSIDial: v1alpha1.VerifiedAddress(a.ISCSIDial)}
		for _, p := range a.Addresses {
			v.Addresses = append(v.Addresses, v1alpha1.VerifiedAddress(p.Addr().String()))
		}
		err := ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
			i, err := net.InterfaceByName(a.IfName)
			if err == nil {
				v.MAC, v.MTU = i.HardwareAddr.String(), i.MTU
			}
			return err
		})
		if err != nil {
			r.Log.Debug("a pod's interface can't be looked at", "pod", v.Pod, "error", err)
		}
		r.mtu[podKey(a.Network, v.Pod)], r.macs[podKey(a.Network, v.Pod)] = v.MTU, v.MAC
		list = append(list, v)
	}
	return list
}

// answerTime is how long neighbours have to answer.
const answerTime = 400 * time.Millisecond

// askNeighbours asks, for each address of this node, whether anybody else answers for it; and for the pods' addresses by the parent, whether
// the host reaches them without a shim.
func (r *run) askNeighbours(ctx context.Context, networks []v1alpha1.VerifiedNetwork) {
	var wait sync.WaitGroup
	var mu sync.Mutex
	for i := range networks {
		n, f := &networks[i], r.facts[networks[i].Name]
		for _, a := range n.ShimAddresses {
			r.duplicates(ctx, &wait, &mu, n, Target{Network: n.Name, Address: parse(a)}, f.shim.Name)
		}
		for _, pod := range r.pods {
			if pod.Network != n.Name {
				continue
			}
			for _, a := range addrsOf(pod) {
				r.duplicates(ctx, &wait, &mu, n, Target{Network: n.Name, Pod: refOf(pod), Netns: pod.Netns, Address: a}, pod.IfName)
				r.bypass(ctx, &wait, &mu, n, f.parent, a, r.macs[podKey(n.Name, refOf(pod))])
			}
		}
	}
	wait.Wait()
}

func parse(a v1alpha1.VerifiedAddress) netip.Addr {
	addr, _ := netip.ParseAddr(string(a)) // it was made from one
	return addr
}

// duplicates asks from the holder's own interface: whoever answers is another holder.
func (r *run) duplicates(ctx context.Context, wait *sync.WaitGroup, mu *sync.Mutex, n *v1alpha1.VerifiedNetwork, own Target, device string) {
	wait.Go(func() {
		var macs []net.HardwareAddr
		err := r.in(own, func() (err error) {
			macs, err = resolve(ctx, device, own.Address)
			return err
		})
		if err != nil {
			r.Log.Debug("other holders of an address can't be asked for", "address", own.Address, "device", device, "error", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, mac := range macs {
			if len(n.Duplicates) < 64 {
				n.Duplicates = append(n.Duplicates, v1alpha1.VerifiedDuplicate{Address: v1alpha1.VerifiedAddress(own.Address.String()), Holder: own.Pod, MAC: mac.String()})
			}
		}
	})
}

// bypass asks a pod of this node by the parent.
func (r *run) bypass(ctx context.Context, wait *sync.WaitGroup, mu *sync.Mutex, n *v1alpha1.VerifiedNetwork, parent kernel.Link, a netip.Addr, mac string) {
	if parent.Name == "" || mac == "" {
		return
	}
	wait.Go(func() {
		var macs []net.HardwareAddr
		err := r.Host(func() (err error) {
			macs, err = resolve(ctx, parent.Name, a)
			return err
		})
		if err != nil {
			r.Log.Debug("a pod can't be asked by the parent", "address", a, "parent", parent.Name, "error", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if n.Bypass == nil {
			n.Bypass = &v1alpha1.VerifiedBypass{}
		}
		n.Bypass.Asked++
		if slices.ContainsFunc(macs, func(m net.HardwareAddr) bool { return m.String() == mac }) {
			n.Bypass.Answered++
		}
	})
}

// resolve works on the calling thread's network namespace.
func resolve(ctx context.Context, device string, a netip.Addr) ([]net.HardwareAddr, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	return neigh.Resolve(ctx, neigh.Link{Name: i.Name, Index: i.Index, MAC: i.HardwareAddr}, netip.Addr{}, a, answerTime)
}
