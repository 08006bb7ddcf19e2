package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/firewall/firewalltest"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/probe"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// lanNAD is of nodes on a LAN: each has its VTEP there already.
const lanNAD = `{
  "cniVersion": "1.1.0", "name": "storage", "type": "lhstorage",
  "parent": {"type": "vxlan", "name": "vxlan-storage", "vni": 100, "vtep": {"cidr": "10.100.200.0/24"}},
  "hostShim": {"range": "10.100.1.0/28"},
  "ipam": {"type": "lhstorage-ipam", "range": "10.100.1.0/24"}
}`

// allowedPort is a service of the host that pods may reach in these tests.
const allowedPort = firewalltest.Port + 2

// probeEvery is the shortest interval that the agent takes.
const probeEvery = 10 * time.Second

var hostFlags = []string{"--probe-interval=" + probeEvery.String(), fmt.Sprintf("--firewall-allow=%d/tcp", allowedPort)}

// site is a bed on a LAN, with a stranger there.
type site struct {
	*bed

	pods    map[string]*controlplane.Sandbox // by node
	attacks map[string]func(open bool)
}

// TestHostParts tries what the agent does on a node beside its networks: the firewall, and the probes of the legs.
func TestHostParts(t *testing.T) {
	s := &site{bed: newBedOn(t, lab.Options{Nodes: 3, Topology: lab.TopologyLAN}, lanNAD), pods: map[string]*controlplane.Sandbox{}}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *site)
	}{
		{"without a firewall the network is open", func(_ *testing.T, s *site) { s.open(t) }},
		{"with one it is closed", shut},
		{"the firewall is flushed", flushed},
		{"a peer joins", joins},
		{"a pod network's tunnel comes up", shares},
		{"reports", reports},
		{"what alerts look at is there", watched},
		{"a cable is pulled", pulled},
		{"a node leaves", leaves},
		{"the firewall is switched off", switchedOff},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(t, s) }) {
			return // they build on each other
		}
	}
}

// restart starts a node's agent anew, and waits until it has been through once.
func (s *site) restart(t *testing.T, n *controlplane.Node, flags ...string) {
	t.Helper()
	if p := s.agents[n.Name]; p != nil {
		require.NoError(t, p.Stop())
	}
	s.start(t, n, append(flags, hostFlags...)...)
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 20*time.Millisecond, "%s", n.Name)
}

// rules are all of iptables' on a node, without counters.
func rules(t *testing.T, n *controlplane.Node) string {
	t.Helper()
	var kept strings.Builder
	for line := range strings.Lines(output(t, n, "iptables-nft-save 2>/dev/null; ip6tables-nft-save 2>/dev/null")) {
		if !strings.HasPrefix(line, "#") {
			kept.WriteString(strings.Split(strings.TrimSpace(line), " [")[0] + "\n")
		}
	}
	return kept.String()
}

// closed waits until a node's firewall is there.
func closed(t *testing.T, n *controlplane.Node) {
	t.Helper()
	require.Eventually(t, func() bool { return metric(t, n, "lhstorage_firewall_ready", "") == 1 }, settle, 20*time.Millisecond, "%s", n.Name)
}

// open starts two nodes without a firewall, on which the attacks that the library's tests try against its rules succeed. Their services last as
// long as t.
func (s *site) open(t *testing.T) {
	for _, n := range s.Nodes[:2] {
		s.restart(t, n, "--firewall=false")
		s.pods[n.Name] = s.runFor(t, n, "pod-"+n.Name)
		sh(t, n, fmt.Sprintf("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.%s.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0", parent))
		assert.NotContains(t, rules(t, n), firewall.Prefix)
	}
	a := s.attacked(t)
	s.attacks = map[string]func(bool){"tunnel": a.Tunnel(t), "parent": a.Parent(t), "routing": a.Routing(t), "services": a.Services(t)}
	allowed := netip.AddrPortFrom(a.Nodes[0].Shim, allowedPort)
	a.Nodes[0].Host.Echo(t, allowed)
	s.attacks["an allowed port"] = func(bool) {
		for _, node := range a.Nodes {
			assert.NotNil(t, node.Pod.Dial(t, allowed), "--firewall-allow")
		}
	}
	for _, attack := range s.attacks {
		attack(true)
	}
}

