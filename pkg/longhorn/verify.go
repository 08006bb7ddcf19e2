package longhorn

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/probereport"
	"github.com/lhstorage/lhstorage/pkg/verify"
	"github.com/lhstorage/lhstorage/pkg/verify/request"
)

// Measured is a Verifier that has the agents of Longhorn's nodes measure every leg of the network now, as `lhstoragectl verify` does. Where no
// agent answers it goes by Reports, and tells what that doesn't show: that nobody measures is no fault of the network.
type Measured struct {
	*Cluster
	Timeout time.Duration     // for the agents' answers
	Tell    func(line string) // of what wasn't measured, and of warnings
}

// Verify implements Verifier.
func (m Measured) Verify(ctx context.Context, network Network) error {
	shape := read(network.Name, network.Config)
	if err := m.podsCarry(ctx, network, shape); err != nil {
		return err
	}
	if shape.Parent == "" {
		m.Tell(fmt.Sprintf("not verified: network %s is of plugin %s, whose legs no agent of lhstorage measures. Seen was no more than that each pod has its address. "+
			"Measure it by hand: from each host and each instance manager, ping the addresses of the others' %s", network.Ref, shape.Type, storageInterface))
		return nil
	}
	in, err := m.ask(ctx, shape)
	switch {
	case apierrors.IsNotFound(err):
		m.unmeasured("this cluster's lhstorage doesn't know Verifications yet: upgrade it")
		return m.reportsCarry(ctx, shape)
	case err != nil:
		return err
	case len(in.Answers) == 0:
		m.unmeasured(fmt.Sprintf("no agent answered within %s: see whether they run (kubectl -n lhstorage-system get pods -o wide)", m.Timeout))
		return m.reportsCarry(ctx, shape)
	}
	return m.judged(network, verify.Judge(in))
}

// unmeasured tells plainly what isn't known, and how to know it later.
func (m Measured) unmeasured(why string) {
	m.Tell("not verified: " + why + ". No leg between hosts and pods was measured now, no port dialled, no full packet sent; seen was no more than that each pod has its address, and what agents reported before. " +
		"Do it later: `lhstoragectl verify --wait 5m`")
}

// ask has the agents of Longhorn's nodes measure.
func (m Measured) ask(ctx context.Context, shape shape) (verify.Input, error) {
	nodes, _, err := list[longhornNode](ctx, m.Cluster, m.longhorn("nodes"))
	if err != nil {
		return verify.Input{}, err
	}
	in, err := request.Ask(ctx, m.API, request.Options{Timeout: m.Timeout, Whom: func(s v1alpha1.HostShim) bool {
		return s.Spec.Parent == shape.Parent && slices.ContainsFunc(nodes, func(n longhornNode) bool { return n.Name == s.Spec.Node })
	}})
	return in.Only(shape.Name), err
}

// judged names what is at fault, and tells of the rest.
func (m Measured) judged(network Network, r verify.Result) error {
	var faults []string
	for _, f := range r.Findings {
		if f.Severity == verify.Fault {
			faults = append(faults, f.String())
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("%s; of network %s:\n  - %s", r.Summary(), network.Ref, strings.Join(faults, "\n  - "))
	}
	for _, f := range r.Findings {
		m.Tell("  warning: " + f.String())
	}
	m.Tell("  " + r.Summary())
	return nil
}

// Reports is a Verifier that believes what pods and agents report: addresses in range on each pod, no two alike, and no leg that
// lost packets in a recent ProbeReport.
type Reports struct{ *Cluster }

// Verify implements Verifier.
func (r Reports) Verify(ctx context.Context, network Network) error {
	shape := read(network.Name, network.Config)
	if err := r.podsCarry(ctx, network, shape); err != nil {
		return err
	}
	return r.reportsCarry(ctx, shape)
}

// podsCarry says which pods aren't as they must be for a network.
func (c *Cluster) podsCarry(ctx context.Context, network Network, shape shape) error {
	pods, err := c.dataPods(ctx)
	if err != nil {
		return err
	}
	return asError(append(unwell(network.Ref, shape, pods, nil), twice(network.Ref, pods)...))
}

// reportsCarry says which legs lost packets in a recent ProbeReport.
func (c *Cluster) reportsCarry(ctx context.Context, shape shape) error {
	measured, err := c.measured(ctx)
	if err != nil {
		return err
	}
	found := &report{}
	(&observed{reports: measured}).judgeLegs(found, shape, c.API.Now())
	var lossy []string
	for _, f := range found.findings {
		lossy = append(lossy, f.Text)
	}
	return asError(lossy)
}

func asError(open []string) error {
	return errIf(len(open) > 0, "%s", strings.Join(open, "\n  - "))
}

// measured are the reports without legs to pods that are gone: Longhorn has just made its pods anew.
func (c *Cluster) measured(ctx context.Context) ([]v1alpha1.ProbeReport, error) {
	measured, _, err := list[v1alpha1.ProbeReport](ctx, c, probereport.Resource)
	if err != nil || len(measured) == 0 {
		return nil, err
	}
	pods, _, err := list[metav1.PartialObjectMetadata](ctx, c, allPods)
	there := map[string]bool{"": true}
	for _, p := range pods {
		there[p.Namespace+"/"+p.Name] = true
	}
	for i := range measured {
		legs := &measured[i].Status.Legs
		*legs = slices.DeleteFunc(*legs, func(l v1alpha1.ProbeLeg) bool { return !there[l.Pod] || !there[l.From] })
	}
	return measured, err
}

// twice says which address two pods have.
func twice(ref Ref, pods []corev1.Pod) (texts []string) {
	seen := map[netip.Addr]string{}
	for _, p := range pods {
		addr, err := ref.storageAddress(p.Annotations[nad.StatusAnnotation])
		if err != nil {
			continue
		}
		if other, ok := seen[addr]; ok {
			texts = append(texts, fmt.Sprintf("pods %s and %s both have the address %s: delete one of them", other, p.Name, addr))
		}
		seen[addr] = p.Name
	}
	return texts
}
