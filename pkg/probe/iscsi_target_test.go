package probe_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	goodName  = "iqn.test:disk"
	silentLUN = 9 // never answers
	segment   = 8192
)

// startTarget serves disk on loopback, one connection at a time. It meets each
// session with a UNIT ATTENTION, as real targets do.
func startTarget(t *testing.T, disk []byte) probe.ISCSITarget {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				(&fakeTarget{conn: conn, disk: disk}).serve()
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		group.Wait()
	})
	return probe.ISCSITarget{Portal: netip.MustParseAddrPort(listener.Addr().String()), Name: goodName, LUN: 1}
}

type fakeTarget struct {
	conn   net.Conn
	disk   []byte
	statSN uint32
	told   bool // of the unit attention
}

func (f *fakeTarget) serve() {
	var header [48]byte
	for {
		if _, err := io.ReadFull(f.conn, header[:]); err != nil {
			return
		}
		length := int(binary.BigEndian.Uint32(header[4:]) & 0xffffff)
		body := make([]byte, (length+3)&^3)
		if _, err := io.ReadFull(f.conn, body); err != nil {
			return
		}
		switch header[0] & 0x3f {
		case 0x03:
			var reply [48]byte
			reply[0], reply[1] = 0x23, 0x87
			if !strings.Contains(string(body), "TargetName="+goodName+"\x00") {
				reply[36], reply[37] = 2, 3 // not found
			}
			f.send(reply, header, nil)
		case 0x01:
			if header[9] != silentLUN {
				f.command(header)
			}
		case 0x06:
			f.send([48]byte{0: 0x26, 1: 0x80}, header, nil)
			return
		}
	}
}

func (f *fakeTarget) command(header [48]byte) {
	if !f.told {
		f.told = true
		sense := make([]byte, 20)
		sense[1], sense[2], sense[4], sense[14] = 18, 0x70, 6, 0x29
		f.send([48]byte{0: 0x21, 1: 0x80, 3: 2}, header, sense)
		return
	}
	var data []byte
	switch cdb := header[32:]; cdb[0] {
	case 0x25:
		data = make([]byte, 8)
		binary.BigEndian.PutUint32(data, uint32(len(f.disk)/512-1))
		binary.BigEndian.PutUint32(data[4:], 512)
	case 0x28:
		at, n := int(binary.BigEndian.Uint32(cdb[2:]))*512, int(binary.BigEndian.Uint16(cdb[7:]))*512
		data = f.disk[at : at+n]
	}
	for at := 0; at < len(data); at += segment {
		part := data[at:min(len(data), at+segment)]
		reply := [48]byte{0: 0x25}
		binary.BigEndian.PutUint32(reply[40:], uint32(at))
		if at+len(part) == len(data) {
			reply[1] = 0x81 // the last one carries the status
		}
		f.send(reply, header, part)
	}
}

func (f *fakeTarget) send(reply, request [48]byte, data []byte) {
	binary.BigEndian.PutUint32(reply[4:], uint32(len(data)))
	copy(reply[16:20], request[16:20])
	if reply[0] != 0x25 || reply[1]&1 != 0 {
		f.statSN++
		binary.BigEndian.PutUint32(reply[24:], f.statSN)
	}
	_, _ = f.conn.Write(append(append(reply[:], data...), make([]byte, -len(data)&3)...))
}
