package hostclaim

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// What becomes of a place, and by which write.
func TestSweep(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) string { return now.Add(-d).UTC().Format(time.RFC3339) }
	for _, c := range []struct {
		name    string
		since   string // of the mark
		lives   bool
		away    bool   // this node isn't on the parent
		answers string // an address that does
		status  int    // of the write
		fate    Fate
		write   string // "VERB what"
		fails   bool
	}{
		{name: "its Node is there", lives: true, fate: Lives},
		{name: "its Node is there again", lives: true, since: ago(2 * time.Hour), fate: Returned, write: "PATCH remove"},
		{name: "its Node has just gone", fate: Marked, write: "PATCH add"},
		{name: "its Node has just gone, and others are to judge", away: true, fate: Marked, write: "PATCH add"},
		{name: "the mark can't be read", since: "yesterday", fate: Kept, write: "PATCH add"},
		{name: "it may come back", since: ago(time.Hour - 10*time.Second), fate: Kept},
		{name: "gone for good", since: ago(time.Hour + time.Second), fate: Removed, write: "DELETE 7"},
		{name: "gone for good, but others are to judge", since: ago(2 * time.Hour), away: true, fate: Kept},
		{name: "its VTEP answers", since: ago(2 * time.Hour), answers: "10.100.100.3", fate: Answers},
		{name: "its shim answers", since: ago(2 * time.Hour), answers: "10.100.1.3", fate: Answers},
		{name: "another address answers", since: ago(2 * time.Hour), answers: "10.100.1.4", fate: Removed, write: "DELETE 7"},
		{name: "somebody else removed it", since: ago(2 * time.Hour), status: http.StatusNotFound, fate: Removed, write: "DELETE 7"},
		{name: "somebody else changed it", since: ago(2 * time.Hour), status: http.StatusConflict, fate: Kept, write: "DELETE 7"},
		{name: "it may not be removed", since: ago(2 * time.Hour), status: http.StatusForbidden, fate: Kept, write: "DELETE 7", fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var writes []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
				status := http.StatusOK
				switch r.Method {
				case http.MethodGet:
					if !c.lives {
						status = http.StatusNotFound
					}
				case http.MethodPatch:
					assert.Contains(t, string(body), `"/metadata/resourceVersion","value":"7"`)
					assert.Contains(t, string(body), "node-gone")
					if strings.Contains(string(body), `"op":"remove"`) {
						writes = append(writes, "PATCH remove")
					} else {
						writes = append(writes, "PATCH add")
					}
				default:
					if c.status != 0 {
						status = c.status
					}
					assert.Contains(t, string(body), `"uid":"of-it"`)
					writes = append(writes, r.Method+" "+strings.Split(strings.SplitAfter(string(body), `"resourceVersion":"`)[1], `"`)[0])
				}
				w.WriteHeader(status)
				if status == http.StatusOK {
					_, _ = fmt.Fprint(w, `{}`)
					return
				}
				reason := map[int]string{http.StatusNotFound: "NotFound", http.StatusConflict: "Conflict", http.StatusForbidden: "Forbidden"}[status]
				_, _ = fmt.Fprintf(w, `{"kind": "Status", "status": "Failure", "reason": %q, "code": %d}`, reason, status)
			}))
			t.Cleanup(server.Close)
			api, err := kubeapi.New(&rest.Config{Host: server.URL})
			require.NoError(t, err)
			claimer := &Claimer{API: api, Answers: func(_ context.Context, addr netip.Addr) bool { return addr.String() == c.answers }}
			h := &v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{Node: "left", Parent: "p", Index: 3, VTEP: "10.100.100.3", Networks: []v1alpha1.ShimNetwork{{Name: "storage", Addresses: []v1alpha1.ShimAddress{"10.100.1.3"}}}}}
			h.Name, h.UID, h.ResourceVersion = "p-3", "of-it", "7"
			if c.since != "" {
				h.Annotations = map[string]string{goneAnnotation: c.since}
			}
			fate, err := claimer.Sweep(t.Context(), h, time.Hour, !c.away)
			require.Equal(t, c.fails, err != nil, "%v", err)
			assert.Equal(t, c.fate, fate)
			assert.Equal(t, c.write, strings.Join(writes, "\n"))
		})
	}
}
