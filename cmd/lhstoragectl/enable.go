package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// switchFlags are shared by the commands that move Longhorn between networks.
type switchFlags struct {
	clusterFlags
	network, file string
	rwx           bool
	harvester     bool
	dryRun        bool
	skipVerify    bool
	ignore        []string
	output        format
	timeouts      longhorn.Timeouts
}

func newEnable() *cobra.Command {
	f := &switchFlags{}
	cmd := &cobra.Command{
		Use: "enable", Short: "Put Longhorn on a storage network", Args: cobra.NoArgs,
		Long: "Puts Longhorn on a storage network: looks at all that could stand in the way first, and changes nothing if something does. Then it stops what uses volumes,\n" +
			"waits until they are detached, changes Longhorn's setting, waits for its pods, and starts again what was stopped; virtual machines are never started.\n" +
			"A run that ended anywhere is continued by `resume` or undone by `rollback`. See docs/longhorn.md.",
		Example: "  lhstoragectl enable --config network.yaml --dry-run\n  lhstoragectl enable --network longhorn-system/storage",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(cmd)
			if err != nil {
				return err
			}
			if req.Network.None() {
				return errors.New("which network? Name it with --network, or give a NetworkAttachmentDefinition with --config")
			}
			return f.run(cmd, req)
		},
	}
	cmd.Flags().StringVar(&f.network, "network", "", "namespace/name of the NetworkAttachmentDefinition")
	cmd.Flags().StringVar(&f.file, "config", "", "file with a NetworkAttachmentDefinition, or with its configuration (then with --network); - is stdin. Without it the network must be there")
	f.verifying(cmd)
	cmd.Flags().BoolVar(&f.rwx, "rwx", false, "put shared (RWX) volumes on it too; --rwx=false takes them off (default: stay as they are)")
	f.changing(cmd)
	return cmd
}

func newDisable() *cobra.Command {
	f := &switchFlags{}
	cmd := &cobra.Command{
		Use: "disable", Short: "Put Longhorn back on the pod network", Args: cobra.NoArgs, Example: "  lhstoragectl disable --dry-run",
		Long: "Puts Longhorn back on the pod network, in the same steps as enable. The network's definition is removed if lhstoragectl made it and no pod uses it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(cmd)
			if err != nil {
				return err
			}
			return f.run(cmd, req)
		},
	}
	f.changing(cmd)
	return cmd
}

func newResume() *cobra.Command {
	return followUp("resume", "Go on with an enable, disable or rollback that ended before it was done", (*longhorn.Switch).Resume)
}

func newRollback() *cobra.Command {
	return followUp("rollback", "Undo an enable or disable, done or not: Longhorn's network, its setting, what was stopped", (*longhorn.Switch).Rollback)
}

// followUp is a command that goes by the journal.
func followUp(use, short string, do func(*longhorn.Switch, context.Context) error) *cobra.Command {
	f := &switchFlags{output: asTable}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs, Example: "  lhstoragectl " + use + " --dry-run\n  lhstoragectl " + use,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			if f.dryRun {
				return f.previewJournal(cmd, s, use == "rollback")
			}
			return broken(do(s, cmd.Context()))
		},
	}
	f.common(cmd)
	if use == "resume" { // the way back asks nobody
		f.verifying(cmd)
	}
	return cmd
}

// verifying adds the flags of commands that see whether the network carries traffic.
func (f *switchFlags) verifying(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.skipVerify, "skip-verify", false, "don't have the agents measure the network before what was stopped is started again")
	cmd.Flags().DurationVar(&f.timeouts.Verify, "wait-verify", 0, "how long to wait for a network that carries traffic (default 2m)")
}

// changing adds the flags of commands that begin something.
func (f *switchFlags) changing(cmd *cobra.Command) {
	f.common(cmd)
	cmd.Flags().BoolVar(&f.harvester, "harvester", false, "this is Harvester: keep its own setting in step, stop its monitoring and VM import controller meanwhile")
	cmd.Flags().StringSliceVar(&f.ignore, "ignore", nil, "codes of findings to pass over; those that would cost data can't be")
}

func (f *switchFlags) common(cmd *cobra.Command) {
	f.output = asTable
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.dryRun, "dry-run", false, "print each step and change nothing")
	flags.VarP(&f.output, "output", "o", "of --dry-run: table, json or yaml")
	flags.DurationVar(&f.timeouts.Nodes, "wait-nodes", 0, "how long to wait for parent and shim on each node (default 3m)")
	flags.DurationVar(&f.timeouts.Detach, "wait-detach", 0, "how long to wait for detached volumes (default 10m)")
	flags.DurationVar(&f.timeouts.Pods, "wait-pods", 0, "how long to wait for Longhorn's pods (default 10m)")
	flags.DurationVar(&f.timeouts.Settle, "wait-settle", 0, "how long to wait for volumes that are attached again (default 10m)")
}

