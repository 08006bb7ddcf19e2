package kubeipam

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// holders are who has which address, as runtimes know it.
type holders struct {
	mu sync.Mutex
	of map[string]attachment
}

// take notes who was given an address, and fails the test where another has it still.
func (h *holders) take(t *testing.T, address string, a attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = map[string]attachment{}
	}
	if other, held := h.of[address]; held {
		t.Errorf("%s was given to %s while %s has it", address, a.container, other.container)
	}
	h.of[address] = a
}

// give notes that an address's sandbox is about to be deleted.
func (h *holders) give(address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.of, address)
}

// crowds are as many processes at once on one pool as a rack of nodes that comes back at once starts. None fails, and no address is given
// twice.
func crowds(t *testing.T, b *bed) {
	const pods = 200
	for _, c := range []struct{ name, record, section string }{
		{"sync", "sync", `"range": "10.0.0.0/22", "timeout": "1m"`},
		{"sync, sticky", "sync", `"range": "10.0.0.0/22", "timeout": "1m", "allocation": "sticky"`},
		{"agent", "agent", `"range": "10.0.0.0/22", "timeout": "1m"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.wipe(t)
			nodes := b.machines(t, c.record)
			call := func(verb string, i int) (string, error) {
				m := nodes[i%len(nodes)]
				address, _, err := m.run(verb, attachment{plugin: m.binary, container: fmt.Sprint("c", i), pod: fmt.Sprint("pod", i)}, conf(c.section), 0)
				return address, err
			}
			var given holders
			took := atOnce(pods, func(i int) {
				address, err := call("ADD", i)
				if assert.NoError(t, err) {
					given.take(t, address, attachment{container: fmt.Sprint("c", i)})
				}
			})
			t.Logf("%d ADDs at once in %s", pods, took.Round(time.Millisecond))
			if c.record == "sync" {
				require.Equal(t, pods, b.whole(t, false))
			}
			require.Eventually(t, func() bool { return b.settled(t) == pods }, callTime, 100*time.Millisecond)
			took = atOnce(pods, func(i int) { _, err := call("DEL", i); assert.NoError(t, err) })
			t.Logf("%d DELs at once in %s", pods, took.Round(time.Millisecond))
			replay(t, nodes, conf(c.section))
			if c.record == "sync" {
				require.Empty(t, b.objects(t))
			}
			b.eventually(t, "")
		})
	}
}

// replay has the releases carried out that wait on the nodes' disks, as each next call does: a server that has a crowd before it may have
// kept a DEL waiting for too long.
func replay(t *testing.T, nodes []*machine, conf string) {
	for _, m := range nodes {
		if n := m.queued(t); n > 0 {
			t.Logf("%d releases wait on %s", n, m.Name)
		}
		require.Eventually(t, func() bool {
			_, _, err := m.run("DEL", attachment{plugin: m.binary, container: "nobody", pod: "nobody"}, conf, 0)
			return err == nil && m.queued(t) == 0
		}, callTime, 100*time.Millisecond)
	}
}

// machines are both nodes, and where they leave recording to a recorder there is one.
func (b *bed) machines(t *testing.T, record string) []*machine {
	nodes := []*machine{b.machine(t, "node1", record), b.machine(t, "node2", record)}
	if record == "agent" {
		b.recorder(t)
	}
	return nodes
}

// recorder runs a recorder until the test ends, and returns when ADDs rely on it.
func (b *bed) recorder(t *testing.T) {
	stop := b.record(t, t.Name())
	t.Cleanup(stop)
	require.Eventually(t, func() bool { return b.holder(t) == t.Name() }, callTime, 20*time.Millisecond)
}

// A release that waits on disk for the API server is of the old sandbox. What the pod's next one has stays.
func overtaken(record string) func(*testing.T, *bed) {
	return func(t *testing.T, b *bed) {
		m := b.machines(t, record)[0]
		c := conf(`"range": "10.0.0.0/24", "timeout": "30s"`)
		call := func(verb, container, pod string) (string, string) {
			address, said, err := m.call(t, verb, container, pod, c)
			require.NoError(t, err)
			return address, said
		}
		call("ADD", "c1", "pod1")
		require.Eventually(t, func() bool { return b.settled(t) == 1 }, callTime, 50*time.Millisecond)
		require.NoError(t, b.KillAPIServer())
		_, said := call("DEL", "c1", "pod1")
		assert.Contains(t, said, "queued on disk")
		require.NoError(t, b.StartAPIServer(t.Context()))
		address, _ := call("ADD", "c2", "pod1")
		addr, key, _ := cut(address)
		want := fmt.Sprintf("claim %s c2 ns/pod1 net1\nentry 10.0.0.0-24 %s c2 ns/pod1 net1\nreservation %s c2 ns/pod1 net1", addr, key, addr)
		b.eventually(t, want)
		for range 2 {
			call("DEL", "c1", "pod1")
		}
		assert.Zero(t, m.queued(t))
		// Once another pod has come and gone the recorder has done with what was before, too.
		call("ADD", "c3", "pod2")
		require.Eventually(t, func() bool { return b.settled(t) == 2 }, callTime, 50*time.Millisecond)
		call("DEL", "c3", "pod2")
		b.eventually(t, want)
		call("DEL", "c2", "pod1")
		b.eventually(t, "")
	}
}

// cut is the address and, of a net of 256, its key.
func cut(address string) (addr, key, length string) {
	for i := len(address) - 1; i >= 0; i-- {
		switch address[i] {
		case '/':
			addr, length = address[:i], address[i+1:]
		case '.':
			return addr, addr[i+1:], length
		}
	}
	return addr, "", length
}

// storm is pods that come and go on all nodes at once.
type storm struct {
	nodes                  []*machine
	given                  holders
	conf                   string
	added, refused, rounds atomic.Int32
	stop                   chan struct{}
	group                  sync.WaitGroup
}

const (
	stormTime  = 8 * time.Second  // the time of a call
	stormBound = 30 * time.Second // and what it may take at most, with what is undone, on a machine that is busy
)

// worker runs one pod after the other.
func (s *storm) worker(t *testing.T, i int) {
	m := s.nodes[i%len(s.nodes)]
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		default:
		}
		a := attachment{plugin: m.binary, container: fmt.Sprintf("c%d-%d", i, n), pod: fmt.Sprintf("pod%d-%d", i, n)}
		began := time.Now()
		address, _, err := m.run("ADD", a, s.conf, 0)
		assert.Less(t, time.Since(began), stormBound)
		if err == nil {
			s.given.take(t, address, a)
			s.added.Add(1)
			s.given.give(address)
		} else {
			assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err), "%v", err)
			s.refused.Add(1)
		}
		began = time.Now()
		_, _, err = m.run("DEL", a, s.conf, 0)
		assert.NoError(t, err)
		assert.Less(t, time.Since(began), stormBound)
		s.rounds.Add(1)
	}
}

// more waits until a counter has gone on.
func more(t *testing.T, counter *atomic.Int32, n int32) {
	t.Helper()
	until := counter.Load() + n
	require.Eventually(t, func() bool { return counter.Load() >= until }, callTime, 10*time.Millisecond)
}

// The API server is killed and comes back while pods come and go. An ADD gets its address or fails with code 11 in time, a DEL
// succeeds, and in the end nothing is left.
func serverKilled(record string) func(*testing.T, *bed) {
	return func(t *testing.T, b *bed) {
		const workers = 24
		s := &storm{nodes: b.machines(t, record), conf: conf(fmt.Sprintf(`"range": "10.0.0.0/24", "timeout": %q`, stormTime)), stop: make(chan struct{})}
		for i := range workers {
			s.group.Go(func() { s.worker(t, i) })
		}
		end := sync.OnceFunc(func() {
			close(s.stop)
			s.group.Wait()
		})
		defer end()
		more(t, &s.added, workers)
		require.NoError(t, b.KillAPIServer())
		more(t, &s.refused, workers/4)
		more(t, &s.rounds, workers/4)
		queued := 0
		for _, m := range s.nodes {
			queued += m.queued(t)
		}
		require.NoError(t, b.StartAPIServer(t.Context()))
		more(t, &s.added, workers)
		end()
		t.Logf("%d ADDs succeeded, %d were refused, %d releases were queued", s.added.Load(), s.refused.Load(), queued)
		require.NotZero(t, queued)
		replay(t, s.nodes, s.conf)
		b.eventually(t, "")
	}
}
