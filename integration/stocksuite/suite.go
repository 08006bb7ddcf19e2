// Package stocksuite runs the stock macvlan plugin's own test-suite on any plugin
// binary: what a cluster's macvlan did for its pods, a plugin that takes its place
// must do too.
//
// The suite itself is not in this repository. It is read from the Go module
// cache, changed in the places that bind it to the stock plugin and to the dummy
// driver, and compiled with the module in harness/.
package stocksuite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pluginsModule is the module that has the suite, suiteFolder where in it.
const (
	pluginsModule = "github.com/containernetworking/plugins"
	suiteFolder   = "plugins/main/macvlan"
)

// Specs is the number of the suite's specs.
const Specs = 168

// edit is a change to the suite's source. The number of places is checked, so
// that a suite that is not the one this was written for is noticed.
type edit struct {
	old, new string
	places   int
}

// setType makes the suite ask for a plugin type.
func setType(name string) []edit {
	return []edit{
		{`"type": "macvlan"`, `"type": "` + name + `"`, 7},
		{`Type:       "macvlan"`, `Type:       "` + name + `"`, 1},
	}
}

// useBridges has the suite's masters be bridges where the kernel has no dummy.
var useBridges = []edit{{"&netlink.Dummy{", "&netlink.Bridge{", 2}}

func apply(source string, edits []edit) (string, error) {
	var faults []error
	for _, e := range edits {
		if n := strings.Count(source, e.old); n != e.places {
			faults = append(faults, fmt.Errorf("the suite has %q in %d places, not in %d", e.old, n, e.places))
		}
		source = strings.ReplaceAll(source, e.old, e.new)
	}
	return source, errors.Join(faults...)
}

// Compile makes the suite's test binary at out, for plugins of the given type.
// The folder harness is copied from the working directory to work.
func Compile(ctx context.Context, work, out, pluginType string, hasDummy bool) error {
	suite, err := source(ctx)
	if err != nil {
		return err
	}
	edits := setType(pluginType)
	if !hasDummy {
		edits = append(edits, useBridges...)
	}
	if err := copyHarness(work); err != nil {
		return fmt.Errorf("copy the harness: %w", err)
	}
	for name, edits := range map[string][]edit{"macvlan_test.go": edits, "macvlan_suite_test.go": nil} {
		data, err := os.ReadFile(filepath.Join(suite, name))
		if err != nil {
			return fmt.Errorf("read the stock suite: %w", err)
		}
		text, err := apply(string(data), edits)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(suite, name), err)
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("copy the stock suite: %w", err)
		}
	}
	_, err = goTool(ctx, work, "test", "-c", "-o", out, ".")
	return err
}

func copyHarness(work string) error {
	for _, name := range []string{"go.mod", "go.sum", "shim_test.go"} {
		data, err := os.ReadFile(filepath.Join("harness", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// source is the suite's folder in the module cache, in the version that the
// harness' go.mod names.
func source(ctx context.Context) (string, error) {
	out, err := goTool(ctx, "harness", "mod", "download", "-json", pluginsModule)
	if err != nil {
		return "", err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("read where %s was downloaded to: %w", pluginsModule, err)
	}
	return filepath.Join(module.Dir, suiteFolder), nil
}

func goTool(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w\n%s%s", strings.Join(args, " "), dir, err, out, stderr.Bytes())
	}
	return out, nil
}

// Spec is what became of one spec of the suite.
type Spec struct {
	Name    string // not unique: the suite runs each name three times, with different masters
	Passed  bool
	Failure string // what the assertion that failed said
	Line    int    // of the failed assertion, in macvlan_test.go
	Said    string // the errors that the plugin returned, one a line
}

// Run runs a compiled suite on the plugin binary. path has the IPAM plugins'
// directories; env is added to the plugin's environment. A failed spec is no
// error; a suite that gave no report is.
func Run(ctx context.Context, suite, plugin, path string, env ...string) ([]Spec, error) {
	dir, err := os.MkdirTemp("", "stocksuite-")
	if err != nil {
		return nil, fmt.Errorf("make room for the suite's report: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a left-over directory is no reason to fail
	report := filepath.Join(dir, "report.json")
	cmd := exec.CommandContext(ctx, suite, "-ginkgo.json-report="+report, "-ginkgo.no-color", "-ginkgo.succinct")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PLUGIN="+plugin, "PATH="+path)
	cmd.Env = append(cmd.Env, env...)
	output, runErr := cmd.CombinedOutput()
	data, err := os.ReadFile(report)
	if err != nil {
		return nil, fmt.Errorf("the suite on %s gave no report (%w): %w\n%s", plugin, runErr, err, output)
	}
	return parseReport(data)
}

// parseReport reads ginkgo's JSON report: a list of suites with their specs.
func parseReport(data []byte) ([]Spec, error) {
	var suites []struct {
		SpecReports []struct {
			LeafNodeType, LeafNodeText, State string
			CapturedGinkgoWriterOutput        string
			Failure                           struct {
				Message  string
				Location struct{ LineNumber int }
			}
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read ginkgo's report: %w", err)
	}
	var specs []Spec
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			if s.LeafNodeType != "It" {
				continue
			}
			specs = append(specs, Spec{
				Name: s.LeafNodeText, Passed: s.State == "passed",
				Failure: s.Failure.Message, Line: s.Failure.Location.LineNumber,
				Said: s.CapturedGinkgoWriterOutput,
			})
		}
	}
	return specs, nil
}
