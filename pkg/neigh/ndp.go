package neigh

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// RFC 4861 sections 4.3, 4.4 and 4.6.1, as far as one target and one
// link-layer option go.
const (
	etherTypeIPv6 uint16 = 0x86dd

	ipv6Len   = 40
	ndLen     = 24 // type, code, checksum, flags, target
	optionLen = 8

	protocolICMPv6 = 58
	hopLimit       = 255 // what a router has forwarded has less, and is ignored

	typeSolicitation  = 135
	typeAdvertisement = 136
	flagOverride      = 0x20
	optionSource      = 1
	optionTarget      = 2
)

var allNodes = netip.MustParseAddr("ff02::1")

// advertisement is an unsolicited one to all nodes.
func advertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	return ndPacket(addr, allNodes, typeAdvertisement, flagOverride, addr, optionTarget, mac)
}

// solicitation asks the group for target. From the unspecified address it
// carries no link-layer address (RFC 4861 section 4.3), and the answer goes to
// all nodes.
func solicitation(mac net.HardwareAddr, src, group, target netip.Addr) []byte {
	if src.IsUnspecified() {
		mac = nil
	}
	return ndPacket(src, group, typeSolicitation, 0, target, optionSource, mac)
}

// ndPacket makes an IPv6 packet; without mac it has no option.
func ndPacket(src, dst netip.Addr, kind, flags byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	b := make([]byte, ipv6Len+ndLen, ipv6Len+ndLen+optionLen)
	if mac != nil {
		b = append(append(b, option, 1), mac...)
	}
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Len))
	b[6], b[7] = protocolICMPv6, hopLimit
	copy(b[8:24], src.AsSlice())
	copy(b[24:40], dst.AsSlice())
	nd := b[ipv6Len:]
	nd[0], nd[4] = kind, flags
	copy(nd[8:24], target.AsSlice())
	binary.BigEndian.PutUint16(nd[2:], ^sum(b))
	return b
}

// sum is the one's complement sum of RFC 4443 section 2.3: over the ICMPv6
// message and a pseudo-header of addresses, length and protocol. Of a received
// packet with a right checksum it is 0xffff.
func sum(packet []byte) uint16 {
	message := packet[ipv6Len:]
	total := uint32(len(message)) + protocolICMPv6
	for i := 8; i+1 < len(packet); i += 2 { // the addresses end where the message begins
		total += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	if len(packet)%2 == 1 {
		total += uint32(packet[len(packet)-1]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// parseAdvertisement reads a neighbour advertisement; mac is nil if it has no
// target link-layer address. The result shares no memory with b. The checks
// are those of RFC 4861 section 7.1.2.
func parseAdvertisement(b []byte) (target netip.Addr, mac net.HardwareAddr, ok bool) {
	if len(b) < ipv6Len+ndLen || b[0]>>4 != 6 || b[6] != protocolICMPv6 || b[7] != hopLimit {
		return target, nil, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < ndLen || length > len(b)-ipv6Len {
		return target, nil, false
	}
	b = b[:ipv6Len+length] // the rest is Ethernet padding
	nd := b[ipv6Len:]
	if nd[0] != typeAdvertisement || nd[1] != 0 || sum(b) != 0xffff {
		return target, nil, false
	}
	mac, ok = targetMAC(nd[ndLen:])
	return netip.AddrFrom16([16]byte(nd[8:24])), mac, ok
}

// targetMAC walks options: type, length in units of 8 bytes, content. A length
// of 0 makes the whole packet invalid.
func targetMAC(options []byte) (mac net.HardwareAddr, ok bool) {
	for len(options) > 0 {
		if len(options) < optionLen {
			return nil, false
		}
		length := int(options[1]) * optionLen
		if length == 0 || length > len(options) {
			return nil, false
		}
		if options[0] == optionTarget && length == optionLen {
			mac = bytes.Clone(options[2:optionLen])
		}
		options = options[length:]
	}
	return mac, true
}

// solicitedNode is the multicast group that every holder of addr listens to
// (RFC 4291 section 2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	from := addr.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], from[13:])
	return netip.AddrFrom16(group)
}

// multicastMAC is the Ethernet group of an IPv6 multicast group (RFC 2464
// section 7).
func multicastMAC(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return append(net.HardwareAddr{0x33, 0x33}, b[12:]...)
}
