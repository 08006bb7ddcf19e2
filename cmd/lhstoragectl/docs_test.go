package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const docsFile = "../../docs/lhstoragectl.md"

func TestReferenceIsFresh(t *testing.T) {
	stdout, _, code := execute(t, "", "docs")
	require.Zero(t, code)
	data, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	require.Equal(t, string(data), stdout, "run `make generate`")
}

// Every command that can be run is shown in use, with flags that it has.
func TestEveryCommandHasAnExample(t *testing.T) {
	root := newRoot()
	walk(root, func(c *cobra.Command) {
		path := c.CommandPath()
		if !c.Runnable() || c.HasSubCommands() || c.Hidden || c == root || strings.HasPrefix(path, "lhstoragectl completion") || path == "lhstoragectl help" {
			return
		}
		assert.Contains(t, c.Example, path, "an example of `%s`", path)
		for line := range strings.Lines(c.Example) {
			if _, call, found := strings.Cut(line, path+" "); found && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				call, _, _ = strings.Cut(call, " -- ")
				for word := range strings.FieldsSeq(strings.Split(call, "|")[0]) {
					if name, isFlag := strings.CutPrefix(word, "--"); isFlag {
						assert.NotNil(t, c.Flag(strings.Split(name, "=")[0]), "%s of the example %q", word, line)
					}
				}
			}
		}
	})
}

func TestCalledAsAPluginOfKubectl(t *testing.T) {
	for program, want := range map[string]string{"/opt/bin/kubectl-lhstorage": "kubectl lhstorage", "./lhstoragectl": "lhstoragectl", "": "lhstoragectl"} {
		root := newRoot()
		calledAs(root, program)
		var out strings.Builder
		root.SetOut(&out)
		root.SetArgs([]string{"plan", "--help"})
		require.NoError(t, root.Execute())
		assert.Contains(t, out.String(), "\n  "+want+" plan [flags]", program)
		assert.Contains(t, out.String(), want+" plan --nodes 5")
		assert.Equal(t, want == "lhstoragectl", strings.Contains(out.String(), "lhstoragectl"), out.String())
	}
}
