// Package oracle holds lhstorage-ipam against the real whereabouts binary, on a real API server: the same calls on twin
// pools, and both on one pool at once.
//
// Twins are two namespaces: each program has its kubeconfig's. An AddressClaim belongs to the whole cluster, but
// whereabouts knows none, so that its twin isn't disturbed.
package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	whereabouts "github.com/k8snetworkplumbingwg/whereabouts/pkg/api/whereabouts.cni.cncf.io/v1alpha1"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const callTime = time.Minute // for one call; whereabouts' own bound for an ADD is longer

// bed is a cluster and both programs.
type bed struct {
	*controlplane.Cluster
	api          *kubeapi.Client
	theirs, ours string // binaries
	spaces       atomic.Int32
}

func newBed(t *testing.T) *bed {
	c := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Lab: lab.Options{Nodes: 2, Plugin: lab.PluginMacvlan}})
	root, err := tools.Root()
	require.NoError(t, err)
	crds, err := filepath.Glob(filepath.Join(root, "deploy/crds/*.yaml"))
	require.NoError(t, err)
	require.NoError(t, c.ApplyFiles(t.Context(), []string{"CustomResourceDefinition"}, crds...))
	b := &bed{Cluster: c, theirs: filepath.Join(tools.Build(t, "whereabouts"), "whereabouts"), ours: filepath.Join(tools.Ours(t), "lhstorage-ipam")}
	b.api, err = kubeapi.New(c.Config)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		var claims v1alpha1.AddressClaimList
		var pools whereabouts.IPPoolList
		return b.api.List(t.Context(), kube.Claims, &claims) == nil && b.api.List(t.Context(), kube.Pools(metav1.NamespaceSystem), &pools) == nil
	}, 20*time.Second, 50*time.Millisecond)
	return b
}

// space makes a namespace for objects of one test.
func (b *bed) space(t require.TestingT) string {
	name := fmt.Sprintf("space%d", b.spaces.Add(1))
	require.NoError(t, b.CreateNamespace(context.Background(), name))
	return name
}

// kubeconfig is the administrator's, with a namespace: which rights the programs need is another test's subject.
func (b *bed) kubeconfig(t *testing.T, space string) string {
	cfg, err := clientcmd.LoadFromFile(b.AdminKubeconfig())
	require.NoError(t, err)
	cfg.Contexts[cfg.CurrentContext].Namespace = space
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*cfg, path))
	return path
}

// side is one of the programs with its namespace.
type side struct {
	*bed
	plugin, kind, space, kubeconfig string
	env                             []string
	node                            int
}

func (b *bed) whereabouts(t *testing.T, space string) *side {
	return &side{bed: b, plugin: b.theirs, kind: "whereabouts", space: space, kubeconfig: b.kubeconfig(t, space), env: []string{"NODENAME=node1"}}
}

func (b *bed) lhstorage(t *testing.T, space string) *side {
	s := &side{bed: b, plugin: b.ours, kind: "lhstorage-ipam", space: space, kubeconfig: b.kubeconfig(t, space)}
	s.reboot(t)
	return s
}

// reboot gives our program a disk of its own.
func (s *side) reboot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "node.json")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `{"nodeName": "node1", "kubeconfig": %q, "stateDir": %q, "runDir": %q, "record": "sync"}`,
		s.kubeconfig, filepath.Join(dir, "state"), filepath.Join(dir, "run")), 0o600))
	s.env = []string{"LHSTORAGE_NODE_FILE=" + file}
}

// twins are both programs, each with pools of its own. No claim of an earlier test is left.
func (b *bed) twins(t *testing.T) (theirs, ours *side) {
	b.wipe(t)
	return b.whereabouts(t, b.space(t)), b.lhstorage(t, b.space(t))
}

func (b *bed) wipe(t require.TestingT) {
	var claims v1alpha1.AddressClaimList
	require.NoError(t, b.api.List(context.Background(), kube.Claims, &claims))
	for _, c := range claims.Items {
		require.NoError(t, b.api.Delete(context.Background(), kube.Claims, c.Name, "", ""))
	}
}

// attachment is whom a call is for.
type attachment struct{ pod, container, ifName string }

var pod1 = attachment{"default/pod1", "cid1", "net1"}

// answer is what a call said: an error, or what an ADD gave.
type answer struct {
	addresses string
	more      string // routes and DNS, as JSON
	err       error
}

// section is the configuration's ipam section, without its braces.
func (s *side) add(t require.TestingT, section string, who attachment, more ...string) answer {
	return s.call(t, callTime, "ADD", section, who, more...)
}

func (s *side) del(t require.TestingT, section string, who attachment) error {
	return s.call(t, callTime, "DEL", section, who).err
}

func (s *side) call(t require.TestingT, limit time.Duration, verb, section string, who attachment, more ...string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := s.run(ctx, verb, section, who, more...)
	if err != nil {
		return answer{err: err}
	}
	if verb != "ADD" {
		return answer{}
	}
	var result struct {
		IPs    []struct{ Address, Gateway string }
		Routes []types.Route
		DNS    types.DNS
	}
	require.NoError(t, json.Unmarshal(out.Stdout, &result), "%s", out.Stdout)
	var list []string
	for _, ip := range result.IPs {
		text := ip.Address
		if ip.Gateway != "" {
			text += " via " + ip.Gateway
		}
		list = append(list, text)
	}
	rest, err := json.Marshal(map[string]any{"routes": result.Routes, "dns": result.DNS})
	require.NoError(t, err)
	return answer{addresses: strings.Join(list, ", "), more: string(rest)}
}

