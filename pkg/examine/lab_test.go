package examine_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/examine"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/lab/labtest"
	"github.com/lhstorage/lhstorage/pkg/record"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a lab whose nodes are all examined at once, as agents would.
type site struct {
	*lab.Lab
	t         *testing.T
	examiners []*examine.Examiner
	shims     []v1alpha1.HostShim
}

func newSite(t *testing.T) *site {
	t.Helper()
	l := labtest.Up(t, lab.Options{Nodes: 3})
	for _, n := range l.Nodes() {
		_, err := l.AddPod(t.Context(), n.Name, "instance-manager-"+n.Name, lab.PodOptions{})
		require.NoError(t, err)
		_, err = l.AddPod(t.Context(), n.Name, "other", lab.PodOptions{})
		require.NoError(t, err)
	}
	s := &site{Lab: l, t: t}
	for _, n := range l.Nodes() {
		s.shims = append(s.shims, v1alpha1.HostShim{Spec: v1alpha1.HostShimSpec{
			Node: n.Name, Parent: n.Parent, Index: n.Index, VTEP: n.VTEP.String(),
			Networks: []v1alpha1.ShimNetwork{{Name: s.network(), Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(n.Host.Addr().String())}}},
		}})
		in, err := l.In(n.Name, "")
		require.NoError(t, err)
		target, err := ns.GetNS("/run/netns/" + n.Netns)
		require.NoError(t, err)
		k, err := kernel.In(target)
		require.NoError(t, err)
		e := &examine.Examiner{Node: n.Name, Kernel: k, Host: in, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
			Know: func(context.Context) (examine.Known, error) { return s.known(n) }}
		t.Cleanup(func() { e.Close(); k.Close(); assert.NoError(t, target.Close()) })
		s.examiners = append(s.examiners, e)
	}
	return s
}

// network is the name that the records have.
func (s *site) network() string {
	attachments, err := record.Dir(filepath.Join(s.Nodes()[0].RunDir(), "attachments")).List()
	require.NoError(s.t, err)
	return attachments[0].Network
}

func (s *site) known(n lab.Node) (examine.Known, error) {
	k := examine.Known{HostShims: s.shims, Addresses: []netip.Addr{n.VTEP}}
	attachments, err := record.Dir(filepath.Join(n.RunDir(), "attachments")).List()
	for _, a := range attachments {
		a.PodRef = "longhorn-system/" + s.podNamed(n, a.Addresses[0]).Name
		k.Attachments = append(k.Attachments, a)
	}
	pods, podsErr := s.Pods()
	if err == nil {
		err = podsErr
	}
	for _, p := range pods {
		k.Claims = append(k.Claims, v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{
			Address: p.Addresses[0].Addr().String(), Node: p.Node, Network: s.shims[0].Spec.Networks[0].Name, PodRef: "longhorn-system/" + p.Name,
		}})
	}
	return k, err
}

func (s *site) podNamed(n lab.Node, address netip.Prefix) lab.Pod {
	pods, err := s.Pods()
	require.NoError(s.t, err)
	for _, p := range pods {
		if p.Node == n.Name && p.Addresses[0].Addr() == address.Addr() {
			return p
		}
	}
	s.t.Fatalf("no pod has %s", address)
	return lab.Pod{}
}

// verify has all nodes examined at once, and judges.
func (s *site) verify() (verify.Result, verify.Input) {
	s.t.Helper()
	in := verify.Input{ID: "1", HostShims: s.shims, Answers: make([]v1alpha1.Verification, len(s.examiners))}
	var wait sync.WaitGroup
	for i, e := range s.examiners {
		in.Nodes = append(in.Nodes, e.Node)
		wait.Go(func() {
			in.Answers[i] = v1alpha1.Verification{Spec: v1alpha1.VerificationSpec{Node: e.Node, ID: "1"}, Status: e.Examine(s.t.Context(), "1")}
		})
	}
	wait.Wait()
	return verify.Judge(in), in
}

