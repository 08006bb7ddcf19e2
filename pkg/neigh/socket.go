package neigh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket sends and receives the payloads of one Ethernet type on one link; the
// kernel makes and takes off the Ethernet header.
type socket struct {
	link     Link
	protocol uint16 // the Ethernet type as the kernel wants it, in network byte order
	file     *os.File
	conn     syscall.RawConn
}

func listen(link Link, etherType uint16) (*socket, error) {
	if err := link.check(); err != nil {
		return nil, err
	}
	// Protocol 0 is deaf: nothing comes in before filter and link are set.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w%s", err, hint(err))
	}
	s := &socket{link: link, protocol: networkOrder(etherType), file: os.NewFile(uintptr(fd), "packet socket")}
	if s.conn, err = s.file.SyscallConn(); err == nil {
		err = bind(fd, s.address(nil), etherType)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket to link %d: %w%s", link.Index, err, hint(err)), s.file.Close())
	}
	return s, nil
}

func bind(fd int, to *unix.SockaddrLinklayer, etherType uint16) error {
	if etherType == etherTypeIPv6 {
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &advertisements); err != nil {
			return err
		}
	}
	return unix.Bind(fd, to)
}

// advertisements lets neighbour advertisements pass and nothing else: the
// storage traffic of a busy link would push them out of the receive buffer.
var advertisements = program(
	unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6},
	unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protocolICMPv6, Jf: 3},
	unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: ipv6Len},
	unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeAdvertisement, Jf: 1},
	unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
	unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
)

func program(filter ...unix.SockFilter) unix.SockFprog {
	return unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
}

func (s *socket) address(mac net.HardwareAddr) *unix.SockaddrLinklayer {
	a := &unix.SockaddrLinklayer{Protocol: s.protocol, Ifindex: s.link.Index, Halen: uint8(len(mac))}
	copy(a.Addr[:], mac)
	return a
}

func (s *socket) send(to net.HardwareAddr, payload []byte) error {
	var sent error
	err := s.conn.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), payload, 0, s.address(to))
		return sent != unix.EAGAIN
	})
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("send: %w%s", err, hint(err))
	}
	return nil
}

// receive hears frames until hear has enough or the time has come; only a ctx
// that ends first is an error.
func (s *socket) receive(ctx context.Context, until time.Time, hear func(from net.HardwareAddr, payload []byte) (enough bool)) (bool, error) {
	if err := s.file.SetReadDeadline(until); err != nil {
		return false, err
	}
	wake := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	buf := make([]byte, 2048) // more than any frame that is looked at
	for {
		n, from, err := s.read(buf)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("receive: %w%s", err, hint(err))
		case from == nil || from.Pkttype == unix.PACKET_OTHERHOST:
			// Not for this link: unicast to another, seen in promiscuous
			// mode, or of a VLAN that isn't configured here, which the
			// kernel passes up with the tag taken off. An address in
			// use there is no conflict here.
		case hear(net.HardwareAddr(from.Addr[:macLen]), buf[:n]):
			return true, nil
		}
	}
}

func (s *socket) read(buf []byte) (n int, from *unix.SockaddrLinklayer, err error) {
	var received error
	err = s.conn.Read(func(fd uintptr) bool {
		var sender unix.Sockaddr
		n, sender, received = unix.Recvfrom(int(fd), buf, 0)
		from, _ = sender.(*unix.SockaddrLinklayer)
		return received != unix.EAGAIN
	})
	if err == nil {
		err = received
	}
	return n, from, err
}

func (s *socket) close() { _ = s.file.Close() }

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// hint says what to do about what most often stands in the way.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.ENETDOWN):
		return "; set the link up first"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "; the link isn't in this network namespace"
	case errors.Is(err, unix.EPERM):
		return "; CAP_NET_RAW is needed"
	}
	return ""
}
