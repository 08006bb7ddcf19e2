package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/report"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

func newReport() *cobra.Command {
	f, file, name := askFlags{}, "", ""
	cmd := &cobra.Command{
		Use: "report", Short: "Verify, and write what was found as one HTML page; exit code 1 if something is wrong", Args: cobra.NoArgs,
		Long:    "Verifies as `verify` does, and writes topology, matrix, addresses and findings as one HTML page that needs nothing else. See docs/verify.md.",
		Example: "  lhstoragectl report --file storage.html --cluster-name east",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := f.cluster.client()
			if err != nil {
				return err
			}
			in, result, err := f.ask(cmd, api)
			if err != nil {
				return err
			}
			if err := writePage(cmd, api, in, result, file, name); err != nil {
				return broken(err)
			}
			if !result.OK {
				return errCheckFailed
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "lhstorage-report.html", "where the page is written; - is standard output")
	cmd.Flags().StringVar(&name, "cluster-name", "", "what the page calls the cluster (default the API server's host)")
	return cmd
}

func writePage(cmd *cobra.Command, api *kubeapi.Client, in verify.Input, result verify.Result, file, name string) error {
	seen, err := snapshot.LookAtPools(cmd.Context(), api, snapshot.Options{})
	if err != nil {
		return fmt.Errorf("read which addresses are taken: %w", err)
	}
	for _, denied := range seen.Denied {
		return fmt.Errorf("read which addresses are taken: %s: %s", denied.What, denied.Why)
	}
	data := report.From(in, result, (&snapshot.Snapshot{Time: api.Now(), Cluster: seen}).Fill())
	data.Cluster, data.Version, data.Time = name, version, time.Now()
	if server, err := url.Parse(api.Server()); err == nil && name == "" {
		data.Cluster = server.Hostname()
	}
	if file == "-" {
		return data.Write(cmd.OutOrStdout())
	}
	var page bytes.Buffer
	if err := data.Write(&page); err != nil {
		return err
	}
	if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil { //nolint:gosec // a report for anyone
		return fmt.Errorf("write the page: %w", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "… wrote %s\n%s\n", file, result.Summary())
	return nil
}
