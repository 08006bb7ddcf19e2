// Command lhstoragectl is lhstorage's command line for people.
//
// Exit codes: 0 all is well; 1 what was checked failed (a leg lost packets, the
// demo didn't pass, a range is too small); 2 wrong usage; 3 it could not be run, or was interrupted.
// `lab exec` ends with the code of the command that it ran.
//
// Called as kubectl-lhstorage it is kubectl's plugin `kubectl lhstorage`, and says so.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// The first signal cancels, and what was begun is undone; a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[0], os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, program string, args []string) int {
	root := newRoot()
	calledAs(root, program)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(err)
	if text := message(err); text != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", root.DisplayName(), text)
	}
	if code == exitUsage {
		fmt.Fprintf(os.Stderr, "`%s help` lists the commands; each has --help\n", root.DisplayName())
	}
	return code
}
