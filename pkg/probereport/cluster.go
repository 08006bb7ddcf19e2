package probereport

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Cluster is the Sources and Reports of a node in a cluster.
type Cluster struct {
	Node    string
	Client  *kubeapi.Client
	Records record.Dir
	// HostShims are those of all nodes, from the caller's cache.
	HostShims func(ctx context.Context) ([]v1alpha1.HostShim, error)
}

var (
	_ Sources = Cluster{}
	_ Reports = Cluster{}
)

// Peers implements Sources.
func (c Cluster) Peers(ctx context.Context) ([]Peer, error) {
	shims, err := c.HostShims(ctx)
	if err != nil {
		return nil, fmt.Errorf("whose shims there are: %w", err)
	}
	return PeersOf(shims, c.Node), nil
}

// PeersOf are the places of other nodes.
func PeersOf(shims []v1alpha1.HostShim, self string) []Peer {
	var peers []Peer
	for _, s := range shims {
		for _, n := range s.Spec.Networks {
			p := Peer{Node: s.Spec.Node, Network: n.Name}
			for _, text := range n.Addresses {
				if a, err := netip.ParseAddr(string(text)); err == nil {
					p.Addresses = append(p.Addresses, a)
				}
			}
			if p.Node != self && len(p.Addresses) > 0 {
				peers = append(peers, p)
			}
		}
	}
	return peers
}

// Local implements Sources.
func (c Cluster) Local(context.Context) ([]Pod, error) {
	attachments, err := c.Records.List()
	if err != nil {
		return nil, fmt.Errorf("which pods are attached here: %w", err)
	}
	return PodsOf(attachments, c.Node), nil
}

// PodsOf are the pods of this node that are attached.
func PodsOf(attachments []record.Attachment, node string) []Pod {
	var pods []Pod
	for _, a := range attachments {
		if a.State != record.StateAttached || len(a.Addresses) == 0 {
			continue
		}
		p := Pod{Ref: a.PodRef, Node: node, Network: a.Network, Netns: a.Netns, Parent: a.Parent, Shim: a.Shim, IfName: a.IfName}
		if p.Ref == "" { // started without Kubernetes
			p.Ref = a.ContainerID
		}
		for _, prefix := range a.Addresses {
			p.Addresses = append(p.Addresses, prefix.Addr())
		}
		pods = append(pods, p)
	}
	return pods
}

// Remote implements Sources. What the server has in memory will do: an address
// that doesn't answer is asked for again.
func (c Cluster) Remote(ctx context.Context, nodes ...string) (map[string][]Pod, error) {
	values := make([]string, len(nodes))
	for i, node := range nodes {
		values[i] = v1alpha1.LabelValue(node)
	}
	selector := fmt.Sprintf("%s in (%s)", v1alpha1.LabelNode, strings.Join(values, ","))
	var list v1alpha1.AddressClaimList
	if err := c.Client.List(ctx, kube.Claims, &list, kubeapi.Cached(), kubeapi.Selected(selector)); err != nil {
		return nil, err
	}
	pods := map[string][]Pod{}
	for _, node := range nodes {
		pods[node] = HoldersOf(list.Items, node)
	}
	return pods, nil
}

// HoldersOf are the pods of a node that hold addresses.
func HoldersOf(claims []v1alpha1.AddressClaim, node string) []Pod {
	var pods []Pod
	for _, c := range claims {
		a, err := netip.ParseAddr(c.Spec.Address)
		if err != nil || c.Spec.Node != node || c.Spec.Released || c.Spec.Declined != nil || c.Spec.PodRef == "" {
			continue
		}
		pods = append(pods, Pod{Ref: c.Spec.PodRef, Node: node, Network: c.Spec.Network, Addresses: []netip.Addr{a}})
	}
	return pods
}

// Resource is the kind of the reports.
var Resource = kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: v1alpha1.ProbeReportResource}

// Read implements Reports.
func (c Cluster) Read(ctx context.Context, node string) (v1alpha1.ProbeReportStatus, error) {
	var report v1alpha1.ProbeReport
	err := c.Client.Get(ctx, Resource, node, &report)
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return report.Status, err
}

// Write implements Reports.
func (c Cluster) Write(ctx context.Context, node string, status v1alpha1.ProbeReportStatus) error {
	err := c.Client.Patch(ctx, Resource, node, []kubeapi.Op{kubeapi.Test("/spec/node", node), kubeapi.Add("/status", status)}, kubeapi.Meta(nil))
	if !apierrors.IsNotFound(err) {
		return err
	}
	return c.Client.Create(ctx, Resource, v1alpha1.ProbeReport{
		TypeMeta:   metav1.TypeMeta{Kind: v1alpha1.ProbeReportKind, APIVersion: v1alpha1.GroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       v1alpha1.ProbeReportSpec{Node: node},
		Status:     status,
	}, nil)
}
