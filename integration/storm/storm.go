// Package storm attaches and detaches many pods of one node at the same time, as
// a node does that comes back with all its pods, and looks at what is left.
package storm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/lhstorage/lhstorage/integration/cniexec"
	"github.com/lhstorage/lhstorage/integration/testnode"
)

// IfName is the name that a pod's interface gets, Namespace the pods' own.
const (
	IfName    = "lhnet1"
	Namespace = "storm"
)

// Storm is a number of pods of one node and the plugin that serves them.
type Storm struct {
	Node    *testnode.Node
	Plugin  string // the binary
	Through string // as in cniexec.Call
	Path    string // CNI_PATH
	Conf    []byte // of CNI 1.0.0 or later
	Pods    []ns.NetNS

	PodSuffix       string // of the pods' names: with another one they are other pods
	ContainerSuffix string // of the container ids: with another one they are other sandboxes
}

// New makes a storm of n pods, each a fresh netns of the node.
func New(node *testnode.Node, plugin, path string, conf []byte, n int) (*Storm, error) {
	s := &Storm{Node: node, Plugin: plugin, Path: path, Conf: conf}
	for range n {
		pod, err := node.NewNetns()
		if err != nil {
			return nil, err
		}
		s.Pods = append(s.Pods, pod)
	}
	return s, nil
}

// Report says what became of one verb on all pods.
type Report struct {
	Wall      time.Duration     // from the first start to the last end
	Outcomes  []cniexec.Outcome // by pod
	Failures  []error
	Addresses [][]netip.Addr // by pod; of ADD only
}

// Latencies are the calls' wall times, by pod.
func (r Report) Latencies() []time.Duration {
	latencies := make([]time.Duration, len(r.Outcomes))
	for i, o := range r.Outcomes {
		latencies[i] = o.Wall
	}
	return latencies
}

// Duplicates are the addresses that more than one pod was given, each once for
// every pod after the first.
func (r Report) Duplicates() []netip.Addr {
	seen := map[netip.Addr]bool{}
	var duplicates []netip.Addr
	for _, addresses := range r.Addresses {
		for _, a := range addresses {
			if seen[a] {
				duplicates = append(duplicates, a)
			}
			seen[a] = true
		}
	}
	return duplicates
}

// Attach gives all pods their interface at once.
func (s *Storm) Attach(ctx context.Context) Report {
	report := Report{Addresses: make([][]netip.Addr, len(s.Pods))}
	s.all(&report, func(i int) (cniexec.Outcome, error) {
		var outcome cniexec.Outcome
		var err error
		report.Addresses[i], outcome, err = s.add(ctx, i)
		return outcome, err
	})
	return report
}

// Detach takes all pods' interfaces at once.
func (s *Storm) Detach(ctx context.Context) Report {
	var report Report
	s.all(&report, func(i int) (cniexec.Outcome, error) { return s.call(ctx, "DEL", i) })
	return report
}

// Churn attaches each pod and detaches it as soon as it is attached, so that
// addresses are given back while others are being given out. The outcomes are
// those of DEL.
func (s *Storm) Churn(ctx context.Context) Report {
	var report Report
	s.all(&report, func(i int) (cniexec.Outcome, error) {
		if _, outcome, err := s.add(ctx, i); err != nil {
			return outcome, err
		}
		return s.call(ctx, "DEL", i)
	})
	return report
}

func (s *Storm) add(ctx context.Context, pod int) ([]netip.Addr, cniexec.Outcome, error) {
	outcome, err := s.call(ctx, "ADD", pod)
	if err != nil {
		return nil, outcome, err
	}
	addresses, err := Addresses(outcome.Stdout)
	return addresses, outcome, err
}

// all calls each pod's function in a goroutine of its own and starts them together.
func (s *Storm) all(report *Report, call func(pod int) (cniexec.Outcome, error)) {
	report.Outcomes = make([]cniexec.Outcome, len(s.Pods))
	var mu sync.Mutex
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range s.Pods {
		wg.Go(func() {
			<-gate
			outcome, err := call(i)
			report.Outcomes[i] = outcome
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				report.Failures = append(report.Failures, fmt.Errorf("pod %d: %w", i, err))
			}
		})
	}
	start := time.Now()
	close(gate)
	wg.Wait()
	report.Wall = time.Since(start)
}

func (s *Storm) call(ctx context.Context, command string, pod int) (cniexec.Outcome, error) {
	return cniexec.Run(ctx, s.Node.Host, cniexec.Call{
		Plugin: s.Plugin, Through: s.Through, Command: command, Path: s.Path, Conf: s.Conf, Env: s.Node.Env(),
		ContainerID: fmt.Sprintf("storm-%03d%s", pod, s.ContainerSuffix), IfName: IfName, Netns: s.Pods[pod].Path(),
		Args: fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=pod-%03d%s;K8S_POD_UID=uid-%03d%s", Namespace, pod, s.PodSuffix, pod, s.PodSuffix),
	})
}

// Addresses are the addresses of an ADD's result, at least one.
func Addresses(stdout []byte) ([]netip.Addr, error) {
	var result types100.Result
	if err := json.Unmarshal(stdout, &result); err != nil {
		return nil, fmt.Errorf("read the result of an ADD: %w: %q", err, stdout)
	}
	var addresses []netip.Addr
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("the result of an ADD has the address %q", ip.Address)
		}
		addresses = append(addresses, addr.Unmap())
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("the result of an ADD has no address: %q", stdout)
	}
	return addresses, nil
}
