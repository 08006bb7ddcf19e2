// Command render writes what is generated below deploy: see hack/generate.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/lhstorage/lhstorage/integration/deploy"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	chart, err := deploy.NewChart(ctx)
	if err != nil {
		return err
	}
	return chart.Generate(ctx)
}
