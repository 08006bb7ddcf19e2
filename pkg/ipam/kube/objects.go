package kube

import (
	"math/big"
	"net/netip"
	"strconv"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Claims are the claims of a cluster.
var Claims = kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: v1alpha1.AddressClaimResource}

const (
	whereaboutsGroup   = "whereabouts.cni.cncf.io"
	whereaboutsVersion = "v1alpha1"
)

// Pools are Whereabouts' IPPools in a namespace.
func Pools(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: whereaboutsGroup, Version: whereaboutsVersion, Plural: "ippools", Namespace: namespace}
}

// Reservations are Whereabouts' OverlappingRangeIPReservations, see [Pools].
func Reservations(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: whereaboutsGroup, Version: whereaboutsVersion, Plural: "overlappingrangeipreservations", Namespace: namespace}
}

// Slices are Whereabouts' NodeSlicePools, see [Pools].
func Slices(namespace string) kubeapi.Resource {
	return kubeapi.Resource{Group: whereaboutsGroup, Version: whereaboutsVersion, Plural: "nodeslicepools", Namespace: namespace}
}

// nodeSlicePool is Whereabouts' NodeSlicePool, which its types of v0.8.0 don't have yet.
type nodeSlicePool struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Range     string `json:"range"`
		SliceSize string `json:"sliceSize"`
	} `json:"spec"`
	Status struct {
		Allocations []struct {
			NodeName   string `json:"nodeName"`
			SliceRange string `json:"sliceRange"`
		} `json:"allocations"`
	} `json:"status"`
}

// objectOf is the object that makes a claim.
func objectOf(pool ipam.Pool, c ipam.Claim) v1alpha1.AddressClaim {
	return v1alpha1.AddressClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.AddressClaimKind},
		ObjectMeta: metav1.ObjectMeta{Name: c.Name, Labels: map[string]string{
			v1alpha1.LabelNode: v1alpha1.LabelValue(c.Node), v1alpha1.LabelNetwork: v1alpha1.LabelValue(c.Network),
			v1alpha1.LabelPool: v1alpha1.LabelValue(c.Pool), v1alpha1.LabelContainer: v1alpha1.LabelValue(c.ContainerID),
		}},
		Spec: v1alpha1.AddressClaimSpec{
			Address: c.Address.String(), Pool: c.Pool, Range: pool.Kept().String(), NetworkName: pool.NetworkName, Isolated: pool.Isolated,
			Network: c.Network, Node: c.Node, PodRef: c.PodRef, PodUID: c.PodUID,
			ContainerID: c.ContainerID, IfName: c.IfName, MAC: c.MAC,
		},
	}
}

// claimOf is the claim that an object stands for; its address is invalid when somebody wrote nonsense.
func claimOf(o v1alpha1.AddressClaim) ipam.Claim {
	addr, err := netip.ParseAddr(o.Spec.Address)
	if err != nil {
		addr = netip.Addr{}
	}
	c := ipam.Claim{
		Name: o.Name, Pool: o.Spec.Pool, Address: addr, Created: o.CreationTimestamp.Time,
		Owner: ipam.Owner{
			Network: o.Spec.Network, Node: o.Spec.Node, PodRef: o.Spec.PodRef, PodUID: o.Spec.PodUID,
			ContainerID: o.Spec.ContainerID, IfName: o.Spec.IfName, MAC: o.Spec.MAC,
		},
	}
	if d := o.Spec.Declined; d != nil {
		c.Declined = &ipam.Declined{MAC: d.MAC, Until: d.Until.Time}
	}
	return c
}

// over says whether a quarantine has ended.
func over(o v1alpha1.AddressClaim, now time.Time) bool {
	return o.Spec.Declined != nil && !now.Before(o.Spec.Declined.Until.Time)
}

// live says whether a claim is an attachment's: neither given up nor in quarantine.
func live(o v1alpha1.AddressClaim) bool { return !o.Spec.Released && o.Spec.Declined == nil }

// entryOf is what an IPPool holds for a claim.
func entryOf(spec v1alpha1.AddressClaimSpec) whereabouts.IPAllocation {
	return whereabouts.IPAllocation{ContainerID: spec.ContainerID, PodRef: spec.PodRef, IfName: spec.IfName}
}

// reservationOf is the reservation that mirrors a claim. All its fields are written: older
// Whereabouts require the container id, newer ones the podref.
func reservationOf(spec v1alpha1.AddressClaimSpec, namespace string) whereabouts.OverlappingRangeIPReservation {
	return whereabouts.OverlappingRangeIPReservation{
		TypeMeta:   metav1.TypeMeta{APIVersion: whereaboutsGroup + "/" + whereaboutsVersion, Kind: "OverlappingRangeIPReservation"},
		ObjectMeta: metav1.ObjectMeta{Name: reservationName(spec), Namespace: namespace},
		Spec:       whereabouts.OverlappingRangeIPReservationSpec{ContainerID: spec.ContainerID, PodRef: spec.PodRef, IfName: spec.IfName},
	}
}

// reservationName is the name of a claim where overlapping ranges are on.
func reservationName(spec v1alpha1.AddressClaimSpec) string {
	addr, err := netip.ParseAddr(spec.Address)
	if err != nil {
		return ""
	}
	return ipam.Pool{NetworkName: spec.NetworkName}.ClaimName(addr)
}

// keyOf is the key of an address in an IPPool: its distance from the pool's first address.
func keyOf(base, addr netip.Addr) string {
	return new(big.Int).Sub(number(addr), number(base)).String()
}

// addressAt is the address of a key; false for a key that is none of the pool's family.
func addressAt(base netip.Addr, key string) (netip.Addr, bool) {
	if n, err := strconv.ParseUint(key, 10, 32); err == nil && base.Is4() { // by far the most
		sum := n + number(base).Uint64()
		if sum > 1<<32-1 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}), true
	}
	n, ok := new(big.Int).SetString(key, 10)
	if !ok || n.Sign() < 0 {
		return netip.Addr{}, false
	}
	n.Add(n, number(base))
	if n.BitLen() > base.BitLen() {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(n.FillBytes(make([]byte, base.BitLen()/8)))
	return addr, ok
}

func number(addr netip.Addr) *big.Int { return new(big.Int).SetBytes(addr.AsSlice()) }

// version reads a resourceVersion, 0 for none.
func version(text string) uint64 {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return v
}
