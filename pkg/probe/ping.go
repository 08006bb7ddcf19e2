package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	probing "github.com/prometheus-community/pro-bing"
)

const (
	// minPayload is what the pinger itself keeps in each packet, in bytes.
	minPayload = 24

	icmpHeader = 8 // bytes, ICMP and ICMPv6 echo alike
	ipv4Header = 20
	ipv6Header = 40
)

// PingOptions say what Ping sends. Only Target is required.
type PingOptions struct {
	Target       netip.Addr
	Source       netip.Addr    // invalid: the kernel chooses
	Count        int           // echo requests; default 20
	Interval     time.Duration // between requests; default 10 ms
	Wait         time.Duration // for answers, after the last request; default 1 s
	Payload      int           // ICMP payload in bytes; default 56, at least 24
	DontFragment bool          // set DF (IPv4), never fragment (IPv6)
}

// PingResult is what came back. Round-trip times are zero when nothing did.
type PingResult struct {
	Wanted     int // requests that were to be sent
	Sent       int // requests that the kernel took
	Received   int
	Duplicates int
	Min        time.Duration
	Avg        time.Duration
	Median     time.Duration
	Max        time.Duration
	SendErr    error // the last refusal to send, such as EMSGSIZE or ENETUNREACH
}

// Loss is the part of the wanted requests without an answer, in percent. A
// request that the kernel refused to send counts as lost.
func (r PingResult) Loss() float64 {
	if r.Wanted == 0 {
		return 0
	}
	return 100 * float64(r.Wanted-r.Received) / float64(r.Wanted)
}

func median(rtts []time.Duration) time.Duration {
	if len(rtts) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(rtts))
	return sorted[len(sorted)/2]
}

// PayloadFor is the ICMP payload that fills an IP packet of mtu bytes to target.
func PayloadFor(target netip.Addr, mtu int) int {
	if target.Is4() {
		return mtu - ipv4Header - icmpHeader
	}
	return mtu - ipv6Header - icmpHeader
}

// Ping sends ICMP echo requests over a raw socket (CAP_NET_RAW) and counts the
// answers. Lost packets are a result, not an error; an error means that nothing
// could be measured: bad options, no socket, or ctx done.
func Ping(ctx context.Context, o PingOptions) (PingResult, error) {
	o, err := o.withDefaults()
	if err != nil {
		return PingResult{}, err
	}
	pinger, sendErr := o.pinger()
	err = pinger.RunWithContext(ctx)
	stats := pinger.Statistics()
	result := PingResult{
		Wanted: o.Count, Sent: stats.PacketsSent, Received: stats.PacketsRecv, Duplicates: stats.PacketsRecvDuplicates,
		Min: stats.MinRtt, Avg: stats.AvgRtt, Median: median(stats.Rtts), Max: stats.MaxRtt, SendErr: sendErr(),
	}
	switch {
	case ctx.Err() != nil:
		return result, fmt.Errorf("ping %s: %w", o.Target, context.Cause(ctx))
	case err != nil && result.SendErr == nil:
		return result, fmt.Errorf("ping %s: %w", o.Target, err)
	}
	return result, nil
}

func (o PingOptions) withDefaults() (PingOptions, error) {
	if o.Count == 0 {
		o.Count = 20
	}
	if o.Interval == 0 {
		o.Interval = 10 * time.Millisecond
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	if o.Payload == 0 {
		o.Payload = 56
	}
	var faults []error
	if !o.Target.IsValid() {
		faults = append(faults, errors.New("no target address"))
	}
	if o.Source.IsValid() && o.Source.Is4() != o.Target.Is4() {
		faults = append(faults, fmt.Errorf("source %s and target %s are of different families", o.Source, o.Target))
	}
	if o.Count < 1 || o.Interval < 0 || o.Wait < 0 {
		faults = append(faults, fmt.Errorf("count %d, interval %s, wait %s: must be positive", o.Count, o.Interval, o.Wait))
	}
	if o.Payload < minPayload || o.Payload > 65000 {
		faults = append(faults, fmt.Errorf("payload %d: must be %d to 65000 bytes", o.Payload, minPayload))
	}
	if len(faults) > 0 {
		return o, fmt.Errorf("ping: %w", errors.Join(faults...))
	}
	return o, nil
}

// pinger prepares a run; the function tells the last refusal to send afterwards.
func (o PingOptions) pinger() (*probing.Pinger, func() error) {
	p := probing.New(o.Target.String())
	p.SetIPAddr(&net.IPAddr{IP: o.Target.AsSlice(), Zone: o.Target.Zone()})
	p.SetPrivileged(true)
	p.SetDoNotFragment(o.DontFragment)
	p.SetLogger(probing.NoopLogger{})
	p.Count, p.Interval, p.Size = o.Count, o.Interval, o.Payload
	p.Timeout = time.Duration(o.Count-1)*o.Interval + o.Wait
	if o.Source.IsValid() {
		p.Source = o.Source.String()
	}
	var mu sync.Mutex
	var last error
	p.OnSendError = func(_ *probing.Packet, err error) {
		mu.Lock()
		defer mu.Unlock()
		last = err
	}
	return p, func() error {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

const answerWait = 300 * time.Millisecond

// Answers says whether anything answers at an address.
func Answers(ctx context.Context, addr netip.Addr) bool {
	result, err := Ping(ctx, PingOptions{Target: addr, Count: 3, Wait: answerWait})
	return err == nil && result.Received > 0
}
