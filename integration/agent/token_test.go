package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	access "github.com/lhstorage/lhstorage/pkg/kubeconfig"
)

const (
	shortLife = 12 * time.Second // of the tokens; the API server itself gives none of less than ten minutes
	lives     = 2                // that the test goes on for
)

// Tokens that live for seconds: the agent renews them in time, so that the file never holds one that has expired, and no pod is refused for it. Where the
// agent isn't there, one that has expired is refused, and with the agent comes a new one.
func TestTokens(t *testing.T) {
	b := newBed(t)
	n := b.Nodes[0]
	m := b.newMint(t)
	b.startAt(t, n, 9810, "--kubeconfig="+m.kubeconfig(t, n))
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 50*time.Millisecond)
	t.Run("never stale", func(t *testing.T) { neverStale(t, b, n, m) })
	t.Run("without the agent", func(t *testing.T) { stale(t, b, n, m) })
}

func neverStale(t *testing.T, b *bed, n *controlplane.Node, m *mint) {
	begin, made := time.Now(), m.made.Load()
	ctx, cancel := context.WithTimeout(t.Context(), lives*shortLife)
	defer cancel()
	var watching sync.WaitGroup
	seen := map[string]bool{}
	watching.Go(func() {
		for ctx.Err() == nil {
			token, err := tokenOn(n)
			if !assert.NoError(t, err) || !assert.True(t, time.Now().Before(token.Expires), "the token in the file has expired") {
				return
			}
			seen[token.Value] = true
			time.Sleep(20 * time.Millisecond)
		}
	})
	pods := 0
	for ; ctx.Err() == nil; pods++ {
		require.NoError(t, b.run(t, n, fmt.Sprintf("short-%d", pods)).Del(t.Context()))
	}
	watching.Wait()
	made = m.made.Load() - made
	assert.GreaterOrEqual(t, len(seen), 2*lives, "the test shows nothing: no token was replaced")
	assert.LessOrEqual(t, made, int64(5*lives), "they are renewed at a quarter of their life, not more often")
	assert.Zero(t, metric(t, n, "lhstorage_token_renewal_failures_total", ""))
	t.Logf("%d tokens in %s, %d pods came and went", len(seen), time.Since(begin).Round(time.Second), pods)
}

func stale(t *testing.T, b *bed, n *controlplane.Node, m *mint) {
	require.NoError(t, b.started[len(b.started)-1].Kill())
	token, err := tokenOn(n)
	require.NoError(t, err)
	// The API server lets a token pass for a minute after its end.
	m.put(t, n, m.coin(t, token.Value, time.Now().Add(-10*time.Minute), 8*time.Minute))
	_, err = b.CreatePod(t.Context(), n.Name, namespace, "refused", controlplane.Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	_, err = n.RunPod(t.Context(), namespace, "refused")
	require.Error(t, err, "the test shows nothing: an expired token is as good as another")
	assert.ErrorContains(t, err, kubeconfig, "it says where the token is")
	b.startAt(t, n, 9810, "--kubeconfig="+m.access)
	require.Eventually(t, func() bool {
		token, err := tokenOn(n)
		return err == nil && time.Now().Before(token.Expires)
	}, settle, 20*time.Millisecond)
	s, err := n.RunPod(t.Context(), namespace, "refused")
	require.NoError(t, err)
	require.NoError(t, s.Remove(t.Context()))
}

// tokenOn is the token that the plugins of a node would use now.
func tokenOn(n *controlplane.Node) (token access.Token, err error) {
	err = n.Do(func() error {
		file, err := access.Read(kubeconfig)
		if err == nil {
			token, err = access.ParseToken(file.Token)
		}
		return err
	})
	return token, err
}

// mint is a proxy before the API server which gives the tokens that it hands out another life, with the cluster's own key: they are
// as good as the API server's own.
type mint struct {
	bed    *bed
	key    *ecdsa.PrivateKey
	url    string
	access string // kubeconfig on the node
	made   atomic.Int64
}

func (b *bed) newMint(t *testing.T) *mint {
	t.Helper()
	text, err := os.ReadFile(b.File("tokens.key"))
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	require.NoError(t, err)
	m := &mint{bed: b, key: key}
	listener, err := b.Listen(t.Context())
	require.NoError(t, err)
	m.url = "https://" + listener.Addr().String()
	cfg := rest.CopyConfig(b.Config)
	cfg.CertData, cfg.KeyData, cfg.Timeout = nil, nil, 0
	transport, err := rest.TransportFor(cfg)
	require.NoError(t, err)
	target, err := url.Parse(b.Server())
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport, FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error { return m.change(t, r) },
	}
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: settle}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return m
}

// kubeconfig is the agent's way to the API server through the proxy.
func (m *mint) kubeconfig(t *testing.T, n *controlplane.Node) string {
	t.Helper()
	content, err := m.bed.ServiceAccountKubeconfig(t.Context(), "lhstorage-system", "lhstorage-agent", m.url)
	require.NoError(t, err)
	m.access = "/etc/lhstorage/short.kubeconfig"
	require.NoError(t, n.WriteFile(m.access, content))
	return m.access
}

func (m *mint) change(t *testing.T, r *http.Response) error {
	if r.StatusCode != http.StatusCreated || !strings.HasSuffix(r.Request.URL.Path, "/token") {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	status, _ := answer["status"].(map[string]any)
	token, _ := status["token"].(string)
	status["token"] = m.coin(t, token, time.Now(), shortLife)
	m.made.Add(1)
	if body, err = json.Marshal(answer); err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(string(body))), int64(len(body))
	r.Header.Set("Content-Length", fmt.Sprint(len(body)))
	return nil
}

// coin is a token with another life (RFC 7515, RFC 7518 3.4).
func (m *mint) coin(t *testing.T, token string, issued time.Time, life time.Duration) string {
	parts := strings.Split(token, ".")
	if !assert.Len(t, parts, 3) {
		return token
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	assert.NoError(t, err)
	claims := map[string]any{}
	assert.NoError(t, json.Unmarshal(payload, &claims))
	claims["iat"], claims["nbf"], claims["exp"] = issued.Unix(), issued.Unix(), issued.Add(life).Unix()
	payload, err = json.Marshal(claims)
	assert.NoError(t, err)
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, m.key, sum[:])
	assert.NoError(t, err)
	return signed + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// put writes a token into the plugins' kubeconfig.
func (m *mint) put(t *testing.T, n *controlplane.Node, token string) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		file, err := access.Read(kubeconfig)
		if err != nil {
			return err
		}
		file.Token = token
		return file.Write(kubeconfig)
	}))
}
