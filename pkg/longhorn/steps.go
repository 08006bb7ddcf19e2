package longhorn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/harvester"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// describe says what a step does, in this journal's case.
func (s *Switch) describe(step Step) string {
	j := s.journal
	wanted, unwanted := j.Wanted(), j.Unwanted()
	switch step {
	case StepNetwork:
		return "network: see that " + wanted.words() + " is there" + s.howNetwork()
	case StepNodes:
		return "nodes: wait until each Longhorn node has its parent and shim for " + wanted.words() + "; nothing is stopped before"
	case StepStop:
		return "stop: " + workloadTexts(j.Workloads, "what uses volumes, once it is written down")
	case StepDetach:
		return "detach: wait until all volumes are detached"
	case StepAdopt:
		return fmt.Sprintf("adopt: tell Harvester's setting that its network is %s, so that it leaves Longhorn's alone", wanted.words())
	case StepSetting:
		text := fmt.Sprintf("setting: look at the volumes once more, then set Longhorn's %s from %q to %q", settingNetwork, unwanted.String(), wanted.String())
		if j.RWX != nil {
			text += fmt.Sprintf(" and %s to %q", j.RWX.Setting, j.wantedRWX())
		}
		return text
	case StepPods:
		return "pods: wait until each instance manager and backing image manager is on " + wanted.words() + " and Ready"
	case StepVerify:
		if s.SkipVerify {
			return "verify: left out, as asked"
		}
		return "verify: see that " + wanted.words() + " carries traffic"
	case StepStart:
		return "start: " + workloadTexts(j.Workloads, "nothing, for nothing was stopped")
	case StepSettle:
		return fmt.Sprintf("settle: wait until the volumes that were in use (%d) are attached again, on %s", len(j.Volumes), wanted.words())
	case StepClean:
		return "clean: " + s.howClean()
	}
	return string(step)
}

func (s *Switch) howNetwork() string {
	j := s.journal
	switch {
	case j.Direction == Back || j.New.None():
		return ""
	case j.Before == nil:
		return " (it is made)"
	case !sameConfig(j.Before.Config, j.New.Config):
		return " (its configuration is changed: nobody uses it yet)"
	}
	return " (it is, and stays as it is)"
}

func (s *Switch) howClean() string {
	unwanted := s.journal.Unwanted()
	if s.removable() {
		return "remove network " + unwanted.String() + ", unless a pod still uses it"
	}
	if unwanted.None() || unwanted.Ref == s.journal.Wanted().Ref {
		return "nothing is left over"
	}
	return "network " + unwanted.String() + " stays: it was there before lhstoragectl"
}

func workloadTexts(list []Workload, none string) string {
	if len(list) == 0 {
		return none
	}
	var texts []string
	for _, w := range list {
		texts = append(texts, fmt.Sprintf("%s (%d)", w, w.Replicas))
	}
	return strings.Join(texts, ", ")
}

// makeNetwork makes the wanted network's definition, or brings it up to date.
func (s *Switch) makeNetwork(ctx context.Context) error {
	wanted := s.journal.Wanted()
	if wanted.None() || wanted.Config == "" {
		return nil
	}
	return s.writeNetwork(ctx, wanted)
}

func (c *Cluster) writeNetwork(ctx context.Context, n Network) error {
	found, err := c.network(ctx, n.Ref)
	if err != nil {
		return err
	}
	r := networks(n.Namespace)
	if found != nil {
		if sameConfig(found.Config, n.Config) {
			return nil
		}
		if err := c.API.Patch(ctx, r, n.Name, []kubeapi.Op{kubeapi.Test("/spec/config", found.Config), kubeapi.Add("/spec/config", n.Config)}, nil); err != nil {
			return fmt.Errorf("change network %s: %w", n.Ref, err)
		}
		return nil
	}
	d := definition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "k8s.cni.cncf.io/v1", Kind: "NetworkAttachmentDefinition"},
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, Labels: maps.Clone(n.Labels), Annotations: n.Annotations},
	}
	if d.Labels == nil {
		d.Labels = map[string]string{labelManagedBy: managedBy}
	}
	d.Spec.Config = n.Config
	if err := c.API.Create(ctx, r, d, nil); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make network %s: %w", n.Ref, err)
	}
	return nil
}

