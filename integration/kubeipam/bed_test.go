// Package kubeipam tests lhstorage-ipam's claims on a real API server.
package kubeipam

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

// callTime bounds a call. It is longer than a plugin's, for hundreds of calls at once on a machine that has other
// things to do.
const callTime = time.Minute

// bed is a cluster, and what a test of it needs.
type bed struct {
	*controlplane.Cluster
	api *kubeapi.Client

	mu    sync.Mutex
	calls map[string]int
}

func newBed(t *testing.T) *bed {
	c := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Lab: lab.Options{Nodes: 2, Plugin: lab.PluginMacvlan}})
	root, err := tools.Root()
	require.NoError(t, err)
	crds, err := filepath.Glob(filepath.Join(root, "deploy/crds/*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, crds)
	require.NoError(t, c.ApplyFiles(t.Context(), []string{"CustomResourceDefinition"}, crds...))
	b := &bed{Cluster: c, calls: map[string]int{}}
	b.api = b.client(t, "")
	require.Eventually(t, func() bool {
		var claims v1alpha1.AddressClaimList
		return b.api.List(t.Context(), kube.Claims, &claims) == nil
	}, 20*time.Second, 50*time.Millisecond)
	return b
}

// client is another process's.
func (b *bed) client(t *testing.T, server string) *kubeapi.Client {
	cfg := rest.CopyConfig(b.Config)
	if server != "" {
		cfg.Host, cfg.Dial = server, nil
	}
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { return &counter{rt, b} }
	api, err := kubeapi.New(cfg)
	require.NoError(t, err)
	return api
}

// counter counts calls: how many there are is what a crowd costs.
type counter struct {
	http.RoundTripper
	bed *bed
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	kind := r.Method
	for _, plural := range []string{"addressclaims", "ippools", "overlappingrangeipreservations", "leases"} {
		if _, name, ok := strings.Cut(r.URL.Path, "/"+plural); ok {
			kind = r.Method + " " + plural
			if name == "" && r.Method == http.MethodGet {
				kind = "LIST " + plural
			}
			if strings.Contains(r.Header.Get("Accept"), "Partial") && r.Method == http.MethodGet {
				kind += " (metadata)"
			}
		}
	}
	if err == nil {
		kind += " " + strconv.Itoa(resp.StatusCode)
	}
	c.bed.mu.Lock()
	defer c.bed.mu.Unlock()
	c.bed.calls[kind]++
	return resp, err
}

// counted returns how many calls there were since the last time.
func (b *bed) counted() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for kind, n := range b.calls {
		lines = append(lines, fmt.Sprintf("%d %s", n, kind))
	}
	b.calls = map[string]int{}
	sort.Strings(lines)
	return strings.Join(lines, ", ")
}

// node is where stores of one node keep their files.
type node struct {
	*bed
	name, dir string
	agent     bool
}

func (b *bed) node(t *testing.T, name string) *node {
	return &node{bed: b, name: name, dir: t.TempDir()}
}

// call is a call of the plugin, in a process's own words: a new client and a new store.
func (n *node) call(t *testing.T, conf string, owner ipam.Owner) (ipam.Allocator, *kube.Store) {
	return n.callBy(t, n.client(t, ""), conf, owner)
}

