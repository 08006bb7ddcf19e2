package main

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
)

// call is one call of the plugin.
type call struct {
	args   *skel.CmdArgs
	flat   []byte // the flat file; nil without one
	cfg    ipam.Config
	faults error // of the configuration; DEL and GC go on all the same
	alloc  ipam.Allocator
	store  *kube.Store  // the cluster's; nil without one
	queue  *queue.Queue // with a cluster
	lost   error        // why the cluster can't even be called
}

func (s standby) newCall(args *skel.CmdArgs) (c *call, err error) {
	if s.faults != nil {
		return nil, s.faults
	}
	in := ipam.Input{NetConf: args.StdinData, Args: args.Args, Cluster: s.node.Kubeconfig != ""}
	if in.Flat, in.FlatPath, err = readFlat(ipam.FlatPaths(args.StdinData)); err != nil {
		return nil, err
	}
	c = &call{args: args, flat: in.Flat}
	c.cfg, c.faults = ipam.Parse(in)
	if cnierr.CodeOf(c.faults) == cnierr.Decode {
		return nil, c.faults
	}
	c.alloc = ipam.Allocator{
		Pools: c.cfg.Pools, Order: c.cfg.Order,
		Owner: ipam.Owner{
			Network: c.cfg.Network, Node: s.node.NodeName, PodRef: c.cfg.Pod.Ref, PodUID: c.cfg.Pod.UID,
			ContainerID: args.ContainerID, IfName: args.IfName, MAC: c.cfg.Pod.MAC,
		},
	}
	return c, c.openStore(s)
}

// readFlat reads the first file that exists; nil when none does.
func readFlat(paths []string) (data []byte, path string, err error) {
	for _, path := range paths {
		data, err := os.ReadFile(path) //nolint:gosec // the path is the operator's own choice
		switch {
		case err == nil:
			return data, path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, "", cnierr.New(cnierr.IO, "read the flat configuration file (ipam.configuration_path or one of Whereabouts' own places): %w", err)
		}
	}
	return nil, "", nil
}

func add(ctx context.Context, c *call) error {
	for _, w := range c.cfg.Warnings {
		c.say("%s", w)
	}
	if c.faults != nil {
		return c.faults
	}
	if err := c.notHost(); err != nil {
		return err
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	grant, err := c.alloc.Add(ctx)
	if err != nil {
		return err
	}
	err = fault.At("ipam.add.result")
	if err == nil {
		err = types.PrintResult(c.cfg.Result(grant.Addresses), c.version())
	}
	if err != nil {
		return errors.Join(cnierr.New(cnierr.IO, "print the result: %w", err), grant.Undo(ctx))
	}
	return nil
}

// notHost refuses the plugin's own netns before anything is claimed; the library that calls
// us would do so afterwards.
func (c *call) notHost() error {
	if o := os.Getenv("CNI_NETNS_OVERRIDE"); o == "1" || o == "TRUE" || o == "true" {
		return nil
	}
	own, ownErr := os.Stat("/proc/self/ns/net")
	theirs, err := os.Stat(c.args.Netns) // need not exist: addresses can be had without it
	if ownErr == nil && err == nil && os.SameFile(own, theirs) {
		return cnierr.New(cnierr.HostNetns, "CNI_NETNS %s is the network namespace that the plugin runs in: addresses are for pods", c.args.Netns)
	}
	return nil
}

// version is the one that the result must have; 0.1.0 when the configuration says none.
func (c *call) version() string {
	if c.cfg.CNIVersion == "" {
		return "0.1.0"
	}
	return c.cfg.CNIVersion
}

func del(ctx context.Context, c *call) error {
	if c.lost != nil {
		return c.queueDel()
	}
	if err := c.connect(ctx); err != nil {
		c.say("what was recorded in this node's slice by Whereabouts isn't looked for: %v", err)
	}
	return c.alloc.Del(ctx)
}

func check(ctx context.Context, c *call) error {
	if c.faults != nil {
		return c.faults
	}
	if c.cfg.Previous == nil {
		return cnierr.New(cnierr.InvalidConfig, "prevResult is missing: CHECK compares it with the claims")
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	return c.alloc.Check(ctx, c.cfg.Claimed())
}

func status(ctx context.Context, c *call) error {
	if c.faults != nil {
		return c.faults
	}
	if err := c.connect(ctx); err != nil {
		return &cnierr.Error{Code: cnierr.NotAvailable, Err: err}
	}
	return c.alloc.Status(ctx)
}

func gc(ctx context.Context, c *call) error {
	if err := c.connect(ctx); err != nil && c.lost != nil {
		return err
	}
	return c.alloc.Collect(ctx, c.cfg.Valid)
}

func (c *call) decline(ctx context.Context, addr netip.Addr, mac string) error {
	if c.faults != nil {
		return c.faults
	}
	if err := c.connect(ctx); err != nil && c.lost != nil {
		return err
	}
	return c.alloc.Decline(ctx, addr, mac)
}
