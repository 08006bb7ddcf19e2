package longhorn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// JournalName is the ConfigMap's, in Longhorn's namespace.
const JournalName = "lhstorage-storage-network"

const (
	journalKey     = "journal.json"
	journalVersion = 1
)

// Step is a part of the workflow. Its value is in journals: it doesn't change.
type Step string

// The steps, see the package's description.
const (
	StepNetwork Step = "network"
	StepNodes   Step = "nodes"
	StepStop    Step = "stop"
	StepDetach  Step = "detach"
	StepAdopt   Step = "adopt"
	StepSetting Step = "setting"
	StepPods    Step = "pods"
	StepVerify  Step = "verify"
	StepStart   Step = "start"
	StepSettle  Step = "settle"
	StepClean   Step = "clean"
)

// Direction says which way a journal is walked.
type Direction string

// Forward leads to the new network, Back to the old one.
const (
	Forward Direction = "forward"
	Back    Direction = "back"
)

// Network is a NetworkAttachmentDefinition as it was or shall be.
type Network struct {
	Ref
	// Config is its spec.config; empty for the pod network, and for one that wasn't there.
	Config string `json:"config,omitempty"`
	// Labels and Annotations are kept so that it can be made again.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// RWX is the setting that puts shared volumes on the network: its name depends on Longhorn's version.
type RWX struct {
	Setting string `json:"setting"`
	Old     string `json:"old"`
	New     string `json:"new"`
}

// Journal is what a run must know to go on, or to go back. It is written before what it tells of is done.
type Journal struct {
	Version   int       `json:"version"`
	Started   time.Time `json:"started"`
	Direction Direction `json:"direction"`
	Step      Step      `json:"step"` // begun, perhaps done
	Finished  bool      `json:"finished,omitempty"`
	Holder    string    `json:"holder"` // the run that has it

	Old Network `json:"old"` // what the setting said
	New Network `json:"new"` // what it shall say
	// Before is the new network as it was before the run; nil: it wasn't there.
	Before *Network `json:"before,omitempty"`

	RWX       *RWX `json:"rwx,omitempty"` // nil: it stays as it is
	Harvester bool `json:"harvester,omitempty"`
	// Ignore are findings that are passed over when workloads are looked at again.
	Ignore []Code `json:"ignore,omitempty"`
	// Switched says that the setting may have been changed: from here on the way back needs detached volumes too.
	Switched bool `json:"switched,omitempty"`

	Workloads []Workload `json:"workloads,omitempty"` // stopped, or about to be
	Volumes   []string   `json:"volumes,omitempty"`   // that they had attached

	version string // the ConfigMap's, when it was read or written
}

var (
	whole = []Step{StepNetwork, StepNodes, StepStop, StepDetach, StepAdopt, StepSetting, StepPods, StepVerify, StepStart, StepSettle, StepClean}
	// undo is the way back while the setting is as it was.
	undo = []Step{StepStart, StepSettle, StepClean}
)

// Steps are all steps of the way that the journal is on.
func (j *Journal) Steps() []Step {
	steps := slices.Clone(whole)
	if j.Direction == Back && !j.Switched {
		steps = slices.Clone(undo)
	}
	return slices.DeleteFunc(steps, func(s Step) bool {
		switch s {
		case StepAdopt:
			return !j.Harvester
		case StepNodes:
			return j.Direction == Back // the way back waits for nobody
		case StepVerify:
			return j.Direction == Back || j.New.None()
		}
		return false
	})
}

// Left are the steps that are still to be done, the one that was begun included.
func (j *Journal) Left() []Step {
	steps := j.Steps()
	if j.Finished {
		return nil
	}
	return steps[max(0, slices.Index(steps, j.Step)):]
}

// Wanted is the network that the setting shall say at the end of the way; Unwanted is the other one.
func (j *Journal) Wanted() Network {
	if j.Direction == Back {
		return j.Old
	}
	return j.New
}

// Unwanted is the network of the two that Longhorn leaves.
func (j *Journal) Unwanted() Network {
	if j.Direction == Back {
		return j.New
	}
	return j.Old
}

// wantedRWX is the value of the RWX setting at the end of the way.
func (j *Journal) wantedRWX() string {
	if j.Direction == Back {
		return j.RWX.Old
	}
	return j.RWX.New
}

// turn makes the journal lead back.
func (j *Journal) turn() {
	j.Direction, j.Finished = Back, false
	j.Step = j.Steps()[0]
}

// Turned is the journal as a rollback begins with it.
func (j *Journal) Turned() *Journal {
	back := *j
	if j.Direction == Forward {
		back.turn()
	}
	return &back
}

// words says what a journal is about.
func (j *Journal) words() string {
	text := fmt.Sprintf("the move of Longhorn from %s to %s, begun %s", j.Old.words(), j.New.words(), j.Started.Format(time.RFC3339))
	if j.Direction == Back {
		text += ", on its way back"
	}
	if !j.Finished {
		text += fmt.Sprintf(", at step %q", j.Step)
	}
	return text
}

// TakenError says that another run has the journal.
type TakenError struct{ Err error }

func (e *TakenError) Error() string {
	return fmt.Sprintf("another lhstoragectl goes on with this journal (ConfigMap %s): this one stops here; `lhstoragectl resume` takes it over again (%v)", JournalName, e.Err)
}

// Unwrap gives the server's refusal.
func (e *TakenError) Unwrap() error { return e.Err }

// errNoJournal says that nothing was begun.
var errNoJournal = errors.New("there is no journal")

func (c *Cluster) configMaps() kubeapi.Resource {
	return kubeapi.Resource{Version: "v1", Plural: "configmaps", Namespace: c.Namespace}
}

// Journal reads the journal. There is none: IsNoJournal.
func (c *Cluster) Journal(ctx context.Context) (*Journal, error) {
	var object corev1.ConfigMap
	err := c.API.Get(ctx, c.configMaps(), JournalName, &object)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("ConfigMap %s/%s: %w", c.Namespace, JournalName, errNoJournal)
	case err != nil:
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	j := &Journal{version: object.ResourceVersion}
	if err := json.Unmarshal([]byte(object.Data[journalKey]), j); err != nil {
		return nil, fmt.Errorf("the journal in ConfigMap %s/%s can't be read: %w; if you know how Longhorn's setting was, set it yourself (with all volumes detached) and delete the ConfigMap", c.Namespace, JournalName, err)
	}
	if j.Version != journalVersion || !slices.Contains(whole, j.Step) || j.Direction != Forward && j.Direction != Back {
		return nil, fmt.Errorf("the journal in ConfigMap %s/%s is of version %d, step %q, direction %q: a newer lhstoragectl wrote it; go on with that one", c.Namespace, JournalName, j.Version, j.Step, j.Direction)
	}
	return j, nil
}

// IsNoJournal says whether there is no journal.
func IsNoJournal(err error) bool { return errors.Is(err, errNoJournal) }

// save writes the journal, unless somebody else did since. A new one replaces a finished one only.
func (c *Cluster) save(ctx context.Context, j *Journal) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	object := corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{
			Name: JournalName, Namespace: c.Namespace, ResourceVersion: j.version, Labels: map[string]string{labelManagedBy: managedBy},
		},
		Data: map[string]string{journalKey: string(data)},
	}
	var written corev1.ConfigMap
	if j.version == "" {
		err = c.API.Create(ctx, c.configMaps(), object, &written)
	} else {
		err = c.API.Update(ctx, c.configMaps(), JournalName, object, &written)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		if !c.mine(ctx, string(data), &written) {
			return &TakenError{err}
		}
		err = nil // it was this very write, whose answer was lost
	}
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	j.version = written.ResourceVersion
	return nil
}

func (c *Cluster) mine(ctx context.Context, data string, found *corev1.ConfigMap) bool {
	return c.API.Get(ctx, c.configMaps(), JournalName, found) == nil && found.Data[journalKey] == data
}
