package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/lhstorage/lhstorage/integration/deploy"
	"github.com/lhstorage/lhstorage/integration/image"
)

// ImageLhstorage is the name of lhstorage's image, without its tag.
const ImageLhstorage = "lhstorage.test/lhstorage"

// Helm runs helm as the administrator, where it reaches the API server, and returns what it printed.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	chart, err := deploy.NewChart(ctx)
	if err != nil {
		return "", err
	}
	var out []byte
	err = c.Within(func() (err error) {
		out, err = chart.Run(ctx, append([]string{"--kubeconfig", c.AdminKubeconfig()}, args...)...)
		return err
	})
	return string(out), err
}

// versionLine is what a chart says of the Kubernetes that it is for.
var versionLine = regexp.MustCompile(`(?m)^kubeVersion:.*\n`)

// HelmChart is the directory of lhstorage's chart, which doesn't say here which Kubernetes it is for: an API server that was built from its
// Go module says that it is v0.0.0.
func (c *Cluster) HelmChart(ctx context.Context) (string, error) {
	dir := filepath.Join(c.Dir, "chart")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	chart, err := deploy.NewChart(ctx)
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(chart.Dir())); err != nil {
		return "", err
	}
	about := filepath.Join(dir, "Chart.yaml")
	text, err := os.ReadFile(about)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(about, versionLine.ReplaceAll(text, nil), 0o644)
}

// ImportLhstorage gives each node that is on lhstorage's image with a tag. The programs of two tags do the same and aren't the same
// bytes, as those of two releases.
func (c *Cluster) ImportLhstorage(ctx context.Context, tag string) error {
	made, err := c.lhstorageImage(ctx, tag)
	if err != nil {
		return fmt.Errorf("make lhstorage's image %s: %w", tag, err)
	}
	return c.ImportImage(ctx, made)
}

// lhstorageImage is an image, whose programs are kept: see [Cluster.ReleaseProgram].
func (c *Cluster) lhstorageImage(ctx context.Context, tag string) (none image.Image, err error) {
	entries, err := os.ReadDir(c.own)
	if err != nil {
		return none, err
	}
	if err := os.MkdirAll(filepath.Dir(c.ReleaseProgram(tag, "any")), 0o755); err != nil {
		return none, err
	}
	for _, e := range entries {
		program, err := os.ReadFile(filepath.Join(c.own, e.Name()))
		if err != nil {
			return none, err
		}
		// What is behind the end of a program isn't loaded.
		if err := os.WriteFile(c.ReleaseProgram(tag, e.Name()), slices.Concat(program, []byte(tag)), 0o755); err != nil {
			return none, err
		}
	}
	return deploy.Image(ctx, ImageLhstorage+":"+tag, filepath.Dir(c.ReleaseProgram(tag, "any")))
}

// ReleaseProgram is the path, on this machine, of a program as it is in the image with a tag.
func (c *Cluster) ReleaseProgram(tag, name string) string {
	return filepath.Join(c.Dir, "release-"+tag, name)
}
