package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// unpack reads a bundle.
func unpack(t *testing.T, data []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		content, err := io.ReadAll(archive)
		require.NoError(t, err)
		files[strings.TrimPrefix(header.Name, "lhstorage-bundle/")] = string(content)
	}
}

// secrets are credentials in the forms in which they get into objects, by the part that must not be seen.
func secrets(t *testing.T) map[string]string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	keyPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	body := strings.Split(keyPEM, "\n")[1]
	in64 := base64.StdEncoding.EncodeToString([]byte(keyPEM))
	jwt := "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
	return map[string]string{
		body:                  keyPEM,
		in64[20:60]:           "client-key-data: " + in64,
		jwt[10:30]:            jwt,
		jwt[40:60]:            "Authorization: Bearer " + jwt,
		"c2lnbmF0dXJl":        `{"kubernetes": {"token": "` + jwt + `"}}`,
		"hunter2hunter2":      `{"chap": {"password": "hunter2hunter2"}}`,
		"s3cr3t-v4lue":        "clientSecret=s3cr3t-v4lue",
		"opensesame":          "https://admin:opensesame@registry.example/x",
		"0123456789abcdef":    "join with abcdef.0123456789abcdef",
		"dGhpc2lzYWtleQ":      `"private_key": "dGhpc2lzYWtleQ=="`,
		"b3BhcXVlLWJlYXJlcg0": "bearer b3BhcXVlLWJlYXJlcg0",
	}
}

func TestBundleHasNoSecrets(t *testing.T) {
	for secret, text := range secrets(t) {
		w := healthy(t)
		w.manager(1).Status.Message = text
		w.cluster.Events = []corev1.Event{{Reason: "FailedCreatePodSandBox", Message: text}}
		w.cluster.Denied = []snapshot.Denial{{What: "x", Why: text}}
		quoted, err := json.Marshal(text)
		require.NoError(t, err)
		w.cluster.Definitions[0].Config = fmt.Sprintf(`{"type": "lhstorage", "x": %s}`, quoted)
		w.install = errors.New(text)
		s := w.snapshot()
		var out bytes.Buffer
		require.NoError(t, Bundle{Version: "v1", Snapshot: s, Findings: Diagnose(s), Text: text}.Write(&out))
		for name, content := range unpack(t, out.Bytes()) {
			assert.NotContains(t, content, secret, "%s in %s", text, name)
		}
	}
}

// What is no secret stays, and files can be read.
func TestBundle(t *testing.T) {
	w := healthy(t)
	w.cluster.HostShims[2].Status.Ready, w.cluster.HostShims[2].Status.Reason = "False", "parent is down"
	s := w.snapshot()
	var out bytes.Buffer
	require.NoError(t, Bundle{Version: "v1.2.3", Snapshot: s, Findings: Diagnose(s), Text: "as text"}.Write(&out))
	files := unpack(t, out.Bytes())
	assert.Contains(t, files["version.txt"], "v1.2.3")
	assert.Equal(t, "as text", files["findings.txt"])
	var findings []Finding
	require.NoError(t, yaml.Unmarshal([]byte(files["findings.yaml"]), &findings))
	require.Len(t, findings, 1)
	assert.Equal(t, "LHS033", findings[0].Code)
	var local snapshot.Local
	require.NoError(t, yaml.Unmarshal([]byte(files["node/node2.yaml"]), &local))
	assert.Equal(t, s.Local.Links, local.Links)
	assert.Len(t, local.Attachments, 1)
	for _, name := range []string{"definitions", "hostshims", "addressclaims", "pods", "nodes", "longhorn", "probereports", "ippools", "daemonsets", "events"} {
		assert.NotEmpty(t, files["cluster/"+name+".yaml"], name)
	}
	assert.Contains(t, files["cluster/definitions.yaml"], `"vni": 100`)
	assert.Contains(t, files["cluster/pods.yaml"], "10.100.1.17")
	assert.NotContains(t, strings.Join([]string{files["cluster/definitions.yaml"], files["node/node2.yaml"], files["cluster/pods.yaml"]}, ""), struck)
}

func FuzzRedact(f *testing.F) {
	f.Add("token: abc")
	f.Fuzz(func(t *testing.T, text string) {
		once := Redact(text)
		assert.NotRegexp(t, `LS0tLS1CRUdJTi[A-Za-z0-9+/=]`, once)
		assert.NotContains(t, once, "-----BEGIN PRIVATE KEY-----")
	})
}
