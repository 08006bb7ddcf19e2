// Command lhcluster runs a cluster of package cluster for a person to try, until
// it is told to end.
//
//	lhcluster up     start it and say how to reach it; --help lists what can be chosen
//	lhcluster down   end it, and remove what a crashed one left
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/lhstorage/lhstorage/integration/cluster"
)

func main() {
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "lhcluster:", err)
		os.Exit(1)
	}
}

func start() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdout)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	const usage = "usage: lhcluster up [--nodes N] [--spare N] [--topology mesh|lan] [--primary bridge|moved], or lhcluster down"
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "up":
		return up(ctx, args[1:], out)
	case "down":
		return down(ctx, out)
	default:
		return errors.New(usage)
	}
}

func up(ctx context.Context, args []string, out io.Writer) error {
	var o cluster.Options
	var primary string
	flags := flag.NewFlagSet("lhcluster up", flag.ContinueOnError)
	flags.IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	flags.IntVar(&o.Spare, "spare", 0, "number of machines more that are cabled and switched off")
	flags.StringVar(&o.Topology, "topology", "", "of the storage network: mesh (a /31 link between each two nodes) or lan")
	flags.StringVar(&primary, "primary", string(cluster.Bridge), "how pods get their eth0: bridge (made inside, low index) or moved (moved in, high index)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.Primary = cluster.Primary(primary)
	seat, err := take()
	if err != nil {
		return err
	}
	defer seat.free()
	return seat.keep(ctx, o, out)
}
