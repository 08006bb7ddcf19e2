package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// owner says which network's configuration a parent follows. Many networks may
// share one parent; were they allowed to describe it differently, each pod's
// start would change it for the others. The first one's word counts, and it may
// change its mind; the others must say the same while it has attachments.
type owner struct {
	Network string         `json:"network"`
	Parent  netconf.Parent `json:"parent"`
}

func (r *run) ownerPath() string {
	return filepath.Join(r.Node.RunDir, "parents", r.plan.Parent.Name+".json")
}

// loadOwner reads the file; none, or one that can't be read, is no owner.
func (r *run) loadOwner() (o owner, err error) {
	data, err := os.ReadFile(r.ownerPath())
	if errors.Is(err, fs.ErrNotExist) {
		return owner{}, nil
	}
	if err != nil {
		return owner{}, cnierr.New(cnierr.IO, "read which network parent %s follows: %w", r.plan.Parent.Name, err)
	}
	if json.Unmarshal(data, &o) != nil {
		return owner{}, nil //nolint:nilerr // a torn file is no answer
	}
	return o, nil
}

// owned says that the parent follows a network that describes it as plan does.
func (r *run) owned() (bool, error) {
	o, err := r.loadOwner()
	return err == nil && o.Network != "" && len(Differences(o.Parent, r.plan.Parent)) == 0, err
}

// own makes plan's network the one that the parent follows, or refuses.
func (r *run) own() error {
	o, err := r.loadOwner()
	if err != nil {
		return err
	}
	diffs := Differences(o.Parent, r.plan.Parent)
	if o.Network != "" && o.Network != r.plan.Name && len(diffs) > 0 && r.InUse != nil && r.InUse(o.Network, r.plan.Parent.Name) {
		return cnierr.New(cnierr.IncompatibleParent, "networks %q and %q describe parent %s differently: %s. "+
			"%q has pods on this node and came first: say the same in %q, or give it a parent of its own",
			o.Network, r.plan.Name, r.plan.Parent.Name, strings.Join(diffs, "; "), o.Network, r.plan.Name)
	}
	if o.Network != "" && len(diffs) == 0 {
		return nil
	}
	if err := replace(r.ownerPath(), "ensure.owner.written", owner{r.plan.Name, r.plan.Parent}); err != nil {
		return cnierr.New(cnierr.IO, "note which network parent %s follows: %w", r.plan.Parent.Name, err)
	}
	return nil
}

// Differences lists the keys in which two descriptions of a parent differ, in
// words.
func Differences(a, b netconf.Parent) []string {
	was, is := flatten(a), flatten(b)
	var diffs []string
	for _, key := range parentKeys {
		if !reflect.DeepEqual(was[key], is[key]) {
			diffs = append(diffs, fmt.Sprintf("%s is %v there and %v here", key, was[key], is[key]))
		}
	}
	return diffs
}

var parentKeys = []string{"type", "vni", "port", "mtu", "vtep.cidr", "vtep.interface", "vtep.routes", "vtep.via", "peers", "device", "vlan"}

func flatten(p netconf.Parent) map[string]any {
	peers := slices.Clone(p.Peers)
	slices.SortFunc(peers, netip.Addr.Compare)
	return map[string]any{
		"type": p.Type, "vni": p.VNI, "port": p.Port, "mtu": p.MTU,
		"vtep.cidr": p.VTEP.CIDR, "vtep.interface": p.VTEP.Interface, "vtep.routes": p.VTEP.Routes,
		"vtep.via": fmt.Sprint(p.VTEP.Via), "peers": fmt.Sprint(peers), "device": p.Device, "vlan": p.VLAN,
	}
}
