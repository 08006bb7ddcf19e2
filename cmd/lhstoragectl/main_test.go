package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
)

// ctl is the program as it is shipped, with the plugins beside it.
type ctl struct {
	t   *testing.T
	bin string
	env []string
}

func newCtl(t *testing.T) ctl {
	t.Helper()
	dir := t.TempDir()
	for _, from := range []string{labtest.Stock(t), labtest.Own(t)} {
		entries, err := os.ReadDir(from)
		require.NoError(t, err)
		for _, e := range entries {
			target := filepath.Join(dir, e.Name())
			if _, err := os.Lstat(target); err != nil {
				require.NoError(t, os.Symlink(filepath.Join(from, e.Name()), target))
			}
		}
	}
	return ctl{t: t, bin: filepath.Join(dir, "lhstoragectl"), env: append(os.Environ(), labtest.BinDirEnv+"="+dir)}
}

func (c ctl) command(args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	cmd = exec.Command(c.bin, args...)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Env, cmd.Stdout, cmd.Stderr = c.env, stdout, stderr
	return cmd, stdout, stderr
}

// run expects an exit code and returns both outputs.
func (c ctl) run(code int, args ...string) (stdout, stderr string) {
	c.t.Helper()
	cmd, out, errs := c.command(args...)
	err := cmd.Run()
	var exit *exec.ExitError
	require.True(c.t, err == nil || errors.As(err, &exit), "%v", err)
	require.Equal(c.t, code, cmd.ProcessState.ExitCode(), "%v\n%s%s", args, out, errs)
	return out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	c := newCtl(t)
	for _, args := range [][]string{
		{"nonsense"}, {"lab", "nonsense"}, {"lab", "up", "--nonsense"}, {"lab", "add", "node1"}, {"lab", "matrix", "-o", "xml"},
		{"lab", "up", "--nodes", "16"}, {"lab", "up", "--parent", "bond"}, {"lab", "demo", "--nodes", "2"}, {"lab", "up", "--name", "../x"},
	} {
		_, stderr := c.run(2, args...)
		assert.True(t, strings.HasPrefix(stderr, "lhstoragectl: "), stderr)
	}
	stdout, _ := c.run(0, "version")
	assert.NotEmpty(t, strings.TrimSpace(stdout))
	stdout, _ = c.run(0, "completion", "bash")
	assert.Contains(t, stdout, "lhstoragectl")
	_, stderr := c.run(3, "lab", "status", "--name", labtest.Name())
	assert.Contains(t, stderr, "isn't up")
	c.run(0, "lab", "down", "--name", labtest.Name())
}

// TestLab goes through the lab's commands, with stock macvlan and with lhstorage.
func TestLab(t *testing.T) {
	labtest.RequireRoot(t)
	c := newCtl(t)
	for _, plugin := range []string{lab.PluginMacvlan, lab.PluginLhstorage} {
		t.Run(plugin, func(t *testing.T) {
			c := ctl{t, c.bin, c.env}
			name := labtest.Name()
			n := "--name=" + name
			t.Cleanup(func() { c.run(0, "lab", "down", n); assert.Empty(t, left(t, name)) })
			stdout, stderr := c.run(0, "lab", "up", n, "--plugin", plugin, "--nodes", "2")
			assert.Contains(t, stdout, "node2")
			assert.Contains(t, stderr, "making 2 nodes", "progress")
			c.run(3, "lab", "up", n, "--plugin", plugin)

			c.run(0, "lab", "add", n, "node1", "extra", "--eth0", "moved")
			c.run(3, "lab", "add", n, "node1", "extra")
			stdout, _ = c.run(0, "lab", "status", n, "-o", "yaml")
			var status lab.Status
			require.NoError(t, yaml.Unmarshal([]byte(stdout), &status))
			require.Len(t, status.Nodes, 2)
			assert.Len(t, status.Nodes[0].Pods, 2)
			c.run(0, "lab", "del", n, "node1", "extra")
			c.run(3, "lab", "del", n, "node1", "extra")

			c.run(7, "lab", "exec", n, "node1", "--", "sh", "-c", "exit 7")
			stdout, _ = c.run(0, "lab", "exec", n, "node1/pod1", "cat", "/proc/net/dev")
			assert.Contains(t, stdout, "lhnet1")
			c.run(3, "lab", "exec", n, "node1", "/no/such/program")

			code := 0
			if plugin == lab.PluginMacvlan {
				code = 1
			}
			stdout, _ = c.run(code, "lab", "matrix", n, "-o", "json")
			var legs []lab.Leg
			require.NoError(t, json.Unmarshal([]byte(stdout), &legs))
			assert.Len(t, legs, 6)
			assert.Len(t, lab.Failed(legs), 2*code)
		})
	}
}

