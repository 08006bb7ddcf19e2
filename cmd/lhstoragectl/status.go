package main

import (
	"github.com/spf13/cobra"

	"github.com/lhstorage/lhstorage/pkg/status"
	"github.com/lhstorage/lhstorage/pkg/terminal"
)

func newStatus() *cobra.Command {
	f, output := &lookFlags{}, asTable
	cmd := &cobra.Command{
		Use: "status", Example: "  lhstoragectl status -o yaml", Short: "Show networks, nodes, pools, attachments, and what Longhorn makes of them", Args: cobra.NoArgs,
		Long: "status shows how it is: the networks, each node's place, how full the pools are and for how long they last, what is attached, Longhorn's instance managers with " +
			"the address that the node's iSCSI initiator dials, and whether the storage addresses of engines and replicas are the right ones. With --local, on a node, what that node really has.\n\n" +
			"What is wrong is what `lhstoragectl doctor` says. Exit codes: 0, 2 wrong usage, 3 the cluster could not be asked.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.look(cmd.Context())
			if err != nil {
				return err
			}
			report := status.Of(s)
			return output.write(cmd.OutOrStdout(), report, func() { status.Write(terminal.To(cmd.OutOrStdout()), report) })
		},
	}
	f.add(cmd)
	cmd.Flags().Lookup("offline").Hidden = true
	cmd.Flags().VarP(&output, "output", "o", "table, json or yaml")
	return cmd
}
