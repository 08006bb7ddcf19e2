package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/doctor"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/terminal"
)

// lookFlags say what is observed.
type lookFlags struct {
	clusterFlags

	pools   string
	local   bool
	offline bool
	node    string
}

func (f *lookFlags) add(cmd *cobra.Command) {
	f.clusterFlags.add(cmd)
	flags := cmd.Flags()
	flags.Lookup("namespace").Usage = "Longhorn's namespace (default the context's, else longhorn-system)"
	flags.StringVar(&f.pools, "pools-namespace", "", "namespace of Whereabouts' objects (default kube-system)")
	flags.BoolVar(&f.local, "local", false, "look at this machine's devices, too; it must be a node, and needs root")
	flags.BoolVar(&f.offline, "offline", false, "don't ask the cluster: with --local, go by what the node was last told")
	flags.StringVar(&f.node, "node", "", "name of this machine's Node, with --local (default the node file's)")
}

// look observes what the flags say.
func (f *lookFlags) look(ctx context.Context) (*snapshot.Snapshot, error) {
	switch {
	case f.offline && !f.local:
		return nil, errors.New("--offline without --local leaves nothing to look at")
	case f.node != "" && !f.local:
		return nil, errors.New("--node names the machine that --local looks at")
	}
	s := &snapshot.Snapshot{Time: time.Now()}
	if !f.offline {
		api, err := f.client()
		if err != nil {
			return nil, err
		}
		s.Cluster, err = snapshot.Look(ctx, api, snapshot.Options{Longhorn: f.longhornNamespace(), Pools: f.pools})
		if err != nil {
			return nil, broken(err)
		}
		s.Time = api.Now()
	}
	if !f.local {
		return s, nil
	}
	return s, broken(f.here(ctx, s))
}

// here adds what this machine has.
func (f *lookFlags) here(ctx context.Context, s *snapshot.Snapshot) error {
	file, err := nodefile.Load()
	if err != nil {
		return err
	}
	if f.node != "" {
		file.NodeName = f.node
	}
	host, kernel, err := snapshot.Here(file)
	if err != nil {
		return err
	}
	defer kernel.Close()
	definitions := agent.Known(file.StateDir)
	if s.Cluster != nil {
		definitions = s.Cluster.Definitions
	}
	s.Local = snapshot.LookHere(ctx, host, definitions)
	return nil
}

func newDoctor() *cobra.Command {
	f, output := &lookFlags{}, asTable
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong, where, why it matters and what mends it", Args: cobra.NoArgs,
		Long: "doctor looks at the cluster's storage networks and, with --local, at this node. It changes nothing.\n\n" +
			"Exit codes: 0 no finding is an error, 1 one is, 2 wrong usage, 3 the cluster or the node could not be looked at.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.look(cmd.Context())
			if err != nil {
				return err
			}
			findings := doctor.Diagnose(s)
			report := struct {
				Findings []doctor.Finding `json:"findings"`
			}{findings}
			if err := output.write(cmd.OutOrStdout(), report, func() { writeFindings(terminal.To(cmd.OutOrStdout()), s, findings) }); err != nil {
				return err
			}
			if doctor.Failed(findings) {
				return errCheckFailed
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().VarP(&output, "output", "o", "table, json or yaml")
	cmd.AddCommand(newExplain(), newBundle())
	return cmd
}

// writeFindings writes one finding after the other: their texts are too long for a table.
func writeFindings(s terminal.Screen, seen *snapshot.Snapshot, findings []doctor.Finding) {
	for _, f := range findings {
		colour := map[doctor.Severity]func(string) string{
			doctor.Error:   func(t string) string { return s.Paint(terminal.Bad, t) },
			doctor.Warning: func(t string) string { return s.Paint(terminal.Doubt, t) },
			doctor.Info:    func(t string) string { return s.Paint(terminal.Faint, t) },
		}[f.Severity]
		fmt.Fprintf(s.W, "%s  %s\n", colour(fmt.Sprintf("%-7s %s", strings.ToUpper(string(f.Severity)), f.Code)), s.Paint(terminal.Strong, f.Title))
		for _, line := range [][2]string{{"where", f.Where}, {"what", f.What}, {"why", f.Why}, {"fix", f.Fix}} {
			fmt.Fprintf(s.W, "  %-6s %s\n", line[0], strings.ReplaceAll(line[1], "\n", "\n         "))
		}
		fmt.Fprintln(s.W)
	}
	fmt.Fprintf(s.W, "%s; %d checks looked at %s\n", count(findings), len(doctor.Checks()), lookedAt(seen))
}

func lookedAt(s *snapshot.Snapshot) string {
	var parts []string
	if s.Cluster != nil {
		parts = append(parts, fmt.Sprintf("%d networks and %d nodes of the cluster", len(s.Cluster.Compiled().Networks), len(s.Cluster.Nodes)))
	}
	if s.Local != nil {
		parts = append(parts, fmt.Sprintf("node %s itself (%d networks, %d attachments)", s.Local.Node.NodeName, len(s.Local.Networks), len(s.Local.Attachments)))
	}
	return strings.Join(parts, " and ")
}

func count(findings []doctor.Finding) string {
	if len(findings) == 0 {
		return "no findings"
	}
	n := map[doctor.Severity]int{}
	for _, f := range findings {
		n[f.Severity]++
	}
	var parts []string
	for _, severity := range []doctor.Severity{doctor.Error, doctor.Warning, doctor.Info} {
		if n[severity] > 0 {
			parts = append(parts, fmt.Sprintf("%d × %s", n[severity], severity))
		}
	}
	return strings.Join(parts, ", ")
}

// newExplain makes `doctor explain`.
func newExplain() *cobra.Command {
	var words string
	var all, markdown bool
	output := asTable
	cmd := &cobra.Command{
		Use: "explain [CODE…]", Short: "Say what a code, or a text from an event or a log, means",
		Long: "explain says what codes mean; with --all what all do; else what --text, or stdin, means: the message of a pod's event, a line of a log, a condition of Harvester.\n\n" +
			"Exit codes: 0 it is known, 1 it isn't.",
		Example: "  lhstoragectl doctor explain LHS001\n  kubectl get events -A | lhstoragectl doctor explain",
		RunE: func(cmd *cobra.Command, codes []string) error {
			out := cmd.OutOrStdout()
			switch {
			case markdown:
				_, err := io.WriteString(out, doctor.Markdown())
				return broken(err)
			case all || len(codes) > 0:
				return explainCodes(out, output, all, codes)
			}
			if words == "" {
				if file, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
					return errors.New("name a code, --all, or a text by --text or on stdin")
				}
				data, err := io.ReadAll(cmd.InOrStdin())
				if err != nil {
					return broken(err)
				}
				words = string(data)
			}
			return explainText(out, output, words)
		},
	}
	cmd.Flags().StringVar(&words, "text", "", "what an event or a log says (default stdin)")
	cmd.Flags().BoolVar(&all, "all", false, "all codes")
	cmd.Flags().BoolVar(&markdown, "markdown", false, "docs/doctor.md")
	_ = cmd.Flags().MarkHidden("markdown") // there is such a flag
	cmd.Flags().VarP(&output, "output", "o", "table, json or yaml")
	return cmd
}

