package nodefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	name, err := os.Hostname()
	require.NoError(t, err)
	defaults := File{NodeName: name, StateDir: "/var/lib/lhstorage", RunDir: "/run/lhstorage", Record: RecordSync}
	for _, c := range []struct {
		text string
		want File
	}{
		{"{}", defaults},
		{" {}\n\n", defaults},
		{"null", defaults},
		{`{"nodeName":"n1","index":7,"kubeconfig":"/k","stateDir":"/s","runDir":"/r","record":"agent"}`,
			File{NodeName: "n1", Index: 7, Kubeconfig: "/k", StateDir: "/s", RunDir: "/r", Record: RecordAgent}},
	} {
		got, err := Parse("/etc/node.json", []byte(c.text))
		require.NoError(t, err, c.text)
		assert.Equal(t, c.want, got, c.text)
	}
}

// Bad input is an error that names the file and each key with its value.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"", []string{"empty"}},
		{" \n", []string{"empty"}},
		{"{", []string{"unexpected EOF"}},
		{"[]", []string{"array"}},
		{`{"indx":1}`, []string{`"indx"`}},
		{`{"index":"1"}`, []string{"index", "string"}},
		{`{"index":1}{"index":2}`, []string{"after the closing brace"}},
		{`{"index":1} x`, []string{"after the closing brace"}},
		{`{"index":-1,"record":"never","stateDir":"var","runDir":"./run","kubeconfig":"~/k"}`,
			[]string{"index -1", `record "never"`, `stateDir "var"`, `runDir "./run"`, `kubeconfig "~/k"`, "absolute"}},
	} {
		got, err := Parse("/etc/node.json", []byte(c.text))
		assert.Zero(t, got)
		for _, text := range append(c.want, "/etc/node.json") {
			assert.ErrorContains(t, err, text, c.text)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Setenv(PathEnv, "")
	assert.Equal(t, DefaultPath, Path())
	path := filepath.Join(t.TempDir(), "node.json")
	t.Setenv(PathEnv, path)
	assert.Equal(t, path, Path())
	_, err := Load()
	require.ErrorIs(t, err, os.ErrNotExist, "a file that was named must be there")
	require.ErrorContains(t, err, path)
	require.NoError(t, os.WriteFile(path, []byte(`{"nodeName":"n1","index":3}`), 0o600))
	f, err := Load()
	require.NoError(t, err)
	assert.Equal(t, 3, f.Index)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = Load()
	require.ErrorContains(t, err, "read the node file")
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "{}", `{"index":1}`, `{"record":"agent"}`, `{"index":1e99}`, "null", "[{}]", `{"runDir":"/x","runDir":"y"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Parse("/etc/node.json", data)
		if err != nil {
			assert.Zero(t, got)
			assert.True(t, strings.HasPrefix(err.Error(), "node file /etc/node.json: "), err)
			return
		}
		assert.NotEmpty(t, got.RunDir)
		assert.True(t, filepath.IsAbs(got.RunDir) && filepath.IsAbs(got.StateDir))
		assert.GreaterOrEqual(t, got.Index, 0)
		assert.Contains(t, []string{RecordSync, RecordAgent}, got.Record)
	})
}
