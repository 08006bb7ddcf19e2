package agent

import (
	"context"
	"path/filepath"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	queueLook   = time.Second      // how often the queue is looked at; also how soon the return of the API server is noticed
	refusedWait = 10 * time.Second // after releases were refused; doubled to refusedLong
	refusedLong = 5 * time.Minute
	replayTime  = 30 * time.Second
)

// replay carries out the releases that DELs queued while the API server was away. Where the server is still away one call a second finds that
// out; releases that it refuses are tried more and more seldom.
func (a *Agent) replay(ctx context.Context) error {
	q := queue.Open(filepath.Join(a.node.StateDir, queue.DirName))
	refused := refusedWait
	for ctx.Err() == nil {
		wait := queueLook
		n, err := q.Len()
		if err != nil {
			a.log.Warn("the queue of releases can't be read", "error", err)
		}
		a.metrics.queued.Set(float64(n))
		if n == 0 {
			pause(ctx, wait)
			continue
		}
		err = a.replayOnce(ctx, q)
		left, _ := q.Len() // an error was told of above
		a.metrics.replayed.Add(float64(max(0, n-left)))
		a.metrics.queued.Set(float64(left))
		switch {
		case err == nil:
			a.log.Info("carried out queued releases", "releases", n-left)
			refused = refusedWait
		case cnierr.CodeOf(err) != cnierr.TryAgain && ctx.Err() == nil:
			a.log.Warn("queued releases are refused", "error", err, "again", refused)
			wait, refused = refused, min(2*refused, refusedLong)
		}
		pause(ctx, wait)
	}
	return nil
}

func (a *Agent) replayOnce(ctx context.Context, q *queue.Queue) error {
	ctx, cancel := context.WithTimeout(ctx, replayTime)
	defer cancel()
	store := kube.New(kube.Options{
		API: a.api, Namespace: kubeapi.NamespaceOf(a.node.Kubeconfig), Pools: a.pools(),
		Agent: a.node.Record == nodefile.RecordAgent, Journal: filepath.Join(a.node.RunDir, kube.JournalName), Queue: q,
		Warn: func(text string) { a.log.Warn(text) },
	})
	return store.Replay(ctx)
}

// pools are those of all networks: an attachment that a real Whereabouts recorded is looked for in them.
func (a *Agent) pools() []ipam.Pool {
	var all []ipam.Pool
	for _, n := range a.networks() {
		if cfg, err := ipam.Parse(ipam.Input{NetConf: n.Plan.IPAM.Delegate, Cluster: true}); err == nil && n.Plan.IPAM.Type == "lhstorage-ipam" {
			all = append(all, cfg.Pools...)
		}
	}
	return all
}
