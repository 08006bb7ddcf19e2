package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// scripted is an IPAM plugin in place of host-local: a shell script that notes its
// calls and makes a claim, a file, before it does onADD.
type scripted struct{ dir string }

func (b *bed) script(t *testing.T, onADD string) scripted {
	t.Helper()
	s := scripted{t.TempDir()}
	text := fmt.Sprintf(`#!/bin/sh
cat >/dev/null
cd %s
echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>calls
case $CNI_COMMAND in
ADD) : >claim; %s ;;
DEL) rm -f claim ;;
esac
`, s.dir, onADD)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "host-local"), []byte(text), 0o700))
	ours, rest, _ := strings.Cut(b.bin, ":")
	b.bin = ours + ":" + s.dir + ":" + rest
	return s
}

func (s scripted) has(file string) bool {
	_, err := os.Stat(filepath.Join(s.dir, file))
	return err == nil
}

func (s scripted) calls(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	require.NoError(t, err)
	return string(data)
}

const good = `echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.16/24"}]}'`

func TestIPAMPluginThatFails(t *testing.T) {
	for _, c := range []struct {
		name, onADD string
		code        cnierr.Code
		words       []string
	}{
		{"after it allocated", `echo '{"cniVersion": "1.1.0", "code": 111, "msg": "the store went away"}'; exit 1`, 111, []string{"host-local", "the store went away"}},
		{"without a word", `exit 3`, cnierr.IO, []string{"host-local", "exit status 3"}},
		{"with words on stderr", `echo "no luck" >&2; exit 1`, cnierr.IO, []string{"host-local", "no luck"}},
		{"by printing garbage", `echo 'not JSON'`, cnierr.Decode, []string{"host-local", "not JSON"}},
		{"by printing nothing", ``, cnierr.Decode, []string{"host-local", `""`}},
		{"by printing a result of no known version", `echo '{"cniVersion": "9.9.9", "ips": []}'`, cnierr.Decode, []string{"host-local", "9.9.9"}},
		{"by printing a result without addresses", `echo '{"cniVersion": "1.1.0"}'`, cnierr.InvalidConfig, []string{"host-local", "gave no address"}},
		{"by giving an address of the host range", `echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.5/24"}]}'`, cnierr.InvalidConfig,
			[]string{"10.100.1.5", "host range 10.100.1.0/28"}},
		{"by giving the shim's own address", `echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.16/24"}, {"address": "10.100.1.1/24"}]}'`, cnierr.InvalidConfig,
			[]string{"10.100.1.1", "host range"}},
		{"by giving a route that can't be", `echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.100.1.16/24"}], "routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}'`,
			cnierr.Kernel, []string{"10.9.0.0/16", "192.0.2.1"}},
		{"by hanging", `sleep 300`, cnierr.TryAgain, []string{"host-local", "gave no answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			nodeWithVTEPDevice(t, b)
			s := b.script(t, c.onADD)
			p := b.pod(t, "a")
			began := time.Now()
			requireRefused(t, b.tryAdd(t, p), c.code, c.words...)
			assert.Less(t, time.Since(began), 40*time.Second, "ADD must be bounded")
			assert.Equal(t, "ADD c-a lhnet1\nDEL c-a lhnet1\n", s.calls(t), "a plugin that failed may have claimed something")
			assert.False(t, s.has("claim"))
			b.requireClean(t)
		})
	}
}

// A process that an IPAM plugin leaves behind may have its stdout open.
func TestIPAMPluginThatLeavesAProcess(t *testing.T) {
	t.Parallel()
	b := newBed(t, plain, vxlan)
	nodeWithVTEPDevice(t, b)
	b.script(t, `sleep 20 & `+good)
	p := b.pod(t, "a")
	began := time.Now()
	b.add(t, p)
	assert.Less(t, time.Since(began), 15*time.Second)
	b.requireTraffic(t, p)
	b.del(t, p)
	b.requireClean(t)
}

// What goes on after its caller was killed claims an address behind the back of the
// DEL that cleans up.
func TestIPAMPluginDiesWithItsCaller(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		b := newBed(t, plain, vxlan)
		nodeWithVTEPDevice(t, b)
		s := b.script(t, `: >started; sleep 1; : >late; `+good)
		p := b.pod(t, "a")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.addUntil(ctx, p) }()
		require.Eventually(t, func() bool { return s.has("started") }, 20*time.Second, time.Millisecond)
		if kill {
			cancel()
			requireKilled(t, <-ended)
			time.Sleep(2 * time.Second)
		} else {
			require.NoError(t, <-ended)
		}
		assert.NotEqual(t, kill, s.has("late"))
		cancel()
		b.del(t, p)
		b.requireClean(t)
		assert.False(t, s.has("claim"), "DEL goes to the IPAM plugin after a kill too")
	}
}

// A result that can't be handed over is a failed ADD: the runtime would not know of
// the attachment.
func TestResultThatCannotBePrinted(t *testing.T) {
	for name, start := range map[string]string{
		"no stdout":               `exec "$1" >&-`,
		"a full device":           `exec "$1" >/dev/full`,
		"a reader that went away": `{ "$1"; echo $? >` + "$STATUS" + `; } | true; exit $(cat $STATUS)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, plain, vxlan)
			nodeWithVTEPDevice(t, b)
			dir := t.TempDir()
			starter := filepath.Join(dir, "start")
			text := "#!/bin/sh\nSTATUS=" + filepath.Join(dir, "status") + "\n" + start + "\n"
			require.NoError(t, os.WriteFile(starter, []byte(text), 0o700))
			p := b.pod(t, "a")
			require.Error(t, b.tryAdd(t, p, through(starter)))
			b.requireClean(t)
			b.add(t, p)
			b.requireTraffic(t, p)
			b.del(t, p)
			b.requireClean(t)
		})
	}
}
