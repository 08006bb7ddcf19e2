package kube

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// Whatever a page holds, an attachment's claims can be noted on it, found again and taken off it.
func FuzzPage(f *testing.F) {
	for _, seed := range []string{"", "{}", "null", `{"owner": {"containerID": "c2"}, "claims": [{"name": "10.0.0.1"}]}`, `{"claims": [{"address": "x"}]}`, `{"claims": null`} {
		f.Add([]byte(seed))
	}
	owner := ipam.Owner{Network: "storage", PodRef: "ns/pod", ContainerID: "c1", IfName: "net1"}
	f.Fuzz(func(t *testing.T, data []byte) {
		j := journal{dir: t.TempDir()}
		require.NoError(t, os.WriteFile(j.path(owner), data, 0o600))
		want := noted{Name: "10.0.0.9", Pool: "10.0.0.0-24", Address: netip.MustParseAddr("10.0.0.9"), Recorded: "7"}
		require.NoError(t, j.note(owner, want))
		page, err := j.sandbox(owner)
		require.NoError(t, err)
		assert.Equal(t, owner, page.Owner)
		assert.Contains(t, page.Claims, want)
		got, err := j.noted(owner, want.Name)
		require.NoError(t, err)
		assert.Equal(t, want, got)
		require.NoError(t, j.close(owner))
		assert.NoFileExists(t, j.path(owner))
	})
}

// An address that was given up a moment ago is asked for by many at once: some one gets it, and nobody an error.
func TestHoldOfWhatLingers(t *testing.T) {
	const name, many = "10.0.0.9", 8
	owner := func(i int) ipam.Owner {
		return ipam.Owner{Network: "storage", PodRef: fmt.Sprintf("ns/pod%d", i), ContainerID: fmt.Sprintf("c%d", i), IfName: "net1"}
	}
	for range 200 {
		j := journal{dir: t.TempDir(), lingering: true}
		got, err := j.hold(owner(many), name)
		require.NoError(t, err)
		require.True(t, got)
		require.NoError(t, j.letGo(owner(many), name))
		var wg sync.WaitGroup
		var held atomic.Int32
		for i := range many {
			wg.Go(func() {
				got, err := j.hold(owner(i), name)
				assert.NoError(t, err)
				if got {
					held.Add(1)
				}
			})
		}
		wg.Wait()
		require.Positive(t, held.Load())
	}
}