// TestDemo runs what `make demo` runs and reads the report as a stranger would.
func TestDemo(t *testing.T) {
	labtest.RequireRoot(t)
	c := newCtl(t)
	name, file := labtest.Name(), filepath.Join(t.TempDir(), "demo.json")
	start := time.Now()
	stdout, _ := c.run(0, "lab", "demo", "--name", name, "--json", file)
	assert.Less(t, time.Since(start), 2*time.Minute)
	assert.Empty(t, left(t, name))
	assert.Contains(t, stdout, "15 of 15 legs pass: ok")
	assert.NotContains(t, stdout, "\x1b", "colour in a file")

	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var report struct {
		OK   bool `json:"ok"`
		Legs []struct {
			Plugin string   `json:"plugin"`
			Leg    string   `json:"leg"`
			From   string   `json:"from"`
			To     string   `json:"to"`
			Loss   float64  `json:"loss"`
			RTT    *float64 `json:"rtt_ms"`
		} `json:"legs"`
		Waste float64 `json:"waste_ratio"`
		Flood float64 `json:"waste_ratio_nolearning"`
		ISCSI struct {
			Plugin string `json:"plugin"`
			OK     bool   `json:"ok"`
			Bytes  int64  `json:"bytes"`
		} `json:"iscsi"`
		Stock struct {
			OK bool `json:"ok"`
		} `json:"iscsi_stock"`
		MTU int `json:"mtu"`
	}
	require.NoError(t, json.Unmarshal(data, &report))
	assert.True(t, report.OK)
	require.Len(t, report.Legs, 30)
	for _, leg := range report.Legs {
		lost := leg.Plugin == "macvlan" && leg.Leg == "host-local"
		assert.Equal(t, lost, leg.Loss == 100 && leg.RTT == nil, "%+v", leg)
		assert.Equal(t, !lost, leg.Loss == 0 && leg.RTT != nil, "%+v", leg)
	}
	assert.Less(t, report.Waste, 0.02)
	assert.InDelta(t, 1, report.Flood, 0.1)
	assert.Equal(t, "lhstorage", report.ISCSI.Plugin)
	assert.True(t, report.ISCSI.OK)
	assert.EqualValues(t, 16<<20, report.ISCSI.Bytes)
	assert.False(t, report.Stock.OK)
	assert.Equal(t, 8950, report.MTU)
}

// TestInterrupt sends signals while things are being made: when the program
// says on stderr that it begins something.
func TestInterrupt(t *testing.T) {
	labtest.RequireRoot(t)
	c := newCtl(t)
	up := []string{"up", "--nodes", "8", "--plugin", "macvlan"}
	for _, try := range []struct {
		when   string
		signal os.Signal
		args   []string
	}{
		{"making 8 nodes", os.Interrupt, up},
		{"linking them", syscall.SIGTERM, up},
		{"making the VXLAN parents", os.Interrupt, up},
		{"macvlan: attaching", os.Interrupt, []string{"demo"}},
		{"macvlan: measuring all legs", syscall.SIGTERM, []string{"demo"}},
		{"macvlan: iSCSI", os.Interrupt, []string{"demo"}},
		{"lhstorage: attaching", os.Interrupt, []string{"demo"}},
		{"lhstorage: iSCSI", os.Interrupt, []string{"demo"}},
		{"lhstorage: a stream", syscall.SIGTERM, []string{"demo"}},
	} {
		t.Run(strings.Join(try.args[:1], " ")+" "+try.when, func(t *testing.T) {
			name := labtest.Name()
			cmd, _, _ := c.command(append([]string{"lab", "--name", name}, try.args...)...)
			cmd.Stderr = nil
			stderr, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			var said strings.Builder
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				said.WriteString(lines.Text() + "\n")
				if strings.Contains(lines.Text(), try.when) {
					require.NoError(t, cmd.Process.Signal(try.signal))
				}
			}
			require.Error(t, cmd.Wait())
			assert.Contains(t, said.String(), try.when)
			assert.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", said.String())
			assert.Contains(t, said.String(), "signal received")
			assert.Empty(t, left(t, name))
		})
	}
}

// left lists what labs whose names begin with name have left behind.
func left(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/run/netns/" + name + "[.\\-]*", lab.DefaultRoot + "/" + name, lab.DefaultRoot + "/" + name + "-*"} {
		matches, err := filepath.Glob(pattern)
		require.NoError(t, err)
		found = append(found, matches...)
	}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, path := range environs {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(lab.DefaultRoot+"/"+name)) {
			found = append(found, "process "+filepath.Base(filepath.Dir(path)))
		}
	}
	return found
}

// TestDemoNamesWhatIsMissing runs the demo without the iSCSI programs.
func TestDemoNamesWhatIsMissing(t *testing.T) {
	c := newCtl(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, "lab", "demo", "--name", labtest.Name(), "--bin-dir", t.TempDir())
	cmd.Env = []string{"PATH=/nowhere"}
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	assert.Equal(t, 3, cmd.ProcessState.ExitCode())
	assert.Contains(t, string(out), "apt-get install tgt libiscsi-bin")
	assert.Contains(t, string(out), "CNI plugin lhstorage")
	assert.Contains(t, string(out), "CNI plugin macvlan")
}
