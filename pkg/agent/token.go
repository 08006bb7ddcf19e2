package agent

import (
	"context"
	"time"

	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
)

const (
	tokenRetry     = 5 * time.Second // doubled to tokenLongRetry
	tokenLongRetry = 2 * time.Minute
	tokenLook      = time.Minute // how often the file is looked at: somebody may have removed it
)

// renewToken keeps the token in the plugins' kubeconfig young: a new one at a quarter of its life, and at once where there is
// none or the API server wouldn't take it any more.
func (a *Agent) renewToken(ctx context.Context) error {
	retry := tokenRetry
	for ctx.Err() == nil {
		wait := tokenLook
		if due, why := a.tokenDue(time.Now()); due {
			if err := a.writeToken(ctx); err != nil && ctx.Err() == nil {
				a.metrics.tokenFailures.Inc()
				a.log.Warn("the plugins' token isn't renewed", "file", a.node.Kubeconfig, "why", why, "error", err)
				wait, retry = retry, min(2*retry, tokenLongRetry)
			} else {
				retry = tokenRetry
			}
		}
		pause(ctx, wait)
	}
	return nil
}

// tokenDue says whether a new token is needed, and why.
func (a *Agent) tokenDue(now time.Time) (due bool, why string) {
	file, err := kubeconfig.Read(a.node.Kubeconfig)
	if err != nil {
		return true, err.Error()
	}
	token, err := kubeconfig.ParseToken(file.Token)
	if err != nil {
		return true, err.Error()
	}
	a.metrics.tokenExpires.Set(float64(token.Expires.Unix()))
	if expired := now.After(token.Expires); expired {
		a.health.set("token", "the plugins' token in "+a.node.Kubeconfig+" has expired: ADDs fail until the API server gives another")
	} else {
		a.health.set("token", "")
	}
	return !now.Before(token.Due()), "a quarter of its life is over"
}

func (a *Agent) writeToken(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	file, err := kubeconfig.ServerOf(a.config)
	if err != nil {
		return err
	}
	if old, err := kubeconfig.Read(a.node.Kubeconfig); err == nil { // the installer may have chosen another way to the server
		file = old
	}
	renewal := kubeconfig.Renewal{API: a.api, Account: kubeconfig.NodeAccount, Node: a.node.NodeName, Lifetime: a.options.TokenLifetime, File: file}
	token, err := renewal.Write(ctx, a.node.Kubeconfig)
	if err != nil {
		return err
	}
	a.metrics.tokenExpires.Set(float64(token.Expires.Unix()))
	a.health.set("token", "")
	a.log.Info("renewed the plugins' token", "expires", token.Expires)
	return nil
}
