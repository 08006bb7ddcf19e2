package hostclaim

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// Name is the name of the object for an index on a parent: `<parent>-<index>`. Device names may have characters that objects'
// names may not; then a digest stands for what is lost.
func Name(parent string, index int) string {
	legal := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '-'
		}
	}, parent)
	legal = strings.Trim(legal, "-")
	if legal != parent {
		sum := sha256.Sum256([]byte(parent))
		legal = strings.Trim(legal+"-"+hex.EncodeToString(sum[:4]), "-")
	}
	return legal + "-" + strconv.Itoa(index)
}

// object is what a node's object must be. Its places on other networks of the parent stay.
func (c *Claimer) object(plan *netconf.Plan, want place.Place, own *v1alpha1.HostShim) *v1alpha1.HostShim {
	object := &v1alpha1.HostShim{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{Name: Name(plan.Parent.Name, want.Index), Labels: map[string]string{
			v1alpha1.LabelParent: v1alpha1.LabelValue(plan.Parent.Name), v1alpha1.LabelNode: v1alpha1.LabelValue(c.Node.NodeName),
		}},
		Spec: v1alpha1.HostShimSpec{
			Node: c.Node.NodeName, MachineID: c.MachineID, Parent: plan.Parent.Name, Index: want.Index, VTEP: text(want.VTEP),
		},
	}
	if own != nil && c.MachineID == "" {
		object.Spec.MachineID = own.Spec.MachineID // who doesn't know it (in a container) leaves it
	}
	network := v1alpha1.ShimNetwork{Name: plan.Name}
	for _, addr := range want.Shim {
		network.Addresses = append(network.Addresses, v1alpha1.ShimAddress(addr.String()))
	}
	known := plan.HostShim == nil
	if own != nil {
		for _, n := range own.Spec.Networks {
			if n.Name == plan.Name && !known {
				n, known = network, true
			}
			object.Spec.Networks = append(object.Spec.Networks, n)
		}
	}
	if !known {
		object.Spec.Networks = append(object.Spec.Networks, network)
	}
	object.Spec.Address = listed(object.Spec.Networks)
	return object
}

// listed are the addresses of all networks in one text. A column of kubectl shows one value only
// (apiextensions-apiserver, tableconvertor).
func listed(networks []v1alpha1.ShimNetwork) string {
	var texts []string
	for _, n := range networks {
		for _, a := range n.Addresses {
			texts = append(texts, string(a))
		}
	}
	return strings.Join(texts, ",")
}

func text(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// placeOf is what an object says of a node's place on a network.
func placeOf(h *v1alpha1.HostShim, network string) place.Place {
	p := place.Place{Index: h.Spec.Index, VTEP: parse(h.Spec.VTEP)}
	for _, n := range h.Spec.Networks {
		if n.Name != network {
			continue
		}
		for _, a := range n.Addresses {
			if addr := parse(string(a)); addr.IsValid() {
				p.Shim = append(p.Shim, addr)
			}
		}
	}
	return p
}