func (s *side) run(ctx context.Context, verb, section string, who attachment, more ...string) (cniexec.Outcome, error) {
	space, pod, _ := strings.Cut(who.pod, "/")
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "ipam": {"type": %q, "kubernetes": {"kubeconfig": %q}, %s}}`, s.kind, s.kubeconfig, section)
	return cniexec.Run(ctx, s.Nodes[s.node].Host, cniexec.Call{
		Plugin: s.plugin, Command: verb, ContainerID: who.container, IfName: who.ifName, Netns: "/run/netns/none", Path: "/opt/cni/bin",
		Args: strings.Join(append([]string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=" + space, "K8S_POD_NAME=" + pod}, more...), ";"),
		Conf: []byte(conf), Env: s.env,
	})
}

// said is the text of a refusal, without the program's log.
func said(err error) string {
	var refusal *types.Error
	if errors.As(err, &refusal) {
		return refusal.Error()
	}
	return fmt.Sprint(err)
}

// entry is one allocation in a pool.
type entry struct{ pool, key, id, pod, ifName string }

func (e entry) String() string {
	return fmt.Sprintf("entry %s %s %s %s %s", e.pool, e.key, e.id, e.pod, e.ifName)
}

// objects are the entries and reservations of a namespace, one a line, sorted. Whereabouts writes no container id into a
// reservation, so that isn't among them.
func (b *bed) objects(t require.TestingT, space string) (lines string) {
	require.Eventually(t, func() bool { // what our program reads from the server's memory has to be there, too
		lines = b.list(t, space) // anew each time: whereabouts' reconciler may be at it
		return b.list(t, space, kubeapi.Cached()) == lines
	}, 10*time.Second, time.Millisecond)
	return lines
}

func (b *bed) list(t require.TestingT, space string, how ...kubeapi.Option) string {
	var lines []string
	var pools whereabouts.IPPoolList
	require.NoError(t, b.api.List(context.Background(), kube.Pools(space), &pools, how...))
	for _, p := range pools.Items {
		for key, e := range p.Spec.Allocations {
			lines = append(lines, entry{p.Name + " of " + p.Spec.Range, key, e.ContainerID, e.PodRef, e.IfName}.String())
		}
	}
	var reservations whereabouts.OverlappingRangeIPReservationList
	require.NoError(t, b.api.List(context.Background(), kube.Reservations(space), &reservations, how...))
	for _, r := range reservations.Items {
		lines = append(lines, fmt.Sprintf("reservation %s %s %s", r.Name, r.Spec.PodRef, r.Spec.IfName))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// claims are all claims, as the entries that they stand for.
func (b *bed) claims(t require.TestingT) []v1alpha1.AddressClaim {
	var claims, cached v1alpha1.AddressClaimList
	require.Eventually(t, func() bool {
		claims, cached = v1alpha1.AddressClaimList{}, v1alpha1.AddressClaimList{}
		return b.api.List(context.Background(), kube.Claims, &claims) == nil &&
			b.api.List(context.Background(), kube.Claims, &cached, kubeapi.Cached()) == nil && len(cached.Items) == len(claims.Items)
	}, 10*time.Second, time.Millisecond)
	return claims.Items
}

// makePool makes a pool as whereabouts does.
func (s *side) makePool(t require.TestingT, name, whole string, entries ...entry) {
	pool := whereabouts.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: whereabouts.IPPoolSpec{Range: whole, Allocations: map[string]whereabouts.IPAllocation{}},
	}
	for _, e := range entries {
		pool.Spec.Allocations[e.key] = whereabouts.IPAllocation{ContainerID: e.id, PodRef: e.pod, IfName: e.ifName}
	}
	require.NoError(t, s.api.Create(context.Background(), kube.Pools(s.space), pool, nil))
}

// ensurePool makes a pool unless it is there.
func (s *side) ensurePool(t require.TestingT, name, whole string) {
	_, err := s.Dynamic.Resource(controlplane.IPPools).Namespace(s.space).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.makePool(t, name, whole)
		return
	}
	require.NoError(t, err)
	s.patch(t, name, `[{"op": "test", "path": "/spec/range", "value": "`+whole+`"}]`)
}

// reserve makes a reservation as whereabouts does.
func (s *side) reserve(t require.TestingT, name, pod, ifName string) {
	require.NoError(t, s.api.Create(context.Background(), kube.Reservations(s.space), whereabouts.OverlappingRangeIPReservation{
		TypeMeta:   metav1.TypeMeta{APIVersion: "whereabouts.cni.cncf.io/v1alpha1", Kind: "OverlappingRangeIPReservation"},
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: whereabouts.OverlappingRangeIPReservationSpec{PodRef: pod, IfName: ifName},
	}, nil))
}

// atOnce runs f n times at once.
func atOnce(n int, f func(i int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { f(i) })
	}
	group.Wait()
}

// code is the code of a refusal; 0 without one.
func code(err error) cnierr.Code {
	var refusal *types.Error
	if errors.As(err, &refusal) {
		return cnierr.Code(refusal.Code)
	}
	return 0
}

// live are the claims that hold an address: neither given up nor in quarantine.
func live(claims []v1alpha1.AddressClaim) []string {
	var names []string
	for _, c := range claims {
		if !c.Spec.Released && c.Spec.Declined == nil {
			names = append(names, c.Name)
		}
	}
	return names
}

// patch changes a pool.
func (s *side) patch(t require.TestingT, pool, ops string) {
	_, err := s.Dynamic.Resource(controlplane.IPPools).Namespace(s.space).Patch(context.Background(), pool, apitypes.JSONPatchType, []byte(ops), metav1.PatchOptions{})
	require.NoError(t, err)
}
