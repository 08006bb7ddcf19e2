package agent

import (
	"context"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/firewall"
	"github.com/lhstorage/lhstorage/pkg/probereport"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// hostParts are the firewall and the probes of a node: what is kept and measured beside its networks, of what the keeper knows of them.
type hostParts struct {
	*Agent
	firewall *firewall.Firewall  // nil: switched off
	prober   *probereport.Prober // nil: switched off
}

// newHostParts makes those that are switched on. Metrics of the others don't exist: a firewall that is switched off isn't one that
// isn't as it must be.
func newHostParts(a *Agent, reg prometheus.Registerer) *hostParts {
	h := &hostParts{Agent: a}
	if !a.options.NoFirewall {
		h.firewall = firewall.New(a.log.With("part", "firewall"), firewall.NewMetrics(reg))
	}
	if !a.options.NoProbes {
		cluster := probereport.Cluster{Node: a.node.NodeName, Client: a.api, Records: record.Dir(filepath.Join(a.node.RunDir, "attachments")), HostShims: a.watches.living}
		h.prober = &probereport.Prober{
			Node: a.node.NodeName, Sources: cluster, Reports: cluster, FromPods: true, Interval: a.options.ProbeInterval,
			Log: a.log.With("part", "probes"), Metrics: probereport.NewMetrics(reg),
		}
	}
	return h
}

func (h *hostParts) parts() []part {
	firewallPart := part{"firewall", h.openFirewall}
	if h.firewall != nil {
		firewallPart.run = h.firewall.Run
	}
	if h.prober == nil {
		return []part{firewallPart}
	}
	return []part{firewallPart, {"probes", h.probe}}
}

const removeAgain = time.Minute

// openFirewall takes away, once, what an agent with the firewall on has left.
func (h *hostParts) openFirewall(ctx context.Context) error {
	log := h.log.With("part", "firewall")
	said := ""
	for ctx.Err() == nil {
		changes, err := firewall.New(log, nil).Remove(ctx)
		for _, change := range changes {
			log.Info("the firewall is switched off: " + change)
		}
		if err == nil {
			break
		}
		if said != err.Error() {
			log.Warn("the firewall is switched off, but its rules can't be removed; tried again every minute", "error", err)
		}
		said = err.Error()
		pause(ctx, removeAgain)
	}
	<-ctx.Done()
	return nil
}

// guard tells the firewall what a pass has made of the networks.
func (h *hostParts) guard(networks []Network, states map[string]*netState) {
	if h.firewall == nil {
		return
	}
	var guarded []firewall.Network
	for _, n := range networks {
		guarded = append(guarded, guardedNetwork(n, states[key(n.Plan)]))
	}
	desired, err := firewall.Describe(h.kernel, guarded, h.options.FirewallAllow)
	if err != nil { // of the kernel, which the next pass asks anew
		h.log.Warn("what the firewall must keep can't be told; it keeps what it was told before", "error", err)
		return
	}
	h.firewall.Set(desired)
}

// guardedNetwork is a network as the firewall looks at it. Of one that isn't ready the last place counts, of one that has never been ready
// the peers aren't known.
func guardedNetwork(n Network, state *netState) firewall.Network {
	g := firewall.Network{Parent: n.Plan.Parent}
	if n.Plan.HostShim != nil {
		g.Shim = n.Plan.HostShim.Name
	}
	if state != nil && state.done {
		g.Addrs, g.VTEP, g.Peers = state.shim, state.place.VTEP, state.place.Peers
	}
	return g
}

// probe measures once it is known whom there is to ask.
func (h *hostParts) probe(ctx context.Context) error {
	for ctx.Err() == nil && !synced(h.watches.hostShims, h.watches.nodes) {
		pause(ctx, time.Second)
	}
	return h.prober.Run(ctx)
}

// living are the HostShims of nodes that are there. The place of a node that has left is kept for it, but nobody answers there.
func (w *watches) living(context.Context) ([]v1alpha1.HostShim, error) {
	if !synced(w.hostShims, w.nodes) {
		return nil, errNotYet
	}
	live := map[string]bool{}
	for _, n := range stored[corev1.Node](w.nodes) {
		live[n.Name] = true
	}
	var shims []v1alpha1.HostShim
	for _, h := range stored[v1alpha1.HostShim](w.hostShims) {
		if live[h.Spec.Node] {
			shims = append(shims, *h)
		}
	}
	return shims, nil
}
