package verify_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

var update = flag.Bool("update", false, "write the golden files anew")

// healthy are the answers of nodes that are all well.
func healthy(nodes int) verify.Input {
	in := verify.Input{ID: "1"}
	name := func(i int) string { return fmt.Sprintf("node%d", i) }
	for i := 1; i <= nodes; i++ {
		in.Nodes = append(in.Nodes, name(i))
		in.HostShims = append(in.HostShims, v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{
			Node: name(i), Parent: "vxlan-storage", Index: i, VTEP: fmt.Sprintf("10.100.100.%d", i),
			Networks: []v1alpha1.ShimNetwork{{Name: "storage", Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(fmt.Sprintf("10.100.1.%d", i))}}},
		}})
		learning := true
		network := v1alpha1.VerifiedNetwork{
			Name: "storage", Parent: "vxlan-storage", ParentKind: "vxlan", ParentMTU: 8950, Learning: &learning, VTEP: fmt.Sprintf("10.100.100.%d", i),
			Shim: "lhnet1-host", ShimMAC: fmt.Sprintf("02:00:00:00:00:%02x", i), ShimMTU: 8950,
			ShimAddresses: []v1alpha1.VerifiedAddress{v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", i))}, Bypass: &v1alpha1.VerifiedBypass{Asked: 1},
		}
		address := v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.1.%d", 15+i))
		pod := "longhorn-system/instance-manager-" + name(i)
		status := v1alpha1.VerificationStatus{
			ID: "1", Milliseconds: int64(900 + i),
			Pods: []v1alpha1.VerifiedPod{{Pod: pod, Network: "storage", Addresses: []v1alpha1.VerifiedAddress{address}, MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), MTU: 8950, ISCSIDial: address}},
			Legs: []v1alpha1.VerifiedLeg{leg(v1alpha1.LegHostLocal, i, "", pod, string(address))},
			Traffic: []v1alpha1.VerifiedTraffic{{
				Parent: "vxlan-storage", Sent: 320_000, Received: 321_000, ChildrenSent: 318_000, ChildrenReceived: 320_000, Management: "eth0", ManagementSent: 2_000,
			}},
		}
		for p := 1; p <= nodes; p++ {
			if p == i {
				continue
			}
			network.Flood = append(network.Flood, v1alpha1.VerifiedAddress(fmt.Sprintf("10.100.100.%d", p)))
			peer, there := "longhorn-system/instance-manager-"+name(p), fmt.Sprintf("10.100.1.%d", 15+p)
			status.Legs = append(status.Legs, leg(v1alpha1.LegUnderlay, p, "", "", fmt.Sprintf("10.100.100.%d", p)), leg(v1alpha1.LegHostShim, p, "", "", fmt.Sprintf("10.100.1.%d", p)),
				leg(v1alpha1.LegHostRemote, p, "", peer, there), leg(v1alpha1.LegPodRemote, p, pod, peer, there))
		}
		status.Networks = []v1alpha1.VerifiedNetwork{network}
		in.Answers = append(in.Answers, v1alpha1.Verification{Spec: v1alpha1.VerificationSpec{Node: name(i), ID: "1"}, Status: status})
	}
	return in
}

func leg(kind v1alpha1.LegKind, to int, from, pod, address string) v1alpha1.VerifiedLeg {
	l := v1alpha1.VerifiedLeg{
		Kind: kind, Network: "storage", From: from, Node: fmt.Sprintf("node%d", to), Pod: pod, Address: v1alpha1.VerifiedAddress(address),
		Small: v1alpha1.VerifiedPings{Size: 84, Sent: 5, Microseconds: 300}, Full: &v1alpha1.VerifiedPings{Size: 8950, Sent: 5, Microseconds: 400},
	}
	switch kind {
	case v1alpha1.LegUnderlay:
		l.Device, l.Full.Size = fmt.Sprintf("to-node%d", to), 9000
	case v1alpha1.LegHostLocal, v1alpha1.LegHostRemote:
		l.Device = "lhnet1-host"
		l.TCP = []v1alpha1.VerifiedPort{{Port: 3260, Result: v1alpha1.PortOpen}, {Port: 10000, Result: v1alpha1.PortRefused}}
		if kind == v1alpha1.LegHostLocal {
			l.Small.Microseconds = 40
		}
	case v1alpha1.LegHostShim:
		l.Device = "lhnet1-host"
	case v1alpha1.LegPodRemote:
		l.HTTP = &v1alpha1.VerifiedHTTP{OK: true, Microseconds: 900}
	}
	return l
}

