package longhorn

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseRef(t *testing.T) {
	for text, want := range map[string]Ref{"": {}, "ns/nad": {"ns", "nad"}} {
		ref, err := ParseRef(text)
		require.NoError(t, err)
		assert.Equal(t, want, ref)
		assert.Equal(t, text, ref.String())
	}
	for _, text := range []string{"nad", "/nad", "ns/", " default/wb", "a/b/c", "ns/nad "} { // Longhorn takes most of them
		_, err := ParseRef(text)
		assert.ErrorContains(t, err, "want namespace/name", text)
	}
}

func TestAnnotation(t *testing.T) {
	ref := Ref{"ns", "nad"}
	const letters = `[{"namespace": "ns", "name": "nad", "interface": "lhnet1"}]`
	assert.Equal(t, []byte(letters), []byte(ref.Annotation()), "Longhorn compares it to the letter: %s", ref) //nolint:testifylint // as the message says
	for text, want := range map[string]bool{
		ref.Annotation(): true,
		`[{"name":"nad","namespace":"ns","interface":"lhnet1"}]`: true,
		`[{"name":"nad","namespace":"other"}]`:                   false,
		`[{"name":"nad","namespace":"ns"},{"name":"b"}]`:         false,
		"": false, "ns/nad": false, "[": false,
	} {
		assert.Equal(t, want, ref.asks(text), text)
	}
	assert.True(t, Ref{}.asks(""))
	assert.False(t, Ref{}.asks(ref.Annotation()))
}

func TestStorageAddress(t *testing.T) {
	ref := Ref{"ns", "nad"}
	for _, c := range []struct{ status, want, fault string }{
		{`[{"name": "cbr0", "ips": ["10.42.0.1"]}, {"name": "ns/nad", "ips": ["10.0.0.7"]}]`, "10.0.0.7", ""},
		{`[{"name": "ns/nad", "ips": ["10.0.0.9", "10.0.0.10"]}]`, "10.0.0.10", ""}, // sorted as strings
		{`[{"name": "ns/nad", "interface": "eth7", "ips": ["fd00::1"]}]`, "fd00::1", ""},
		{``, "", "no network-status"},
		{`{`, "", "can't be read"},
		{`[{"name": "ns/nad", "ips": []}]`, "", "makes longhorn-manager crash"},
		{`[{"name": "ns/nad"}]`, "", "lists no address"},
		{`[{"name": "nad", "ips": ["10.0.0.7"]}]`, "", "no entry for ns/nad"},
		{`[{"name": "ns/nad", "ips": ["10.0.0.7/24"]}]`, "", `"10.0.0.7/24"`}, // Longhorn passes it on as it is
	} {
		addr, err := ref.storageAddress(c.status)
		if c.fault != "" {
			assert.ErrorContains(t, err, c.fault, c.status)
			continue
		}
		require.NoError(t, err, c.status)
		assert.Equal(t, netip.MustParseAddr(c.want), addr)
	}
}

func TestRead(t *testing.T) {
	const ipam = `"ipam": {"type": "whereabouts", "range": "10.1.0.0/24", "exclude": ["10.1.0.0/28"]}`
	for name, c := range map[string]struct {
		config, plugin, parent string
		room                   float64
		faults                 int
	}{
		"ours": {`{"cniVersion": "1.1.0", "type": "lhstorage", "parent": {"type": "vxlan", "name": "vx", "vni": 1, "vtep": {"cidr": "10.9.0.0/24"}},
			"hostShim": {"range": "10.1.0.0/28"}, "ipam": {"type": "lhstorage-ipam", "range": "10.1.0.0/24"}}`, "lhstorage", "vx", 239, 0},
		"macvlan":      {`{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", ` + ipam + `}`, "macvlan", "", 239, 0},
		"a list":       {`{"cniVersion": "1.0.0", "plugins": [{"type": "bridge", ` + ipam + `}, {"type": "tuning"}]}`, "bridge", "", 239, 0},
		"chained":      {`{"cniVersion": "1.1.0", "plugins": [{"type": "macvlan", "master": "eth1", ` + ipam + `}, {"type": "lhstorage", "hostShim": {"range": "10.1.0.0/28"}}]}`, "macvlan", "", 239, 0},
		"two faults":   {`{"cniVersion": "1.1.0", "type": "lhstorage", "parent": {"type": "nonsense"}, "mode": "nonsense"}`, "lhstorage", "", 0, 2},
		"not JSON":     {`{`, "", "", 0, 1},
		"not a list":   {`{"plugins": 3}`, "", "", 0, 1},
		"empty list":   {`{"plugins": []}`, "", "", 0, 1},
		"list of null": {`{"plugins": [null]}`, "", "", 0, 1},
		"null":         {`null`, "", "", 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := read("nad", c.config)
			assert.Equal(t, c.plugin, s.Type)
			assert.Equal(t, c.parent, s.Parent)
			assert.InDelta(t, c.room, s.room(), 0)
			assert.GreaterOrEqual(t, len(s.Faults), c.faults, "%v", s.Faults)
			if c.faults == 0 {
				assert.Empty(t, s.Faults)
			}
		})
	}
}

func TestHolds(t *testing.T) {
	s := shape{Ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Hosts: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/28")}}
	for text, want := range map[string]bool{"10.1.0.16": true, "10.1.0.15": false, "10.2.0.16": false} {
		assert.Equal(t, want, s.holds(netip.MustParseAddr(text)), text)
	}
	assert.True(t, shape{}.holds(netip.MustParseAddr("10.2.0.16")), "ranges that can't be read refuse nothing")
}

// FuzzRead sees that no configuration and no annotation makes anything panic.
func FuzzRead(f *testing.F) {
	f.Add(`{"plugins": [null]}`, `[{"name": "a/b", "ips": [""]}]`)
	f.Add(`{"type": "lhstorage", "name": 3, "ipam": {"type": "whereabouts", "range": "::/0"}}`, `[null]`)
	f.Fuzz(func(_ *testing.T, config, status string) {
		s := read("nad", config)
		s.room()
		if addr, err := (Ref{"a", "b"}).storageAddress(status); err == nil {
			s.holds(addr)
		}
	})
}