// shut switches the firewall on, and the attacks fail; what must go on goes on.
func shut(t *testing.T, s *site) {
	for _, n := range s.Nodes[:2] {
		s.restart(t, n)
		closed(t, n)
	}
	for _, attack := range s.attacks {
		attack(false)
	}
}

// runFor runs a pod for all of TestHostParts.
func (s *site) runFor(t *testing.T, n *controlplane.Node, name string) *controlplane.Sandbox {
	t.Helper()
	_, err := s.CreatePod(t.Context(), n.Name, namespace, name, controlplane.Network{Namespace: namespace, Name: network, Interface: ifName})
	require.NoError(t, err)
	pod, err := n.RunPod(t.Context(), namespace, name)
	require.NoError(t, err)
	return pod
}

// attacked are two nodes as their attackers see them.
func (s *site) attacked(t *testing.T) firewalltest.Site {
	t.Helper()
	lan, err := ns.GetNS(filepath.Join("/run/netns", s.Name+".lan"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, lan.Close()) })
	a := firewalltest.Site{Stranger: firewalltest.Host{NetNS: lan}, Device: "br0", VNI: 100, Range: netip.MustParsePrefix("10.100.1.0/24")}
	for i, n := range s.Nodes[:2] {
		pod := s.pods[n.Name].Netns
		a.Nodes[i] = firewalltest.Node{Host: firewalltest.Host{NetNS: n.Host.NetNS}, VTEP: n.Lab.VTEP, Pod: firewalltest.Host{NetNS: pod}}
		node := &a.Nodes[i]
		node.ParentMAC, _ = device(t, n.Host.NetNS, parent)
		_, node.Shim = device(t, n.Host.NetNS, shim)
		node.PodMAC, node.PodAddress = device(t, pod, ifName)
	}
	return a
}

// device is the MAC of a device and its IPv4 address, if it has one.
func device(t *testing.T, netns ns.NetNS, name string) (mac net.HardwareAddr, addr netip.Addr) {
	t.Helper()
	k, err := kernel.In(netns)
	require.NoError(t, err)
	defer k.Close()
	link, err := k.Link(name)
	require.NoError(t, err)
	addrs, err := k.Addrs()
	require.NoError(t, err)
	for _, a := range kernel.AddrsOf(addrs, link.Index) {
		if a.Prefix.Addr().Is4() {
			addr = a.Prefix.Addr()
		}
	}
	return link.MAC, addr
}

// Whatever another program does to the rules is put right, counted and logged, each change once, and its own rules stay.
func flushed(t *testing.T, s *site) {
	n := s.Nodes[0]
	foreign := "iptables-nft -t mangle -N THEIRS; iptables-nft -t mangle -A THEIRS -i lo -j ACCEPT; iptables-nft -t mangle -A INPUT -j THEIRS; iptables-nft -A FORWARD -i nodev -j ACCEPT"
	sh(t, n, foreign)
	want := rules(t, n)
	require.Contains(t, want, firewall.Prefix)
	for name, script := range map[string]string{
		"a chain emptied": "iptables-nft -t mangle -F " + firewall.Prefix + "SHIM",
		"a jump removed":  "iptables-nft -t mangle -D INPUT -j " + firewall.Prefix + "INPUT",
		"all flushed": `for i in iptables-nft ip6tables-nft; do for c in $($i-save -t mangle | grep -o '^:LHSTORAGE[^ ]*' | cut -c2-); do
			$i -t mangle -F $c; done; for c in PREROUTING INPUT FORWARD; do $i -t mangle -D $c -j LHSTORAGE-$c; done; done`,
	} {
		t.Run(name, func(t *testing.T) {
			before, repairs := metric(t, n, "lhstorage_firewall_changes_total", ""), metric(t, n, "lhstorage_repairs_total", "")
			kept := logged(t, n)
			m := watchDevices(t, n)
			sh(t, n, script)
			began := time.Now()
			require.Eventually(t, func() bool { return rules(t, n) == want }, promise, 20*time.Millisecond, "put right")
			t.Logf("put right after %s", time.Since(began).Round(time.Millisecond))
			require.Eventually(t, func() bool { return metric(t, n, "lhstorage_firewall_changes_total", "") > before }, promise, 20*time.Millisecond)
			time.Sleep(time.Second) // what it did itself makes it look again
			m.requireOnly(t)
			assert.InDelta(t, repairs, metric(t, n, "lhstorage_repairs_total", ""), 0, "nothing else was repaired")
			lines := logged(t, n)[len(kept):]
			assert.InDelta(t, metric(t, n, "lhstorage_firewall_changes_total", "")-before, float64(len(lines)), 0.1, "each change is told of: %q", lines)
			seen := map[string]bool{}
			for _, line := range lines {
				assert.False(t, seen[line], "told of twice: %s", line)
				seen[line] = true
			}
			assert.Equal(t, want, rules(t, n))
		})
	}
}

