package view_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/demo"
	"github.com/lhstorage/lhstorage/pkg/lab/view"
)

// golden compares with a file in testdata (UPDATE=1 writes it).
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
	assert.NotContains(t, got, "\x1b", "colour")
	for line := range strings.SplitSeq(got, "\n") {
		assert.Equal(t, strings.TrimRight(line, " "), line, "white space at the end")
	}
}

func ms(v float64) *float64 { return &v }

func address(s string) netip.Addr { return netip.MustParseAddr(s) }

var legs = []lab.Leg{
	{Plugin: "macvlan", Leg: lab.LegPodPod, From: "node1/pod1", To: "node2/pod1", Address: address("10.100.1.85"), Packets: 20, RTT: ms(0.1234)},
	{Plugin: "macvlan", Leg: lab.LegHostLocal, From: "node1", To: "node1/pod1", Address: address("10.100.1.16"), Packets: 20, Loss: 100},
	{Plugin: "macvlan", Leg: lab.LegHostRemote, From: "node10", To: "node2/a-longer-name", Address: address("fd00::2"), Packets: 200, Loss: 5, RTT: ms(12.5)},
}

func TestMatrix(t *testing.T) {
	var out bytes.Buffer
	view.To(&out).Matrix(legs)
	golden(t, "matrix", out.String())

	out.Reset()
	view.To(&out).Matrix(legs[:1])
	assert.Contains(t, out.String(), "1 of 1 legs pass: ok")
}

func TestColorIsAdditional(t *testing.T) {
	var plain, colored bytes.Buffer
	view.View{W: &plain}.Matrix(legs)
	view.View{W: &colored, Color: true}.Matrix(legs)
	assert.Contains(t, colored.String(), "\x1b[")
	stripped := colored.String()
	for {
		before, rest, found := strings.Cut(stripped, "\x1b[")
		if !found {
			break
		}
		_, after, _ := strings.Cut(rest, "m")
		stripped = before + after
	}
	assert.Equal(t, plain.String(), stripped, "columns are aligned with colour, too")
}

func TestStatus(t *testing.T) {
	status := lab.Status{
		Options: lab.Options{Name: "lab", Topology: "mesh", Parent: "vxlan", Plugin: "lhstorage", IPAM: "lhstorage-ipam"},
		Created: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC),
		Nodes: []lab.NodeStatus{
			{
				Node: lab.Node{Name: "node1", Netns: "lab.node1", VTEP: address("10.100.100.1")}, ParentMTU: 8950,
				Shim: []netip.Prefix{netip.MustParsePrefix("10.100.1.1/24"), netip.MustParsePrefix("fd00::1/64")},
				Pods: []lab.Pod{
					{Name: "pod1", Netns: "lab.node1.pod1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.100.1.16/24")}, MAC: "0a:00:00:00:00:01"},
					{Name: "pod2", Netns: "lab.node1.pod2"},
				},
			},
			{Node: lab.Node{Name: "node2", Netns: "lab.node2"}},
		},
	}
	var out bytes.Buffer
	view.To(&out).Status(status)
	golden(t, "status", out.String())
}

func TestPod(t *testing.T) {
	var out bytes.Buffer
	view.To(&out).Pod(lab.Pod{Node: "node1", Name: "a", IfName: "lhnet1", MAC: "0a:00:00:00:00:01", Netns: "lab.node1.a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.100.1.16/24")}})
	assert.Equal(t, "node1/a: lhnet1 has 10.100.1.16/24 (0a:00:00:00:00:01), network namespace lab.node1.a\n", out.String())
}

func TestDemo(t *testing.T) {
	ours := lab.Leg{Plugin: "lhstorage", Leg: lab.LegHostLocal, From: "node1", To: "node1/pod1", Address: address("10.100.1.16"), Packets: 20, RTT: ms(0.03)}
	report := &demo.Report{
		OK: true, Legs: append(legs[:2:2], ours), WasteRatio: 0.00001, FloodRatio: 1.002, MTU: 8950, FullMTULegs: []lab.Leg{ours}, OneMoreError: "message too long",
		StockISCSI: demo.ISCSI{Plugin: "macvlan", From: "node1", To: "node1/pod1", Steps: []demo.Step{{Name: "iscsi-ls", Says: "no answer within 4s"}}},
		ISCSI:      demo.ISCSI{Plugin: "lhstorage", OK: true, From: "node1", To: "node1/pod1", Steps: []demo.Step{{Name: "iscsi-ls", OK: true, Says: "Lun:1"}, {Name: "read", OK: true, Says: "16777216 bytes"}}},
		Stream:     lab.Usage{Rate: 7e9, Links: []lab.LinkUsage{{From: "node1", To: "node2", Bytes: 134795000, OnWay: true}, {From: "node1", To: "node3", Bytes: 130}}},
		FloodStream: lab.Usage{Links: []lab.LinkUsage{
			{From: "node1", To: "node2", Bytes: 134887000, OnWay: true}, {From: "node1", To: "node3", Bytes: 134887000},
		}},
		Seconds: 6.2,
	}
	var out bytes.Buffer
	view.To(&out).Demo(report)
	golden(t, "demo", out.String())

	out.Reset()
	view.To(&out).Demo(&demo.Report{Faults: []string{"lhstorage: something"}})
	assert.Equal(t, "FAILS lhstorage: something\nFAILS, in 0 s\n", out.String())
	out.Reset()
	view.To(&out).Demo(&demo.Report{Unmeasured: "tgtd is missing"})
	assert.Empty(t, out.String(), "the error is told on stderr")
}
