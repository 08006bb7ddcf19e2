package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
)

const (
	crowdTime  = 5 * time.Minute        // for a hundred pods with whereabouts, on a busy machine
	crowdLook  = 200 * time.Millisecond // between two looks: each is a list of all
	crowdLabel = "lhstorage.test/crowd"
)

var claims = v1alpha1.GroupVersion.WithResource("addressclaims")

// Crowd is a number of pods that were made at once, wherever the scheduler put them.
type Crowd struct {
	Ready     []time.Duration         // of each pod, after the first was made; to a fifth of a second
	Addresses map[string][]netip.Addr // on the storage network, by pod, as Multus reports them
}

// Wall is when all were Ready.
func (c Crowd) Wall() time.Duration {
	if len(c.Ready) == 0 {
		return 0
	}
	return c.Ready[len(c.Ready)-1]
}

// Duplicates are the addresses that more than one pod has, or that a pod has none.
func (c Crowd) Duplicates() error {
	var faults []error
	owner := map[netip.Addr]string{}
	for pod, addrs := range c.Addresses {
		if len(addrs) == 0 {
			faults = append(faults, fmt.Errorf("pod %s has no address on its network", pod))
		}
		for _, addr := range addrs {
			if owner[addr] != "" {
				faults = append(faults, fmt.Errorf("%s is held by %s and %s", addr, owner[addr], pod))
			}
			owner[addr] = pod
		}
	}
	return errors.Join(faults...)
}

// MakeCrowd makes n pods at once and waits until all are Ready.
func (c *Cluster) MakeCrowd(ctx context.Context, namespace string, network controlplane.Network, n int) (Crowd, error) {
	ctx, cancel := context.WithTimeout(ctx, crowdTime)
	defer cancel()
	crowd := Crowd{Addresses: map[string][]netip.Addr{}}
	begin := time.Now()
	making, makeCtx := errgroup.WithContext(ctx)
	for i := range n {
		pod := Pod("", fmt.Sprintf("crowd-%d", i), network)
		pod.Labels = map[string]string{crowdLabel: "true"}
		making.Go(func() error { return c.Create(makeCtx, namespace, pod) })
	}
	if err := making.Wait(); err != nil {
		return crowd, err
	}
	for {
		waiting, err := c.lookAtCrowd(ctx, namespace, network, begin, &crowd)
		if err == nil && len(crowd.Ready) == n {
			return crowd, nil
		}
		select {
		case <-ctx.Done():
			return crowd, fmt.Errorf("wait until %d pods are Ready: %w, after %d that were: %w", n, ctx.Err(), len(crowd.Ready), errors.Join(waiting, err))
		case <-time.After(crowdLook):
		}
	}
}

// lookAtCrowd notes which pods are Ready by now. waiting says what one of the others lacks.
func (c *Cluster) lookAtCrowd(ctx context.Context, namespace string, network controlplane.Network, begin time.Time, crowd *Crowd) (waiting, err error) {
	list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0", LabelSelector: crowdLabel})
	if err != nil {
		return nil, err
	}
	for _, pod := range list.Items {
		if _, seen := crowd.Addresses[pod.Name]; seen {
			continue
		}
		if !isReady(&pod) {
			waiting = fmt.Errorf("pod %s: phase %s", pod.Name, pod.Status.Phase)
			continue
		}
		crowd.Ready = append(crowd.Ready, time.Since(begin))
		if crowd.Addresses[pod.Name], err = addressesOn(&pod, network); err != nil {
			return nil, err
		}
	}
	return waiting, nil
}

// addressesOn are a pod's addresses on a network, as Multus reports them.
func addressesOn(pod *corev1.Pod, network controlplane.Network) (addrs []netip.Addr, err error) {
	var status []controlplane.NetworkStatus
	if err := json.Unmarshal([]byte(pod.Annotations[controlplane.NetworkStatusAnnotation]), &status); err != nil {
		return nil, fmt.Errorf("pod %s, annotation %s: %w", pod.Name, controlplane.NetworkStatusAnnotation, err)
	}
	for _, s := range status {
		if s.Name != network.Namespace+"/"+network.Name {
			continue
		}
		for _, text := range s.IPs {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("pod %s, annotation %s: %w", pod.Name, controlplane.NetworkStatusAnnotation, err)
			}
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// RemovePods deletes all pods of a namespace and waits until they are gone.
func (c *Cluster) RemovePods(ctx context.Context, namespace string) error {
	api := c.Kube.CoreV1().Pods(namespace)
	// Of many pods it may take longer than one request, on a busy machine.
	if err := controlplane.Until(ctx, nil, "the pods are deleted", func(ctx context.Context) error {
		return api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	}); err != nil {
		return err
	}
	return controlplane.Until(ctx, nil, "the pods are gone", func(ctx context.Context) error {
		list, err := api.List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left, %s among them", len(list.Items), list.Items[0].Name)
		}
		return err
	})
}

// WaitNoneHeld waits until no address is held: a pod's object may be gone before the
// runtime has called DEL.
func (c *Cluster) WaitNoneHeld(ctx context.Context) error {
	return controlplane.Until(ctx, nil, "no address is held", func(ctx context.Context) error {
		held, err := c.Held(ctx)
		if err == nil && len(held) > 0 {
			err = fmt.Errorf("%d are: %v", len(held), held)
		}
		return err
	})
}

// Held are the addresses that somebody holds, each with where that is said.
func (c *Cluster) Held(ctx context.Context) ([]string, error) {
	var held []string
	for _, resource := range []schema.GroupVersionResource{claims, controlplane.Reservations} {
		list, err := c.Dynamic.Resource(resource).List(ctx, metav1.ListOptions{})
		if err != nil {
			if resource == claims { // before lhstorage is installed
				continue
			}
			return nil, err
		}
		for _, item := range list.Items {
			held = append(held, resource.Resource+" "+item.GetName())
		}
	}
	pools, err := c.Dynamic.Resource(controlplane.IPPools).List(ctx, metav1.ListOptions{})
	if err != nil {
		return held, err
	}
	for _, pool := range pools.Items {
		allocations, _, err := unstructured.NestedMap(pool.Object, "spec", "allocations")
		if err != nil {
			return held, err
		}
		for key := range allocations {
			held = append(held, strings.Join([]string{"pool", pool.GetName(), "key", key}, " "))
		}
	}
	return held, nil
}