// lose makes the legs from a node that a function chooses lose their packets.
func lose(in verify.Input, from int, which func(v1alpha1.VerifiedLeg) bool) {
	legs := in.Answers[from-1].Status.Legs
	for i := range legs {
		if which(legs[i]) {
			legs[i].Small.Lost, legs[i].Small.Microseconds, legs[i].Full, legs[i].TCP, legs[i].HTTP = 5, 0, nil, nil, nil
		}
	}
}

func to(node string) func(v1alpha1.VerifiedLeg) bool {
	return func(l v1alpha1.VerifiedLeg) bool { return l.Node == node }
}

// above is what runs over the underlay to a node.
func above(node string) func(v1alpha1.VerifiedLeg) bool {
	return func(l v1alpha1.VerifiedLeg) bool { return l.Node == node && l.Kind != v1alpha1.LegUnderlay }
}

// onNIC has the network on a NIC of each node.
func onNIC(in verify.Input) {
	for i := range in.Answers {
		s := &in.Answers[i].Status
		n := &s.Networks[0]
		n.Parent, n.ParentKind, n.Learning, n.VTEP, n.Flood = "eth1", "device", nil, "", nil
		s.Legs = slices.DeleteFunc(s.Legs, func(l v1alpha1.VerifiedLeg) bool { return l.Kind == v1alpha1.LegUnderlay })
	}
	for i := range in.HostShims {
		in.HostShims[i].Spec.Parent, in.HostShims[i].Spec.VTEP = "eth1", ""
	}
}

// device has a node send by a device.
func device(in verify.Input, from int, kind v1alpha1.LegKind, name string) {
	legs := in.Answers[from-1].Status.Legs
	for i := range legs {
		if legs[i].Kind == kind {
			legs[i].Device = name
		}
	}
}

