package examine_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
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

func newSite(t *testing.T, o lab.Options) *site {
	t.Helper()
	l := labtest.Up(t, o)
	for _, n := range l.Nodes() {
		_, err := l.AddPod(t.Context(), n.Name, "instance-manager-"+n.Name, lab.PodOptions{})
		require.NoError(t, err)
		_, err = l.AddPod(t.Context(), n.Name, "other", lab.PodOptions{})
		require.NoError(t, err)
	}
	s := &site{Lab: l, t: t}
	for _, n := range l.Nodes() {
		place := v1alpha1.HostShimSpec{
			Node: n.Name, Parent: n.Parent, Index: n.Index,
			Networks: []v1alpha1.ShimNetwork{{Name: s.network(), Addresses: []v1alpha1.ShimAddress{v1alpha1.ShimAddress(shimOf(n).String())}}},
		}
		if n.VTEP.IsValid() {
			place.VTEP = n.VTEP.String()
		}
		s.shims = append(s.shims, v1alpha1.HostShim{Spec: place})
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

// shimOf is the shim's address, which follows from the node's index. On a LAN the node has one on its NIC besides.
func shimOf(n lab.Node) netip.Addr {
	a := n.Host.Masked().Addr()
	for range n.Index {
		a = a.Next()
	}
	return a
}

// network is the name that the records have.
func (s *site) network() string {
	attachments, err := record.Dir(filepath.Join(s.Nodes()[0].RunDir(), "attachments")).List()
	require.NoError(s.t, err)
	return attachments[0].Network
}

func (s *site) known(n lab.Node) (examine.Known, error) {
	k := examine.Known{HostShims: s.shims, Addresses: []netip.Addr{n.VTEP, n.LAN.Addr()}}
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

// healthy verifies until nothing is wrong.
func (s *site) healthy(t *testing.T) verify.Result {
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
	s := newSite(t, lab.Options{Nodes: 3})
	t.Run("healthy", func(t *testing.T) {
		r := s.healthy(t)
		assert.Equal(t, verify.Needed, r.Shim.Verdict, r.Shim.Why)
		assert.Contains(t, r.Shim.Why, "0 of 6 pods answered")
		for _, c := range r.Matrix {
			assert.Equal(t, c.Legs*5, c.FullSent, "%+v", c)
			if c.Kind == v1alpha1.LegPodRemote {
				assert.Equal(t, 2, c.HTTP, "%+v", c)
			}
			if c.Kind == v1alpha1.LegHostRemote || c.Kind == v1alpha1.LegHostLocal {
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
			s.healthy(t)
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
		s.healthy(t)
	})
}

// What runs in an instance manager is seen, or that it doesn't, and a port that is kept shut is told from one where nothing listens. So it is on each
// kind of parent that this kernel has, and with addresses of either family.
func TestParentsAndPorts(t *testing.T) {
	six := netip.MustParsePrefix("fd00:1::/64")
	for _, c := range []struct {
		name  string
		o     lab.Options
		cells int // of the matrix; on a NIC there is nothing below the network
		shut  string
	}{
		{"IPv4 in a tunnel", lab.Options{Nodes: 2}, 2 + 2 + 2 + 2 + 2 + 2, "iptables"},
		{"IPv6 in a tunnel", lab.Options{Nodes: 2, Range: six}, 2 + 2 + 2 + 2 + 2 + 2, "ip6tables"},
		{"IPv4 on a NIC", lab.Options{Nodes: 2, Topology: lab.TopologyLAN, Parent: lab.ParentDevice}, 2 + 2 + 2 + 2 + 2, "iptables"},
		{"IPv6 on a NIC", lab.Options{Nodes: 2, Topology: lab.TopologyLAN, Parent: lab.ParentDevice, Range: six}, 2 + 2 + 2 + 2 + 2, "ip6tables"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.o)
			r := s.healthy(t)
			assert.Len(t, r.Matrix, c.cells)
			assert.Equal(t, verify.Needed, r.Shim.Verdict, r.Shim.Why)
			for _, cell := range r.Matrix {
				assert.Equal(t, cell.Legs*5, cell.FullSent, "%+v", cell)
			}
			assert.Equal(t, ports{refused: 2}, portsOf(r, "node1", "node2"))

			closing := s.serve(t, "node2", "instance-manager-node2", 3260, 10000)
			r = s.healthy(t)
			assert.Equal(t, ports{open: 2}, portsOf(r, "node1", "node2"), "from elsewhere")
			assert.Equal(t, ports{open: 2}, portsOf(r, "node2", "node2"), "from its own host")
			assert.Equal(t, ports{refused: 2}, portsOf(r, "node2", "node1"), "the other one has none")

			rule := func(verb string) []string {
				return []string{c.shut, verb, "INPUT", "-p", "tcp", "--dport", "3260", "-j", "DROP"}
			}
			require.NoError(t, s.Exec(t.Context(), "node2", "instance-manager-node2", rule("-I")))
			r, _ = s.verify()
			assert.Equal(t, []string{"port-silent node1 node2", "port-silent node2 "}, faults(r), "%+v", r.Findings)
			assert.Equal(t, ports{open: 1, silent: 1}, portsOf(r, "node1", "node2"))
			require.NoError(t, s.Exec(t.Context(), "node2", "instance-manager-node2", rule("-D")))

			closing()
			r = s.healthy(t)
			assert.Equal(t, ports{refused: 2}, portsOf(r, "node1", "node2"))

			s.sh("node1", "ip link set lhnet1-host down")
			r, _ = s.verify()
			assert.Equal(t, []string{"shim-missing node1 "}, faults(r), "%+v", r.Findings)
		})
	}
}

// ports are what came of dialling an instance manager's.
type ports struct{ open, refused, silent int }

// portsOf are those that a host saw of the instance managers of a node.
func portsOf(r verify.Result, from, to string) (p ports) {
	for _, c := range r.Matrix {
		if c.From == from && c.To == to {
			p.open, p.refused, p.silent = p.open+c.Open, p.refused+c.Refused, p.silent+c.Silent
		}
	}
	return p
}

// serve listens in a pod, at its storage address, as Longhorn's processes do, until it is closed.
func (s *site) serve(t *testing.T, node, pod string, ports ...int) (closing func()) {
	t.Helper()
	p, err := s.Pod(node, pod)
	require.NoError(t, err)
	in, err := s.In(node, pod)
	require.NoError(t, err)
	var listeners []net.Listener
	closing = func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	t.Cleanup(closing)
	for _, port := range ports {
		require.NoError(t, in(func() error {
			l, err := net.Listen("tcp", netip.AddrPortFrom(p.Addresses[0].Addr(), uint16(port)).String())
			if err == nil {
				listeners = append(listeners, l)
			}
			return err
		}))
	}
	return closing
}
