package doctor

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/agent"
	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

const attachGrace = time.Minute // after which a pod should have its networks, as the agent's

var podChecks = []Check{
	{
		Code: "LHS050", Severity: Error, Title: "A pod runs without the network that it asks for",
		Why:  "After a reboot, or when Multus wasn't ready, pods come up with the pod network alone and no error; Longhorn's instance managers then have no storage network (one cluster was down for seven hours).",
		Fix:  "delete the pod, so that it is attached anew; an instance manager only when no volume is attached on its node (the agent's --repair=longhorn does it when it is idle)",
		look: (*view).unattached,
	},
	{
		Code: "LHS051", Severity: Error, Title: "A network-status has an entry without addresses",
		Why: "An empty list of addresses crashes longhorn-manager (index out of range in GetStorageIPFromPod), and its webhook, which fails closed, with it.",
		Fix: "delete the pod; find out which plugin answered without an address (a NAD without an ipam section)",
		look: func(v *view) []hit {
			return v.entries(func(e snapshot.Interface) string {
				if len(e.IPs) > 0 || e.Default {
					return ""
				}
				return fmt.Sprintf("interface %s on network %s has no address", e.Interface, e.Name)
			})
		},
	},
	{
		Code: "LHS052", Severity: Error, Title: "A pod can't be attached",
		Why:  "It stays in ContainerCreating. For an instance manager: no volume of its node attaches.",
		Fix:  "lhstoragectl doctor explain --text 'MESSAGE' says what it means",
		look: (*view).refused,
	},
	{
		Code: "LHS053", Severity: Info, Title: "A pod has several addresses on one network",
		Why: "Longhorn sorts them as texts and takes the first: of a dual-stack network the IPv4 address as a rule, of two IPv4 ranges whichever sorts first.",
		Fix: "nothing, if the first one is the one that is meant",
		look: func(v *view) []hit {
			return v.entries(func(e snapshot.Interface) string {
				if len(e.IPs) < 2 || e.Default || !v.compiled.Ours[e.Name] {
					return ""
				}
				return fmt.Sprintf("interface %s has %s", e.Interface, strings.Join(e.IPs, ", "))
			})
		},
	},
	{
		Code: "LHS054", Severity: Warning, Title: "A pod's network annotation can't be read",
		Why:  "Multus refuses the pod, or Longhorn takes the pod's own address as its storage address.",
		Fix:  "kubectl get pod NAME -o yaml shows the annotation; who writes it must mend it",
		look: (*view).unreadable,
	},
}

// pods calls of for all pods, and gives its texts a place.
func (v *view) pods(of func(*corev1.Pod) []string) []hit {
	var found []hit
	for i := range v.cluster.Pods {
		pod := &v.cluster.Pods[i]
		for _, text := range of(pod) {
			found = append(found, hit{where: "pod " + snapshot.Ref(pod) + " on node " + pod.Spec.NodeName, what: text})
		}
	}
	return found
}

func (v *view) unattached() []hit {
	return v.pods(func(pod *corev1.Pod) []string {
		if !snapshot.Running(pod) || pod.Spec.HostNetwork || v.Time.Sub(began(pod)) < attachGrace {
			return nil
		}
		missing, err := agent.Missing(pod, v.compiled.Ours)
		if err != nil {
			return nil // LHS054
		}
		var texts []string
		for _, ref := range missing {
			texts = append(texts, fmt.Sprintf("it asks for network %s and its network-status lacks it", ref))
		}
		return texts
	})
}

func began(pod *corev1.Pod) time.Time {
	if pod.Status.StartTime != nil {
		return pod.Status.StartTime.Time
	}
	return pod.CreationTimestamp.Time
}

func (v *view) entries(fault func(snapshot.Interface) string) []hit {
	return v.pods(func(pod *corev1.Pod) []string {
		entries, err := snapshot.Interfaces(pod)
		if err != nil {
			return nil
		}
		var texts []string
		for _, e := range entries {
			if text := fault(e); text != "" {
				texts = append(texts, text)
			}
		}
		return texts
	})
}

func (v *view) unreadable() []hit {
	return v.pods(func(pod *corev1.Pod) []string {
		var texts []string
		if _, err := agent.Missing(pod, nil); err != nil {
			texts = append(texts, err.Error())
		} else if _, err := snapshot.Interfaces(pod); err != nil {
			texts = append(texts, err.Error())
		}
		return texts
	})
}

// refused reads the last warning about each pod that isn't running yet and asks for a network.
func (v *view) refused() []hit {
	last := map[string]*corev1.Event{}
	for i := range v.cluster.Events {
		e := &v.cluster.Events[i]
		ref := e.InvolvedObject.Namespace + "/" + e.InvolvedObject.Name
		if old := last[ref]; e.Reason == "FailedCreatePodSandBox" && (old == nil || snapshot.When(old).Before(snapshot.When(e))) {
			last[ref] = e
		}
	}
	var found []hit
	for i := range v.cluster.Pods {
		pod := &v.cluster.Pods[i]
		e := last[snapshot.Ref(pod)]
		if e == nil || pod.Status.Phase != corev1.PodPending {
			continue
		}
		h := hit{where: "pod " + snapshot.Ref(pod) + " on node " + pod.Spec.NodeName, what: e.Message}
		if known, ok := cause(e.Message); ok {
			h.what, h.fix = known.cause+" ("+e.Message+")", known.fix
		}
		found = append(found, h)
	}
	return found
}