var cases = []struct {
	name  string
	alter func(*verify.Input)
	want  []string // severity, kind, node, peer, leg
	not   bool     // the shim isn't needed
}{
	{name: "healthy", alter: func(*verify.Input) {}},
	{"link cut", func(in *verify.Input) { lose(*in, 1, to("node3")); lose(*in, 3, to("node1")) }, []string{"fault link-cut node1 node3 underlay"}, false},
	{"link cut one way", func(in *verify.Input) { lose(*in, 3, to("node1")) }, []string{"fault link-cut node3 node1 underlay"}, false},
	{"entry missing", func(in *verify.Input) {
		in.Answers[0].Status.Networks[0].Flood = []v1alpha1.VerifiedAddress{"10.100.100.2"}
		lose(*in, 1, above("node3"))
		lose(*in, 3, above("node1"))
	}, []string{"fault fdb-missing node1 node3 host-shim"}, false},
	{"shim missing", func(in *verify.Input) {
		in.Answers[1].Status.Networks[0].Shim = ""
		lose(*in, 2, func(l v1alpha1.VerifiedLeg) bool { return l.From == "" && l.Kind != v1alpha1.LegUnderlay })
		for _, other := range []int{1, 3} {
			lose(*in, other, func(l v1alpha1.VerifiedLeg) bool { return l.Kind == v1alpha1.LegHostShim && l.Node == "node2" })
		}
	}, []string{"fault shim-missing node2  host-local"}, false},
	{"shim missing and a pod gone silent", func(in *verify.Input) {
		in.Answers[1].Status.Networks[0].Shim = ""
		lose(*in, 1, func(l v1alpha1.VerifiedLeg) bool { return l.Kind == v1alpha1.LegPodRemote && l.Node == "node2" })
	}, []string{"fault packet-loss node1 node2 pod-remote", "fault shim-missing node2  host-local"}, false},
	{"parent missing", func(in *verify.Input) {
		in.Answers[1].Status.Networks[0] = v1alpha1.VerifiedNetwork{Name: "storage", Parent: "vxlan-storage"}
	}, []string{"fault parent-missing node2  "}, false},
	{"MTU of the underlay", func(in *verify.Input) {
		for i, l := range in.Answers[0].Status.Legs {
			if l.Node == "node2" {
				in.Answers[0].Status.Legs[i].Full.Lost, in.Answers[0].Status.Legs[i].Full.Error = 5, "message too long"
			}
		}
	}, []string{"fault mtu-too-small node1 node2 underlay"}, false},
	{"MTU of the other's parent", func(in *verify.Input) {
		in.Answers[1].Status.Networks[0].ParentMTU = 1450
		for i, l := range in.Answers[0].Status.Legs {
			if above("node2")(l) {
				in.Answers[0].Status.Legs[i].Full.Lost = 5
			}
		}
	}, []string{"fault mtu-too-small node1 node2 host-shim"}, false},
	{"fragments", func(in *verify.Input) {
		for i, l := range in.Answers[0].Status.Legs {
			if above("node2")(l) {
				in.Answers[0].Status.Legs[i].Full.Fragments = 60
			}
		}
	}, []string{"warning outer-fragments node1 node2 host-shim"}, false},
	{"flooding", func(in *verify.Input) { in.Answers[1].Status.Traffic[0].Sent = 636_000 }, []string{"fault flooding node2  host-shim"}, false},
	{"learning off, too little sent to see it", func(in *verify.Input) {
		*in.Answers[1].Status.Networks[0].Learning = false
		in.Answers[1].Status.Traffic[0].ChildrenSent = 100
	}, []string{"fault flooding node2  host-shim"}, false},
	{"duplicate address", func(in *verify.Input) {
		in.Answers[0].Status.Networks[0].Duplicates = []v1alpha1.VerifiedDuplicate{{Address: "10.100.1.16", Holder: "longhorn-system/instance-manager-node1", MAC: "02:00:00:00:01:03"}}
		in.Answers[2].Status.Networks[0].Duplicates = []v1alpha1.VerifiedDuplicate{{Address: "10.100.1.16", Holder: "longhorn-system/instance-manager-node3", MAC: "02:00:00:00:01:01"}}
		lose(*in, 2, func(l v1alpha1.VerifiedLeg) bool { return l.Address == "10.100.1.16" })
	}, []string{"fault duplicate-address node1  pod-remote"}, false},
	{"a stranger's duplicate of a shim", func(in *verify.Input) {
		in.Answers[0].Status.Networks[0].Duplicates = []v1alpha1.VerifiedDuplicate{{Address: "10.100.1.1", MAC: "52:54:00:00:00:01"}}
	}, []string{"fault duplicate-address node1  host-shim"}, false},
	{"no answer", func(in *verify.Input) { in.Answers = in.Answers[:2] }, []string{"fault no-answer node3  "}, false},
	{"an older answer", func(in *verify.Input) { in.Answers[2].Status.ID = "0" }, []string{"fault no-answer node3  "}, false},
	{"a partial answer", func(in *verify.Input) { in.Answers[2].Status.Error = "no time" }, []string{"warning incomplete node3  "}, false},
	{"a node that left", func(in *verify.Input) {
		in.Nodes = in.Nodes[:2]
		for _, other := range []int{1, 2} {
			lose(*in, other, to("node3"))
		}
	}, nil, false},
	{"silent port", func(in *verify.Input) {
		for i, l := range in.Answers[0].Status.Legs {
			if l.Kind == v1alpha1.LegHostLocal {
				in.Answers[0].Status.Legs[i].TCP[0].Result = v1alpha1.PortSilent
			}
		}
	}, []string{"fault port-silent node1  host-local"}, false},
	{"HTTP fails", func(in *verify.Input) {
		for i, l := range in.Answers[0].Status.Legs {
			if l.Kind == v1alpha1.LegPodRemote && l.Node == "node2" {
				in.Answers[0].Status.Legs[i].HTTP = &v1alpha1.VerifiedHTTP{Error: "i/o timeout"}
			}
		}
	}, []string{"fault http-failed node1 node2 pod-remote"}, false},
	{"by another device", func(in *verify.Input) {
		for i, l := range in.Answers[0].Status.Legs {
			if l.Kind == v1alpha1.LegHostShim {
				in.Answers[0].Status.Legs[i].Device = "eth0"
			}
		}
	}, []string{"fault wrong-device node1 node2 host-shim"}, false},
	{"by the parent, on a NIC", func(in *verify.Input) {
		onNIC(*in)
		device(*in, 1, v1alpha1.LegHostShim, "eth1")
	}, nil, false},
	{"by another NIC, on a NIC", func(in *verify.Input) {
		onNIC(*in)
		device(*in, 1, v1alpha1.LegHostShim, "eth0")
	}, []string{"fault wrong-device node1 node2 host-shim"}, false},
	{"to pods by the parent, on a NIC", func(in *verify.Input) {
		onNIC(*in)
		device(*in, 1, v1alpha1.LegHostRemote, "eth1")
	}, []string{"fault wrong-device node1 node2 host-remote"}, false},
	{"by the parent, in a tunnel", func(in *verify.Input) { device(*in, 1, v1alpha1.LegHostShim, "vxlan-storage") }, []string{"fault wrong-device node1 node2 host-shim"}, false},
	{"management network", func(in *verify.Input) { in.Answers[0].Status.Traffic[0].ManagementSent = 330_000 }, []string{"warning management-nic node1  "}, false},
	{"pods answer by the parent", func(in *verify.Input) {
		for i := range in.Answers {
			in.Answers[i].Status.Networks[0].Bypass.Answered = 1
		}
	}, nil, true},
}

