package attach

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Del takes an attachment back: interface, then address, then record. What is
// gone already is success, and neither the sandbox nor the parent nor a readable
// configuration is needed: the record says what was made. Without a record plan
// does, as far as it could be read.
func (p *Plugin) Del(ctx context.Context, plan *netconf.Plan, req Request) error {
	ctx, cancel := context.WithTimeout(ctx, delTime)
	defer cancel()
	sandbox, err := sandboxOf(ctx, req.Netns)
	if err != nil {
		return err
	}
	defer sandbox.close()
	at, found, err := p.records().Load(req.ContainerID, req.IfName)
	if cnierr.CodeOf(err) == cnierr.Decode { // torn, or of a newer version: DEL must succeed all the same
		fmt.Fprintf(os.Stderr, "lhstorage: %v; going by the network's configuration instead\n", err)
	} else if err != nil {
		return err
	}
	if !found {
		at = fromPlan(plan, req)
	}
	return p.takeBack(ctx, sandbox, at, req.Path)
}

// sandboxOf opens a pod and waits until no other call works on it; nil when the
// pod is gone.
func sandboxOf(ctx context.Context, netns string) (*pod, error) {
	if isGone(netns) {
		return nil, nil
	}
	sandbox, err := openPod(netns)
	if err != nil {
		return nil, err
	}
	if err := sandbox.lock(ctx); err != nil {
		sandbox.close()
		return nil, err
	}
	return sandbox, nil
}

// fromPlan is the record that an ADD with this configuration would have written.
func fromPlan(plan *netconf.Plan, req Request) record.Attachment {
	return record.Attachment{
		ContainerID: req.ContainerID, IfName: req.IfName, Netns: req.Netns,
		IPAM: plan.IPAM.Type, Delegate: plan.IPAM.Delegate,
	}
}

// takeBack undoes an attachment as its record says. sandbox is nil when it is
// gone: the kernel has deleted the interface with it. The record goes last, so
// that whatever stood in the way is tried again by the next DEL.
func (p *Plugin) takeBack(ctx context.Context, sandbox *pod, at record.Attachment, path string) error {
	if sandbox != nil && !at.Chained {
		if err := fault.At("del.link"); err != nil {
			return err
		}
		if err := deleteChild(sandbox, at.IfName); err != nil {
			return err
		}
	}
	if at.IPAM != "" && !at.Chained {
		if err := fault.At("del.ipam"); err != nil {
			return err
		}
		if err := (delegate{kind: at.IPAM, conf: at.Delegate, path: path}).del(ctx); err != nil {
			return err
		}
	}
	if err := fault.At("del.record"); err != nil {
		return err
	}
	return p.records().Forget(at.ContainerID, at.IfName)
}

// GC takes back this network's attachments on this node that the runtime doesn't
// list, and forwards to the IPAM plugin. It goes on past errors and reports them
// all. Without a list nothing is taken back (CNI specification, section GC).
func (p *Plugin) GC(ctx context.Context, plan *netconf.Plan, path string) error {
	var faults []error
	if plan.ValidAttachments != nil {
		all, err := p.records().List()
		faults = append(faults, err)
		for _, at := range all {
			if at.Network == plan.Name && !listed(*plan.ValidAttachments, at) {
				faults = append(faults, p.collect(ctx, at, path))
			}
		}
	}
	ipam := delegate{kind: plan.IPAM.Type, conf: plan.IPAM.Delegate, path: path}
	faults = append(faults, ipam.gc(ctx))
	return errors.Join(faults...)
}

func listed(valid []netconf.Attachment, at record.Attachment) bool {
	for _, v := range valid {
		if v.ContainerID == at.ContainerID && v.IfName == at.IfName {
			return true
		}
	}
	return false
}

func (p *Plugin) collect(ctx context.Context, at record.Attachment, path string) error {
	sandbox, err := sandboxOf(ctx, at.Netns)
	if err != nil {
		return fmt.Errorf("attachment %s %s: %w", at.ContainerID, at.IfName, err)
	}
	defer sandbox.close()
	restore := actFor(at)
	defer restore()
	theirs := sandbox
	if sandbox != nil && sandbox.isAnothers(at) {
		theirs = nil
	}
	if err := p.takeBack(ctx, theirs, at, path); err != nil {
		return cnierr.New(cnierr.CodeOf(err), "attachment %s %s: %w", at.ContainerID, at.IfName, err)
	}
	return nil
}

// actFor gives this process the environment of an attachment, which an IPAM
// plugin's DEL goes by; GC itself has none.
func actFor(at record.Attachment) (restore func()) {
	vars := map[string]string{"CNI_CONTAINERID": at.ContainerID, "CNI_IFNAME": at.IfName, "CNI_NETNS": at.Netns}
	undo := make(map[string]string, len(vars))
	for name, value := range vars {
		undo[name] = os.Getenv(name)
		_ = os.Setenv(name, value)
	}
	return func() {
		for name, value := range undo {
			_ = os.Setenv(name, value)
		}
	}
}