// sh runs a script on a node.
func (s *site) sh(node, format string, args ...any) {
	s.t.Helper()
	require.NoError(s.t, s.Exec(s.t.Context(), node, "", []string{"sh", "-ec", fmt.Sprintf(format, args...)}))
}

// faults are the findings that are faults, as "kind node peer".
func faults(r verify.Result) []string {
	list := []string{}
	for _, f := range r.Findings {
		if f.Severity == verify.Fault {
			list = append(list, string(f.Kind)+" "+f.Node+" "+f.Peer)
		}
	}
	return list
}

// Each thing that is broken is found, by node, and nothing else is; mended, nothing is left. The nodes have no agent that would mend it first.
func TestFindings(t *testing.T) {
	s := newSite(t)
	healthy := func(t *testing.T) verify.Result {
		t.Helper()
		var r verify.Result
		for range 10 { // neighbours that didn't answer are asked again in the kernel's own time
			if r, _ = s.verify(); r.OK {
				break
			}
		}
		require.Empty(t, faults(r), "%+v", r.Findings)
		require.True(t, r.OK)
		return r
	}
	t.Run("healthy", func(t *testing.T) {
		r := healthy(t)
		assert.Equal(t, verify.Needed, r.Shim.Verdict, r.Shim.Why)
		assert.Contains(t, r.Shim.Why, "0 of 6 pods answered")
		for _, c := range r.Matrix {
			assert.Equal(t, c.Legs*5, c.FullSent, "%+v", c)
			if c.Kind == v1alpha1.WayPodRemote {
				assert.Equal(t, 2, c.HTTP, "%+v", c)
			}
			if c.Kind == v1alpha1.WayHostRemote || c.Kind == v1alpha1.WayHostLocal {
				assert.Equal(t, 2, c.Refused, "no target listens, and the pod says so: %+v", c)
			}
		}
		assert.Len(t, r.Matrix, 6+6+3+6+3+6)
		for _, w := range r.Waste {
			assert.InDelta(t, 1, w.Ratio, 0.2, "%+v", w)
		}
	})
	vtep := s.shims[2].Spec.VTEP
	for _, c := range []struct {
		name, node, script, mend string
		want                     []string
	}{
		{"a link cut", "node1", "ip link set to-node3 down", "ip link set to-node3 up; ip route replace " + vtep + "/32 dev to-node3", []string{"link-cut node1 node3"}},
		{"a missing entry", "node1", "bridge fdb del 00:00:00:00:00:00 dev vxlan-storage dst " + vtep, "bridge fdb append 00:00:00:00:00:00 dev vxlan-storage dst " + vtep, []string{"fdb-missing node1 node3"}},
		{"a host without shim", "node2", "ip link set lhnet1-host down", "ip link set lhnet1-host up", []string{"shim-missing node2 "}},
		{"an MTU too small", "node2", "ip link set to-node3 mtu 1500", "ip link set to-node3 mtu 9000", []string{"mtu-too-small node2 node3", "mtu-too-small node3 node2"}},
		{"flooding", "node3", "ip link set vxlan-storage type vxlan nolearning; bridge fdb flush dev vxlan-storage nopermanent", "ip link set vxlan-storage type vxlan learning", []string{"flooding node3 "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.sh(c.node, "%s", c.script)
			r, _ := s.verify()
			assert.Equal(t, c.want, faults(r), "%+v", r.Findings)
			assert.False(t, r.OK)
			s.sh(c.node, "%s", c.mend)
			healthy(t)
		})
	}
	t.Run("a duplicate address", func(t *testing.T) {
		pod, err := s.Pod("node2", "other")
		require.NoError(t, err)
		s.sh("node3", "ip addr add %s/32 dev lhnet1-host", pod.Addresses[0].Addr())
		r, _ := s.verify()
		assert.Equal(t, []string{"duplicate-address node2 "}, faults(r), "%+v", r.Findings)
		assert.Contains(t, r.Findings[0].Text, "the host shim of node3")
		s.sh("node3", "ip addr del %s/32 dev lhnet1-host", pod.Addresses[0].Addr())
		healthy(t)
	})
}
