package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// A remedy can be copied: it names the devices.
func TestRemedyNamesDevices(t *testing.T) {
	for code, want := range map[string]string{
		"LHS116": "ip link set vxlan-storage type vxlan learning",
		"LHS114": "bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst VTEP self permanent",
		"LHS119": "net.ipv4.conf.vxlan-storage.arp_ignore=8",
		"LHS136": "net.ipv4.conf.lhnet1-host.rp_filter=2",
	} {
		w := healthy(t)
		breakages[code](w)
		found := Diagnose(w.snapshot())
		require.Len(t, found, 1, code)
		assert.Contains(t, found[0].Fix, want)
	}
}

// Errors come first, however the table orders them.
func TestErrorsComeFirst(t *testing.T) {
	w := healthy(t)
	breakages["LHS009"](w)
	w.kernel.Alter(vx, func(l *kernel.Link) { l.Up = false })
	found := Diagnose(w.snapshot())
	require.Len(t, found, 2)
	assert.Equal(t, []string{"LHS112", "LHS009"}, []string{found[0].Code, found[1].Code})
}