func (f *switchFlags) open(cmd *cobra.Command) (*longhorn.Switch, error) {
	api, err := f.client()
	if err != nil {
		return nil, err
	}
	cluster := &longhorn.Cluster{API: api, Namespace: f.longhornNamespace()}
	tell := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), "…", line) }
	return &longhorn.Switch{
		Cluster:    cluster,
		Verifier:   longhorn.Measured{Cluster: cluster, Timeout: answerTime, Tell: tell},
		SkipVerify: f.skipVerify,
		Timeouts:   f.timeouts,
		Progress:   tell,
	}, nil
}

func (f *switchFlags) run(cmd *cobra.Command, req longhorn.Request) error {
	s, err := f.open(cmd)
	if err != nil {
		return err
	}
	if f.dryRun {
		return f.preview(cmd, s, req)
	}
	err = s.Run(cmd.Context(), req)
	if _, refused := errors.AsType[*longhorn.RefusedError](err); refused {
		return coded{exitFailed, err}
	}
	return broken(err)
}

// previewed is what --dry-run prints.
type previewed struct {
	Findings []longhorn.Finding `json:"findings,omitempty"`
	Steps    []string           `json:"steps,omitempty"`
}

func (f *switchFlags) preview(cmd *cobra.Command, s *longhorn.Switch, req longhorn.Request) error {
	journal, findings, err := s.Plan(cmd.Context(), req)
	if err != nil {
		return broken(err)
	}
	p := previewed{Findings: findings}
	if journal != nil {
		p.Steps = s.Preview(journal)
	}
	if err := f.show(cmd, p); err != nil {
		return err
	}
	if refused := longhorn.Refused(findings, req.Ignore); refused != nil {
		return coded{exitFailed, refused}
	}
	return nil
}

func (f *switchFlags) previewJournal(cmd *cobra.Command, s *longhorn.Switch, back bool) error {
	journal, err := s.Journal(cmd.Context())
	if err != nil {
		return broken(err)
	}
	if back {
		journal = journal.Turned()
	}
	return f.show(cmd, previewed{Steps: s.Preview(journal)})
}

func (f *switchFlags) show(cmd *cobra.Command, p previewed) error {
	return f.output.write(cmd.OutOrStdout(), p, func() {
		for _, finding := range p.Findings {
			fmt.Fprintln(cmd.OutOrStdout(), "note:", finding)
		}
		for i, step := range p.Steps {
			fmt.Fprintf(cmd.OutOrStdout(), "%2d. %s\n", i+1, step)
		}
	})
}

// request is what the flags ask for.
func (f *switchFlags) request(cmd *cobra.Command) (longhorn.Request, error) {
	req := longhorn.Request{Harvester: f.harvester}
	for _, text := range f.ignore {
		code := longhorn.Code(text)
		if !slices.Contains(longhorn.Codes(), code) {
			return req, fmt.Errorf("--ignore %s: there is no such code; there are %v", text, longhorn.Codes())
		}
		req.Ignore = append(req.Ignore, code)
	}
	if flag := cmd.Flags().Lookup("rwx"); flag != nil && flag.Changed {
		req.RWX = &f.rwx
	}
	var err error
	if req.Network, err = longhorn.ParseRef(f.network); err != nil || f.file == "" {
		return req, err
	}
	data, err := readInput(cmd, f.file)
	if err != nil {
		return req, err
	}
	ref, config, err := parseNetwork(data)
	if err != nil {
		return req, fmt.Errorf("--config %s: %w", f.file, err)
	}
	if !req.Network.None() && !ref.None() && ref != req.Network {
		return req, fmt.Errorf("--config %s is of network %s, and --network says %s", f.file, ref, req.Network)
	}
	if req.Network.None() {
		req.Network = ref
	}
	req.Config = config
	return req, nil
}

func readInput(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(file) //nolint:gosec // the file that was named
}

// parseNetwork reads a NetworkAttachmentDefinition, or a bare configuration.
func parseNetwork(data []byte) (longhorn.Ref, string, error) {
	if bytes.Contains(data, []byte("\n---\n")) {
		return longhorn.Ref{}, "", errors.New("want one NetworkAttachmentDefinition, not several documents")
	}
	var object struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Config string `json:"config"`
		} `json:"spec"`
	}
	asJSON, err := yaml.YAMLToJSON(data)
	if err == nil {
		err = json.Unmarshal(asJSON, &object)
	}
	if err != nil {
		return longhorn.Ref{}, "", fmt.Errorf("it is neither YAML nor JSON: %w", err)
	}
	switch {
	case object.Kind == "":
		if json.Valid(data) { // as it was written
			asJSON = data
		}
		return longhorn.Ref{}, string(bytes.TrimSpace(asJSON)), nil
	case object.Kind != "NetworkAttachmentDefinition":
		return longhorn.Ref{}, "", fmt.Errorf("it is a %s: want a NetworkAttachmentDefinition", object.Kind)
	case object.Spec.Config == "":
		return longhorn.Ref{}, "", errors.New("its spec.config is empty")
	case object.Namespace == "" || object.Name == "":
		return longhorn.Ref{}, "", errors.New("its metadata lacks namespace or name: Longhorn needs both")
	}
	return longhorn.Ref{Namespace: object.Namespace, Name: object.Name}, object.Spec.Config, nil
}
