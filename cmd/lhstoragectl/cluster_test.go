package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const twoContexts = `apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: first, cluster: {server: "https://127.0.0.1:1"}}
- {name: second, cluster: {server: "https://127.0.0.1:2"}}
contexts:
- {name: one, context: {cluster: first}}
- {name: two, context: {cluster: second, namespace: storage}}
`

func TestClusterFlags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(twoContexts), 0o600))
	for name, c := range map[string]struct {
		args            []string
		host, namespace string
	}{
		"the current context":              {nil, "https://127.0.0.1:1", "longhorn-system"},
		"another one, with a namespace":    {[]string{"--context", "two"}, "https://127.0.0.1:2", "storage"},
		"a namespace of one's own":         {[]string{"--context", "two", "-n", "mine"}, "https://127.0.0.1:2", "mine"},
		"a namespace that is called so":    {[]string{"-n", "default"}, "https://127.0.0.1:1", "default"},
		"a kubeconfig beats $KUBECONFIG's": {[]string{"--kubeconfig", path}, "https://127.0.0.1:1", "longhorn-system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", path)
			if name == "a kubeconfig beats $KUBECONFIG's" {
				t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "absent"))
			}
			var f clusterFlags
			cmd := &cobra.Command{Use: "x"}
			f.add(cmd)
			require.NoError(t, cmd.ParseFlags(c.args))
			config, err := f.config()
			require.NoError(t, err)
			assert.Equal(t, c.host, config.Host)
			assert.Equal(t, c.namespace, f.longhornNamespace())
			_, err = f.client()
			require.NoError(t, err)
		})
	}
}

func TestNoCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "absent"))
	t.Setenv("HOME", t.TempDir())
	var f clusterFlags
	f.add(&cobra.Command{Use: "x"})
	_, err := f.client()
	require.ErrorContains(t, err, "name a kubeconfig by --kubeconfig")
	assert.Equal(t, exitBroken, exitCode(err))
}
