package kubeipam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// breaker lets one call fail, or that and all after it.
type breaker struct {
	http.RoundTripper
	at      int64
	forever bool
	how     string
	calls   atomic.Int64
}

func (b *breaker) RoundTrip(r *http.Request) (*http.Response, error) {
	n := b.calls.Add(1)
	if n != b.at && (!b.forever || n < b.at) {
		return b.RoundTripper.RoundTrip(r)
	}
	answer := func(code int) (*http.Response, error) {
		return &http.Response{
			StatusCode: code, Header: http.Header{}, Request: r,
			Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"kind": "Status", "status": "Failure", "code": %d, "message": "injected"}`, code))),
		}, nil
	}
	switch b.how {
	case "lost": // carried out, and nobody hears of it
		resp, err := b.RoundTripper.RoundTrip(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		return nil, errors.New("injected loss")
	case "refused":
		return nil, errors.New("injected refusal")
	default:
		var code int
		_, _ = fmt.Sscan(b.how, &code)
		return answer(code)
	}
}

func (b *bed) broken(t *testing.T, br *breaker) *kubeapi.Client {
	cfg := rest.CopyConfig(b.Config)
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { br.RoundTripper = rt; return br }
	api, err := kubeapi.New(cfg)
	require.NoError(t, err)
	api.Patience = 60 * time.Millisecond
	return api
}

// Each call of an ADD, of a newer sandbox's ADD, of a quarantine and of a DEL fails, once and from then on; [throughAProxy] has more ways, and
// the real program, but fails one call alone. The verb
// succeeds or fails with code 11 (or says that things have changed); then the DEL, or what is queued, leaves nothing.
func eachCall(t *testing.T, b *bed) {
	conf := `{"range": "10.0.0.0/28", "exclude": ["10.0.0.1"]}`
	newer := who("default/pod1", "cid2", "net1")
	covered := map[string]int{}
	for _, verb := range []string{"ADD", "re-ADD", "DEL", "decline"} {
		for _, how := range []string{"409", "500", "lost", "refused"} {
			for _, forever := range []bool{false, true} {
				for at := int64(1); ; at++ {
					name := fmt.Sprintf("%s, call %d %s, forever: %t", verb, at, how, forever)
					n := b.node(t, "node1")
					if verb != "ADD" {
						_, err := n.add(t, conf, pod1)
						require.NoError(t, err, name)
					}
					br := &breaker{at: at, forever: forever, how: how}
					owner := pod1
					if verb == "re-ADD" {
						owner = newer
					}
					alloc, _ := n.callBy(t, b.broken(t, br), conf, owner)
					ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
					err := perform(ctx, verb, alloc)
					cancel()
					reached := br.calls.Load() >= at
					if err != nil {
						assert.Contains(t, []cnierr.Code{cnierr.TryAgain, cnierr.InvalidConfig}, cnierr.CodeOf(err), "%s: %v", name, err)
					}
					if err == nil && (verb == "ADD" || verb == "re-ADD") {
						require.Equal(t, 1, b.whole(t, false), name)
					}
					for _, o := range []ipam.Owner{pod1, newer} {
						require.NoError(t, n.del(t, conf, o), name)
					}
					_, store := n.call(t, conf, pod1)
					require.NoError(t, store.Replay(t.Context()), name)
					for _, line := range strings.Split(b.objects(t), "\n") {
						if line != "" && !strings.HasSuffix(line, " declined") {
							require.Fail(t, "left over", "%s: %s", name, line)
						}
					}
					if verb == "decline" {
						b.wipe(t)
					}
					if !reached {
						covered[verb] = max(covered[verb], int(at-1))
						break
					}
				}
			}
		}
	}
	t.Logf("calls that were failed: %v", covered)
	for verb, calls := range covered {
		assert.Greater(t, calls, 3, verb)
	}
}

func perform(ctx context.Context, verb string, alloc ipam.Allocator) error {
	switch verb {
	case "DEL":
		return alloc.Del(ctx)
	case "decline":
		return alloc.Decline(ctx, addr("10.0.0.2"), "02:00:00:00:00:09")
	default:
		_, err := alloc.Add(ctx)
		return err
	}
}
