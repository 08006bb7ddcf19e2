package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

// Matrix measures all ways that storage traffic takes between nodes and pods that
// have a storage address, by ping. Loss is a result, not an error.
func (c *Cluster) Matrix(ctx context.Context, pods []Running) ([]lab.Leg, error) {
	var legs []lab.Leg
	var from []func(func() error) error
	for _, to := range pods {
		for _, p := range pods {
			if p.Node != to.Node {
				legs, from = append(legs, lab.Leg{Leg: lab.LegPodPod, From: p.Name, To: to.Name, Address: to.Storage}), append(from, p.In)
			}
		}
		for _, n := range c.Nodes {
			if n.Off() {
				continue
			}
			leg := lab.LegHostRemote
			if n == to.Node {
				leg = lab.LegHostLocal
			}
			legs, from = append(legs, lab.Leg{Leg: leg, From: n.Name, To: to.Name, Address: to.Storage}), append(from, n.Do)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i := range legs {
		group.Go(func() error { return measure(ctx, from[i], &legs[i]) })
	}
	return legs, group.Wait()
}

func measure(ctx context.Context, in func(func() error) error, leg *lab.Leg) error {
	var result probe.PingResult
	err := in(func() (err error) {
		result, err = probe.Ping(ctx, probe.PingOptions{Target: leg.Address, Wait: 2 * time.Second})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s to %s: %w", leg.From, leg.To, err)
	}
	leg.Packets, leg.Loss = result.Wanted, result.Loss()
	if result.Received > 0 {
		ms := float64(result.Avg.Microseconds()) / 1000
		leg.RTT = &ms
	}
	return nil
}

// readDisk logs in from the current network namespace, reads an instance manager's
// disk and compares it.
func readDisk(ctx context.Context, portal netip.AddrPort) error {
	read, err := probe.ISCSIRead(ctx, probe.ISCSITarget{Portal: portal, Name: targetName, LUN: targetLUN}, diskBytes)
	if err == nil && read.SHA256 != sha256.Sum256(disk()) {
		err = errors.New("what was read isn't what is on the disk")
	}
	return err
}

func writeSecret(path string, content []byte) error { return os.WriteFile(path, content, 0o600) }
