// Package request asks the agents of a cluster to verify, through Verification objects, and gathers what they answer.
package request

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/verify"
)

const (
	look   = 500 * time.Millisecond // between two looks at the answers
	atOnce = 8                      // requests
)

var nodes = kubeapi.Resource{Version: "v1", Plural: "nodes"}

func resource(plural string) kubeapi.Resource {
	return kubeapi.Resource{Group: v1alpha1.Group, Version: v1alpha1.Version, Plural: plural}
}

// Options say whom to ask, how long to wait, and whom to tell of progress.
type Options struct {
	Timeout  time.Duration                // for the answers
	Progress func(text string)            // nil: nobody
	Whom     func(v1alpha1.HostShim) bool // whether the node with this place is asked; nil: each is
}

// Ask asks every node that has a place on a parent, and returns when all have answered or the time is over. That some didn't is no error: what is missing is in
// the result.
func Ask(ctx context.Context, api *kubeapi.Client, o Options) (verify.Input, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	in := verify.Input{ID: uuid.NewString()}
	if err := whom(ctx, api, &in); err != nil {
		return in, err
	}
	if o.Whom != nil {
		in.HostShims = slices.DeleteFunc(in.HostShims, func(s v1alpha1.HostShim) bool { return !o.Whom(s) })
	}
	asked := members(in)
	if len(asked) == 0 {
		return in, fmt.Errorf("no node has a place on a storage network (kubectl get hostshims): apply a network definition, and see whether lhstorage's agents run (kubectl -n lhstorage-system get pods -o wide)")
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, node := range asked {
		group.Go(func() error { return ask(ctx, api, node, in.ID) })
	}
	if err := group.Wait(); err != nil {
		return in, err
	}
	o.Progress(fmt.Sprintf("asked %d nodes", len(asked)))
	return in, gather(ctx, api, &in, asked, o)
}

// whom reads which nodes there are, and their places.
func whom(ctx context.Context, api *kubeapi.Client, in *verify.Input) error {
	err := kubeapi.Each(ctx, api, nodes, func(n metav1.PartialObjectMetadata) { in.Nodes = append(in.Nodes, n.Name) })
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	err = kubeapi.Each(ctx, api, resource(v1alpha1.HostShimResource), func(s v1alpha1.HostShim) { in.HostShims = append(in.HostShims, s) })
	if err != nil {
		return fmt.Errorf("list the nodes' places (HostShims): %w%s", err, hint(err))
	}
	return nil
}

// members are the nodes that take part.
func members(in verify.Input) []string {
	var list []string
	for _, s := range in.HostShims {
		if slices.Contains(in.Nodes, s.Spec.Node) && !slices.Contains(list, s.Spec.Node) {
			list = append(list, s.Spec.Node)
		}
	}
	slices.Sort(list)
	return list
}

// ask puts a request where a node's agent looks.
func ask(ctx context.Context, api *kubeapi.Client, node, id string) error {
	asked := metav1.NewTime(api.Now()) // the agents measure its age by the server's clock
	v := v1alpha1.Verification{
		TypeMeta:   metav1.TypeMeta{Kind: v1alpha1.VerificationKind, APIVersion: v1alpha1.GroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       v1alpha1.VerificationSpec{Node: node, ID: id, Time: asked},
	}
	verifications := resource(v1alpha1.VerificationResource)
	err := api.Create(ctx, verifications, v, nil)
	if apierrors.IsAlreadyExists(err) {
		ops := []kubeapi.Op{kubeapi.Test("/spec/node", node), kubeapi.Add("/spec/id", id), kubeapi.Add("/spec/time", asked)}
		err = api.Patch(ctx, verifications, node, ops, kubeapi.Meta(nil))
	}
	if err != nil {
		return fmt.Errorf("ask node %s to verify: %w%s", node, err, hint(err))
	}
	return nil
}

func hint(err error) string {
	switch {
	case apierrors.IsNotFound(err):
		return "; is lhstorage installed, with the definitions of this version (kubectl get crd verifications.lhstorage.io)?"
	case apierrors.IsForbidden(err):
		return "; to verify takes the rights to list nodes and hostshims, and to create, patch and list verifications.lhstorage.io"
	}
	return ""
}

// gather looks at the answers until all are there.
func gather(ctx context.Context, api *kubeapi.Client, in *verify.Input, asked []string, o Options) error {
	until := time.Now().Add(o.Timeout)
	told := 0
	for {
		in.Answers = nil
		err := kubeapi.Each(ctx, api, resource(v1alpha1.VerificationResource), func(v v1alpha1.Verification) {
			if v.Status.ID == in.ID && slices.Contains(asked, v.Spec.Node) {
				in.Answers = append(in.Answers, v)
			}
		})
		if err != nil {
			return fmt.Errorf("read the answers: %w%s", err, hint(err))
		}
		if len(in.Answers) > told {
			told = len(in.Answers)
			o.Progress(fmt.Sprintf("%d of %d nodes have answered", told, len(asked)))
		}
		if len(in.Answers) == len(asked) || time.Now().After(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
	}
}
