package hostclaim

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"
)

func TestName(t *testing.T) {
	assert.Equal(t, "vxlan-storage-3", Name("vxlan-storage", 3))
	assert.Equal(t, "eth1-12", Name("eth1", 12))
	assert.Regexp(t, `^bond-0-x-[0-9a-f]{8}-1$`, Name("Bond_0.x", 1))
	assert.NotEqual(t, Name("bond0.1", 1), Name("bond0-1", 1))
}

// Any device has a legal name, and two devices have two.
func TestNameOfAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		device := rapid.StringMatching(`[!-.0-~]{1,15}`)
		a, b := device.Draw(rt, "a"), device.Draw(rt, "b")
		assert.Empty(rt, validation.IsDNS1123Subdomain(Name(a, 1)), a)
		if a != b {
			assert.NotEqual(rt, Name(a, 1), Name(b, 1))
		}
	})
}
