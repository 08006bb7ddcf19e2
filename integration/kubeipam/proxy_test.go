package kubeipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// ways are those in which a call through the proxy goes wrong, once.
var ways = []string{"409", "422", "429", "500", "403", "3s", "lost"}

var reasons = map[string]metav1.StatusReason{
	"409": metav1.StatusReasonConflict, "422": metav1.StatusReasonInvalid, "429": metav1.StatusReasonTooManyRequests,
	"500": metav1.StatusReasonInternalError, "403": metav1.StatusReasonForbidden,
}

// proxy stands between a program on a node and the API server. It spoils the nth call of a kind.
type proxy struct {
	*httputil.ReverseProxy
	url, kind, way string
	nth            int

	mu     sync.Mutex
	counts map[string]int
	order  []string // "KIND #n"
}

// proxy listens on the node's loopback until the test ends.
func (b *bed) proxy(t *testing.T, on *controlplane.Node) *proxy {
	var listener net.Listener
	require.NoError(t, on.Do(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return err
	}))
	up, err := rest.TransportFor(b.Config)
	require.NoError(t, err)
	server, err := url.Parse(b.Config.Host)
	require.NoError(t, err)
	p := &proxy{counts: map[string]int{}, url: "http://" + listener.Addr().String()}
	p.ReverseProxy = &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(server); r.Out.Header.Del("Authorization") },
		Transport: up, ErrorLog: log.New(io.Discard, "", 0),
	}
	serving := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go func() { _ = serving.Serve(listener) }()
	t.Cleanup(func() { _ = serving.Close() })
	return p
}

// kindOf names a call: what is done to which kind of object.
func kindOf(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	kind, named := parts[min(3, len(parts)-1)], len(parts) > 4
	if parts[0] == "api" {
		kind, named = parts[2], len(parts) > 3
	}
	if len(parts) > 4 && parts[3] == "namespaces" {
		kind, named = parts[5], len(parts) > 6
	}
	verb := r.Method
	if verb == http.MethodGet && !named {
		verb = "LIST"
	}
	return verb + " " + kind
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := kindOf(r)
	p.mu.Lock()
	p.counts[kind]++
	n := p.counts[kind]
	p.order = append(p.order, fmt.Sprintf("%s #%d", kind, n))
	p.mu.Unlock()
	switch {
	case kind != p.kind || n != p.nth:
		p.ReverseProxy.ServeHTTP(w, r)
	case p.way == "3s":
		time.Sleep(3 * time.Second)
		p.ReverseProxy.ServeHTTP(w, r)
	case p.way == "lost": // carried out, and nobody hears of it
		p.ReverseProxy.ServeHTTP(&nowhere{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	default:
		p.refuse(w)
	}
}

// refuse answers as the API server does.
func (p *proxy) refuse(w http.ResponseWriter) {
	code, _ := strconv.Atoi(p.way)
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reasons[p.way], Message: "injected",
	})
}

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// spoilt is one run of a verb of the real program with one of its calls gone wrong.
type spoilt struct {
	*bed
	*proxy
	on            *controlplane.Node
	binary, token string // token is part of the names of this run's objects, and of no other's
	file, clean   string // node files: through the proxy, and past it
}

