package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// Exit codes, see the package's comment.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitBroken = 3
)

// coded carries an exit code with an error; err is nil if the output says it all.
type coded struct {
	code int
	err  error
}

func (c coded) Error() string {
	if c.err == nil {
		return ""
	}
	return c.err.Error()
}

func (c coded) Unwrap() error { return c.err }

var errCheckFailed = coded{code: exitFailed}

func broken(err error) error {
	if err == nil {
		return nil
	}
	return coded{exitBroken, err}
}

// exitCode is that of the error; cobra's own errors are about usage.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if c, ok := errors.AsType[coded](err); ok {
		return c.code
	}
	return exitUsage
}

// message is what is left to say; a command run by `lab exec` speaks for itself.
func message(err error) string {
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return ""
	}
	return err.Error()
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "lhstoragectl",
		Short:         "A storage network for Longhorn that works on any parent",
		Long:          "lhstoragectl is the command line of lhstorage.\n\nExit codes: 0 all is well, 1 what was checked failed, 2 wrong usage, 3 it could not be run.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newVersion(), newLab(), newPlan(), newConvert(), newDoctor(), newStatus(), newVerify(), newReport(), newEnable(), newDisable(), newResume(), newRollback(), newDocs(root))
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs, Example: "  lhstoragectl version",
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}

// format is the value of -o.
type format string

const (
	asTable format = "table"
	asJSON  format = "json"
	asYAML  format = "yaml"
)

func (f *format) String() string { return string(*f) }

// Type is what usage texts call the value.
func (f *format) Type() string { return "format" }

// Set refuses what isn't a format, so that it is a fault of usage.
func (f *format) Set(value string) error {
	if !slices.Contains([]format{asTable, asJSON, asYAML}, format(value)) {
		return fmt.Errorf("want %s, %s or %s", asTable, asJSON, asYAML)
	}
	*f = format(value)
	return nil
}

// write writes value as JSON or YAML, or calls table.
func (f *format) write(w io.Writer, value any, table func()) error {
	var data []byte
	var err error
	switch *f {
	case asJSON:
		data, err = json.MarshalIndent(value, "", "  ")
		data = append(data, '\n')
	case asYAML:
		data, err = yaml.Marshal(value)
	default:
		table()
		return nil
	}
	if err == nil {
		_, err = w.Write(data)
	}
	return broken(err)
}
