package firewall_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/firewall"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string][]firewall.Port{
		"":                   nil,
		"2049/tcp":           {{Protocol: "tcp", Port: 2049}},
		"2049/tcp, 123/udp ": {{Protocol: "tcp", Port: 2049}, {Protocol: "udp", Port: 123}},
	} {
		got, err := firewall.ParsePorts(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	_, err := firewall.ParsePorts("0/tcp,65536/tcp,2049,53/sctp,2049/TCP,,-1/udp,2049/tcp")
	for _, fault := range []string{`"0/tcp"`, `"65536/tcp"`, `"2049"`, `"53/sctp"`, `"2049/TCP"`, `"" isn't`, `"-1/udp"`} {
		assert.ErrorContains(t, err, fault, "all faults at once")
	}
	assert.NotContains(t, err.Error(), `"2049/tcp"`)
}