// waitNodes waits until the agents have made the network ready.
func (s *Switch) waitNodes(ctx context.Context) error {
	wanted := s.journal.Wanted()
	shape := read(wanted.Name, wanted.Config)
	if wanted.None() || shape.Parent == "" {
		return nil
	}
	return s.wait(ctx, s.Timeouts.Nodes, "all nodes are ready for the network", func(ctx context.Context) ([]string, error) {
		nodes, _, err := list[longhornNode](ctx, s.Cluster, s.longhorn("nodes"))
		if err != nil {
			return nil, err
		}
		shims, _, err := list[v1alpha1.HostShim](ctx, s.Cluster, hostclaim.Shims)
		return unready(nodes, shims, shape.Parent), err
	})
}

// unready says which nodes have no shim on a parent yet, and why.
func unready(nodes []longhornNode, shims []v1alpha1.HostShim, parent string) []string {
	reasons := map[string]string{}
	for _, shim := range shims {
		if shim.Spec.Parent != parent {
			continue
		}
		reasons[shim.Spec.Node] = shim.Status.Reason
		if shim.Status.Ready == metav1.ConditionTrue {
			reasons[shim.Spec.Node] = "ready"
		}
	}
	var texts []string
	for _, n := range nodes {
		reason, found := reasons[n.Name]
		switch {
		case !found:
			texts = append(texts, fmt.Sprintf("%s has no place on %s yet: does lhstorage-agent run there?", n.Name, parent))
		case reason != "ready":
			texts = append(texts, fmt.Sprintf("%s isn't ready: %s", n.Name, cmp.Or(reason, "its agent hasn't said why")))
		}
	}
	return texts
}

