package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Quarantine is how long a declined address is given to nobody.
const Quarantine = 10 * time.Minute

// Owner is the attachment that a claim is for.
type Owner struct {
	Network     string `json:"network"`
	Node        string `json:"node"`
	PodRef      string `json:"podref,omitempty"` // namespace/name; empty outside Kubernetes
	PodUID      string `json:"podUID,omitempty"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	MAC         string `json:"mac,omitempty"` // where it is known before the interface exists
}

// Pod identifies the pod over all its sandboxes, or the container where there is no pod.
func (o Owner) Pod() string {
	if o.PodRef != "" {
		return o.PodRef
	}
	return "container " + o.ContainerID
}

// key identifies the interface of the pod over all its sandboxes.
func (o Owner) key() string { return o.Pod() + "\x00" + o.IfName }

// SameInterface says whether both are for the same interface of the same pod, though
// perhaps of different sandboxes: then the newer one takes over the address.
func (o Owner) SameInterface(other Owner) bool { return o.key() == other.key() }

// SameAttachment says whether both are for the same interface of the same sandbox.
func (o Owner) SameAttachment(other Owner) bool {
	return o.ContainerID == other.ContainerID && o.IfName == other.IfName
}

// String names the owner for people.
func (o Owner) String() string {
	who := fmt.Sprintf("interface %s of container %s", o.IfName, o.ContainerID)
	if o.PodRef != "" {
		who = fmt.Sprintf("interface %s of pod %s (container %s)", o.IfName, o.PodRef, o.ContainerID)
	}
	if o.Node != "" {
		who += " on node " + o.Node
	}
	return who
}

// Claim is one address held for an attachment, or a quarantined one.
type Claim struct {
	Name    string     `json:"name"` // Pool.ClaimName of the address
	Pool    string     `json:"pool"`
	Address netip.Addr `json:"address"`
	Owner
	BootID   string    `json:"bootID,omitempty"` // the boot of the node that the sandbox lives in
	Created  time.Time `json:"created"`
	Declined *Declined `json:"declined,omitempty"`
}

// Declined says why an address is in quarantine.
type Declined struct {
	MAC   string    `json:"mac"` // of the device that holds the address
	Until time.Time `json:"until"`
}

// NewClaim is owner's claim on addr.
func (p Pool) NewClaim(addr netip.Addr, owner Owner) Claim {
	return Claim{Name: p.ClaimName(addr), Pool: p.Name, Address: addr, Owner: owner}
}

// Snapshot is what a store knows about a pool when an address is chosen.
type Snapshot struct {
	Taken []netip.Addr // claimed or quarantined addresses of the pool's range, in any order; may be stale, Create decides
	Own   []Claim      // the pool's claims of the same interface of the same pod (Owner.SameInterface), of whatever sandbox
	Pod   []netip.Addr // addresses of the pod's other claims, whatever their pools: it must not get one of them twice
}

// Store keeps claims. It may be shared by many processes and many nodes. All methods are
// bounded by ctx and safe to be repeated; an error that may go away by itself has
// code 11 (package cnierr). None of them waits for another process's ADD or DEL to
// end.
type Store interface {
	// Snapshot is called before each choice.
	Snapshot(ctx context.Context, pool Pool, owner Owner) (Snapshot, error)

	// Create makes a claim; its name is the lock. A held name is a *TakenError. The
	// store fills in Created and BootID.
	Create(ctx context.Context, pool Pool, claim Claim) error

	// Reown gives a claim to another sandbox of the same pod, if it is still what the
	// caller read; else the error is ErrChanged. For the sandbox that has it already it completes what a killed
	// ADD may have left undone.
	Reown(ctx context.Context, pool Pool, read Claim, owner Owner) error

	// Release gives up one claim, if it is still held by the same attachment. A claim
	// that is gone or was taken over is no error.
	Release(ctx context.Context, claim Claim) error

	// ReleaseAll gives up all claims of the attachment owner, of whatever pool, goes on
	// past errors and returns them together. No claim is no error.
	ReleaseAll(ctx context.Context, owner Owner) error

	// Decline turns a claim into a quarantine for all nodes until the given time, if it
	// is held by the same attachment; else the error is ErrChanged. The quarantine keeps
	// the claim's name and owner, so that to decline it again is no error. Only the
	// claim's Name and Owner need be set.
	Decline(ctx context.Context, claim Claim, why Declined) error

	// Collect gives up the claims of one network and node whose attachment isn't among
	// valid, goes on past errors, and returns what it gave up.
	Collect(ctx context.Context, network, node string, valid []Attachment) ([]Claim, error)

	// Where says in a few words where a person finds the claims.
	Where() string
}

// Reclaimer is a store that may have addresses which are about to come free, or whose Snapshot may be old.
type Reclaimer interface {
	// Reclaim looks closely at a pool in which no address was found; true when another look at it is worth while.
	Reclaim(ctx context.Context, pool Pool) (bool, error)
}

// ErrChanged says that a claim isn't any more what the caller read.
var ErrChanged = errors.New("the claim was changed by someone else in the meantime")

// TakenError says that a claim's name is held.
type TakenError struct {
	Name   string
	Holder *Claim // nil when the store doesn't know
}

func (e *TakenError) Error() string {
	switch {
	case e.Holder == nil:
		return fmt.Sprintf("%s is held", e.Name)
	case e.Holder.Declined != nil:
		return fmt.Sprintf("%s is in quarantine until %s because %s answered for it", e.Name, e.Holder.Declined.Until.Format(time.RFC3339), e.Holder.Declined.MAC)
	default:
		return fmt.Sprintf("%s is held by %s", e.Name, e.Holder.Owner)
	}
}
