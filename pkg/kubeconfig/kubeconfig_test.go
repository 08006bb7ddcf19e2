package kubeconfig

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// server answers TokenRequests as the API server does; the real one is asked in integration.
func server(t *testing.T, answer func(authenticationv1.TokenRequest) (int, any)) (*kubeapi.Client, File) {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/api/v1/namespaces/kube-system/serviceaccounts/lhstorage-node/token", r.URL.Path)
		var request authenticationv1.TokenRequest
		assert.NoError(t, json.NewDecoder(r.Body).Decode(&request))
		code, body := answer(request)
		w.WriteHeader(code)
		assert.NoError(t, json.NewEncoder(w).Encode(body))
	}))
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	cfg := &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
	client, err := kubeapi.New(cfg)
	require.NoError(t, err)
	client.Patience = 0
	file, err := ServerOf(cfg)
	require.NoError(t, err)
	return client, file
}

func token(issued time.Time, life time.Duration) string {
	payload := fmt.Sprintf(`{"iat": %d, "exp": %d}`, issued.Unix(), issued.Add(life).Unix())
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestRenewal(t *testing.T) {
	issued := time.Now().Add(-time.Hour).Truncate(time.Second)
	var asked authenticationv1.TokenRequest
	client, file := server(t, func(r authenticationv1.TokenRequest) (int, any) {
		asked = r
		r.Status.Token = token(issued, 8*time.Hour)
		return http.StatusCreated, r
	})
	path := filepath.Join(t.TempDir(), "kubeconfig")
	got, err := Renewal{API: client, Account: NodeAccount, Node: "worker-1", File: file}.Write(t.Context(), path)
	require.NoError(t, err)
	assert.Equal(t, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: "worker-1"}, asked.Spec.BoundObjectRef)
	assert.EqualValues(t, 24*3600, *asked.Spec.ExpirationSeconds)
	assert.Equal(t, issued.Add(2*time.Hour), got.Due(), "at a quarter of the life that the server gave")

	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(Mode), info.Mode())
	read, err := Read(path)
	require.NoError(t, err)
	assert.Equal(t, File{Server: file.Server, CA: file.CA, Token: got.Value, Namespace: metav1.NamespaceSystem}, read)
	plugins, err := kubeapi.Load(path, "test")
	require.NoError(t, err, "as plugins read it")
	assert.Equal(t, metav1.NamespaceSystem, plugins.Namespace)
}

func TestWriteLeavesAnEqualFileAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	file := File{Server: "https://10.0.0.1", Token: "a"}
	require.NoError(t, file.Write(path))
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, file.Write(path))
	after, err := os.Stat(path)
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after))

	require.NoError(t, os.Chmod(path, 0o644))
	require.NoError(t, file.Write(path))
	after, err = os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(Mode), after.Mode(), "a file that others could read")
}

func TestRequestSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		status metav1.Status
		says   string
	}{
		{metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound, Message: `serviceaccounts "lhstorage-node" not found`}, "apply lhstorage's RBAC objects"},
		{metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound, Message: `nodes "worker-1" not found`}, "must be that of its Node object"},
		{metav1.Status{Code: 403, Reason: metav1.StatusReasonForbidden, Message: "no"}, "lacks this right"},
		{metav1.Status{Code: 422, Reason: metav1.StatusReasonInvalid, Message: "spec.boundObjectRef.kind"}, "1.31"},
	} {
		c.status.Status = metav1.StatusFailure
		client, _ := server(t, func(authenticationv1.TokenRequest) (int, any) { return int(c.status.Code), c.status })
		_, err := Request(t.Context(), client, NodeAccount, "worker-1", time.Hour)
		require.ErrorContains(t, err, "kube-system/lhstorage-node")
		require.ErrorContains(t, err, c.status.Message)
		require.ErrorContains(t, err, c.says)
	}
	client, _ := server(t, func(r authenticationv1.TokenRequest) (int, any) { return http.StatusCreated, r })
	_, err := Request(t.Context(), client, NodeAccount, "worker-1", time.Hour)
	require.ErrorContains(t, err, "answered something else")
}

func TestParseToken(t *testing.T) {
	issued := time.Unix(1_700_000_000, 0)
	got, err := ParseToken(token(issued, time.Hour))
	require.NoError(t, err)
	assert.Equal(t, issued.Add(time.Hour), got.Expires)
	for _, bad := range []string{"", "opaque", "a.b.c", "e30.e30.", "e30.!.c", token(issued, 0)} {
		_, err := ParseToken(bad)
		assert.Error(t, err, bad)
	}
}

func TestServerOf(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, []byte("pem"), 0o600))
	file, err := ServerOf(&rest.Config{Host: "10.96.0.1:443", TLSClientConfig: rest.TLSClientConfig{CAFile: ca}})
	require.NoError(t, err)
	assert.Equal(t, File{Server: "https://10.96.0.1:443", CA: []byte("pem")}, file)
	_, err = ServerOf(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAFile: ca + "x"}})
	require.ErrorContains(t, err, ca+"x")
}

func TestReadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	_, err := Read(path)
	require.ErrorContains(t, err, path)
	require.NoError(t, os.WriteFile(path, []byte("apiVersion: v1\nkind: Config\n"), 0o600))
	_, err = Read(path)
	require.ErrorContains(t, err, "no current context")
}
