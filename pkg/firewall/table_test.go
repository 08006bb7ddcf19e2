package firewall_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/firewall/firewalltest"
)

// host is a network namespace with tables of its own.
type host struct{ firewalltest.Host }

func newHost(t *testing.T) host {
	t.Helper()
	testnode.RequireRoot(t)
	netns, err := testutils.NewNS()
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, netns.Close())
		require.NoError(t, testutils.UnmountNS(netns))
	})
	return host{firewalltest.Host{NetNS: netns}}
}

// sh runs a script there and returns what it prints; it must succeed.
func (h host) sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	var out []byte
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		out, err = exec.CommandContext(t.Context(), "sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
		return err
	}), "%s", out)
	return string(out)
}

func newFirewall() *firewall.Firewall {
	return firewall.New(slog.New(slog.DiscardHandler), firewall.NewMetrics(prometheus.NewRegistry()))
}

func (h host) ensure(t *testing.T, d firewall.Desired) []string {
	t.Helper()
	var changes []string
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		changes, err = newFirewall().Ensure(t.Context(), d)
		return err
	}))
	return changes
}

// run lets a firewall keep the host's tables, until the test ends or stop is called.
func (h host) run(t *testing.T, f *firewall.Firewall) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := h.Set(); err != nil {
			ended <- err
			return
		}
		ended <- f.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); require.NoError(t, <-ended) })
	t.Cleanup(stop)
	return stop
}

// countPrograms returns the names of the firewall programs that were started so far.
func (h host) countPrograms(t *testing.T) func() []string {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(log, nil, 0o600))
	for _, ip := range []string{"iptables", "ip6tables"} {
		for _, backend := range backendNames {
			for _, do := range []string{"save", "restore"} {
				name := ip + "-" + backend + "-" + do
				program, err := exec.LookPath(name)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, "#!/bin/sh\necho %s >>%s\nexec %s \"$@\"\n", name, log, program), 0o700))
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() []string {
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		return strings.Fields(string(text))
	}
}

func (h host) remove(t *testing.T) []string {
	t.Helper()
	var changes []string
	require.NoError(t, h.Do(func(ns.NetNS) (err error) {
		changes, err = newFirewall().Remove(t.Context())
		return err
	}))
	return changes
}

// rules are all rules of a backend, of both families, without counters.
func (h host) rules(t *testing.T, backend string) string {
	t.Helper()
	out := h.sh(t, "iptables-%s-save; ip6tables-%s-save", backend, backend)
	var kept []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			kept = append(kept, strings.Split(line, " [")[0])
		}
	}
	return strings.Join(kept, "\n")
}

// hint makes a host whose kubelet uses a backend, with rules of others.
func (h host) hint(t *testing.T, backend string) {
	t.Helper()
	h.sh(t, `for t in iptables ip6tables; do
		i=$t-%s
		$i -t mangle -N KUBE-KUBELET-CANARY
		$i -t mangle -N THEIRS; $i -t mangle -A THEIRS -i lo -j ACCEPT
		$i -t mangle -A INPUT -j THEIRS
		$i -A INPUT -p udp --dport 4789 -j ACCEPT
		$i -A FORWARD -m comment --comment "by LHSTORAGE- fans" -j ACCEPT
	done`, backend)
}

var backendNames = []string{"nft", "legacy"}

// All that is wanted is put there, known again in the backend's own words, put
// right when somebody changes it, and taken away; others' rules stay as they are.
func TestEnsure(t *testing.T) {
	for _, backend := range backendNames {
		t.Run(backend, func(t *testing.T) {
			h := newHost(t)
			h.hint(t, backend)
			before := h.rules(t, backend)
			for name, d := range cases {
				h.ensure(t, d)
				assert.Empty(t, h.ensure(t, d), "%s: the second time", name)
			}
			d := cases["vxlan"]
			h.ensure(t, d)
			want := h.rules(t, backend)
			assert.Contains(t, want, "LHSTORAGE-SHIM")
			for _, damage := range []string{
				"-F", "-F LHSTORAGE-INPUT", "-D INPUT -j LHSTORAGE-INPUT", "-I FORWARD -i lo -j ACCEPT", "-A FORWARD -j LHSTORAGE-FORWARD",
				"-I LHSTORAGE-SHIM -j ACCEPT", "-D LHSTORAGE-SHIM 1", "-A INPUT -p tcp -g LHSTORAGE-SHIM", "-R LHSTORAGE-ADDRESS 1 -j RETURN",
				"-N LHSTORAGE-OLD",
			} {
				h.sh(t, "iptables-%s -t mangle %s", backend, damage)
				assert.NotEmpty(t, h.ensure(t, d), damage)
				assert.Empty(t, h.ensure(t, d), damage)
			}
			h.sh(t, "iptables-%s -t mangle -D FORWARD -i lo -j ACCEPT; iptables-%s -t mangle -A INPUT -j THEIRS; iptables-%s -t mangle -A THEIRS -i lo -j ACCEPT",
				backend, backend, backend) // what was damaged of others'
			assert.Equal(t, want, h.rules(t, backend))

			assert.NotEmpty(t, h.remove(t))
			assert.Equal(t, before, h.rules(t, backend), "all of ours is gone, and nothing else")
			assert.Empty(t, h.remove(t))
		})
	}
}