// logged are the messages of the firewall in the log of a node's agent.
func logged(t *testing.T, n *controlplane.Node) []string {
	t.Helper()
	text, err := os.ReadFile(n.Log("agent-9810"))
	require.NoError(t, err)
	var messages []string
	for line := range bytes.Lines(text) {
		var entry struct{ Msg string }
		if json.Unmarshal(line, &entry) == nil && strings.HasPrefix(entry.Msg, "firewall: ") {
			messages = append(messages, entry.Msg)
		}
	}
	return messages
}

// A node that joins is let in at once, by those that were there.
func joins(t *testing.T, s *site) {
	n := s.Nodes[2]
	s.start(t, n, hostFlags...)
	require.Eventually(t, func() bool { return strings.Contains(state(t, n), "10.100.1.3/24") }, settle, 5*time.Millisecond, "it has its shim")
	began := time.Now()
	for i, other := range s.Nodes[:2] {
		_, to := device(t, other.Host.NetNS, shim)
		require.Eventually(t, func() bool { return pings(t, n.Host.NetNS, to) }, promise, 5*time.Millisecond, "node%d lets it in", i+1)
		t.Logf("node%d answered %s after the shim of %s was there", i+1, time.Since(began).Round(time.Millisecond), n.Name)
	}
	require.Eventually(t, func() bool { ok, _ := ready(n); return ok }, settle, 20*time.Millisecond)
	closed(t, n)
	s.pods[n.Name] = s.runFor(t, n, "pod-"+n.Name)
	for _, from := range s.Nodes {
		for _, to := range s.Nodes {
			_, addr := device(t, s.pods[to.Name].Netns, ifName)
			assert.True(t, pings(t, from.Host.NetNS, addr), "%s to the pod of %s", from.Name, to.Name)
			assert.True(t, pings(t, s.pods[from.Name].Netns, addr), "the pod of %s to that of %s", from.Name, to.Name)
		}
	}
}

// pings sends a packet or two.
func pings(t *testing.T, from ns.NetNS, to netip.Addr) bool {
	t.Helper()
	var result probe.PingResult
	require.NoError(t, from.Do(func(ns.NetNS) (err error) {
		result, err = probe.Ping(t.Context(), probe.PingOptions{Target: to, Count: 2, Interval: 20 * time.Millisecond, Wait: 100 * time.Millisecond})
		return err
	}))
	return result.Received > 0
}

// A tunnel of another network on the same port isn't cut: only packets of our network are looked at as soon as it is there.
func shares(t *testing.T, s *site) {
	n := s.Nodes[0]
	before := rules(t, n)
	require.NotContains(t, before, "u32")
	sh(t, n, "ip link add vxlan.other up type vxlan id 4096 dstport 4789 local "+n.Lab.VTEP.String())
	began := time.Now()
	require.Eventually(t, func() bool { return strings.Contains(rules(t, n), "u32") }, promise, 20*time.Millisecond)
	t.Logf("let in after %s", time.Since(began).Round(time.Millisecond))
	sh(t, n, "ip link del vxlan.other")
	require.Eventually(t, func() bool { return rules(t, n) == before }, promise, 20*time.Millisecond)
}

// output is what a script on a node prints.
func output(t *testing.T, n *controlplane.Node, script string) string {
	t.Helper()
	var out []byte
	require.NoError(t, n.Do(func() (err error) {
		out, err = exec.Command("sh", "-euc", script).Output()
		return err
	}))
	return string(out)
}

// report is a node's.
func (s *site) report(t *testing.T, node string) v1alpha1.ProbeReportStatus {
	t.Helper()
	var r v1alpha1.ProbeReport
	object, err := s.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(v1alpha1.ProbeReportResource)).Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		return r.Status
	}
	text, err := object.MarshalJSON()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &r))
	assert.Equal(t, node, r.Spec.Node)
	return r.Status
}

