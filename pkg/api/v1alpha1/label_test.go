package v1alpha1

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"
)

func TestLabelValue(t *testing.T) {
	container := strings.Repeat("0123456789abcdef", 4) // of the length that runtimes use
	for text, want := range map[string]string{
		"":             "",
		"node1":        "node1",
		"10.0.0.0-24":  "10.0.0.0-24",
		container:      container[:40] + "-a8ae6e6ee929abea",
		"fd00:1::/64":  "fd00_1___64-",
		"-":            "",
		"ns/pod\u00e9": "ns_pod_-",
	} {
		got := LabelValue(text)
		assert.True(t, strings.HasPrefix(got, strings.TrimRight(want, "_-")), "%q: %q", text, got)
		assert.Empty(t, validation.IsValidLabelValue(got), text)
	}
	assert.Equal(t, "a8ae6e6ee929abea", LabelValue(container)[41:])
}

// Any text gives a legal value, and different texts different ones.
func TestLabelValueOfAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := rapid.String().Draw(rt, "a"), rapid.String().Draw(rt, "b")
		assert.Empty(rt, validation.IsValidLabelValue(LabelValue(a)))
		if a != b {
			assert.NotEqual(rt, LabelValue(a), LabelValue(b))
		}
	})
}
