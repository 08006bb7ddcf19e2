package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/integration/testnode"
)

// state is what the kernel and the disk have of the node, pods left out: devices,
// addresses, routes, forwarding entries, sysctls and files.
func (b *bed) state(t testing.TB) map[string]string {
	t.Helper()
	state := map[string]string{}
	note := func(what, command string, keep func(object) bool, drop ...string) {
		state[what] = normal(t, b.sh(t, command), keep, drop)
	}
	// Indexes depend on how often something was tried, times and counts on when one
	// looks; macvlan counts its children in promiscuity and allmulti.
	note("devices", "ip -d -j addr", all, "ifindex", "link_index", "promiscuity", "allmulti", "gc_timer",
		"valid_life_time", "preferred_life_time", "tentative")
	note("routes", "ip -j route", all, "flags")
	note("IPv6 routes", "ip -6 -j route", all, "flags", "pref", "expires")
	// Those without a destination are the filters of the devices, the pods' MACs among them.
	note("forwarding", "bridge -j fdb", func(o object) bool { return o["dst"] != nil && o["state"] == "permanent" }, "flags")
	for _, device := range b.links(t) {
		state["sysctls of "+device] = b.sysctls(t, device)
	}
	for _, dir := range []string{filepath.Join(b.StateDir(), "place"), filepath.Join(b.Run, "parents")} {
		files, err := testnode.Files(dir)
		require.NoError(t, err)
		for _, name := range files {
			data, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			state["file "+name] = string(data)
		}
	}
	return state
}

type object = map[string]any

func all(object) bool { return true }

// normal is a JSON list of objects as text, one a line and sorted, without what is
// dropped.
func normal(t testing.TB, list string, keep func(object) bool, drop []string) string {
	t.Helper()
	var objects []object
	if strings.TrimSpace(list) != "" {
		require.NoError(t, json.Unmarshal([]byte(list), &objects), list)
	}
	var lines []string
	for _, o := range objects {
		if len(o) == 0 || !keep(o) {
			continue
		}
		without(o, drop)
		line, err := json.Marshal(o)
		require.NoError(t, err)
		lines = append(lines, string(line))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func without(value any, drop []string) {
	switch v := value.(type) {
	case object:
		for _, key := range drop {
			delete(v, key)
		}
		for _, inner := range v {
			without(inner, drop)
		}
	case []any:
		for _, inner := range v {
			without(inner, drop)
		}
	}
}

func (b *bed) sysctls(t testing.TB, device string) string {
	t.Helper()
	var text strings.Builder
	require.NoError(t, b.Host.Do(func(ns.NetNS) error {
		for _, family := range []string{"ipv4", "ipv6"} {
			dir := filepath.Join("/proc/sys/net", family, "conf", device)
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if value, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil { // stable_secret can't be read while unset
					fmt.Fprintf(&text, "%s %s = %s\n", family, e.Name(), strings.TrimSpace(string(value)))
				}
			}
		}
		return nil
	}))
	return text.String()
}
