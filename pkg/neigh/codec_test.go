package neigh

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var testMAC = net.HardwareAddr{2, 0, 0, 0, 0, 5}

func TestARPBytes(t *testing.T) {
	p := arpRequest(testMAC, ip("10.1.0.5"), ip("10.1.0.6"))
	assert.Equal(t, []byte{
		0, 1, 8, 0, 6, 4, 0, 1,
		2, 0, 0, 0, 0, 5, 10, 1, 0, 5,
		0, 0, 0, 0, 0, 0, 10, 1, 0, 6,
	}, p.bytes())
}

// The checksum worked out by hand: addresses fd00+5+ff02+1, length and protocol
// 20+3a, message 8800+2000+fd00+5 and option 0201+0200+0+5 make 3a56d, folded
// a570, inverted 5a8f.
func TestAdvertisementBytes(t *testing.T) {
	b := advertisement(testMAC, ip("fd00::5"))
	require.Len(t, b, 72)
	assert.Equal(t, []byte{0x60, 0, 0, 0, 0, 32, 58, 255}, b[:8])
	assert.Equal(t, ip("fd00::5").AsSlice(), b[8:24])
	assert.Equal(t, ip("ff02::1").AsSlice(), b[24:40])
	assert.Equal(t, []byte{136, 0, 0x5a, 0x8f}, b[40:44])
	assert.Equal(t, []byte{0x20, 0, 0, 0}, b[44:48], "override; neither router nor solicited")
	assert.Equal(t, ip("fd00::5").AsSlice(), b[48:64])
	assert.Equal(t, []byte{2, 1, 2, 0, 0, 0, 0, 5}, b[64:])
}

func TestSolicitation(t *testing.T) {
	group := solicitedNode(ip("fd00::12:3456"))
	assert.Equal(t, ip("ff02::1:ff12:3456"), group)
	assert.Equal(t, "33:33:ff:12:34:56", multicastMAC(group).String())
	assert.Len(t, solicitation(testMAC, ip("fd00::1"), group, ip("fd00::12:3456")), 72)
	assert.Len(t, solicitation(testMAC, netip.IPv6Unspecified(), group, ip("fd00::12:3456")), 64, "no option from the unspecified address")
}

func TestParseAdvertisement(t *testing.T) {
	good := advertisement(testMAC, ip("fd00::5"))
	target, mac, ok := parseAdvertisement(append(bytes.Clone(good), 0, 0, 0))
	require.True(t, ok, "Ethernet padding is no part of it")
	assert.Equal(t, ip("fd00::5"), target)
	assert.Equal(t, testMAC, mac)

	bare := ndPacket(ip("fd00::5"), allNodes, typeAdvertisement, 0, ip("fd00::5"), 0, nil)
	_, mac, ok = parseAdvertisement(bare)
	assert.True(t, ok)
	assert.Nil(t, mac)

	for name, spoil := range map[string]func(b []byte) []byte{
		"cut short":        func(b []byte) []byte { return b[:len(b)-1] },
		"hop limit":        func(b []byte) []byte { b[7] = 64; return b },
		"checksum":         func(b []byte) []byte { b[43]++; return b },
		"version":          func(b []byte) []byte { b[0] = 0x40; return b },
		"protocol":         func(b []byte) []byte { b[6] = 17; return b },
		"length too small": func(b []byte) []byte { b[5] = 16; return b },
		"option of length 0": func([]byte) []byte {
			b := bytes.Clone(good)
			b[65] = 0
			b[42], b[43] = 0, 0
			c := ^sum(b)
			b[42], b[43] = byte(c>>8), byte(c)
			return b
		},
		"a solicitation": func([]byte) []byte {
			return solicitation(testMAC, ip("fd00::1"), allNodes, ip("fd00::5"))
		},
	} {
		_, _, ok := parseAdvertisement(spoil(bytes.Clone(good)))
		assert.False(t, ok, name)
	}
}

func FuzzParseARP(f *testing.F) {
	f.Add(arpRequest(testMAC, ip("10.1.0.5"), ip("10.1.0.6")).bytes())
	f.Add([]byte{0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parseARP(b)
		if !ok {
			return
		}
		require.Equal(t, b[:arpLen], p.bytes())
		p.claims(p.senderIP)
	})
}

func FuzzParseAdvertisement(f *testing.F) {
	f.Add(advertisement(testMAC, ip("fd00::5")))
	f.Add(solicitation(testMAC, ip("fd00::1"), allNodes, ip("fd00::5")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, mac, ok := parseAdvertisement(b)
		if ok && mac != nil {
			require.Len(t, mac, macLen)
		}
		if len(b) < ipv6Len+ndLen {
			return
		}
		// With a right checksum the options are reached as well.
		c := bytes.Clone(b[:min(len(b), ipv6Len+0xff)])
		copy(c, []byte{0x60, 0, 0, 0, 0, byte(len(c) - ipv6Len), protocolICMPv6, hopLimit})
		copy(c[ipv6Len:], []byte{typeAdvertisement, 0, 0, 0})
		s := ^sum(c)
		c[ipv6Len+2], c[ipv6Len+3] = byte(s>>8), byte(s)
		_, mac, ok = parseAdvertisement(c)
		if ok && mac != nil {
			require.Len(t, mac, macLen)
		}
	})
}
