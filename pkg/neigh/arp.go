package neigh

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	macLen = 6
	arpLen = 28 // RFC 826 with 6-byte hardware and 4-byte protocol addresses

	etherTypeARP uint16 = 0x0806

	opRequest uint16 = 1
	opReply   uint16 = 2
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// The fixed head: Ethernet, IPv4, and the two address lengths.
var arpHead = []byte{0, 1, 0x08, 0x00, macLen, 4}

// arpPacket is RFC 826's packet for IPv4 over Ethernet.
type arpPacket struct {
	op        uint16
	senderMAC net.HardwareAddr
	senderIP  netip.Addr
	targetMAC net.HardwareAddr // nil is sent as zeros
	targetIP  netip.Addr
}

func arpRequest(mac net.HardwareAddr, sender, target netip.Addr) arpPacket {
	return arpPacket{op: opRequest, senderMAC: mac, senderIP: sender, targetIP: target}
}

func (p arpPacket) bytes() []byte {
	b := make([]byte, arpLen)
	copy(b, arpHead)
	binary.BigEndian.PutUint16(b[6:], p.op)
	copy(b[8:14], p.senderMAC)
	copy(b[14:18], p.senderIP.AsSlice())
	copy(b[18:24], p.targetMAC)
	copy(b[24:28], p.targetIP.AsSlice())
	return b
}

// parseARP reads a packet, which may be followed by Ethernet padding. The
// result shares no memory with b.
func parseARP(b []byte) (arpPacket, bool) {
	if len(b) < arpLen || !bytes.Equal(b[:6], arpHead) {
		return arpPacket{}, false
	}
	return arpPacket{
		op:        binary.BigEndian.Uint16(b[6:]),
		senderMAC: bytes.Clone(b[8:14]),
		senderIP:  netip.AddrFrom4([4]byte(b[14:18])),
		targetMAC: bytes.Clone(b[18:24]),
		targetIP:  netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// claims says whether the packet stands against our use of addr: its sender has
// the address, or probes for it as we do (RFC 5227 section 2.1.1).
func (p arpPacket) claims(addr netip.Addr) bool {
	probes := p.op == opRequest && p.senderIP.IsUnspecified() && p.targetIP == addr
	return p.senderIP == addr || probes
}
