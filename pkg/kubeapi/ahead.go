package kubeapi

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// dialTime bounds the making of a connection, as client-go does.
const dialTime = 30 * time.Second

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// connecting is an HTTP client of a configuration that connects to base at once. It has a transport of its own, which
// follows no file that changes: for a process that lives as long as a call.
func connecting(cfg *rest.Config, base *url.URL) (*http.Client, error) {
	tlsConfig, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, err
	}
	tcp := &net.Dialer{Timeout: dialTime, KeepAlive: dialTime}
	transport := utilnet.SetTransportDefaults(&http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, TLSHandshakeTimeout: dialTime,
		DialContext: tcp.DialContext, DisableCompression: cfg.DisableCompression,
	})
	if base.Scheme == "https" && direct(transport, base) {
		d := &tls.Dialer{NetDialer: tcp, Config: transport.TLSClientConfig}
		transport.DialTLSContext = ahead(d.DialContext, hostPort(base))
	}
	wrapped, err := rest.HTTPWrappersForConfig(cfg, transport)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: wrapped, Timeout: cfg.Timeout}, nil
}

// direct says that no proxy is between.
func direct(t *http.Transport, to *url.URL) bool {
	proxy, err := t.Proxy(&http.Request{URL: to})
	return proxy == nil && err == nil
}

// hostPort is what a transport dials for an address.
func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}

// ahead begins to dial address. Who dials it first gets that connection; if it couldn't be made, and from then on, a new one.
func ahead(dial dialFunc, address string) dialFunc {
	made := make(chan net.Conn, 1)
	go func() {
		defer close(made)
		if conn, err := dial(context.Background(), "tcp", address); err == nil {
			made <- conn
		}
	}()
	return func(ctx context.Context, network, to string) (net.Conn, error) {
		if to == address {
			select {
			case conn, ok := <-made:
				if ok {
					return conn, nil
				}
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return dial(ctx, network, to)
	}
}
