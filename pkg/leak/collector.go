package leak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// passTime bounds a pass; what it doesn't come to the next one does.
const passTime = time.Minute

// Collector gives leaked claims back. One at a time is enough; two do no harm.
type Collector struct {
	Settings
	API       *kubeapi.Client
	Namespace string   // of Whereabouts' objects; empty: kube-system
	Metrics   *Metrics // nil: none
	Log       *slog.Logger

	// Seen is shown all claims that a pass found; nil: nobody is. For who wants them, too, and needs no list of his own then.
	Seen func(ctx context.Context, claims []v1alpha1.AddressClaim)

	memory Memory
	found  int // claims of the last pass, for which the next one has room: a slice that grows to ten thousand leaves twice that behind
}

// Run makes passes until ctx ends. It may be run again: then all passes count anew.
func (c *Collector) Run(ctx context.Context) error {
	c.setDefaults()
	c.memory = Memory{}
	defer c.Metrics.found(0) // who collects now says what there is
	ticker := time.NewTicker(c.Interval)
	defer ticker.Stop()
	for {
		if _, err := c.Pass(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("leaked claims can't be collected now", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Pass makes one pass and returns what it gave back.
func (c *Collector) Pass(ctx context.Context) (collected []Verdict, err error) {
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	defer func() { c.Metrics.passed(err) }()
	seen, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	leaked, due := c.memory.Pass(c.Settings, time.Now(), seen)
	c.Metrics.found(len(leaked))
	store := kube.New(kube.Options{API: c.API, Namespace: c.Namespace})
	var errs []error
	for _, v := range due {
		done, err := store.ReleaseAsRead(ctx, v.Claim)
		switch {
		case err != nil:
			errs = append(errs, err)
		case done:
			c.Metrics.collected(v.Reason)
			c.Log.Info("gave a leaked claim back", "claim", v.Claim.Name, "address", v.Claim.Spec.Address, "pod", v.Claim.Spec.PodRef, "node", v.Claim.Spec.Node,
				"container", v.Claim.Spec.ContainerID, "reason", v.Reason, "why", v.Why)
			collected = append(collected, v)
		}
	}
	return collected, errors.Join(errs...)
}

var (
	pods  = kubeapi.Resource{Version: "v1", Plural: "pods"}
	nodes = kubeapi.Resource{Version: "v1", Plural: "nodes"}
)

// read reads the cluster as it is: claims, then pods, then Nodes. Of pods only those with claims are kept.
func (c *Collector) read(ctx context.Context) (*Cluster, error) {
	seen := &Cluster{Claims: make([]v1alpha1.AddressClaim, 0, c.found+c.found/8), Pods: map[string]Pod{}, Nodes: map[string]Node{}}
	wanted := map[string]bool{}
	err := kubeapi.Each(ctx, c.API, kube.Claims, func(claim v1alpha1.AddressClaim) {
		claim.ManagedFields, claim.Labels = nil, nil // two thirds of what ten thousand of them take, and said by their spec
		seen.Claims = append(seen.Claims, claim)
		wanted[claim.Spec.PodRef] = true
	})
	if err != nil {
		return nil, fmt.Errorf("list claims: %w", c.API.Explain(err))
	}
	c.found = len(seen.Claims)
	seen.Now = c.API.Now()
	if c.Seen != nil {
		c.Seen(ctx, seen.Claims)
	}
	if len(seen.Claims) == 0 {
		return seen, nil
	}
	err = kubeapi.Each(ctx, c.API, pods, func(p podObject) {
		if ref := p.Metadata.Namespace + "/" + p.Metadata.Name; wanted[ref] {
			seen.Pods[ref] = p.pod()
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", c.API.Explain(err))
	}
	err = kubeapi.Each(ctx, c.API, nodes, func(n nodeObject) { seen.Nodes[n.Metadata.Name] = n.node() })
	if err != nil {
		return nil, fmt.Errorf("list Nodes: %w", c.API.Explain(err))
	}
	return seen, nil
}

// meta is what is read of an object's metadata.
type meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Deletion    *metav1.Time      `json:"deletionTimestamp"`
	Annotations map[string]string `json:"annotations"`
}
