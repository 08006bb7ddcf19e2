package testnode

import (
	"context"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

// Ping sends so many packets from a namespace, one every 5 ms.
func Ping(from ns.NetNS, to netip.Addr, count int) (result probe.PingResult, err error) {
	err = from.Do(func(ns.NetNS) (err error) {
		result, err = probe.Ping(context.Background(), probe.PingOptions{Target: to, Count: count, Interval: 5 * time.Millisecond, Wait: 5 * time.Second})
		return err
	})
	return result, err
}

// Logger is the part of testing.TB that goes on after a failure.
type Logger interface {
	Helper()
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// Traffic sends packets from a namespace to an address that nothing is done to, until it is stopped. Each must be answered: stop fails the test
// otherwise.
func Traffic(tb Logger, from ns.NetNS, to netip.Addr) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	sent, lost := 0, 0
	var failed error
	go func() {
		defer close(done)
		for ctx.Err() == nil && failed == nil {
			var result probe.PingResult
			result, failed = Ping(from, to, 50)
			sent, lost = sent+result.Wanted, lost+result.Wanted-result.Received
		}
	}()
	return func() {
		tb.Helper()
		cancel()
		<-done
		if failed != nil || lost > 0 {
			tb.Errorf("%d of %d packets to %s, to which nothing was done, are lost: %v", lost, sent, to, failed)
		}
		tb.Logf("%d of %d packets to %s came", sent-lost, sent, to)
	}
}
