package demo

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/lab"
)

// passing is a report in which all is as it should be.
func passing() *Report {
	r := &Report{WasteRatio: 0.0001, FloodRatio: 1, MTU: 8950, ISCSI: ISCSI{Plugin: lab.PluginLhstorage, OK: true, Bytes: 1}}
	for _, plugin := range []string{lab.PluginMacvlan, lab.PluginLhstorage} {
		for _, leg := range []string{lab.LegPodPod, lab.LegHostLocal, lab.LegHostRemote} {
			l := lab.Leg{Plugin: plugin, Leg: leg, From: "a", To: "b", Packets: 20}
			if plugin == lab.PluginMacvlan && leg == lab.LegHostLocal {
				l.Loss = 100
			}
			r.Legs = append(r.Legs, l)
		}
	}
	return r
}

// TestJudge breaks one thing at a time.
func TestJudge(t *testing.T) {
	r := passing()
	r.judge()
	require.True(t, r.OK, "%v", r.Faults)
	for name, broken := range map[string]func(*Report){
		"lhstorage: pod-pod from a to b loses 5 %":              func(r *Report) { r.Legs[3].Loss = 5 },
		"lhstorage: host-local from a to b loses 0.5 %":         func(r *Report) { r.Legs[4].Loss = 0.5 },
		"stock macvlan: host-local from a to b loses 0 %":       func(r *Report) { r.Legs[1].Loss = 0 },
		"stock macvlan: host-remote from a to b loses 100 %":    func(r *Report) { r.Legs[2].Loss = 100 },
		"lhstorage: no iSCSI read":                              func(r *Report) { r.ISCSI.OK = false },
		"stock macvlan: the iSCSI read":                         func(r *Report) { r.StockISCSI.OK = true },
		"lhstorage: 2.0 % of the carried bytes are wasted":      func(r *Report) { r.WasteRatio = 0.02 },
		"lhstorage: packets of the full MTU don't pass everywh": func(r *Report) { r.MTU = 0 },
		"does the meter work?":                                  func(r *Report) { r.FloodRatio = 0.1 },
	} {
		r := passing()
		broken(r)
		r.judge()
		assert.False(t, r.OK, name)
		require.Len(t, r.Faults, 1, name)
		assert.Contains(t, r.Faults[0], name)
	}
	r = passing()
	r.Unmeasured = "interrupted"
	r.judge()
	assert.False(t, r.OK)
	assert.Empty(t, r.Faults, "what wasn't measured isn't judged")
}

// TestReportKeys pins the keys that others read.
func TestReportKeys(t *testing.T) {
	data, err := json.Marshal(passing())
	require.NoError(t, err)
	var report map[string]any
	require.NoError(t, json.Unmarshal(data, &report))
	for _, key := range []string{"ok", "legs", "waste_ratio", "iscsi", "mtu"} {
		assert.Contains(t, report, key)
	}
	leg := report["legs"].([]any)[0].(map[string]any)
	for _, key := range []string{"plugin", "leg", "from", "to", "loss", "rtt_ms"} {
		assert.Contains(t, leg, key)
	}
	for _, key := range []string{"plugin", "ok", "bytes"} {
		assert.Contains(t, report["iscsi"], key)
	}
}
