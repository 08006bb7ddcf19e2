// Command mkimage writes lhstorage's container image, of programs that `make build` built, as an archive for `ctr images import` or `docker load`:
//
//	mkimage NAME PROGRAMS ARCHIVE
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lhstorage/lhstorage/integration/deploy"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: mkimage NAME PROGRAMS ARCHIVE")
	}
	image, err := deploy.Image(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	return image.WriteArchive(args[2])
}
