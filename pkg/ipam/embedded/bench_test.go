package embedded

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// What an ADD reads in a /20 that is 99 % full.
func BenchmarkSnapshot(b *testing.B) {
	s, err := Open(b.TempDir(), "one")
	require.NoError(b, err)
	full, n := newPool("10.0.0.0/20"), 0
	for a := range full.Candidates(nil, full.First) {
		if n++; n > 4053 {
			break
		}
		owner := ipam.Owner{PodRef: fmt.Sprint("ns/pod", n), ContainerID: fmt.Sprint("c", n), IfName: "net1"}
		require.NoError(b, s.Create(b.Context(), full, full.NewClaim(a, owner)))
	}
	for b.Loop() {
		seen, err := s.Snapshot(b.Context(), full, first)
		require.NoError(b, err)
		require.Len(b, seen.Taken, 4053)
	}
}
