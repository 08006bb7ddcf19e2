package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

const (
	noSlices  = `{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}`
	oneSlice  = `{"metadata": {"name": "net"}, "status": {"allocations": [{"nodeName": "node1", "sliceRange": "10.0.0.0/28"}, {"nodeName": "", "sliceRange": "10.0.0.16/28"}]}}`
	bothGiven = `{"metadata": {"name": "net"}, "status": {"allocations": [{"nodeName": "node1", "sliceRange": "10.0.0.0/28"}, {"nodeName": "node2", "sliceRange": "10.0.0.16/28"}]}}`
)

// A node that has come just now isn't refused because the server's memory doesn't know its slice yet.
func TestSliceOfNodeThatCameJustNow(t *testing.T) {
	for _, c := range []struct {
		name           string
		memory, object string // what the server answers
		slice, fault   string
		calls          int
	}{
		{"known", bothGiven, noSlices, "10.0.0.16/28", "", 1},
		{"the network is new", noSlices, bothGiven, "10.0.0.16/28", "", 2},
		{"the node is new", oneSlice, bothGiven, "10.0.0.16/28", "", 2},
		{"no such network", noSlices, noSlices, "", "there is no NodeSlicePool kube-system/net", 2},
		{"no slice is left", oneSlice, oneSlice, "", "has no slice for node node2 (1 of 2 slices are given)", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				body := c.object
				if r.URL.Query().Get("resourceVersion") == "0" {
					body = c.memory
				}
				if body == noSlices {
					w.WriteHeader(http.StatusNotFound)
				}
				_, _ = fmt.Fprint(w, body)
			}))
			t.Cleanup(server.Close)
			api, err := kubeapi.New(&rest.Config{Host: server.URL})
			require.NoError(t, err)
			pool := ipam.Pool{Range: netip.MustParsePrefix("10.0.0.0/24")}
			got, err := New(Options{API: api}).Sliced(t.Context(), []ipam.Pool{pool}, "net", "node2")
			assert.Equal(t, c.calls, calls)
			if c.fault != "" {
				require.ErrorContains(t, err, c.fault)
				assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err))
				return
			}
			require.NoError(t, err)
			want, err := pool.Sliced("node2", netip.MustParsePrefix(c.slice))
			require.NoError(t, err)
			assert.Equal(t, []ipam.Pool{want}, got)
		})
	}
}
