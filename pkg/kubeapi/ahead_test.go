package kubeapi

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// secure is an HTTPS server that counts its connections, and a kubeconfig for it.
type secure struct {
	*httptest.Server
	made, used atomic.Int32
	protocol   atomic.Value
	kubeconfig string
}

func serveTLS(t *testing.T) *secure {
	s := &secure{kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.used.Add(1)
		s.protocol.Store(r.Proto + " " + r.Header.Get("Authorization"))
		fmt.Fprint(w, `{"answer": 42}`)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{VerifyConnection: func(tls.ConnectionState) error { // at the end of the handshake
		s.made.Add(1)
		return nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	config := map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "here",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{
			"server": s.URL, "certificate-authority-data": base64.StdEncoding.EncodeToString(ca),
		}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": "secret"}}},
		"contexts": []any{map[string]any{"name": "here", "context": map[string]any{"cluster": "c", "user": "u"}}},
	}
	data, err := json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.kubeconfig, data, 0o600))
	return s
}

// The connection is there before the first call, which uses it, as do those beside it.
func TestLoadConnectsAhead(t *testing.T) {
	s := serveTLS(t)
	c, err := Load(s.kubeconfig, "test")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return s.made.Load() == 1 }, time.Minute, time.Millisecond)
	assert.Zero(t, s.used.Load(), "nothing was asked")
	var into struct{ Answer int }
	for range 3 {
		require.NoError(t, c.Get(t.Context(), things, "a", &into))
	}
	assert.Equal(t, 42, into.Answer)
	assert.EqualValues(t, 1, s.made.Load())
	assert.Equal(t, "HTTP/2.0 Bearer secret", s.protocol.Load())
}

// A connection that couldn't be made ahead is made when it is needed.
func TestLoadBeforeTheServerIsThere(t *testing.T) {
	s := serveTLS(t)
	address := s.Listener.Addr().String()
	s.Close()
	c, err := Load(s.kubeconfig, "test")
	require.NoError(t, err)
	c.Patience = 0
	require.True(t, IsUnreachable(c.Get(t.Context(), things, "a", nil)))
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	again := httptest.NewUnstartedServer(s.Config.Handler)
	require.NoError(t, again.Listener.Close())
	again.Listener, again.TLS = listener, s.TLS
	again.StartTLS()
	defer again.Close()
	require.NoError(t, c.Get(t.Context(), things, "a", nil))
}

// Nobody waits longer for it than the call may take.
func TestAConnectionThatHangs(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	dial := ahead(func(context.Context, string, string) (net.Conn, error) {
		<-release
		return nil, net.ErrClosed
	}, "a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := dial(ctx, "tcp", "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