func (b *bed) spoil(t *testing.T, on *controlplane.Node, nr int) *spoilt {
	s := &spoilt{bed: b, proxy: b.proxy(t, on), on: on, binary: filepath.Join(tools.Ours(t), "lhstorage-ipam"), token: fmt.Sprintf("p%03d", nr)}
	dir := t.TempDir()
	through := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(through, fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
 "clusters": [{"name": "c", "cluster": {"server": %q}}], "users": [{"name": "u", "user": {"token": "t"}}],
 "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "kube-system"}}]}`, s.url), 0o600))
	s.file, s.clean = filepath.Join(dir, "node.json"), filepath.Join(dir, "clean.json")
	for path, kubeconfig := range map[string]string{s.file: through, s.clean: b.AdminKubeconfig()} {
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{"nodeName": "node1", "kubeconfig": %q, "stateDir": %q, "runDir": %q}`,
			kubeconfig, filepath.Join(dir, "state"), filepath.Join(dir, "run")), 0o600))
	}
	return s
}

// call runs a verb; more is part of the network's configuration.
func (s *spoilt) call(file, verb, container, pod, more string, argv ...string) error {
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %[1]q, "type": "macvlan", %[2]s"ipam": {"type": "lhstorage-ipam", "range": "10.0.0.0/28", "network_name": %[1]q, "timeout": "8s"}}`, s.token, more)
	return s.run(file, cniexec.Call{Command: verb, ContainerID: s.token + container, Conf: []byte(conf), Args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=" + pod, Argv: argv})
}

func (s *spoilt) run(file string, c cniexec.Call) error {
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second) // 8 s, and what is to be undone then
	defer cancel()
	c.Plugin, c.IfName, c.Netns, c.Path, c.Env = s.binary, "net1", "/run/netns/none", "/opt/cni/bin", []string{"LHSTORAGE_NODE_FILE=" + file}
	_, err := cniexec.Run(ctx, s.on.Host, c)
	return err
}

// place asks for the node's place on a parent of this run's own.
func (s *spoilt) place(file string) error {
	return s.run(file, cniexec.Call{Command: "ADD", Conf: []byte(strings.ReplaceAll(storageNet, "vxlan-storage", s.token)), Argv: []string{"host-shim"}})
}

// mine are this run's objects.
func (s *spoilt) mine(t require.TestingT) string {
	var lines []string
	for _, line := range strings.Split(s.objects(t), "\n") {
		if strings.Contains(line, " "+s.token+"-") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// valid is the part of GC's configuration that names what is attached.
func (s *spoilt) valid(container string) string {
	return fmt.Sprintf(`"cni.dev/valid-attachments": [{"containerID": %q, "ifname": "net1"}], `, s.token+container)
}

// holds is what an attachment of the pool's first addresses holds.
func (s *spoilt) holds(n int, container, pod string) string {
	return fmt.Sprintf("claim %[1]s-10.0.0.%[2]d %[1]s%[3]s ns/%[4]s net1\nentry %[1]s-10.0.0.0-28 %[2]d %[1]s%[3]s ns/%[4]s net1\nreservation %[1]s-10.0.0.%[2]d %[1]s%[3]s ns/%[4]s net1", s.token, n, container, pod)
}

// verbs of the program: what is there before, the call that is spoilt, and what must be then. The calls are those that it makes when nothing
// goes wrong: what a change adds has to be added here.
var spoiltVerbs = []struct {
	name   string
	calls  string
	before func(*spoilt) error
	do     func(*spoilt) error
	check  func(*testing.T, *spoilt, error)
}{
	{
		name:  "ADD",
		calls: "GET ippools, PATCH ippools, POST addressclaims, POST ippools, POST overlappingrangeipreservations",
		do:    func(s *spoilt) error { return s.call(s.file, "ADD", "c1", "pod1", "") },
		check: func(t *testing.T, s *spoilt, err error) { added(t, s, err, "c1") },
	},
	{
		name:   "ADD of a newer sandbox",
		calls:  "GET addressclaims, GET ippools, GET overlappingrangeipreservations, PATCH addressclaims, PATCH ippools, PATCH overlappingrangeipreservations, POST overlappingrangeipreservations",
		before: func(s *spoilt) error { return s.call(s.clean, "ADD", "c1", "pod1", "") },
		do:     func(s *spoilt) error { return s.call(s.file, "ADD", "c2", "pod1", "") },
		check:  func(t *testing.T, s *spoilt, err error) { added(t, s, err, "c2") },
	},
	{
		name:   "DEL",
		calls:  "DELETE addressclaims, DELETE overlappingrangeipreservations, GET ippools, PATCH addressclaims, PATCH ippools",
		before: func(s *spoilt) error { return s.call(s.clean, "ADD", "c1", "pod1", "") },
		do:     func(s *spoilt) error { return s.call(s.file, "DEL", "c1", "pod1", "") },
		check:  func(t *testing.T, _ *spoilt, err error) { assert.NoError(t, err, "what can't be given up is queued") },
	},
	{
		name:   "CHECK",
		calls:  "GET addressclaims, GET ippools",
		before: func(s *spoilt) error { return s.call(s.clean, "ADD", "c1", "pod1", "") },
		do: func(s *spoilt) error {
			return s.call(s.file, "CHECK", "c1", "pod1", `"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/28"}]}, `)
		},
		check: func(t *testing.T, s *spoilt, err error) {
			tryAgain(t, err)
			assert.Equal(t, s.holds(1, "c1", "pod1"), s.mine(t))
		},
	},
	{
		name:  "STATUS",
		calls: "GET ippools",
		do:    func(s *spoilt) error { return s.call(s.file, "STATUS", "", "", "") },
		check: func(t *testing.T, s *spoilt, err error) {
			if err != nil {
				assert.Equal(t, cnierr.NotAvailable, codeOf(err), "%v", err)
			}
			assert.Empty(t, s.mine(t))
		},
	},
	{
		name:  "GC",
		calls: "DELETE addressclaims, DELETE overlappingrangeipreservations, GET ippools, LIST addressclaims, PATCH addressclaims, PATCH ippools",
		before: func(s *spoilt) error {
			return errors.Join(s.call(s.clean, "ADD", "c1", "pod1", ""), s.call(s.clean, "ADD", "c2", "pod2", ""))
		},
		do: func(s *spoilt) error {
			return s.call(s.file, "GC", "", "", s.valid("c1"))
		},
		check: func(t *testing.T, s *spoilt, err error) {
			tryAgain(t, err)
			assert.Subset(t, strings.Split(s.mine(t), "\n"), strings.Split(s.holds(1, "c1", "pod1"), "\n"), "a valid attachment's")
			require.NoError(t, s.call(s.clean, "GC", "", "", s.valid("c1")))
			assert.Equal(t, s.holds(1, "c1", "pod1"), s.mine(t))
		},
	},
	{
		name:   "decline",
		calls:  "DELETE overlappingrangeipreservations, GET ippools, PATCH addressclaims, PATCH ippools",
		before: func(s *spoilt) error { return s.call(s.clean, "ADD", "c1", "pod1", "") },
		do: func(s *spoilt) error {
			return s.call(s.file, "ADD", "c1", "pod1", "", "decline", "10.0.0.1", "02:00:00:00:00:09")
		},
		check: func(t *testing.T, s *spoilt, err error) {
			if codeOf(err) == cnierr.InvalidConfig { // 409 and 422 say that the claim has changed hands
				assert.ErrorContains(t, err, "no range of network")
				return
			}
			tryAgain(t, err)
			if err == nil {
				assert.Contains(t, s.mine(t), " declined")
			}
		},
	},
	{
		name:  "host-shim",
		calls: "GET nodes, LIST hostshims, POST hostshims",
		do:    func(s *spoilt) error { return s.place(s.file) },
		check: func(t *testing.T, s *spoilt, err error) {
			tryAgain(t, err)
			require.NoError(t, s.place(s.clean))
			var of []string
			for name, h := range s.shims(t) {
				if h.Spec.Parent == s.token {
					of = append(of, name+" "+h.Spec.Node)
				}
			}
			assert.Equal(t, []string{s.token + "-1 node1"}, of)
		},
	},
}

func codeOf(err error) cnierr.Code {
	var refusal *types.Error
	if errors.As(err, &refusal) {
		return cnierr.Code(refusal.Code)
	}
	return 0
}

func tryAgain(t *testing.T, err error) {
	if err != nil {
		assert.Equal(t, cnierr.TryAgain, codeOf(err), "%v", err)
	}
}

// added checks an ADD: it made all that belongs to it, or says that it may be tried again, and then that goes well.
func added(t *testing.T, s *spoilt, err error, container string) {
	tryAgain(t, err)
	if err != nil {
		require.NoError(t, s.call(s.clean, "ADD", container, "pod1", ""))
	}
	lines := strings.Split(s.mine(t), "\n")
	assert.Len(t, lines, 3, "%s", lines)
	for _, line := range lines {
		assert.Contains(t, line, " "+s.token+container+" ns/pod1 net1")
	}
}

// Each call that a verb of the real program makes goes wrong in each way, on the wire.
func throughAProxy(t *testing.T, b *bed) {
	on, err := b.Node("node1")
	require.NoError(t, err)
	var nr atomic.Int32
	for _, v := range spoiltVerbs {
		t.Run(v.name, func(t *testing.T) {
			run := func(t *testing.T, kind string, nth int, way string) *spoilt {
				s := b.spoil(t, on, int(nr.Add(1)))
				if v.before != nil {
					require.NoError(t, v.before(s))
				}
				s.kind, s.nth, s.way = kind, nth, way
				err := v.do(s)
				v.check(t, s, err)
				if kind == "" {
					require.NoError(t, err)
				}
				for _, a := range [][2]string{{"c1", "pod1"}, {"c2", "pod1"}, {"c2", "pod2"}} {
					require.NoError(t, s.call(s.clean, "DEL", a[0], a[1], ""))
				}
				for _, line := range strings.Split(s.mine(t), "\n") {
					if line != "" && !strings.HasSuffix(line, " declined") {
						assert.Fail(t, "left over", line)
					}
				}
				return s
			}
			plain := run(t, "", 0, "")
			assert.Equal(t, v.calls, strings.Join(slices.Sorted(maps.Keys(plain.counts)), ", "), "the calls that are spoilt below")
			var group errgroup.Group
			group.SetLimit(8)
			for _, call := range plain.order {
				kind, n, _ := strings.Cut(call, " #")
				nth, _ := strconv.Atoi(n)
				for _, way := range ways {
					group.Go(func() error {
						t.Run(call+" "+way, func(t *testing.T) {
							s := run(t, kind, nth, way)
							assert.NotZero(t, s.counts[kind], "the call was made")
						})
						return nil
					})
				}
			}
			_ = group.Wait()
		})
	}
}
