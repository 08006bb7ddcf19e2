package probe

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Opcodes of RFC 7143, 11.2.1.2.
const (
	opImmediate   = 0x40
	opCommand     = 0x01
	opLogin       = 0x03
	opLogout      = 0x06
	opNopIn       = 0x20
	opResponse    = 0x21
	opLoginReply  = 0x23
	opDataIn      = 0x25
	opLogoutReply = 0x26
)

const (
	headerLen            = 48
	statusGood           = 0x00
	statusCheckCondition = 0x02
	unitAttention        = 0x06 // sense key
)

// pdu is one protocol data unit without additional header segments and digests.
type pdu struct {
	header [headerLen]byte
	data   []byte
}

func (p pdu) opcode() byte { return p.header[0] & 0x3f }

// carriesStatus says whether a Data-In PDU ends its command with a status.
func (p pdu) carriesStatus() bool { return p.header[1]&1 != 0 }

func (p pdu) write(w io.Writer) error {
	binary.BigEndian.PutUint32(p.header[4:], uint32(len(p.data))) // the upper byte, AHS length, stays 0
	wire := append(p.header[:], p.data...)
	_, err := w.Write(append(wire, make([]byte, padding(len(p.data)))...))
	return err
}

// readPDU reads one PDU. It takes no more data than this initiator announced.
func readPDU(r io.Reader) (pdu, error) {
	var p pdu
	if _, err := io.ReadFull(r, p.header[:]); err != nil {
		return p, err
	}
	lengths := binary.BigEndian.Uint32(p.header[4:])
	ahs, length := int(lengths>>24)*4, int(lengths&0xffffff)
	if length > maxSegment {
		return p, fmt.Errorf("a PDU with %d bytes of data: more than the %d that were agreed", length, maxSegment)
	}
	body := make([]byte, ahs+length+padding(length))
	if _, err := io.ReadFull(r, body); err != nil {
		return p, err
	}
	p.data = body[ahs : ahs+length]
	return p, nil
}

// padding fills a data segment up to a multiple of four bytes.
func padding(n int) int { return -n & 3 }

// senseError is a command's CHECK CONDITION.
type senseError struct {
	key, asc, ascq byte
}

func (e senseError) Error() string {
	return fmt.Sprintf("check condition, sense key %#x, code %#02x/%#02x", e.key, e.asc, e.ascq)
}

// parseSense reads fixed-format sense data (SPC-4, 4.5.3) behind its length.
func parseSense(data []byte) senseError {
	const length, fixedMin = 2, 14
	if len(data) < length+fixedMin {
		return senseError{}
	}
	sense := data[length:]
	return senseError{key: sense[2] & 0xf, asc: sense[12], ascq: sense[13]}
}

func statusError(status byte) error {
	if status == statusGood {
		return nil
	}
	return fmt.Errorf("SCSI status %#02x", status)
}
