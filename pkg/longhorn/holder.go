package longhorn

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// stateDetached is the only state in which the network may be changed under a volume.
const stateDetached = "detached"

// holder is a volume that isn't detached, with who wants it attached.
type holder struct {
	Volume, State, Node string
	Claim               string // namespace/name
	Tickets             []ticket
}

// holdersOf are the volumes that aren't detached, and those that somebody wants attached, by name.
func holdersOf(volumes []volume, attachments []attachment) []holder {
	tickets := map[string][]ticket{}
	for _, a := range attachments {
		name := cmp.Or(a.Spec.Volume, a.Name)
		for _, id := range slices.Sorted(maps.Keys(a.Spec.Tickets)) {
			tickets[name] = append(tickets[name], a.Spec.Tickets[id])
		}
	}
	var out []holder
	for _, v := range volumes {
		if v.Status.State == stateDetached && len(tickets[v.Name]) == 0 {
			continue
		}
		h := holder{Volume: v.Name, State: cmp.Or(v.Status.State, "unknown"), Node: v.Status.Node, Tickets: tickets[v.Name]}
		if k := v.Status.KubernetesStatus; k.PVC != "" && k.LastPVC == "" {
			h.Claim = k.Namespace + "/" + k.PVC
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b holder) int { return cmp.Compare(a.Volume, b.Volume) })
	return out
}

// String says which volume, who holds it and what to do.
func (h holder) String() string {
	text := fmt.Sprintf("volume %s is %s", h.Volume, h.State)
	if h.Node != "" {
		text += " to " + h.Node
	}
	if h.Claim != "" {
		text += fmt.Sprintf(" (claim %s)", h.Claim)
	}
	var reasons []string
	for _, t := range h.Tickets {
		reasons = append(reasons, t.reason(h))
	}
	if len(reasons) == 0 {
		return text + ": nobody asks for it any more, Longhorn is about to detach it; if it stays, look at the log of longhorn-manager on that node"
	}
	return text + ": " + strings.Join(slices.Compact(reasons), "; ")
}

// reason says who asks for a volume, and how to make them stop. The types are Longhorn's, see its AttacherType.
func (t ticket) reason(h holder) string {
	switch t.Type {
	case "csi-attacher":
		return fmt.Sprintf("a pod on %s uses it through CSI: `kubectl describe pvc` of the claim lists it under Used By; stop it (if no pod is left: `kubectl get volumeattachments | grep %s`)", t.Node, h.Volume)
	case "longhorn-api":
		return fmt.Sprintf("it was attached to %s by hand: detach it in Longhorn's UI", t.Node)
	case "share-manager-controller":
		return "its share manager serves a shared volume: stop the pods that mount the claim"
	default:
		return fmt.Sprintf("%s works with it on %s: wait until it is done", strings.TrimSuffix(t.Type, "-controller"), t.Node)
	}
}