func explainCodes(out io.Writer, output format, all bool, codes []string) error {
	checks := doctor.Checks()
	if !all {
		checks = nil
		for _, code := range codes {
			c, ok := doctor.Find(strings.ToUpper(code))
			if !ok {
				return coded{exitFailed, fmt.Errorf("there is no code %s: `lhstoragectl doctor explain --all` lists them", code)}
			}
			checks = append(checks, c)
		}
	}
	return output.write(out, checks, func() {
		s := terminal.To(out)
		for _, c := range checks {
			fmt.Fprintf(out, "%s  %s (%s)\n  why    %s\n  fix    %s\n\n", c.Code, s.Paint(terminal.Strong, c.Title), c.Severity, c.Why, c.Fix)
		}
	})
}

func explainText(out io.Writer, output format, words string) error {
	causes := doctor.Explain(words)
	if len(causes) == 0 {
		return coded{exitFailed, errors.New("nothing is known of this text; `lhstoragectl doctor` may find the cause itself")}
	}
	return output.write(out, causes, func() {
		for _, c := range causes {
			fmt.Fprintf(out, "“%s” (%s)\n  cause  %s\n  fix    %s\n", c.Said, c.By, c.Cause, c.Fix)
			if c.Code != "" {
				fmt.Fprintf(out, "  see    lhstoragectl doctor explain %s\n", c.Code)
			}
			fmt.Fprintln(out)
		}
	})
}

// newBundle makes `doctor bundle`.
func newBundle() *cobra.Command {
	f := &lookFlags{}
	var path string
	cmd := &cobra.Command{
		Use: "bundle", Short: "Write all that doctor sees into a tar.gz, without secrets", Args: cobra.NoArgs, Example: "  lhstoragectl doctor bundle -o bundle.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.look(cmd.Context())
			if err != nil {
				return err
			}
			findings := doctor.Diagnose(s)
			var text, data bytes.Buffer
			writeFindings(terminal.Screen{W: &text}, s, findings)
			if err := (doctor.Bundle{Version: version, Snapshot: s, Findings: findings, Text: text.String()}).Write(&data); err != nil {
				return broken(err)
			}
			if path == "-" {
				_, err := data.WriteTo(cmd.OutOrStdout())
				return broken(err)
			}
			if err := os.WriteFile(path, data.Bytes(), 0o600); err != nil {
				return broken(fmt.Errorf("write the bundle: %w", err))
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s (%d KiB, %s)\n", path, data.Len()>>10, count(findings))
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&path, "output", "o", "lhstorage-bundle.tar.gz", "file to write; - for stdout")
	return cmd
}
