package kubeipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const whereaboutsBinary = "/opt/cni/bin/whereabouts"

// attachment is a pod that one of the two plugins serves.
type attachment struct {
	plugin, container, pod string
}

// run calls a plugin; killAfter (0: never) ends it with SIGKILL. killed says whether it was. env is more of its environment; a verb
// with words behind it isn't CNI's, but the plugin's own.
func (m *machine) run(verb string, a attachment, conf string, killAfter time.Duration, env ...string) (address string, killed bool, err error) {
	var out, stderr bytes.Buffer
	err = m.Do(func() error {
		cmd := exec.Command(a.plugin)
		if words := strings.Fields(verb); len(words) > 1 {
			cmd.Args, verb = append(cmd.Args, words...), "ADD"
		}
		cmd.Env = append(cmd.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+a.container, "CNI_NETNS=/var/run/netns/none", "CNI_IFNAME=net1", "CNI_PATH=/opt/cni/bin",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME="+a.pod)
		cmd.Env = append(cmd.Env, env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(conf), &out, &stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		if killAfter > 0 {
			timer := time.AfterFunc(killAfter, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
		err := cmd.Wait()
		killed = cmd.ProcessState.ExitCode() == -1
		return err
	})
	if err != nil {
		refusal := new(types.Error)
		if json.Unmarshal(out.Bytes(), refusal) == nil && refusal.Msg != "" {
			err = refusal
		}
		return "", killed, fmt.Errorf("%s of %s: %w: %s", verb, a.plugin, err, &stderr)
	}
	var result struct {
		IPs []struct{ Address string }
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &result); err != nil {
			return "", false, err
		}
	}
	if len(result.IPs) > 0 {
		address = result.IPs[0].Address
	}
	return address, false, nil
}

// Real whereabouts and ours on one pool at once, ours killed now and then: no address is given twice, what was given stays
// recorded, and the DELs of both leave nothing. What one has added the other deletes.
func beside(t *testing.T, b *bed) {
	const each = 15
	m := b.machine(t, "node1", "sync")
	conf := `{"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "ipam": {"type": "whereabouts", "range": "10.9.0.0/24"}}`
	var mu sync.Mutex
	given := map[string]attachment{}
	var all []attachment
	kills := 0
	took := atOnce(2*each, func(i int) {
		a := attachment{plugin: whereaboutsBinary, container: fmt.Sprint("w", i), pod: fmt.Sprint("wpod", i)}
		var killAfter time.Duration
		if i%2 == 0 {
			a = attachment{plugin: m.binary, container: fmt.Sprint("o", i), pod: fmt.Sprint("opod", i)}
			if i%6 == 0 {
				killAfter = rand.N(300 * time.Millisecond)
			}
		}
		address, killed, err := m.run("ADD", a, conf, killAfter)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, a)
		switch {
		case killed:
			kills++
		case err != nil:
			assert.Equal(t, whereaboutsBinary, a.plugin, "%v", err) // it may run out of its time where there is a crowd
			t.Logf("whereabouts: %.200s", err)
		default:
			other, twice := given[address]
			assert.False(t, twice, "%s was given to %s and %s", address, other.container, a.container)
			given[address] = a
		}
	})
	t.Logf("%d + %d ADDs at once in %s, %d of ours killed", each, each, took.Round(time.Millisecond), kills)
	assert.Greater(t, len(given), each, "most of them succeed")
	objects := b.objects(t)
	for address, a := range given {
		key := strings.TrimSuffix(strings.TrimPrefix(address, "10.9.0."), "/24")
		assert.Contains(t, objects, fmt.Sprintf("entry 10.9.0.0-24 %s %s ns/%s net1", key, a.container, a.pod))
		assert.Contains(t, objects, fmt.Sprintf("reservation 10.9.0.%s ", key))
	}
	// Each plugin deletes what the other has added, as far as it was; then each its own, which finds nothing or the rest.
	// whereabouts doesn't know of claims: those that its DELs leave behind go with ours.
	for _, a := range all {
		if a.plugin == whereaboutsBinary {
			a.plugin = m.binary
			_, _, err := m.run("DEL", a, conf, 0)
			require.NoError(t, err)
		}
	}
	atOnce(len(all), func(i int) {
		_, _, err := m.run("DEL", all[i], conf, 0)
		assert.NoError(t, err)
	})
	assert.Empty(t, b.objects(t))
}
