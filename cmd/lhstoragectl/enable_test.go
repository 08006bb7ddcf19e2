package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

const aDefinition = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {namespace: longhorn-system, name: storage}
spec:
  config: '{"type": "lhstorage"}'
`

func TestParseNetwork(t *testing.T) {
	ref, config, err := parseNetwork([]byte(aDefinition))
	require.NoError(t, err)
	assert.Equal(t, longhorn.Ref{Namespace: "longhorn-system", Name: "storage"}, ref)
	assert.JSONEq(t, `{"type": "lhstorage"}`, config)

	ref, config, err = parseNetwork([]byte("{\"type\":  \"lhstorage\"}\n"))
	require.NoError(t, err)
	assert.True(t, ref.None())
	assert.Len(t, config, len(`{"type":  "lhstorage"}`), "as it was written: %s", config)

	for text, fault := range map[string]string{
		"a: [":                                "neither YAML nor JSON",
		"kind: Pod":                           "it is a Pod",
		aDefinition + "\n---\n" + aDefinition: "several documents",
		strings.Replace(aDefinition, "namespace: longhorn-system, ", "", 1): "lacks namespace or name",
		strings.Replace(aDefinition, `{"type": "lhstorage"}`, "", 1):        "spec.config is empty",
	} {
		_, _, err := parseNetwork([]byte(text))
		assert.ErrorContains(t, err, fault)
	}
}

// TestRequest reads flags alone: each fault of usage is found before any cluster is looked for.
func TestRequest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "network.yaml")
	require.NoError(t, os.WriteFile(file, []byte(aDefinition), 0o600))
	for _, c := range []struct {
		args  []string
		fault string
	}{
		{[]string{"enable"}, "which network?"},
		{[]string{"enable", "--network", "storage"}, "want namespace/name"},
		{[]string{"enable", "--config", file, "--network", "a/b"}, "is of network longhorn-system/storage, and --network says a/b"},
		{[]string{"enable", "--config", file + "x"}, "no such file"},
		{[]string{"enable", "--config", file, "--ignore", "everything"}, "there is no such code; there are [no-longhorn"},
		{[]string{"disable", "--network", "a/b"}, "unknown flag"},
		{[]string{"resume", "--ignore", "cannot-stop"}, "unknown flag"},
	} {
		root := newRoot()
		root.SetArgs(c.args)
		err := root.Execute()
		require.ErrorContains(t, err, c.fault, "%v", c.args)
		assert.Equal(t, exitUsage, exitCode(err), "%v", c.args)
	}
}
