package probe

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// ISCSITarget names a logical unit. Authentication isn't supported: Longhorn's
// targets have none.
type ISCSITarget struct {
	Portal netip.AddrPort
	Name   string // the target's IQN
	LUN    uint8
}

// BlockRead is what ISCSIRead has read, from the device's first block on.
type BlockRead struct {
	Bytes    int64 // really received
	SHA256   [sha256.Size]byte
	Capacity int64 // the device's size in bytes
}

const (
	initiatorName = "iqn.2025-01.io.lhstorage:probe"
	readChunk     = 128 << 10 // bytes per READ(10)
	maxSegment    = 256 << 10 // bytes of data per PDU that we say we take
)

// ISCSIRead logs in, reads n bytes (rounded up to whole blocks, at most the
// whole device) and logs out. It needs no kernel initiator, so it can prove in
// any network namespace what Longhorn's initiator needs; see RFC 7143.
func ISCSIRead(ctx context.Context, target ISCSITarget, n int64) (BlockRead, error) {
	var read BlockRead
	conn, err := dial(ctx, Here, target.Portal.String())
	if err != nil {
		return read, fmt.Errorf("iSCSI: connect to %s: %w", target.Portal, err)
	}
	defer conn.Close() //nolint:errcheck // the read is over
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s := &session{conn: conn, lun: target.LUN, cmdSN: 1}
	if read, err = s.run(target.Name, n); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return read, fmt.Errorf("iSCSI: %s at %s, LUN %d, after %d bytes: %w", target.Name, target.Portal, target.LUN, read.Bytes, err)
	}
	return read, nil
}

// session is one connection in full-feature phase, one command at a time.
type session struct {
	conn      net.Conn
	lun       uint8
	itt       uint32 // initiator task tag of the last request
	cmdSN     uint32
	expStatSN uint32
}

func (s *session) run(target string, n int64) (BlockRead, error) {
	var read BlockRead
	if err := s.login(target); err != nil {
		return read, fmt.Errorf("log in: %w", err)
	}
	blockSize, blocks, err := s.capacity()
	if err != nil {
		return read, fmt.Errorf("read the capacity: %w", err)
	}
	read.Capacity = blocks * blockSize
	wanted := min(blocks, (n+blockSize-1)/blockSize)
	perRead := max(1, readChunk/blockSize)
	sum := sha256.New()
	for at := int64(0); at < wanted; at += perRead {
		count := min(perRead, wanted-at)
		data, err := s.command(read10(at, count), count*blockSize)
		if err != nil {
			return read, fmt.Errorf("read %d blocks at %d: %w", count, at, err)
		}
		read.Bytes += int64(len(data))
		sum.Write(data)
	}
	sum.Sum(read.SHA256[:0])
	return read, s.logout()
}

// login goes straight to the operational stage, which a target without
// authentication allows.
func (s *session) login(target string) error {
	const csgOperational, nsgFullFeature, transit = 1 << 2, 3, 0x80
	keys := []string{
		"InitiatorName=" + initiatorName, "TargetName=" + target, "SessionType=Normal",
		"HeaderDigest=None", "DataDigest=None", fmt.Sprintf("MaxRecvDataSegmentLength=%d", maxSegment),
	}
	request := s.request(opLogin | opImmediate)
	request.header[1] = transit | csgOperational | nsgFullFeature
	request.header[8] = 0x80 // ISID, type "random": one session per probe
	binary.BigEndian.PutUint32(request.header[9:], uint32(time.Now().UnixNano()))
	request.data = []byte(strings.Join(keys, "\x00") + "\x00")
	reply, err := s.exchange(request, opLoginReply)
	if err != nil {
		return err
	}
	if class, detail := reply.header[36], reply.header[37]; class != 0 {
		return fmt.Errorf("refused with status %#02x%02x (RFC 7143, 11.13.5)", class, detail)
	}
	if reply.header[1]&(transit|nsgFullFeature) != transit|nsgFullFeature {
		return fmt.Errorf("the target wants more negotiation than this probe does (flags %#02x)", reply.header[1])
	}
	return nil
}

