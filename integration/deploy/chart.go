// Package deploy renders lhstorage's Helm chart, keeps what is generated from it, and makes lhstorage's image. Its tests try what the chart
// renders on a real API server.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/lhstorage/lhstorage/integration/tools"
)

// Namespace is where lhstorage is installed.
const Namespace = "lhstorage-system"

// kubeVersion is what charts are rendered for.
const kubeVersion = "1.36.0"

// Chart is lhstorage's Helm chart.
type Chart struct{ helm, root string }

// NewChart finds the checkout's chart, and builds helm unless that has been done.
func NewChart(ctx context.Context) (*Chart, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	dir, err := tools.Module(ctx, "helm")
	if err != nil {
		return nil, err
	}
	return &Chart{helm: filepath.Join(dir, "helm"), root: root}, nil
}

// Dir is the chart's directory.
func (c *Chart) Dir() string { return filepath.Join(c.root, "deploy", "chart", "lhstorage") }

// Run runs helm and returns what it printed.
func (c *Chart) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.helm, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("helm %q: %w: %s%s", args, err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// Template renders the chart, as `helm install` would with these arguments.
func (c *Chart) Template(ctx context.Context, args ...string) ([]byte, error) {
	return c.Run(ctx, append([]string{"template", "lhstorage", c.Dir(), "--namespace", Namespace, "--kube-version", kubeVersion}, args...)...)
}

// Generated is the content of all files that are generated from others below deploy, by path in the checkout.
func (c *Chart) Generated(ctx context.Context) (map[string][]byte, error) {
	all := map[string][]byte{}
	var sources []string
	for _, pattern := range []string{"crds/*.yaml", "rbac/*.yaml", "alerts/*.yaml", "dashboard/*.json"} {
		found, err := filepath.Glob(filepath.Join(c.root, "deploy", pattern))
		if err != nil {
			return nil, err
		}
		sources = append(sources, found...)
	}
	for _, source := range sources {
		name, err := filepath.Rel(filepath.Join(c.root, "deploy"), source)
		if err != nil {
			return nil, err
		}
		if all["deploy/chart/lhstorage/files/"+name], err = os.ReadFile(source); err != nil {
			return nil, err
		}
	}
	base, err := c.Template(ctx, "--set", "namespace.create=true")
	all["deploy/kustomize/base/lhstorage.yaml"] = append([]byte("# Generated from deploy/chart/lhstorage by `make generate`: don't edit.\n"), base...)
	return all, err
}

// Generate writes them. The base is rendered twice where the chart's copies had to change.
func (c *Chart) Generate(ctx context.Context) error {
	for range 2 {
		files, err := c.Generated(ctx)
		if err != nil {
			return err
		}
		var faults []error
		for _, name := range slices.Sorted(maps.Keys(files)) {
			path := filepath.Join(c.root, name)
			faults = append(faults, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, files[name], 0o644))
		}
		if err := errors.Join(faults...); err != nil {
			return err
		}
	}
	return nil
}