// Each cause is named once, by node and leg, and what follows from it isn't told again.
func TestJudge(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := healthy(3)
			c.alter(&in)
			r := verify.Judge(in)
			var got []string
			ok := true
			for _, f := range r.Findings {
				got = append(got, fmt.Sprintf("%s %s %s %s %s", f.Severity, f.Kind, f.Node, f.Peer, f.Leg))
				ok = ok && f.Severity == verify.Warning
				assert.NotEmpty(t, f.Text)
				assert.NotEmpty(t, f.Mend)
			}
			assert.Equal(t, c.want, got, "%+v", r.Findings)
			assert.Equal(t, ok, r.OK)
			if c.not {
				assert.Equal(t, verify.NotNeeded, r.Shim.Verdict)
			} else {
				assert.Equal(t, verify.Needed, r.Shim.Verdict)
			}
			var out bytes.Buffer
			r.Write(&out)
			golden(t, c.name, out.Bytes())
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)+".txt")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run with -update")
	assert.Equal(t, string(want), string(got))
}

// Every kind of finding is found by a case.
func TestEveryKindHasACase(t *testing.T) {
	seen := map[verify.Kind]bool{}
	for _, c := range cases {
		in := healthy(3)
		c.alter(&in)
		for _, f := range verify.Judge(in).Findings {
			seen[f.Kind] = true
		}
	}
	for _, k := range verify.AllKinds {
		assert.True(t, seen[k], "%s", k)
	}
}

// In a big cluster only what fails is written.
func TestLongTable(t *testing.T) {
	in := healthy(12)
	lose(in, 1, to("node3"))
	var out bytes.Buffer
	verify.Judge(in).Write(&out)
	golden(t, "twelve nodes", out.Bytes())
}

func TestUnknownNeed(t *testing.T) {
	assert.Equal(t, verify.Unknown, verify.Judge(verify.Input{}).Shim.Verdict)
}

// What is about another network is left out, and nothing else: the underlay is every network's.
func TestOnly(t *testing.T) {
	in := healthy(2)
	before := len(in.Answers[0].Status.Legs)
	s := &in.Answers[0].Status
	for i := range s.Legs {
		if s.Legs[i].Kind == v1alpha1.LegUnderlay {
			s.Legs[i].Network = "another" // on the same parent
		}
	}
	lost := leg(v1alpha1.LegHostRemote, 2, "", "x/y", "10.9.0.1")
	lost.Network, lost.Small.Lost = "another", 5
	below := leg(v1alpha1.LegUnderlay, 2, "", "", "192.0.2.2") // on another parent
	below.Small.Lost = 5
	below.Network = "another"
	s.Legs = append(s.Legs, lost, below)
	s.Networks = append(s.Networks, v1alpha1.VerifiedNetwork{Name: "another", Parent: "missing"})
	s.Traffic = append(s.Traffic, v1alpha1.VerifiedTraffic{Parent: "missing", ChildrenSent: 100_000, Sent: 300_000})
	require.False(t, verify.Judge(in).OK)
	only := in.Only("storage")
	r := verify.Judge(only)
	assert.True(t, r.OK, "%+v", r.Findings)
	assert.Len(t, only.Answers[0].Status.Legs, before, "with the underlay's")
	assert.Len(t, only.Answers[0].Status.Traffic, 1)
	assert.Len(t, in.Answers[0].Status.Legs, before+2, "what was given isn't changed")
}
