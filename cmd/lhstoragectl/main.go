// Command lhstoragectl is lhstorage's command line for people.
//
// Exit codes: 0 all is well; 1 what was checked failed (a leg lost packets, the
// demo didn't pass); 2 wrong usage; 3 it could not be run, or was interrupted.
// `lab exec` ends with the code of the command that it ran.
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
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(err)
	if text := message(err); text != "" {
		fmt.Fprintln(os.Stderr, "lhstoragectl:", text)
	}
	if code == exitUsage {
		fmt.Fprintln(os.Stderr, "`lhstoragectl help` lists the commands; each has --help")
	}
	return code
}
