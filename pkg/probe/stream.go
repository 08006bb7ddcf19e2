package probe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// In runs a function in some network namespace, on an OS thread of its own.
type In func(func() error) error

// Here runs the function in the caller's namespace.
func Here(f func() error) error { return f() }

// StreamOptions describe one TCP connection that carries Bytes one way.
type StreamOptions struct {
	Bytes    int64
	Sender   In         // where the sender lives
	Receiver In         // where the receiver lives
	To       netip.Addr // the receiver's address; the port is an ephemeral one
}

// StreamResult says how a stream went. Bytes is what the receiver has read.
type StreamResult struct {
	Bytes    int64
	Duration time.Duration
}

// BitsPerSecond is the payload's rate.
func (r StreamResult) BitsPerSecond() float64 {
	if r.Duration <= 0 {
		return 0
	}
	return float64(r.Bytes) * 8 / r.Duration.Seconds()
}

// Stream sends o.Bytes over one TCP connection and returns when the receiver
// has read them all. It is an error if it reads fewer, or if ctx is done first.
func Stream(ctx context.Context, o StreamOptions) (StreamResult, error) {
	listener, err := listen(ctx, o)
	if err != nil {
		return StreamResult{}, fmt.Errorf("stream: listen on %s: %w", o.To, err)
	}
	defer listener.Close() //nolint:errcheck // nothing is lost
	start := time.Now()
	conn, err := dial(ctx, o.Sender, listener.Addr().String())
	if err != nil {
		return StreamResult{}, fmt.Errorf("stream: connect to %s: %w", listener.Addr(), err)
	}
	peer, err := listener.Accept() // the connection is made: this doesn't wait
	if err != nil {
		_ = conn.Close()
		return StreamResult{}, fmt.Errorf("stream: accept on %s: %w", listener.Addr(), err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = peer.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- send(conn, o.Bytes) }()
	got, err := io.Copy(io.Discard, peer)
	result := StreamResult{Bytes: got, Duration: time.Since(start)}
	_ = peer.Close()
	sendErr := <-sent
	switch {
	case ctx.Err() != nil:
		return result, fmt.Errorf("stream to %s: %d of %d bytes arrived: %w", o.To, got, o.Bytes, context.Cause(ctx))
	case sendErr != nil:
		return result, fmt.Errorf("stream to %s: %w", o.To, sendErr)
	case err != nil:
		return result, fmt.Errorf("stream to %s: %w", o.To, err)
	case got != o.Bytes:
		return result, fmt.Errorf("stream to %s: %d of %d bytes arrived", o.To, got, o.Bytes)
	}
	return result, nil
}

func listen(ctx context.Context, o StreamOptions) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // one connection, one path: what is measured is a link
	var listener net.Listener
	err := o.Receiver(func() (err error) {
		listener, err = config.Listen(ctx, "tcp", netip.AddrPortFrom(o.To, 0).String())
		return err
	})
	return listener, err
}

func dial(ctx context.Context, in In, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	var conn net.Conn
	err := in(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return conn, err
}

func send(conn net.Conn, n int64) error {
	defer conn.Close() //nolint:errcheck // the receiver counts
	chunk := make([]byte, 256<<10)
	for n > 0 {
		part := chunk[:min(n, int64(len(chunk)))]
		written, err := conn.Write(part)
		if err != nil {
			return err
		}
		n -= int64(written)
	}
	return nil
}
