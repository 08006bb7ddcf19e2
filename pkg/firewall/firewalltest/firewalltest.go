// Package firewalltest has the means of tests that attack a node's firewall: services that tell whether they are reached, and who sends what a
// program on the underlay can send.
package firewalltest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Host is a network namespace: of a node, a pod, or somebody on the underlay.
type Host struct{ ns.NetNS }

// Hears opens a UDP service in a namespace; the function tells whether what send
// sends arrives. What must arrive is sent until it does, what must not a few times.
func (h Host) Hears(t *testing.T, at netip.AddrPort) func(want bool, send func(payload string)) bool {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	round := 0
	return func(want bool, send func(payload string)) bool {
		round++
		tries := 3
		if want {
			tries = 100
		}
		payload := fmt.Sprintf("round %d", round)
		for range tries {
			send(payload)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			buf := make([]byte, 1500)
			for {
				n, err := conn.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				require.NoError(t, err)
				if string(buf[:n]) == payload { // none of an earlier round, which was late
					return true
				}
			}
		}
		return false
	}
}

// UDP sends a datagram from a namespace.
func (h Host) UDP(t *testing.T, to netip.AddrPort, payload string) {
	require.NoError(t, h.Do(func(ns.NetNS) error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte(payload))
		return errors.Join(err, conn.Close())
	}))
}

// Datagram is an IPv4 packet with a UDP datagram, without the checksum that is
// optional.
func Datagram(from, to netip.AddrPort, payload string) []byte {
	length := 28 + len(payload)
	p := make([]byte, 28, length)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

// Tunnel sends a frame to a VTEP as VXLAN does (RFC 7348), with any source: what
// a program on the underlay can do.
func (h Host) Tunnel(t *testing.T, vni byte, source, vtep netip.Addr, mac net.HardwareAddr, packet []byte) {
	frame := []byte{8, 0, 0, 0, 0, 0, vni, 0}
	frame = append(frame, mac...)
	frame = append(frame, 2, 0, 0, 0, 0, 1, 8, 0)
	outer := Datagram(netip.AddrPortFrom(source, 50000), netip.AddrPortFrom(vtep, 4789), string(append(frame, packet...)))
	require.NoError(t, h.Do(func(ns.NetNS) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, outer, 0, &unix.SockaddrInet4{Addr: vtep.As4()}), unix.Close(fd))
	}))
}

// Echo serves TCP in a namespace until the test ends.
func (h Host) Echo(t *testing.T, at netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", at.String())
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	t.Cleanup(func() { require.NoError(t, listener.Close()); <-ended })
}

// Dial connects from a namespace; nil if nobody answers.
func (h Host) Dial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	_ = h.Do(func(ns.NetNS) (err error) {
		conn, err = (&net.Dialer{Timeout: 700 * time.Millisecond}).DialContext(t.Context(), "tcp", to.String())
		return err
	})
	if conn == nil {
		return nil
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Answers says whether what is on the other end of a connection to an Echo still answers.
func Answers(conn net.Conn) bool {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return false
	}
	if _, err := conn.Write([]byte("still?")); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 6))
	return err == nil
}
