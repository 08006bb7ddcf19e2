package kube

import (
	"net/netip"
	"os"
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
