package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

var things = Resource{Group: "example.org", Version: "v1", Plural: "things", Namespace: "ns"}

// server answers calls one after the other with the given status codes, the last one for ever.
func server(t *testing.T, codes ...int) (*Client, *[]*http.Request, *[]string) {
	var requests []*http.Request
	var bodies []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests, bodies = append(requests, r), append(bodies, string(body))
		code := codes[min(len(requests), len(codes))-1]
		w.WriteHeader(code)
		switch {
		case code < 400:
			fmt.Fprint(w, `{"answer": 42}`)
		case code == http.StatusConflict:
			fmt.Fprint(w, `{"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "it was changed"}`)
		default:
			fmt.Fprint(w, "from a proxy")
		}
	}))
	t.Cleanup(s.Close)
	c, err := New(&rest.Config{Host: s.URL})
	require.NoError(t, err)
	return c, &requests, &bodies
}

func TestCalls(t *testing.T) {
	c, requests, bodies := server(t, http.StatusOK)
	var into struct{ Answer int }
	require.NoError(t, c.Get(t.Context(), things, "a", &into, Cached()))
	assert.Equal(t, 42, into.Answer)
	require.NoError(t, c.List(t.Context(), Resource{Version: "v1", Plural: "nodes"}, &into, NotOlderThan("7"), Labelled("a", "b", "c", "d")))
	require.NoError(t, c.Patch(t.Context(), things, "a", []Op{Test("/a", nil), Add("/b/"+Escape("x/y~z"), 1), Remove("/c")}, Meta(&into)))
	require.NoError(t, c.Create(t.Context(), things, map[string]int{"n": 1}, nil))
	require.NoError(t, c.Update(t.Context(), things, "a", map[string]int{"n": 2}, nil))
	require.NoError(t, c.Delete(t.Context(), things, "a", "uid", "8"))
	want := []string{
		"GET /apis/example.org/v1/namespaces/ns/things/a?resourceVersion=0 ",
		"GET /api/v1/nodes?labelSelector=a%3Db%2Cc%3Dd&resourceVersion=7&resourceVersionMatch=NotOlderThan ",
		`PATCH /apis/example.org/v1/namespaces/ns/things/a [{"op":"test","path":"/a","value":null},{"op":"add","path":"/b/x~1y~0z","value":1},{"op":"remove","path":"/c"}]`,
		`POST /apis/example.org/v1/namespaces/ns/things {"n":1}`,
		`PUT /apis/example.org/v1/namespaces/ns/things/a {"n":2}`,
		`DELETE /apis/example.org/v1/namespaces/ns/things/a {"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"resourceVersion":"8","uid":"uid"}}`,
	}
	for i, r := range *requests {
		assert.Equal(t, want[i], r.Method+" "+r.URL.RequestURI()+" "+(*bodies)[i])
	}
	assert.Contains(t, (*requests)[2].Header.Get("Accept"), "PartialObjectMetadata")
	assert.Equal(t, "application/json-patch+json", (*requests)[2].Header.Get("Content-Type"))
	assert.WithinDuration(t, time.Now(), c.Now(), 3*time.Second)
}

func TestRepeated(t *testing.T) {
	for _, c := range []struct {
		codes []int
		calls int
		ok    bool
		check func(error) bool
	}{
		{[]int{500, 503, 200}, 3, true, nil},
		{[]int{429, 200}, 2, true, nil},
		{[]int{409}, 1, false, apierrors.IsConflict},
		{[]int{422}, 1, false, apierrors.IsInvalid},
		{[]int{404}, 1, false, apierrors.IsNotFound},
		{[]int{403}, 1, false, apierrors.IsForbidden},
		{[]int{401}, 1, false, apierrors.IsUnauthorized},
	} {
		client, requests, _ := server(t, c.codes...)
		err := client.Get(t.Context(), things, "a", nil)
		assert.Equal(t, c.ok, err == nil, "%v: %v", c.codes, err)
		assert.Len(t, *requests, c.calls, "%v", c.codes)
		if c.check != nil {
			assert.True(t, c.check(err), "%v: %v", c.codes, err)
			assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(client.Explain(err)))
		}
	}
}

// What fails for long is given up after the client's patience, or at once by who can wait, and never after the call's time.
func TestGivenUp(t *testing.T) {
	client, requests, _ := server(t, http.StatusInternalServerError)
	client.Patience = 200 * time.Millisecond
	began := time.Now()
	err := client.Get(t.Context(), things, "a", nil)
	require.ErrorContains(t, err, "500 Internal Server Error: from a proxy")
	assert.Greater(t, len(*requests), 1)
	assert.Less(t, time.Since(began), 3*time.Second)
	*requests = nil
	require.Error(t, client.Get(Impatient(t.Context()), things, "a", nil))
	assert.Len(t, *requests, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	client.Patience = time.Minute
	require.Error(t, client.Get(ctx, things, "a", nil))
	assert.Less(t, time.Since(began), 5*time.Second)
}

func TestUnreachable(t *testing.T) {
	c, err := New(&rest.Config{Host: "http://127.0.0.1:1"})
	require.NoError(t, err)
	c.Patience = 0
	err = c.Get(t.Context(), things, "a", nil)
	assert.True(t, IsUnreachable(err))
	explained := c.Explain(err)
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(explained))
	assert.ErrorContains(t, explained, "GET /apis/example.org/v1/namespaces/ns/things/a: the API server 127.0.0.1:1 gave no answer: dial tcp 127.0.0.1:1: connect: connection refused; is the API server up")
}

func TestWatch(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("resourceVersion") == "1" {
			fmt.Fprint(w, `{"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}}`)
			return
		}
		fmt.Fprint(w, `{"type": "ADDED", "object": {"a": 1}}{"type": "DELETED", "object": {"a": 2}}`)
	}))
	defer s.Close()
	c, err := New(&rest.Config{Host: s.URL})
	require.NoError(t, err)
	var seen []string
	require.NoError(t, c.Watch(t.Context(), things, "2", func(e Event) error { seen = append(seen, e.Type+string(e.Object)); return nil }))
	assert.Equal(t, []string{`ADDED{"a": 1}`, `DELETED{"a": 2}`}, seen)
	err = c.Watch(t.Context(), things, "1", func(Event) error { return nil })
	assert.True(t, apierrors.IsResourceExpired(err), "%v", err)
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	_, err := Load(path, "test")
	assert.Equal(t, cnierr.InvalidConfig, cnierr.CodeOf(err))
	require.ErrorContains(t, err, path)
	config := map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "here",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": "https://127.0.0.1:1"}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": "t"}}},
		"contexts": []any{map[string]any{"name": "here", "context": map[string]any{"cluster": "c", "user": "u", "namespace": "storage"}}},
	}
	data, err := json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	c, err := Load(path, "test")
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:1", c.Server())
	assert.Equal(t, "storage", c.Namespace)
	assert.Equal(t, "storage", NamespaceOf(path))
	config["current-context"] = "elsewhere"
	data, err = json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	_, err = Load(path, "test")
	require.Error(t, err)
}
