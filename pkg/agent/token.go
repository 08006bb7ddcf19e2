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
		due, why := a.tokenDue(time.Now())
		wait := min(time.Until(due), tokenLook)
		if wait <= 0 {
			token, err := a.writeToken(ctx)
			if err != nil && ctx.Err() == nil {
				a.metrics.tokenFailures.Inc()
				a.log.Warn("the plugins' token isn't renewed", "file", a.node.Kubeconfig, "why", why, "error", err)
				wait, retry = retry, min(2*retry, tokenLongRetry)
			} else {
				// Not until it is due: where this node's clock is wrong, each is due at once.
				wait, retry = min(token.Due().Sub(token.Issued), tokenLook), tokenRetry
			}
		}
		pause(ctx, wait)
	}
	return nil
}

// tokenDue says when a new token is needed (never: at once), and why.
func (a *Agent) tokenDue(now time.Time) (due time.Time, why string) {
	file, err := kubeconfig.Read(a.node.Kubeconfig)
	if err != nil {
		return time.Time{}, err.Error()
	}
	token, err := kubeconfig.ParseToken(file.Token)
	if err != nil {
		return time.Time{}, err.Error()
	}
	a.metrics.tokenExpires.Set(float64(token.Expires.Unix()))
	if expired := now.After(token.Expires); expired {
		a.health.set("token", "the plugins' token in "+a.node.Kubeconfig+" has expired: ADDs fail until the API server gives another")
	} else {
		a.health.set("token", "")
	}
	return token.Due(), "a quarter of its life is over"
}

func (a *Agent) writeToken(ctx context.Context) (kubeconfig.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	file, err := kubeconfig.ServerOf(a.config)
	if err != nil {
		return kubeconfig.Token{}, err
	}
	if old, err := kubeconfig.Read(a.node.Kubeconfig); err == nil { // the installer may have chosen another way to the server
		file = old
	}
	renewal := kubeconfig.Renewal{API: a.api, Account: kubeconfig.NodeAccount, Node: a.node.NodeName, Lifetime: a.options.TokenLifetime, File: file}
	token, err := renewal.Write(ctx, a.node.Kubeconfig)
	if err != nil {
		return token, err
	}
	a.metrics.tokenExpires.Set(float64(token.Expires.Unix()))
	a.health.set("token", "")
	a.log.Info("renewed the plugins' token", "expires", token.Expires)
	return token, nil
}
