package probe

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPDURoundTrip(t *testing.T) {
	for _, data := range []string{"", "a", "abcd", "abcdefg"} {
		want := pdu{data: []byte(data)}
		want.header[0] = opDataIn
		var wire bytes.Buffer
		require.NoError(t, want.write(&wire))
		assert.Zero(t, wire.Len()%4, "padded")
		got, err := readPDU(&wire)
		require.NoError(t, err)
		assert.Equal(t, data, string(got.data))
		assert.Zero(t, wire.Len())
	}
}

// FuzzReadPDU reads what a broken target might send: an error, never a panic,
// and never more data than was agreed.
func FuzzReadPDU(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, headerLen))
	huge := make([]byte, headerLen)
	huge[4], huge[5], huge[6], huge[7] = 0xff, 0xff, 0xff, 0xff
	f.Add(huge)
	f.Add(append([]byte{0: 0x25, 7: 5, headerLen - 1: 0}, "hello\x00\x00\x00"...))
	f.Fuzz(func(t *testing.T, wire []byte) {
		got, err := readPDU(bytes.NewReader(wire))
		if err == nil && len(got.data) > maxSegment {
			t.Fatalf("%d bytes of data", len(got.data))
		}
		_ = parseSense(got.data).Error()
	})
}
