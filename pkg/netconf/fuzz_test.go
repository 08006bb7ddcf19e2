package netconf_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

func seed(f *testing.F) {
	for _, dir := range []string{"good", "bad"} {
		files, err := filepath.Glob("testdata/" + dir + "/*.json")
		require.NoError(f, err)
		for _, file := range files {
			f.Add(read(f, file), "IgnoreUnknown=1;MAC=02:00:00:00:00:01;IP=10.0.0.1/24;K8S_POD_NAME=p")
		}
	}
	f.Add([]byte(`{}`), "x")
}

func FuzzParse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		for _, verb := range []netconf.Verb{netconf.Add, netconf.Check, netconf.Status, netconf.GC} {
			plan, err := netconf.Parse(verb, stdin, args)
			if err != nil {
				checkError(t, verb, stdin, args, err)
				continue
			}
			checkPlan(t, verb, stdin, args, plan)
		}
	})
}

func checkError(t *testing.T, verb netconf.Verb, stdin []byte, args string, err error) {
	var all *netconf.Error
	require.ErrorAs(t, err, &all)
	require.NotEmpty(t, all.Faults)
	assert.Contains(t, []cnierr.Code{1, 4, 6, 7}, cnierr.CodeOf(err))
	assert.Len(t, strings.Split(err.Error(), "\n"), 1+len(all.Faults), "one line per fault")
	for _, fault := range all.Faults {
		assert.NotEmpty(t, fault.Key)
		assert.NotEmpty(t, fault.Problem)
	}
	_, again := netconf.Parse(verb, stdin, args)
	assert.Equal(t, err.Error(), again.Error())
}

func checkPlan(t *testing.T, verb netconf.Verb, stdin []byte, args string, plan *netconf.Plan) {
	require.True(t, json.Valid(plan.IPAM.Delegate))
	assert.NotEmpty(t, plan.Name)
	again, err := netconf.Parse(verb, plan.IPAM.Delegate, args)
	require.NoError(t, err, "what the delegate gets is itself a NetConf")
	assert.Equal(t, string(plan.IPAM.Delegate), string(again.IPAM.Delegate), "and needs no further change")
	if plan.HostShim != nil {
		require.Len(t, plan.HostShim.Networks, len(plan.HostShim.Ranges))
		for i, p := range plan.HostShim.Ranges {
			assert.Equal(t, p.Masked(), p)
			if whole := plan.HostShim.Networks[i]; whole.IsValid() {
				assert.True(t, whole.Contains(p.Addr()) && whole.Bits() <= p.Bits())
			}
		}
	}
	lenient := netconf.Lenient(stdin, args)
	assert.Equal(t, plan.Name, lenient.Name)
	assert.Equal(t, plan.Parent, lenient.Parent)
}

func FuzzLenient(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		plan := netconf.Lenient(stdin, args)
		require.NotNil(t, plan)
		if plan.IPAM.Delegate != nil {
			assert.True(t, json.Valid(plan.IPAM.Delegate))
		}
		if plan.PrevResult != nil {
			_, err := json.Marshal(plan.PrevResult)
			assert.NoError(t, err)
			for _, i := range plan.PrevResult.Interfaces {
				assert.NotNil(t, i)
			}
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"10.0.0.0/24", "10.0.0.5-10.0.0.9/24", "fd00::/64", "fd00::1-fd00::9/64", "010.00.0.1/8", "-", "/", "::ffff:1.2.3.4/120"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := netconf.ParseRange(s)
		if err != nil {
			return
		}
		require.True(t, r.Prefix.IsValid())
		assert.Equal(t, r.Prefix.Masked(), r.Prefix)
		assert.Equal(t, strings.Contains(s, "-"), r.First.IsValid())
		assert.Equal(t, r.First.IsValid(), r.Last.IsValid())
		if r.First.IsValid() {
			assert.True(t, r.Prefix.Contains(r.First) && r.Prefix.Contains(r.Last))
		}
	})
}
