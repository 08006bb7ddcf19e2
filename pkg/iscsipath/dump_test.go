package iscsipath_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lhstorage/lhstorage/pkg/iscsipath"
	"github.com/lhstorage/lhstorage/pkg/kernel"
)

func TestDump(t *testing.T) {
	links := []kernel.Link{{Name: "lo", Index: 1}, {Name: "lhnet1", Index: 2}, {Name: "eth0", Index: 3}, {Name: "down", Index: 4}}
	address := func(link int, text string) kernel.Addr {
		return kernel.Addr{Link: link, Prefix: netip.MustParsePrefix(text)}
	}
	addrs := []kernel.Addr{address(1, "127.0.0.1/8"), address(3, "10.42.0.1/24"), address(2, "10.100.1.16/24"), address(3, "fd00::1/64"), address(9, "10.9.9.9/24")}
	list := iscsipath.Dump(links, addrs)
	assert.Equal(t, []iscsipath.Iface{
		{Name: "lo", Index: 1, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		{Name: "eth0", Index: 3, Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("fd00::1")}},
		{Name: "lhnet1", Index: 2, Addrs: []netip.Addr{netip.MustParseAddr("10.100.1.16")}},
		{Index: 9, Addrs: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}, // gone since the links were listed
		{Name: "down", Index: 4},
	}, list)
	to, by, ok := iscsipath.Dialed(list)
	assert.True(t, ok)
	assert.Equal(t, "10.42.0.1 eth0", to.String()+" "+by, "in the kernel's order, not in that of indexes")
}

func TestIsTarget(t *testing.T) {
	assert.True(t, iscsipath.IsTarget("longhorn-system/instance-manager-0f3a"))
	assert.False(t, iscsipath.IsTarget("longhorn-system/longhorn-manager-x"))
	assert.False(t, iscsipath.IsTarget("instance-manager-0f3a"), "namespace/name")
}
