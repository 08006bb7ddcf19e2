package kube

import (
	"context"
	"fmt"
	"net/netip"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Sliced narrows pools to this node's slice of their range, as Whereabouts' NodeSlicePool says. The object
// is named after network_name, else after the network. A pool that the slice isn't part of (one of another
// family) stays whole. Errors have code 11: a controller of Whereabouts, or the agent, gives nodes their slices.
func (s *Store) Sliced(ctx context.Context, pools []ipam.Pool, network, node string) ([]ipam.Pool, error) {
	var sliced []ipam.Pool
	for _, pool := range pools {
		name := network
		if pool.NetworkName != "" {
			name = pool.NetworkName
		}
		slice, err := s.slice(ctx, name, node)
		if err != nil {
			return nil, err
		}
		if pool.Range.Bits() <= slice.Bits() && pool.Range.Contains(slice.Addr()) {
			if pool, err = pool.Sliced(node, slice); err != nil {
				return nil, cnierr.New(cnierr.InvalidConfig, "node slice %s of NodeSlicePool %s/%s: %w", slice, s.Namespace, name, err)
			}
		}
		sliced = append(sliced, pool)
	}
	return sliced, nil
}

// slice looks a node's slice up in what the server has in memory. That may lack a network or a node that has just come, so only the
// object as it is says that there is none.
func (s *Store) slice(ctx context.Context, name, node string) (netip.Prefix, error) {
	object, err := s.readSlices(ctx, name, kubeapi.Cached())
	if err == nil && object.sliceOf(node) == "" {
		object, err = s.readSlices(ctx, name)
	}
	text := object.sliceOf(node)
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case object.Metadata.Name == "":
		return netip.Prefix{}, cnierr.New(cnierr.TryAgain, "ipam.node_slice_size is set, but there is no NodeSlicePool %s/%s: is Whereabouts' node slice controller running, or an agent with --node-slices, and does it know this network?", s.Namespace, name)
	case text == "":
		return netip.Prefix{}, cnierr.New(cnierr.TryAgain, "NodeSlicePool %s/%s has no slice for node %s (%d of %d slices are given): make the range bigger or node_slice_size longer, or wait for who gives nodes their slices: Whereabouts' node slice controller, or an agent with --node-slices",
			s.Namespace, name, node, object.given(), len(object.Status.Allocations))
	}
	slice, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, cnierr.New(cnierr.TryAgain, "NodeSlicePool %s/%s: the slice %q of node %s isn't a network in CIDR notation", s.Namespace, name, text, node)
	}
	return slice.Masked(), nil
}

// readSlices reads a NodeSlicePool, an empty one where there is none.
func (s *Store) readSlices(ctx context.Context, name string, opts ...kubeapi.Option) (object nodeSlicePool, err error) {
	err = s.API.Get(ctx, Slices(s.Namespace), name, &object, opts...)
	if err != nil && !apierrors.IsNotFound(err) {
		return object, fmt.Errorf("read NodeSlicePool %s/%s: %w", s.Namespace, name, s.API.Explain(err))
	}
	return object, nil
}

// sliceOf is what a node was given, "" for nothing.
func (p nodeSlicePool) sliceOf(node string) string {
	for _, a := range p.Status.Allocations {
		if a.NodeName == node {
			return a.SliceRange
		}
	}
	return ""
}

// given counts the slices that some node has.
func (p nodeSlicePool) given() int {
	n := 0
	for _, a := range p.Status.Allocations {
		if a.NodeName != "" {
			n++
		}
	}
	return n
}