func (s *session) capacity() (blockSize, blocks int64, err error) {
	cdb := [16]byte{0: 0x25} // READ CAPACITY(10)
	data, err := s.command(cdb, 8)
	if err != nil {
		return 0, 0, err
	}
	if len(data) < 8 {
		return 0, 0, fmt.Errorf("%d bytes came, want 8", len(data))
	}
	blocks, blockSize = int64(binary.BigEndian.Uint32(data))+1, int64(binary.BigEndian.Uint32(data[4:]))
	if blockSize < 1 || blockSize > readChunk {
		return 0, 0, fmt.Errorf("a block size of %d bytes", blockSize)
	}
	return blockSize, blocks, nil
}

func read10(lba, blocks int64) [16]byte {
	cdb := [16]byte{0: 0x28}
	binary.BigEndian.PutUint32(cdb[2:], uint32(lba))
	binary.BigEndian.PutUint16(cdb[7:], uint16(blocks))
	return cdb
}

// command runs a SCSI command that reads up to n bytes. A fresh session's first
// commands may meet UNIT ATTENTION, which says only that something happened
// before; it is cleared by being told.
func (s *session) command(cdb [16]byte, n int64) ([]byte, error) {
	const tries = 4
	var data []byte
	var err error
	for range tries {
		data, err = s.try(cdb, n)
		if sense, ok := errors.AsType[senseError](err); !ok || sense.key != unitAttention {
			break
		}
	}
	return data, err
}

func (s *session) try(cdb [16]byte, n int64) ([]byte, error) {
	const final, reads, simpleTask = 0x80, 0x40, 1
	request := s.request(opCommand)
	request.header[1] = final | reads | simpleTask
	request.header[9] = s.lun
	binary.BigEndian.PutUint32(request.header[20:], uint32(n))
	copy(request.header[32:], cdb[:])
	s.cmdSN++
	if err := request.write(s.conn); err != nil {
		return nil, err
	}
	data := make([]byte, 0, n)
	for {
		reply, err := s.receive()
		if err != nil {
			return nil, err
		}
		switch reply.opcode() {
		case opDataIn:
			at := binary.BigEndian.Uint32(reply.header[40:])
			if int64(at) != int64(len(data)) || int64(len(data)+len(reply.data)) > n {
				return nil, fmt.Errorf("%d bytes of data at offset %d, expected offset %d of %d", len(reply.data), at, len(data), n)
			}
			data = append(data, reply.data...)
			if reply.carriesStatus() {
				return data, statusError(reply.header[3])
			}
		case opResponse:
			if reply.header[3] == statusCheckCondition {
				return nil, parseSense(reply.data)
			}
			return data, statusError(reply.header[3])
		case opNopIn: // a keep-alive; this session is over before one must be answered
		default:
			return nil, fmt.Errorf("unexpected answer, opcode %#02x", reply.opcode())
		}
	}
}

func (s *session) logout() error {
	request := s.request(opLogout | opImmediate)
	request.header[1] = 0x80 // close the session
	_, err := s.exchange(request, opLogoutReply)
	if err != nil {
		return fmt.Errorf("log out: %w", err)
	}
	return nil
}

func (s *session) request(opcode byte) pdu {
	s.itt++
	var p pdu
	p.header[0] = opcode
	binary.BigEndian.PutUint32(p.header[16:], s.itt)
	binary.BigEndian.PutUint32(p.header[24:], s.cmdSN)
	binary.BigEndian.PutUint32(p.header[28:], s.expStatSN)
	return p
}

func (s *session) exchange(request pdu, want byte) (pdu, error) {
	if err := request.write(s.conn); err != nil {
		return pdu{}, err
	}
	reply, err := s.receive()
	if err != nil {
		return pdu{}, err
	}
	if reply.opcode() != want {
		return pdu{}, fmt.Errorf("unexpected answer, opcode %#02x instead of %#02x", reply.opcode(), want)
	}
	return reply, nil
}

// receive reads the next PDU and keeps the status sequence number.
func (s *session) receive() (pdu, error) {
	reply, err := readPDU(s.conn)
	if err != nil {
		return pdu{}, err
	}
	if reply.opcode() != opDataIn || reply.carriesStatus() {
		s.expStatSN = binary.BigEndian.Uint32(reply.header[24:]) + 1
	}
	return reply, nil
}
