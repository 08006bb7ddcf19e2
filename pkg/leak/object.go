package leak

import (
	"encoding/json"
	"net/netip"

	"github.com/lhstorage/lhstorage/pkg/nad"
)

const (
	// Of a static pod's mirror in the API, by the kubelet: the UID under which it runs the pod. The mirror has another.
	configHash = "kubernetes.io/config.hash"

	outOfService = "node.kubernetes.io/out-of-service"
)

// condition of a pod or a Node.
type condition struct {
	Type   string `json:"type"`
	Status string `json:"status"`
}

// podObject is what is read of a Pod.
type podObject struct {
	Metadata meta `json:"metadata"`
	Spec     struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string      `json:"phase"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

func (o podObject) pod() Pod {
	p := Pod{
		Node: o.Spec.NodeName, UIDs: []string{o.Metadata.UID}, Terminating: o.Metadata.Deletion != nil,
		Finished: o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed",
		Status:   parseStatus(o.Metadata.Annotations[nad.StatusAnnotation]),
	}
	if hash := o.Metadata.Annotations[configHash]; hash != "" {
		p.UIDs = append(p.UIDs, hash)
	}
	for _, c := range o.Status.Conditions {
		p.SandboxGone = p.SandboxGone || c.Type == "PodReadyToStartContainers" && c.Status == "False"
	}
	return p
}

// parseStatus reads a network-status. One that can't be read is none: then nothing of the pod is collected.
func parseStatus(text string) []Interface {
	var entries []struct {
		Interface string   `json:"interface"`
		IPs       []string `json:"ips"`
	}
	if json.Unmarshal([]byte(text), &entries) != nil {
		return nil
	}
	var status []Interface
	for _, e := range entries {
		i := Interface{Name: e.Interface}
		for _, ip := range e.IPs {
			if addr, err := netip.ParseAddr(ip); err == nil {
				i.Addresses = append(i.Addresses, addr)
			}
		}
		status = append(status, i)
	}
	return status
}

// nodeObject is what is read of a Node.
type nodeObject struct {
	Metadata meta `json:"metadata"`
	Spec     struct {
		Taints []struct {
			Key string `json:"key"`
		} `json:"taints"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

func (o nodeObject) node() Node {
	var n Node
	for _, c := range o.Status.Conditions {
		n.Away = n.Away || c.Type == "Ready" && c.Status != "True"
	}
	for _, t := range o.Spec.Taints {
		n.Away = n.Away && t.Key != outOfService
	}
	return n
}
