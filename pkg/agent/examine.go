package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/examine"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/probe"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// answerVerifications measures when somebody asks: see package examine.
func (a *Agent) answerVerifications(ctx context.Context) error {
	log := a.log.With("part", "verifications")
	examiner := &examine.Examiner{Node: a.node.NodeName, Kernel: a.kernel, Host: probe.Here, Know: a.known, Log: log}
	return (&examine.Desk{Client: a.api, Examiner: examiner, Log: log}).Run(ctx)
}

// known is what this node knows of itself and of the others: by its cache, but for the claims, which no agent watches.
func (a *Agent) known(ctx context.Context) (examine.Known, error) {
	var k examine.Known
	if !synced(a.watches.hostShims, a.watches.nodes) {
		return k, errors.New("the agent doesn't know the cluster's nodes yet: ask again")
	}
	var shims v1alpha1.HostShimList
	if err := a.watches.cache.List(ctx, &shims); err != nil {
		return k, fmt.Errorf("the nodes' places: %w", err)
	}
	k.HostShims = shims.Items
	var own corev1.Node
	if err := a.watches.cache.Get(ctx, client.ObjectKey{Name: a.node.NodeName}, &own); err != nil {
		return k, fmt.Errorf("this node: %w", err)
	}
	for _, address := range own.Status.Addresses {
		if parsed, err := netip.ParseAddr(address.Address); err == nil {
			k.Addresses = append(k.Addresses, parsed)
		}
	}
	var claims v1alpha1.AddressClaimList
	if err := a.api.List(ctx, kube.Claims, &claims, kubeapi.Cached()); err != nil {
		return k, fmt.Errorf("which pods hold addresses: %w", err)
	}
	k.Claims = claims.Items
	var err error
	k.Attachments, err = record.Dir(filepath.Join(a.node.RunDir, "attachments")).List()
	return k, err
}
