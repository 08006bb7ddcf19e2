// Command toolsdir builds a tools module, or lhstorage's own programs, unless
// that has been done, and prints the directory that holds the programs:
//
//	toolsdir stock            # the stock CNI plugins and cnitool
//	toolsdir lint             # golangci-lint and govulncheck
//	toolsdir own [TAG...]     # lhstorage's own, with these build tags
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lhstorage/lhstorage/integration/tools"
)

func main() {
	dir, err := build(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "toolsdir:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}

func build(args []string) (string, error) {
	ctx := context.Background()
	switch {
	case len(args) == 0:
		return "", errors.New("name a folder of integration/tools that has a go.mod, or \"own\" and build tags")
	case args[0] == "own":
		return tools.Own(ctx, args[1:]...)
	case len(args) > 1:
		return "", fmt.Errorf("one module at a time, not %q", args)
	default:
		return tools.Module(ctx, args[0])
	}
}
