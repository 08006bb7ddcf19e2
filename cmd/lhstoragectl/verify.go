package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/verify"
	"github.com/lhstorage/lhstorage/pkg/verify/request"
)

// askFlags say how the agents are asked.
type askFlags struct {
	cluster clusterFlags
	timeout time.Duration
	wait    time.Duration
}

func (f *askFlags) add(cmd *cobra.Command) {
	f.cluster.add(cmd)
	cmd.Flags().DurationVar(&f.timeout, "timeout", answerTime, "how long the agents may take to answer")
	cmd.Flags().DurationVar(&f.wait, "wait", 0, "ask again until nothing is wrong, for this long at most")
}

const (
	answerTime = time.Minute // an agent takes 50 s at most
	askAgain   = 5 * time.Second
)

// ask asks once, or until nothing is wrong.
func (f *askFlags) ask(cmd *cobra.Command, api *kubeapi.Client) (verify.Input, verify.Result, error) {
	o := request.Options{Timeout: f.timeout, Progress: func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), "…", text) }}
	return untilOK(cmd.Context(), api, o, time.Now().Add(f.wait))
}

func untilOK(ctx context.Context, api *kubeapi.Client, o request.Options, until time.Time) (verify.Input, verify.Result, error) {
	for {
		in, err := request.Ask(ctx, api, o)
		if err != nil && (ctx.Err() != nil || !time.Now().Before(until)) {
			return in, verify.Result{}, broken(err)
		}
		if err == nil {
			if r := verify.Judge(in); r.OK || !time.Now().Before(until) {
				return in, r, nil
			}
		}
		o.Progress("not all is well yet: asked again soon")
		select {
		case <-ctx.Done():
			return in, verify.Result{}, broken(context.Cause(ctx))
		case <-time.After(askAgain):
		}
	}
}

func newVerify() *cobra.Command {
	f, output := askFlags{}, asTable
	cmd := &cobra.Command{
		Use: "verify", Short: "Have every node measure every leg of the storage network; exit code 1 if something is wrong", Args: cobra.NoArgs,
		Long:    "Asks the agents, through the API server, to measure every leg between all nodes and pods, and says what is wrong and whether this cluster needs the host shim. See docs/verify.md.",
		Example: "  lhstoragectl verify\n  lhstoragectl verify --wait 5m -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := f.cluster.client()
			if err != nil {
				return err
			}
			_, result, err := f.ask(cmd, api)
			if err != nil {
				return err
			}
			if err := output.write(cmd.OutOrStdout(), result, func() { result.Write(cmd.OutOrStdout()) }); err != nil {
				return err
			}
			if !result.OK {
				return errCheckFailed
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().VarP(&output, "output", "o", "table, json or yaml")
	return cmd
}