func (n *node) callBy(t require.TestingT, api *kubeapi.Client, conf string, owner ipam.Owner) (ipam.Allocator, *kube.Store) {
	cfg, err := ipam.Parse(ipam.Input{NetConf: fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "net", "ipam": %s}`, conf), Cluster: true})
	require.NoError(t, err)
	owner.Network, owner.Node = cfg.Network, n.name
	order := cfg.Order
	store := kube.New(kube.Options{
		API: api, Pools: cfg.Pools, Order: order, Agent: n.agent,
		Journal: filepath.Join(n.dir, "journal"), Queue: queue.Open(filepath.Join(n.dir, "queue")),
	})
	return ipam.Allocator{Store: store, Pools: cfg.Pools, Order: order, Owner: owner, Spread: true}, store
}

func (n *node) add(t *testing.T, conf string, owner ipam.Owner) (string, error) {
	alloc, _ := n.call(t, conf, owner)
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	grant, err := alloc.Add(ctx)
	if err != nil {
		return "", err
	}
	var texts []string
	for _, a := range grant.Addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " "), nil
}

func (n *node) del(t *testing.T, conf string, owner ipam.Owner) error {
	alloc, _ := n.call(t, conf, owner)
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	return alloc.Del(ctx)
}

func who(podRef, container, ifName string) ipam.Owner {
	return ipam.Owner{PodRef: podRef, ContainerID: container, IfName: ifName}
}

var pod1 = who("default/pod1", "cid1", "net1")

// wipe removes all that tests left.
func (b *bed) wipe(t *testing.T) {
	var claims v1alpha1.AddressClaimList
	require.NoError(t, b.api.List(t.Context(), kube.Claims, &claims))
	for _, c := range claims.Items {
		require.NoError(t, b.api.Delete(t.Context(), kube.Claims, c.Name, "", ""))
	}
	var pools whereabouts.IPPoolList
	require.NoError(t, b.api.List(t.Context(), kube.Pools(metav1.NamespaceSystem), &pools))
	for _, p := range pools.Items {
		require.NoError(t, b.api.Delete(t.Context(), kube.Pools(metav1.NamespaceSystem), p.Name, "", ""))
	}
	var reservations whereabouts.OverlappingRangeIPReservationList
	require.NoError(t, b.api.List(t.Context(), kube.Reservations(metav1.NamespaceSystem), &reservations))
	for _, r := range reservations.Items {
		require.NoError(t, b.api.Delete(t.Context(), kube.Reservations(metav1.NamespaceSystem), r.Name, "", ""))
	}
}

// objects are all claims, entries and reservations, one a line, sorted: what a test compares.
func (b *bed) objects(t require.TestingT) string {
	ctx := context.Background()
	var lines []string
	var claims v1alpha1.AddressClaimList
	require.NoError(t, b.api.List(ctx, kube.Claims, &claims))
	for _, c := range claims.Items {
		state := c.Labels[v1alpha1.LabelState]
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("claim %s %s %s %s %s", c.Name, c.Spec.ContainerID, c.Spec.PodRef, c.Spec.IfName, state)))
	}
	var pools whereabouts.IPPoolList
	require.NoError(t, b.api.List(ctx, kube.Pools(metav1.NamespaceSystem), &pools))
	for _, p := range pools.Items {
		for key, e := range p.Spec.Allocations {
			lines = append(lines, fmt.Sprintf("entry %s %s %s %s %s", p.Name, key, e.ContainerID, e.PodRef, e.IfName))
		}
	}
	var reservations whereabouts.OverlappingRangeIPReservationList
	require.NoError(t, b.api.List(ctx, kube.Reservations(metav1.NamespaceSystem), &reservations))
	for _, r := range reservations.Items {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("reservation %s %s %s %s", r.Name, r.Spec.ContainerID, r.Spec.PodRef, r.Spec.IfName)))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// whole checks that each claim has its entry and reservation, and the other way round.
func (b *bed) whole(t *testing.T, isolated bool) (claims int) {
	t.Helper()
	kinds := b.kinds(t)
	require.Equal(t, kinds["claim"], kinds["entry"], "%s", b.objects(t))
	if !isolated {
		require.Equal(t, kinds["claim"], kinds["reservation"], "%s", b.objects(t))
	}
	return kinds["claim"]
}

// settled is the number of claims if each has its entry and its reservation, else -1.
func (b *bed) settled(t require.TestingT) int {
	kinds := b.kinds(t)
	if kinds["claim"] != kinds["entry"] || kinds["claim"] != kinds["reservation"] {
		return -1
	}
	return kinds["claim"]
}

func (b *bed) kinds(t require.TestingT) map[string]int {
	kinds := map[string]int{}
	for _, line := range strings.Split(b.objects(t), "\n") {
		kind, _, _ := strings.Cut(line, " ")
		kinds[kind]++
	}
	return kinds
}

// makePool makes a pool as Whereabouts does, with entries "key container podref ifname".
func (b *bed) makePool(t *testing.T, name, whole string, entries ...string) {
	pool := whereabouts.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: whereabouts.IPPoolSpec{Range: whole, Allocations: map[string]whereabouts.IPAllocation{}},
	}
	for _, e := range entries {
		f := strings.Fields(e)
		pool.Spec.Allocations[f[0]] = whereabouts.IPAllocation{ContainerID: f[1], PodRef: f[2], IfName: f[3]}
	}
	require.NoError(t, b.api.Create(t.Context(), kube.Pools(metav1.NamespaceSystem), pool, nil))
}

// reserve makes a reservation as Whereabouts does: without a container id.
func (b *bed) reserve(t *testing.T, name, podRef, ifName string) {
	require.NoError(t, b.api.Create(t.Context(), kube.Reservations(metav1.NamespaceSystem), whereabouts.OverlappingRangeIPReservation{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "OverlappingRangeIPReservation"},
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: whereabouts.OverlappingRangeIPReservationSpec{PodRef: podRef, IfName: ifName},
	}, nil))
}

// atOnce runs f n times at once and returns how long all of them took.
func atOnce(n int, f func(i int)) time.Duration {
	began := time.Now()
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { f(i) })
	}
	group.Wait()
	return time.Since(began)
}

func span(from, to int) []string {
	var list []string
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprintf("%d x other/pod%d eth0", i, i))
	}
	return list
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// pages are the names of the notes that a node has of its attachments.
func (n *node) pages(t *testing.T) []string {
	paths, err := filepath.Glob(filepath.Join(n.dir, "journal", "*.json"))
	require.NoError(t, err)
	return paths
}
