package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/doctor"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
	"github.com/lhstorage/lhstorage/pkg/terminal"
)

// call runs the command line in this process.
func call(t *testing.T, stdin string, args ...string) (stdout string, code int) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), exitCode(err)
}

func TestExplain(t *testing.T) {
	for name, c := range map[string]struct {
		stdin string
		args  []string
		code  int
		want  string
	}{
		"a code":            {"", []string{"LHS116"}, exitOK, "type vxlan learning"},
		"in small letters":  {"", []string{"lhs020", "lhs116"}, exitOK, "A range is exhausted"},
		"no code":           {"", []string{"LHS999"}, exitFailed, ""},
		"a text":            {"", []string{"--text", "Could not allocate IP in range: ip: 1 / - 2 / range: 3"}, exitOK, "LHS020"},
		"a text on stdin":   {"Events:\n  Warning  FailedCreatePodSandBox  failed to find plugin \"lhstorage\" in path [/opt/cni/bin]\n", nil, exitOK, "LHS100"},
		"an unknown text":   {"all is well\n", nil, exitFailed, ""},
		"nothing on stdin":  {"", nil, exitFailed, ""},
		"no such flag":      {"", []string{"--every"}, exitUsage, ""},
		"no such format":    {"", []string{"--all", "-o", "xml"}, exitUsage, ""},
		"the document":      {"", []string{"--markdown"}, exitOK, "# lhstoragectl doctor"},
		"all, for programs": {"", []string{"--all", "-o", "yaml"}, exitOK, "code: LHS146"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := call(t, c.stdin, append([]string{"doctor", "explain"}, c.args...)...)
			assert.Equal(t, c.code, code, out)
			assert.Contains(t, out, c.want)
		})
	}
	out, code := call(t, "", "doctor", "explain", "--all", "-o", "json")
	require.Equal(t, exitOK, code)
	var checks []doctor.Check
	require.NoError(t, json.Unmarshal([]byte(out), &checks))
	assert.Len(t, checks, len(doctor.Checks()))
	assert.NotEmpty(t, checks[0].Why)
}

func TestLookFlags(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "absent"))
	t.Setenv("HOME", t.TempDir())
	for args, want := range map[string]int{
		"doctor --offline":                 exitUsage,
		"doctor --node n1":                 exitUsage,
		"doctor now":                       exitUsage,
		"doctor":                           exitBroken,
		"status":                           exitBroken,
		"doctor bundle":                    exitBroken,
		"doctor bundle --offline -o /dev/": exitUsage,
	} {
		_, code := call(t, "", strings.Fields(args)...)
		assert.Equal(t, want, code, args)
	}
}

func TestFindingsForPeople(t *testing.T) {
	findings := []doctor.Finding{
		{Code: "LHS116", Severity: doctor.Warning, Title: "Every frame goes to every node", Where: "node n2", What: "two\nlines", Why: "w", Fix: "f"},
		{Code: "LHS114", Severity: doctor.Error, Title: "t", Where: "x", What: "y", Why: "w", Fix: "f"},
	}
	seen := &snapshot.Snapshot{Cluster: &snapshot.Cluster{}}
	var plain, coloured bytes.Buffer
	writeFindings(terminal.Screen{W: &plain}, seen, findings)
	writeFindings(terminal.Screen{W: &coloured, Color: true}, seen, findings)
	assert.Contains(t, plain.String(), "WARNING LHS116  Every frame goes to every node\n  where  node n2\n  what   two\n         lines\n")
	assert.Contains(t, plain.String(), "1 × error, 1 × warning; ")
	assert.NotContains(t, plain.String(), "\x1b")
	assert.Contains(t, coloured.String(), "\x1b")
	plain.Reset()
	writeFindings(terminal.Screen{W: &plain}, seen, nil)
	assert.Contains(t, plain.String(), "no findings; ")
}
