package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	realcluster "github.com/lhstorage/lhstorage/integration/cluster"
	"github.com/lhstorage/lhstorage/integration/controlplane"
)

const (
	podsNamespace = "bench"
	podsAtOnce    = 100
	podTurns      = 2
)

// podCase is a network of whole pods in a real cluster of three nodes: scheduler,
// kubelet, containerd and Multus have a part in what it costs, as a user sees it.
type podCase struct {
	name     string
	network  string
	ipam     string // type
	conf     string
	baseline string
}

// podCases share the parents that a script made, which stock macvlan needs. lhstorage comes
// first: its first crowd finds cold caches, and none of what whereabouts leaves behind.
var podCases = []podCase{
	{name: "pods:lhstorage", network: "storage", ipam: "lhstorage-ipam", baseline: "pods:macvlan+whereabouts", conf: `{"cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.100.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}}`},
	{name: "pods:macvlan+whereabouts", network: "stock", ipam: "whereabouts", conf: `{"cniVersion": "1.0.0", "name": "stock", "type": "macvlan", "master": "vxlan-storage", "mode": "bridge",
  "ipam": {"type": "whereabouts", "range": "10.100.1.0/24", "exclude": ["10.100.1.0/28"]}}`},
}

// podTally is what a case's pods have cost.
type podTally struct {
	podCase
	ready, gone []time.Duration // of all, by turn
	each        []time.Duration // of one pod, until it was Ready
}

// wholePods measures a hundred pods made at once, and removed.
func (b *bench) wholePods(ctx context.Context) (err error) {
	if len(b.podCases) == 0 {
		return nil
	}
	b.progress.say("starting a cluster of three nodes")
	c, err := realcluster.Start(ctx, realcluster.Options{Script: true, UnsafeNoFsync: b.noFsync})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	tallies, err := preparePods(ctx, c, b.podCases)
	if err != nil {
		return err
	}
	defer func() {
		for _, t := range tallies {
			b.report.enterPods(t)
		}
	}()
	for _, t := range tallies {
		for turn := range podTurns {
			b.progress.say("%d pods at once, turn %d of %d: %s", podsAtOnce, turn+1, podTurns, t.name)
			if err := t.take(ctx, c); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	return nil
}

func preparePods(ctx context.Context, c *realcluster.Cluster, cases []podCase) (tallies []*podTally, err error) {
	if err := errors.Join(c.InstallLhstorage(ctx), c.CreateNamespace(ctx, podsNamespace)); err != nil {
		return nil, err
	}
	for _, pc := range cases {
		if err := c.CreateNetwork(ctx, podsNamespace, pc.network, pc.conf); err != nil {
			return nil, err
		}
		tallies = append(tallies, &podTally{podCase: pc})
	}
	return tallies, nil
}

// take makes a crowd and removes it. What whereabouts keeps for ever isn't waited for.
func (t *podTally) take(ctx context.Context, c *realcluster.Cluster) error {
	network := controlplane.Network{Namespace: podsNamespace, Name: t.network, Interface: realcluster.StorageInterface}
	crowd, err := c.MakeCrowd(ctx, podsNamespace, network, podsAtOnce)
	if err != nil {
		return err
	}
	t.ready, t.each = append(t.ready, crowd.Wall()), append(t.each, crowd.Ready...)
	began := time.Now()
	if err := c.RemovePods(ctx, podsNamespace); err != nil {
		return err
	}
	if t.ipam == "whereabouts" {
		t.gone = append(t.gone, time.Since(began))
		return nil
	}
	err = errors.Join(crowd.Duplicates(), c.WaitNoneHeld(ctx))
	t.gone = append(t.gone, time.Since(began))
	return err
}

// enterPods adds a case's two lines: until all pods are Ready, and until all are gone and,
// with lhstorage, hold nothing.
func (r *report) enterPods(t *podTally) {
	if len(t.gone) == 0 {
		return
	}
	r.Results = append(r.Results,
		result{
			Case: t.name, N: podsAtOnce, Op: "READY", baseline: t.baseline, turns: len(t.ready), Wall: percentile(t.ready, 50).Seconds(),
			P50: milli(percentile(t.each, 50)), P99: milli(percentile(t.each, 99)),
		},
		result{Case: t.name, N: podsAtOnce, Op: "GONE", baseline: t.baseline, turns: len(t.gone), Wall: percentile(t.gone, 50).Seconds()})
}