// The rules follow the host's backend, and none stay behind in the other.
func TestBackendFollowsTheHost(t *testing.T) {
	h := newHost(t)
	d := cases["vxlan"]
	h.ensure(t, d)
	assert.Contains(t, h.rules(t, "nft"), "LHSTORAGE-INPUT", "nft where nothing says otherwise")
	h.hint(t, "legacy")
	h.ensure(t, d)
	assert.Contains(t, h.rules(t, "legacy"), "LHSTORAGE-INPUT")
	assert.NotContains(t, h.rules(t, "nft"), "LHSTORAGE-")
	h.hint(t, "nft")
	h.ensure(t, d)
	assert.NotContains(t, h.rules(t, "legacy"), "-A LHSTORAGE-")
	assert.Contains(t, h.rules(t, "nft"), "LHSTORAGE-INPUT")
}

// A peer that comes costs the one program that writes, and no further look though the change is heard of.
func TestProgramsOfOnePeer(t *testing.T) {
	h := newHost(t)
	started := h.countPrograms(t)
	f := newFirewall()
	h.run(t, f)
	d := cases["vxlan"]
	f.Set(d)
	var was int
	require.Eventually(t, func() bool { // the first look at all backends, and what is heard of it, has passed
		before := was
		was = len(started())
		return before == was && slices.Contains(started(), "ip6tables-nft-restore")
	}, time.Minute, time.Second)
	for _, last := range []byte{77, 99} {
		before := len(started())
		d.Parents = slices.Clone(d.Parents)
		d.Parents[0].Peers = append(slices.Clone(d.Parents[0].Peers), netip.AddrFrom4([4]byte{10, 100, 100, last}))
		f.Set(d)
		require.Eventually(t, func() bool {
			return strings.Contains(h.sh(t, "iptables-nft -t mangle -S"), fmt.Sprintf("10.100.100.%d", last))
		}, time.Minute, 20*time.Millisecond)
		time.Sleep(time.Second)
		assert.Equal(t, []string{"iptables-nft-restore"}, started()[before:])
	}
	before := len(started())
	h.sh(t, "ip6tables-nft -t mangle -F LHSTORAGE-INPUT")
	require.Eventually(t, func() bool { return slices.Contains(started()[before:], "ip6tables-nft-restore") }, time.Minute, 20*time.Millisecond, "another's change is looked at")
}

// A flush by somebody else is healed within 2 s, with no one telling.
func TestRunHeals(t *testing.T) {
	for _, backend := range backendNames {
		t.Run(backend, func(t *testing.T) {
			h := newHost(t)
			h.hint(t, backend)
			f := newFirewall()
			stop := h.run(t, f)
			f.Set(cases["vxlan"])
			whole := func() bool {
				rules := h.rules(t, backend)
				return strings.Count(rules, "-p tcp -m tcp !") == 2 && strings.Count(rules, "-A INPUT -j LHSTORAGE-INPUT") == 2 // in both families
			}
			require.Eventually(t, whole, 20*time.Second, 20*time.Millisecond)
			h.sh(t, "iptables-%s -t mangle -F", backend)
			start := time.Now()
			require.Eventually(t, whole, 20*time.Second, 20*time.Millisecond)
			t.Logf("healed after %s", time.Since(start).Round(time.Millisecond))
			f.Set(cases["flatNIC"])
			require.Eventually(t, func() bool { return strings.Contains(h.rules(t, backend), "-g LHSTORAGE-SHIM") }, 20*time.Second, 20*time.Millisecond)
			stop()
			assert.True(t, whole(), "a node isn't open while its agent is restarted")
		})
	}
}