// stopWorkloads stops what uses volumes, after it has been written down.
func (s *Switch) stopWorkloads(ctx context.Context) error {
	o, err := s.observe(ctx, Request{Network: s.journal.Wanted().Ref, Harvester: s.journal.Harvester})
	if err != nil {
		return err
	}
	r, j := &report{}, s.journal
	o.judgeUsers(r)
	if stopping := blocking(r.findings, j.Ignore); len(stopping) > 0 {
		return fmt.Errorf("what uses volumes has changed since it was looked at:\n  - %s", strings.Join(texts(stopping), "\n  - "))
	}
	j.Workloads = remember(j.Workloads, o.running())
	j.Volumes = union(j.Volumes, o.users.Volumes)
	if err := s.save(ctx, j); err != nil {
		return err
	}
	for _, w := range j.Workloads {
		s.tell("  stopping %s (%d)", w, w.Replicas)
		if err := s.stop(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

func union(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// waitDetached waits until no volume is attached, and nobody asks for one.
func (s *Switch) waitDetached(ctx context.Context) error {
	return s.wait(ctx, s.Timeouts.Detach, "all volumes are detached", func(ctx context.Context) ([]string, error) {
		holders, err := s.holders(ctx)
		return texts(holders), err
	})
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, item := range list {
		out = append(out, item.String())
	}
	return out
}

// AttachedError says that a volume was attached again at the last moment.
type AttachedError struct{ Volumes []string }

func (e *AttachedError) Error() string {
	return "Longhorn's setting can't be changed now, for a volume isn't detached any more, and the change would break it:\n  - " + strings.Join(e.Volumes, "\n  - ")
}

// guard fails unless all volumes are detached.
func (s *Switch) guard(ctx context.Context) error {
	holders, err := s.holders(ctx)
	if err != nil {
		return err
	}
	if len(holders) > 0 {
		return &AttachedError{texts(holders)}
	}
	return nil
}

// adopt tells Harvester's setting about the network, as its controller would have done. From here on that controller changes
// Longhorn's setting itself if it comes first, so all that holds for this holds from here.
func (s *Switch) adopt(ctx context.Context) error {
	if err := s.commit(ctx); err != nil {
		return err
	}
	return s.tellHarvester(ctx, harvester.InProgress, harvester.MessageSetting, func(o *harvester.Object) map[string]string {
		return o.AnnotationsFor(s.journal.Wanted().String())
	})
}

// tellHarvester writes annotations and condition of Harvester's setting.
func (s *Switch) tellHarvester(ctx context.Context, reason harvester.Reason, message string, annotations func(*harvester.Object) map[string]string) error {
	object, err := get[harvester.Object](ctx, s.Cluster, harvesterSettings, harvester.StorageNetworkSetting)
	if err != nil || object == nil {
		return errors.Join(err, errIf(object == nil && err == nil, "harvester's Setting %s is gone", harvester.StorageNetworkSetting))
	}
	ops := []kubeapi.Op{
		kubeapi.Test("/metadata/resourceVersion", object.ResourceVersion),
		kubeapi.Add("/metadata/annotations", annotations(object)),
		kubeapi.Add("/status", map[string]any{"conditions": object.ConditionsFor(reason, message, s.API.Now())}),
	}
	if err := s.API.Patch(ctx, harvesterSettings, harvester.StorageNetworkSetting, ops, nil); err != nil {
		return fmt.Errorf("write Harvester's Setting %s: %w", harvester.StorageNetworkSetting, err)
	}
	return nil
}

func errIf(is bool, format string, args ...any) error {
	if is {
		return fmt.Errorf(format, args...)
	}
	return nil
}

// commit writes down that the setting may be changed from here on, and looks at the volumes after that: nothing lies between that
// look and the change.
func (s *Switch) commit(ctx context.Context) error {
	if !s.journal.Switched {
		if err := s.guard(ctx); err != nil {
			return err
		}
		s.journal.Switched = true
		if err := s.save(ctx, s.journal); err != nil {
			s.journal.Switched = false
			return err
		}
	}
	return s.guard(ctx)
}

// changeSetting changes Longhorn's settings, never while a volume is attached.
func (s *Switch) changeSetting(ctx context.Context) error {
	if err := s.commit(ctx); err != nil {
		return err
	}
	j := s.journal
	if err := s.set(ctx, settingNetwork, j.Unwanted().String(), j.Wanted().String()); err != nil {
		return err
	}
	if j.RWX == nil {
		return nil
	}
	old := j.RWX.Old
	if j.Direction == Back {
		old = j.RWX.New
	}
	return s.set(ctx, j.RWX.Setting, old, j.wantedRWX())
}

// set changes a setting, unless it says neither what it did before nor what it shall say.
func (c *Cluster) set(ctx context.Context, name, from, to string) error {
	now, err := c.setting(ctx, name)
	switch {
	case err != nil:
		return err
	case now == nil:
		return fmt.Errorf("longhorn's setting %s is gone", name)
	case now.Value == to:
		return nil
	case now.Value != from:
		return fmt.Errorf("longhorn's setting %s was changed by somebody else: it says %q, not %q; put it back, or find out who did it (Helm, GitOps?)", name, now.Value, from)
	}
	ops := []kubeapi.Op{kubeapi.Test("/value", now.Value), kubeapi.Add("/value", to)}
	if err := c.API.Patch(ctx, c.longhorn("settings"), name, ops, nil); err != nil {
		if again, readErr := c.setting(ctx, name); readErr == nil && again != nil && again.Value == to {
			return nil
		}
		return fmt.Errorf("set Longhorn's %s to %q: %w", name, to, err)
	}
	return nil
}

// verify asks whether the network carries traffic.
func (s *Switch) verify(ctx context.Context) error {
	if s.SkipVerify {
		s.tell("  not verified, as asked; do it later: `lhstoragectl verify --wait 5m`")
		return nil
	}
	v := s.Verifier
	if v == nil {
		v = Reports{s.Cluster}
	}
	return s.wait(ctx, s.Timeouts.Verify, "the network carries traffic", func(ctx context.Context) ([]string, error) {
		if err := v.Verify(ctx, s.journal.Wanted()); err != nil {
			return []string{err.Error()}, ctx.Err()
		}
		return nil, nil
	})
}

// startWorkloads starts what was stopped, in the opposite order.
func (s *Switch) startWorkloads(ctx context.Context) error {
	for _, w := range slices.Backward(s.journal.Workloads) {
		s.tell("  starting %s (%d)", w, w.Replicas)
		if err := s.start(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// waitSettled waits until volumes are attached again and use the wanted network. Volumes that stay detached are told of and no
// more: why something doesn't start may have nothing to do with the network.
func (s *Switch) waitSettled(ctx context.Context) error {
	wanted := s.journal.Wanted()
	shape := read(wanted.Name, wanted.Config)
	var detached, misplaced []string
	err := s.wait(ctx, s.Timeouts.Settle, "volumes are attached again", func(ctx context.Context) ([]string, error) {
		volumes, _, err := list[volume](ctx, s.Cluster, s.longhorn("volumes"))
		if err != nil {
			return nil, err
		}
		engines, _, err := list[instance](ctx, s.Cluster, s.longhorn("engines"))
		if err != nil {
			return nil, err
		}
		replicas, _, err := list[instance](ctx, s.Cluster, s.longhorn("replicas"))
		if err != nil {
			return nil, err
		}
		detached, misplaced = unattached(s.journal.Volumes, volumes), misplacedOf(append(engines, replicas...), wanted.Ref, shape)
		return append(slices.Clone(misplaced), detached...), nil
	})
	if _, late := errors.AsType[*WaitError](err); late && len(misplaced) == 0 && len(detached) > 0 {
		s.tell("  still not attached, look after it yourself:\n    - %s", strings.Join(detached, "\n    - "))
		return nil
	}
	return err
}

// clean removes the network that isn't wanted any more, and says on Harvester that all is done.
func (s *Switch) clean(ctx context.Context) error {
	if err := s.cleanNetwork(ctx); err != nil {
		return err
	}
	if !s.journal.Harvester || !s.journal.Switched {
		return nil
	}
	return s.tellHarvester(ctx, harvester.Completed, "", func(o *harvester.Object) map[string]string {
		out := o.AnnotationsFor(s.journal.Wanted().String())
		out[harvester.AnnotationOldNetwork] = ""
		return out
	})
}

// removable says whether the network that isn't wanted any more is ours to remove: this run made it, or another one of
// lhstoragectl, or Harvester, which would remove it too.
func (s *Switch) removable() bool {
	j := s.journal
	unwanted := j.Unwanted()
	if unwanted.None() || unwanted.Ref == j.Wanted().Ref {
		return false
	}
	if j.Direction == Back {
		return j.Before == nil
	}
	return unwanted.Labels[labelManagedBy] == managedBy || j.Harvester && unwanted.Annotations[harvester.AnnotationMade] == "true"
}

func (s *Switch) cleanNetwork(ctx context.Context) error {
	j := s.journal
	if j.Direction == Back && j.Before != nil && !j.New.None() {
		return s.writeNetwork(ctx, *j.Before)
	}
	unwanted := j.Unwanted()
	if !s.removable() {
		return nil
	}
	o := &observed{multusNodes: map[string]bool{}}
	r := &reader{Cluster: s.Cluster, ctx: ctx}
	if o.readNetwork(r, Request{Network: unwanted.Ref}); r.err != nil {
		return r.err
	}
	if len(o.targetUsers) > 0 {
		s.tell("  network %s stays, for %s use it", unwanted.Ref, some(o.targetUsers))
		return nil
	}
	if err := s.API.Delete(ctx, networks(unwanted.Namespace), unwanted.Name, "", ""); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove network %s: %w", unwanted.Ref, err)
	}
	return nil
}

// WaitError says what was waited for in vain, and who stood in the way.
type WaitError struct {
	For   string
	After time.Duration
	Open  []string
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("waited %s, but not so that %s:\n  - %s", e.After.Round(time.Second), e.For, strings.Join(e.Open, "\n  - "))
}

// telling is how often a wait says what it waits for.
const telling = 10 * time.Second

// wait looks until nothing is open any more. A look that fails is repeated: the API server may be restarting.
func (s *Switch) wait(ctx context.Context, limit time.Duration, what string, look func(context.Context) (open []string, err error)) error {
	began, told := time.Now(), time.Now().Add(2*time.Second-telling)
	for {
		open, err := look(ctx)
		switch {
		case err == nil && len(open) == 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted while waiting so that %s: %w", what, context.Cause(ctx))
		case err != nil && !kubeapi.IsUnreachable(err) && !apierrors.IsInternalError(err) && !apierrors.IsTooManyRequests(err):
			return err
		case err != nil:
			open = []string{err.Error()}
		}
		if time.Since(began) > limit {
			return &WaitError{what, time.Since(began), open}
		}
		if time.Since(told) > telling {
			told = time.Now()
			s.tell("  %s, waiting so that %s:\n    - %s", time.Since(began).Round(time.Second), what, strings.Join(open, "\n    - "))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted while waiting so that %s: %w", what, context.Cause(ctx))
		case <-time.After(s.Timeouts.Poll):
		}
	}
}
