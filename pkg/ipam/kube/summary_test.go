package kube

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

func TestSummary(t *testing.T) {
	base := netip.MustParseAddr("10.0.0.0")
	assert.Equal(t, "7 10.0.0.0 1-3,5,9-10", summary(7, base, []uint64{10, 1, 5, 3, 2, 9}))
	assert.Equal(t, "1 10.0.0.0 ", summary(1, base, nil))
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{"7 10.0.0.0 1-3,5", true},
		{"7 10.0.0.0 ", true},
		{"6 10.0.0.0 1-3,5", false}, // somebody has written entries since
		{"7 10.0.1.0 1-3,5", false},
		{"", false},
		{"7 10.0.0.0", false},
		{"7 10.0.0.0 3-1", false},
		{"7 10.0.0.0 1-4294967296", false},
		{"7 10.0.0.0 x", false},
		{"7 10.0.0.0 4294967295", false},
		{"7 10.0.0.0 0-6999", true},
		{"7 10.0.0.0 0-6999,7000", false}, // more than a pool may hold
	} {
		_, ok := summarised(c.text, 7, base)
		assert.Equal(t, c.ok, ok, c.text)
	}
}

// Whatever a summary says is what was written.
func TestSummaryThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.Uint64Range(0, 4095), 0, 300, rapid.ID).Draw(t, "keys")
		base := netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.0", "fd00::"}).Draw(t, "base"))
		want := map[netip.Addr]bool{}
		for _, k := range keys {
			addr, ok := addressAt(base, strconv.FormatUint(k, 10))
			require.True(t, ok)
			want[addr] = true
		}
		taken, ok := summarised(summary(3, base, keys), 3, base)
		require.True(t, ok)
		require.Len(t, taken, len(want))
		for _, addr := range taken {
			require.True(t, want[addr])
		}
	})
}

// What isn't a summary of ours is passed over, in bounded time and space.
func FuzzSummarised(f *testing.F) {
	for _, seed := range []string{
		"3 fd00:: 1-3,5", "3 fd00:: ", "3 fd00:: 18446744073709551610-18446744073709551615", "3 fd00:: 0-6999,0-6999", "3 fd00:: 1,,2", "",
	} {
		f.Add(seed)
	}
	base := netip.MustParseAddr("fd00::")
	f.Fuzz(func(t *testing.T, text string) {
		taken, ok := summarised(text, 3, base)
		assert.LessOrEqual(t, len(taken), mostEntries)
		if !ok {
			assert.Empty(t, taken)
		}
		for _, addr := range taken {
			assert.True(t, addr.Is6())
		}
	})
}

func TestSummariseAfterPatch(t *testing.T) {
	v := &view{base: netip.MustParseAddr("10.0.0.0")}
	v.object.Generation = 4
	v.object.Spec.Allocations = map[string]whereabouts.IPAllocation{"1": {}, "2": {}, "7": {}}
	ops := []kubeapi.Op{
		kubeapi.Test("/spec/allocations/3", nil), kubeapi.Add("/spec/allocations/3", whereabouts.IPAllocation{}),
		kubeapi.Test("/spec/allocations/7/id", "c"), kubeapi.Remove("/spec/allocations/7"),
	}
	assert.Equal(t, map[string]string{takenMark: "5 10.0.0.0 1-3"}, summarise(v, ops))
	v.object.Annotations = map[string]string{takenMark: "4 10.0.0.0 1-2,7"}
	assert.Empty(t, summarise(v, nil), "nothing is missing")
	v.object.Spec.Allocations["many"] = whereabouts.IPAllocation{}
	assert.Equal(t, map[string]string{takenMark: ""}, summarise(v, nil), "a key that isn't a number")
}