// leg is what a report says of a kind of leg to a node; false for nothing.
func leg(r v1alpha1.ProbeReportStatus, kind v1alpha1.LegKind, node string) (v1alpha1.ProbeLeg, bool) {
	for _, l := range r.Legs {
		if l.Kind == kind && l.Node == node {
			return l, true
		}
	}
	return v1alpha1.ProbeLeg{}, false
}

// wholeReport says that a report has every leg, and none that loses anything.
func (s *site) wholeReport(r v1alpha1.ProbeReportStatus, of string) error {
	for _, n := range s.Nodes {
		kinds := []v1alpha1.LegKind{v1alpha1.LegHostShim, v1alpha1.LegHostRemote, v1alpha1.LegPodRemote}
		if n.Name == of {
			kinds = []v1alpha1.LegKind{v1alpha1.LegHostLocal}
		}
		for _, kind := range kinds {
			l, there := leg(r, kind, n.Name)
			switch {
			case !there:
				return fmt.Errorf("%s says nothing of %s to %s", of, kind, n.Name)
			case l.Lost > 0 || l.Sent == 0 || l.RTT == nil || l.RTT.Min <= 0 || l.RTT.Median < l.RTT.Min || l.RTT.Max < l.RTT.Median:
				return fmt.Errorf("%s says of %s to %s: %+v", of, kind, n.Name, l)
			}
		}
	}
	return nil
}

const rounds = 4 // that news takes at most to be in a report: one that is under way, one for the legs, and those of a machine that is slow

// reported waits until a node's report is as wanted.
func (s *site) reported(t *testing.T, node string, want func(v1alpha1.ProbeReportStatus) error) {
	t.Helper()
	began := time.Now()
	for {
		r := s.report(t, node)
		err := want(r)
		if err == nil {
			t.Logf("%s reported after %s", node, time.Since(began).Round(time.Second))
			return
		}
		require.Less(t, time.Since(began), rounds*probeEvery, "%v; the report: %+v", err, r)
		time.Sleep(200 * time.Millisecond)
	}
}

// Every node tells of every leg, and writes its report when that differs in substance, not each round.
func reports(t *testing.T, s *site) {
	earlier := map[string]float64{}
	for _, n := range s.Nodes {
		earlier[n.Name] = metric(t, n, "lhstorage_probe_report_writes_total", "")
		if s.report(t, n.Name).Measured > 0 {
			earlier[n.Name]-- // the watch begins with what is there
		}
	}
	versions := s.watchReports(t)
	for _, n := range s.Nodes {
		s.reported(t, n.Name, func(r v1alpha1.ProbeReportStatus) error { return s.wholeReport(r, n.Name) })
		assert.Zero(t, s.report(t, n.Name).Failing)
	}
	before := map[string]float64{}
	for _, n := range s.Nodes {
		before[n.Name] = metric(t, n, "lhstorage_parent_transmit_bytes_total", parent)
	}
	time.Sleep(3 * probeEvery)
	for _, n := range s.Nodes {
		assert.Greater(t, metric(t, n, "lhstorage_parent_transmit_bytes_total", parent), before[n.Name], "rounds went on, and were added up")
		assert.Greater(t, metric(t, n, "lhstorage_children_transmit_bytes_total", parent), 0.0)
		assert.Zero(t, metric(t, n, "lhstorage_probe_loss_ratio", ""))
		assert.Greater(t, metric(t, n, "lhstorage_probe_rtt_seconds", `leg="host-local"`), 0.0)
		list := versions(n.Name)
		assert.InDelta(t, metric(t, n, "lhstorage_probe_report_writes_total", "")-earlier[n.Name], float64(len(list)), 1, "every write is counted (the agent may be writing)")
		for i := range list[1:] {
			assert.True(t, probereport.Changed(list[i], list[i+1]), "written though nothing has changed: %+v, then %+v", list[i], list[i+1])
		}
		t.Logf("%s wrote its report %d times", n.Name, len(list))
	}
}

// watchReports collects each version of each report.
func (s *site) watchReports(t *testing.T) func(node string) []v1alpha1.ProbeReportStatus {
	t.Helper()
	var mu sync.Mutex
	all := map[string][]v1alpha1.ProbeReportStatus{}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(v1alpha1.ProbeReportResource)).Watch(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for event := range w.ResultChan() {
			text, err := json.Marshal(event.Object)
			var r v1alpha1.ProbeReport
			if err != nil || json.Unmarshal(text, &r) != nil {
				continue
			}
			mu.Lock()
			all[r.Name] = append(all[r.Name], r.Status)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); w.Stop(); <-ended })
	return func(node string) []v1alpha1.ProbeReportStatus {
		mu.Lock()
		defer mu.Unlock()
		return append([]v1alpha1.ProbeReportStatus(nil), all[node]...)
	}
}

