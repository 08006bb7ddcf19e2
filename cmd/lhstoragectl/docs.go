package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// programName is that of the file, pluginName the one by which kubectl finds the same file.
const (
	programName = "lhstoragectl"
	pluginName  = "kubectl-lhstorage"
)

// calledAs lets usage and examples show what was typed.
func calledAs(root *cobra.Command, program string) {
	if filepath.Base(program) != pluginName {
		return
	}
	const typed = "kubectl lhstorage"
	root.Use = pluginName
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: typed}
	walk(root, func(c *cobra.Command) {
		c.Long = strings.ReplaceAll(c.Long, programName, typed)
		c.Example = strings.ReplaceAll(c.Example, programName, typed)
	})
}

func walk(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		walk(sub, do)
	}
}

// newDocs writes docs/lhstoragectl.md, for hack/generate.
func newDocs(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "docs", Short: "Write the reference of all commands", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), reference(root))
			return broken(err)
		},
	}
}

const introduction = `# lhstoragectl

The command line for people. Written by ` + "`make generate`" + ` from the commands themselves; a test fails when it isn't fresh.

` + "`make build`" + ` puts it into ` + "`bin/`" + ` as ` + "`lhstoragectl`" + ` and as ` + "`kubectl-lhstorage`" + `: with that directory in ` + "`PATH`" + `, ` + "`kubectl lhstorage plan`" + ` is the same as
` + "`lhstoragectl plan`" + `. The image has both in ` + "`/opt/lhstorage`" + `. Commands that talk to a cluster find it as kubectl does: ` + "`--kubeconfig`, `--context`, `-n`" + `.

Results go to stdout, ` + "`-o json` and `-o yaml`" + ` for programs; progress, notes and errors to stderr. Ctrl-C ends a command and undoes what it had begun; a second one ends it at once.

| exit code | meaning |
|---|---|
| 0 | all is well |
| 1 | what was looked at is wrong: a leg loses packets, a range is too small or taken, an input has faults |
| 2 | wrong usage: an unknown flag or command, a value that can't be |
| 3 | it could not be done: no cluster, no right, a file that isn't there, or it was interrupted |

` + "`lab exec`" + ` ends with the code of the command that it ran.

Completion: ` + "`source <(lhstoragectl completion bash)`" + `, or zsh, fish, powershell. For ` + "`kubectl lhstorage <Tab>`" + ` put a file ` + "`kubectl_complete-lhstorage`" + ` into ` + "`PATH`" + `, with
` + "`#!/bin/sh`" + ` and ` + "`exec lhstoragectl __complete \"$@\"`" + `.
`

// reference is the documentation of all commands that can be run.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(introduction)
	walk(root, func(c *cobra.Command) {
		// cobra's own completion and help are the same in every program.
		if path := strings.Fields(c.CommandPath()); !c.Runnable() || c.Hidden || len(path) < 2 || path[1] == "completion" || path[1] == "help" {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n", c.CommandPath(), c.Short)
		if c.Long != "" {
			b.WriteString(c.Long + "\n\n")
		}
		if c.Example != "" {
			fmt.Fprintf(&b, "```sh\n%s\n```\n\n", unindented(c.Example))
		}
		fmt.Fprintf(&b, "`%s`\n", c.UseLine())
		flags(&b, c)
	})
	return b.String()
}

func unindented(text string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		lines = append(lines, strings.TrimPrefix(line, "  "))
	}
	return strings.Join(lines, "\n")
}

// flags is a table of a command's flags.
func flags(b *strings.Builder, c *cobra.Command) {
	header := "\n| flag | |\n|---|---|\n"
	visit := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		b.WriteString(header)
		header = ""
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := strings.ReplaceAll(f.Usage, "|", `\|`)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, usage)
	}
	c.NonInheritedFlags().VisitAll(visit)
	c.InheritedFlags().VisitAll(visit)
}
