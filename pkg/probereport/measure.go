package probereport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sync/errgroup"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	packets  = 5                      // of a leg
	gap      = 100 * time.Millisecond // between them
	patience = time.Second            // for the last answer
	atOnce   = 16                     // legs
)

// measure pings all targets, beginning them evenly over spread. A leg that could
// not be measured at all, because its pod is gone for one, is left out.
func (p *Prober) measure(ctx context.Context, targets []Target, spread time.Duration) ([]v1alpha1.ProbeLeg, error) {
	legs := make([]*v1alpha1.ProbeLeg, len(targets))
	var group errgroup.Group
	group.SetLimit(atOnce)
	begun := time.Now()
	for i, target := range targets {
		if !sleepUntil(ctx, begun.Add(spread*time.Duration(i)/time.Duration(len(targets)))) {
			break
		}
		group.Go(func() error {
			leg, err := p.ping(ctx, target)
			if err != nil {
				p.Log.Debug("a leg can't be measured", "kind", target.Kind, "from", target.From.Ref, "to", target.Address, "error", err)
				return nil
			}
			legs[i] = &leg
			return nil
		})
	}
	_ = group.Wait() // none returns an error
	var list []v1alpha1.ProbeLeg
	for _, leg := range legs {
		if leg != nil {
			list = append(list, *leg)
		}
	}
	return list, ctx.Err()
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (p *Prober) ping(ctx context.Context, t Target) (v1alpha1.ProbeLeg, error) {
	leg := v1alpha1.ProbeLeg{Kind: t.Kind, Network: t.Network, From: t.From.Ref, Node: t.Node, Pod: t.Pod, Address: t.Address.String()}
	in := p.Host
	if t.From.Netns != "" {
		in = func(f func() error) error {
			return ns.WithNetNSPath(t.From.Netns, func(ns.NetNS) error { return f() })
		}
	}
	var result probe.PingResult
	err := in(func() (err error) {
		result, err = probe.Ping(ctx, probe.PingOptions{Target: t.Address, Count: packets, Interval: gap, Wait: patience})
		return err
	})
	if err != nil {
		return leg, fmt.Errorf("%s: %w", t.Address, err)
	}
	leg.Sent, leg.Lost = result.Wanted, max(0, result.Wanted-result.Received)
	if result.Received > 0 {
		leg.RTT = &v1alpha1.ProbeRTT{Min: result.Min.Microseconds(), Median: result.Median.Microseconds(), Max: result.Max.Microseconds()}
	}
	if result.SendErr != nil {
		leg.Error = shorten(errors.Unwrap(result.SendErr), result.SendErr)
	}
	return leg, nil
}

// shorten is the text of an error's cause, in the length that the object allows.
func shorten(cause, err error) string {
	if cause == nil {
		cause = err
	}
	text := cause.Error()
	return text[:min(len(text), 256)]
}