// Who has lost its cable is told of by those who have theirs: which leg, and to which node.
func pulled(t *testing.T, s *site) {
	lan := firewalltest.Host{NetNS: s.attacked(t).Stranger.NetNS}
	port := "to-" + s.Nodes[2].Name
	inLAN(t, lan, "ip link set "+port+" down")
	for i, n := range s.Nodes[:2] {
		other := s.Nodes[1-i].Name
		s.reported(t, n.Name, func(r v1alpha1.ProbeReportStatus) error {
			for _, kind := range []v1alpha1.LegKind{v1alpha1.LegHostShim, v1alpha1.LegHostRemote, v1alpha1.LegPodRemote} {
				cut, there := leg(r, kind, s.Nodes[2].Name)
				whole, others := leg(r, kind, other)
				if !there || !others || cut.Lost != cut.Sent || cut.RTT != nil || whole.Lost > 0 {
					return fmt.Errorf("%s: to %s %+v, to %s %+v", kind, s.Nodes[2].Name, cut, other, whole)
				}
			}
			if local, there := leg(r, v1alpha1.LegHostLocal, n.Name); !there || local.Lost > 0 {
				return fmt.Errorf("the local leg: %+v", local)
			}
			if r.Failing != 3 || !strings.Contains(r.Worst, s.Nodes[2].Name) {
				return fmt.Errorf("%d failing, the worst %q", r.Failing, r.Worst)
			}
			return nil
		})
		assert.InDelta(t, 1, metric(t, n, "lhstorage_probe_loss_ratio", `leg="host-shim",peer="node3"`), 0, "as a metric too")
		assert.Zero(t, metric(t, n, "lhstorage_probe_loss_ratio", fmt.Sprintf(`leg="host-shim",peer=%q`, other)))
	}
	inLAN(t, lan, "ip link set "+port+" up")
	for _, n := range s.Nodes {
		s.reported(t, n.Name, func(r v1alpha1.ProbeReportStatus) error { return s.wholeReport(r, n.Name) })
	}
}

func inLAN(t *testing.T, lan firewalltest.Host, script string) {
	t.Helper()
	require.NoError(t, lan.Do(func(ns.NetNS) error { return exec.CommandContext(t.Context(), "sh", "-ec", script).Run() }))
}

// A node that has left is no leg that fails, though its place is kept for it, and may no longer send.
func leaves(t *testing.T, s *site) {
	n, gone := s.Nodes[0], s.Nodes[2]
	require.NoError(t, s.agents[gone.Name].Stop())
	require.NoError(t, s.pods[gone.Name].Remove(t.Context()))
	require.NoError(t, s.Kube.CoreV1().Nodes().Delete(t.Context(), gone.Name, metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return !pings(t, gone.Host.NetNS, netip.MustParseAddr("10.100.1.1")) }, promise, 20*time.Millisecond, "it is shut out")
	require.Eventually(t, func() bool {
		code, body := get(n, "http://127.0.0.1:9810/metrics")
		return code == 200 && !strings.Contains(body, `lhstorage_probe_loss_ratio{leg="host-shim",peer="node3"}`)
	}, rounds*probeEvery, 200*time.Millisecond)
	for _, l := range s.report(t, n.Name).Legs {
		assert.Zero(t, l.Lost, "%+v", l)
	}
}

// All of ours goes, once, and nothing else; nothing tells of a firewall any more.
func switchedOff(t *testing.T, s *site) {
	n := s.Nodes[0]
	foreign := withoutOurs(rules(t, n))
	require.Contains(t, foreign, "THEIRS")
	s.restart(t, n, "--firewall=false")
	require.Eventually(t, func() bool { return rules(t, n) == foreign }, promise, 20*time.Millisecond)
	_, body := get(n, "http://127.0.0.1:9810/metrics")
	assert.NotContains(t, body, "lhstorage_firewall", "an alert would go by it")
	for _, n := range s.Nodes[:2] {
		require.NoError(t, s.pods[n.Name].Remove(t.Context()))
	}
}

// withoutOurs are the rules of others.
func withoutOurs(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, firewall.Prefix) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
