package examine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/iscsipath"
)

const (
	// Port of the HTTP exchange, in pods' network namespaces and at their storage addresses alone. Longhorn's instance managers use 8500 to 8505 and
	// 10000 to 30000 there.
	Port = 9812

	path         = "/lhstorage-verify"
	exchangeTime = 2 * time.Second
	listenBy     = 8 * time.Second // after the beginning: the other node's agent may have heard later
	retry        = 250 * time.Millisecond
)

// managerPorts are what is dialled in an instance manager: of its iSCSI target, and of the first process that it runs.
var managerPorts = []int{3260, 10000}

// talk dials instance managers, and lets pods exchange HTTP.
func (r *run) talk(ctx context.Context, legs []*leg) {
	r.each(legs, func(l *leg) {
		if l.Small.Lost == l.Small.Sent || ctx.Err() != nil {
			return
		}
		switch l.Target.Kind {
		case v1alpha1.LegHostLocal, v1alpha1.LegHostRemote:
			if iscsipath.IsTarget(l.Target.Pod) {
				for _, port := range managerPorts {
					l.TCP = append(l.TCP, v1alpha1.VerifiedPort{Port: port, Result: r.dial(ctx, l.Target, port)})
				}
			}
		case v1alpha1.LegPodLocal, v1alpha1.LegPodRemote:
			h := r.exchange(ctx, l.Target)
			l.HTTP = &h
		case v1alpha1.LegUnderlay, v1alpha1.LegHostShim: // nothing listens there
		}
	})
}

func (r *run) dial(ctx context.Context, t Target, port int) v1alpha1.VerifiedPortResult {
	var conn net.Conn
	err := r.in(t, func() (err error) {
		conn, err = (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", netip.AddrPortFrom(t.Address, uint16(port)).String())
		return err
	})
	switch {
	case err == nil:
		_ = conn.Close() // nothing was sent
		return v1alpha1.PortOpen
	case errors.Is(err, syscall.ECONNREFUSED):
		return v1alpha1.PortRefused
	}
	return v1alpha1.PortSilent
}

// exchange asks another pod's agent, from one pod's address to the other's.
func (r *run) exchange(ctx context.Context, t Target) (v v1alpha1.VerifiedHTTP) {
	for {
		began := time.Now()
		err := r.ask(ctx, t)
		if err == nil {
			return v1alpha1.VerifiedHTTP{OK: true, Microseconds: time.Since(began).Microseconds()}
		}
		v.Error = cut(err.Error(), maxText)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(r.began) > listenBy || ctx.Err() != nil {
			return v
		}
		time.Sleep(retry)
	}
}

func (r *run) ask(ctx context.Context, t Target) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: t.Source.AsSlice()}}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = r.in(t, func() error {
			conn, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	url := "http://" + netip.AddrPortFrom(t.Address, Port).String() + path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(io.LimitReader(response.Body, maxText))
	if err != nil {
		return err
	}
	want := greeting(t.Node, t.Source)
	if response.StatusCode != http.StatusOK || string(body) != want {
		return fmt.Errorf("%s says %q, want %q", t.Address, body, want)
	}
	return nil
}

// greeting is what an agent answers: who it is, and whom it sees.
func greeting(node string, client netip.Addr) string { return node + " sees " + client.String() + "\n" }

// serve answers the other agents at the storage addresses of this node's pods, for a while that goes on after this examination.
func (r *run) serve() error {
	r.Close()
	var faults []error
	server := &http.Server{ReadHeaderTimeout: exchangeTime, WriteTimeout: exchangeTime, MaxHeaderBytes: 4096, Handler: http.HandlerFunc(r.greet)}
	for _, pod := range r.pods {
		for _, a := range addrsOf(pod) {
			var l net.Listener
			err := r.in(Target{Netns: pod.Netns}, func() (err error) {
				l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort(a.String(), strconv.Itoa(Port)))
				return err
			})
			if err != nil {
				faults = append(faults, fmt.Errorf("listen in pod %s: %w", refOf(pod), err))
				continue
			}
			go func() { _ = server.Serve(l) }() // it ends when the server is closed
		}
	}
	timer := time.AfterFunc(serveFor, func() { _ = server.Close() })
	r.stop = func() { timer.Stop(); _ = server.Close() }
	return errors.Join(faults...)
}

func (r *run) greet(w http.ResponseWriter, request *http.Request) {
	client, err := netip.ParseAddrPort(request.RemoteAddr)
	if err != nil || !strings.HasPrefix(request.URL.Path, path) {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, greeting(r.Node, client.Addr().Unmap())) //nolint:gosec // G705: a node's name and a parsed address, as plain text
}
