// Package live reads from a cluster what a storage network is planned by: its Longhorn nodes and disks, and
// the networks that it uses already.
package live

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/plan"
)

// Cluster is what was found.
type Cluster struct {
	Demand    plan.Demand // Images, Upgrade and Shims are for the caller to say
	Networks  []plan.Network
	Harvester bool
	Notes     []string // what couldn't be told, one sentence each
}

// reader collects what is found, and each thing that can't be read.
type reader struct {
	api   *kubeapi.Client
	out   Cluster
	fault []error
}

// Read looks at a cluster whose Longhorn is in namespace. The error names all that couldn't be read.
func Read(ctx context.Context, api *kubeapi.Client, namespace string) (*Cluster, error) {
	r := &reader{api: api}
	r.longhorn(ctx, namespace)
	r.settings(ctx, namespace)
	r.shared(ctx, namespace)
	r.nodes(ctx)
	r.services(ctx)
	r.podNetworks(ctx)
	r.shims(ctx)
	each(ctx, r, kubeapi.Resource{Group: "harvesterhci.io", Version: "v1beta1", Plural: "settings"}, func(struct{}) { r.out.Harvester = true })
	r.out.Networks = append(r.out.Networks, plan.HarvesterReserved(r.out.Harvester)...)
	return &r.out, errors.Join(r.fault...)
}

// each calls do for each object; a kind that the cluster doesn't have has none. found says whether it has the kind.
func each[T any](ctx context.Context, r *reader, resource kubeapi.Resource, do func(T)) (found bool) {
	err := kubeapi.Each(ctx, r.api, resource, do)
	if err != nil && !apierrors.IsNotFound(err) {
		r.fault = append(r.fault, fmt.Errorf("read %s from %s: %w", strings.TrimSuffix(resource.Plural+"."+resource.Group, "."), r.api.Server(), err))
	}
	return err == nil
}

func longhorn(namespace, plural string) kubeapi.Resource {
	return kubeapi.Resource{Group: "longhorn.io", Version: "v1beta2", Plural: plural, Namespace: namespace}
}

func (r *reader) longhorn(ctx context.Context, namespace string) {
	before := len(r.fault)
	each(ctx, r, longhorn(namespace, "nodes"), func(n struct {
		Spec struct {
			Disks map[string]struct{} `json:"disks"`
		} `json:"spec"`
	}) {
		r.out.Demand.Nodes++
		r.out.Demand.Disks += len(n.Spec.Disks)
	})
	if r.out.Demand.Nodes == 0 && len(r.fault) == before {
		r.fault = append(r.fault, fmt.Errorf("there are no nodes.longhorn.io in namespace %s: name Longhorn's namespace by -n, or its size by --nodes and --disks", namespace))
	}
}

func (r *reader) settings(ctx context.Context, namespace string) {
	values := map[string]string{}
	each(ctx, r, longhorn(namespace, "settings"), func(s struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Value string `json:"value"`
	}) {
		values[s.Metadata.Name] = s.Value
	})
	d := &r.out.Demand
	d.V1, d.V2 = values["v1-data-engine"] != "false", values["v2-data-engine"] == "true"
	// The first is of Longhorn 1.7 to 1.10, the second of 1.11 and later.
	d.RWX = values["storage-network-for-rwx-volume-enabled"] == "true"
	if endpoint := values["endpoint-network-for-rwx-volume"]; endpoint != "" {
		if d.RWX = endpoint == values["storage-network"]; !d.RWX {
			r.note("shared volumes have a network of their own, %s: it isn't counted here", endpoint)
		}
	}
}

func (r *reader) shared(ctx context.Context, namespace string) {
	shares := 0
	each(ctx, r, longhorn(namespace, "volumes"), func(v struct {
		Spec struct {
			AccessMode string `json:"accessMode"`
		} `json:"spec"`
	}) {
		if v.Spec.AccessMode == "rwx" {
			shares++
		}
	})
	if r.out.Demand.RWX {
		r.out.Demand.Shares = shares
	}
}

func (r *reader) nodes(ctx context.Context) {
	each(ctx, r, kubeapi.Resource{Version: "v1", Plural: "nodes"}, func(n struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			PodCIDRs []string `json:"podCIDRs"`
		} `json:"spec"`
		Status struct {
			Addresses []struct {
				Type    string `json:"type"`
				Address string `json:"address"`
			} `json:"addresses"`
		} `json:"status"`
	}) {
		r.add(plan.Pod, "node "+n.Metadata.Name, n.Spec.PodCIDRs...)
		for _, a := range n.Status.Addresses {
			if strings.HasSuffix(a.Type, "IP") {
				r.add(plan.Node, n.Metadata.Name, a.Address)
			}
		}
	})
}

func (r *reader) services(ctx context.Context) {
	known := each(ctx, r, kubeapi.Resource{Group: "networking.k8s.io", Version: "v1", Plural: "servicecidrs"}, func(s struct {
		Spec struct {
			CIDRs []string `json:"cidrs"`
		} `json:"spec"`
	}) {
		r.add(plan.Service, "", s.Spec.CIDRs...)
	})
	if known || len(r.fault) > 0 {
		return
	}
	r.note("Kubernetes before 1.33 doesn't tell its service range: only the services' addresses are looked at")
	each(ctx, r, kubeapi.Resource{Version: "v1", Plural: "services"}, func(s struct {
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			ClusterIPs []string `json:"clusterIPs"`
		} `json:"spec"`
	}) {
		for _, ip := range s.Spec.ClusterIPs {
			r.add(plan.Service, "service "+s.Metadata.Namespace+"/"+s.Metadata.Name, ip) // "None" is passed over
		}
	})
}

// podNetworks are those of CNI plugins that don't go by what the Node objects say.
func (r *reader) podNetworks(ctx context.Context) {
	each(ctx, r, kubeapi.Resource{Group: "cilium.io", Version: "v2", Plural: "ciliumnodes"}, func(n struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			IPAM struct {
				PodCIDRs []string `json:"podCIDRs"`
			} `json:"ipam"`
		} `json:"spec"`
	}) {
		r.add(plan.Pod, "Cilium on node "+n.Metadata.Name, n.Spec.IPAM.PodCIDRs...)
	})
	each(ctx, r, kubeapi.Resource{Group: "crd.projectcalico.org", Version: "v1", Plural: "ippools"}, func(p struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			CIDR string `json:"cidr"`
		} `json:"spec"`
	}) {
		r.add(plan.Pod, "Calico's pool "+p.Metadata.Name, p.Spec.CIDR)
	})
}

func (r *reader) shims(ctx context.Context) {
	each(ctx, r, hostclaim.Shims, func(s struct {
		Spec struct {
			Node   string `json:"node"`
			Parent string `json:"parent"`
			VTEP   string `json:"vtep"`
		} `json:"spec"`
	}) {
		r.add(plan.VTEP, s.Spec.Node+" on "+s.Spec.Parent, s.Spec.VTEP)
	})
}

// add notes addresses and networks; what can't be read is passed over, since others judge it.
func (r *reader) add(kind plan.Kind, name string, texts ...string) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			p = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		}
		r.out.Networks = append(r.out.Networks, plan.Network{Kind: kind, Name: name, Prefix: p.Masked()})
	}
}

func (r *reader) note(format string, args ...any) {
	r.out.Notes = append(r.out.Notes, fmt.Sprintf(format, args...))
}
