package attach

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/place"
)

// claimer asks the cluster for this node's place by `lhstorage-ipam host-shim`, so
// that the plugin itself needs nothing of Kubernetes. It is asked rarely; see
// package node.
func claimer(path string) func(context.Context, *netconf.Plan, place.Seen, place.Place) (place.Place, error) {
	return func(ctx context.Context, plan *netconf.Plan, seen place.Seen, last place.Place) (place.Place, error) {
		d := delegate{kind: OwnIPAM, path: path}
		binary, err := d.binary()
		if err != nil {
			return place.Place{}, err
		}
		conf, err := naming(plan)
		if err != nil {
			return place.Place{}, err
		}
		question, err := json.Marshal(map[string]any{"seen": seen, "last": last})
		if err != nil {
			return place.Place{}, cnierr.New(cnierr.Decode, "ask the cluster for this node's place: %w", err)
		}
		out, err := execute(ctx, binary, conf, os.Environ(), "host-shim", string(question))
		if err != nil {
			return place.Place{}, d.fail("host-shim", err)
		}
		return answer(out)
	}
}

// answer reads what host-shim printed (package hostclaim, Answer).
func answer(out []byte) (place.Place, error) {
	var said struct {
		Index     int          `json:"index"`
		Addresses []netip.Addr `json:"addresses"`
		VTEP      netip.Addr   `json:"vtep"`
		Peers     []netip.Addr `json:"peers"`

		Kubernetes []netip.Addr `json:"kubernetes"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		return place.Place{}, cnierr.New(cnierr.Decode, "lhstorage-ipam host-shim printed %q: %w", out, err)
	}
	return place.Place{Index: said.Index, Shim: said.Addresses, VTEP: said.VTEP, Peers: said.Peers, Kubernetes: said.Kubernetes}, nil
}

// naming is the NetConf with the parent in it: a chained one is told its parent by
// the interface that the main plugin made.
func naming(plan *netconf.Plan) (json.RawMessage, error) {
	if !plan.Chained {
		return plan.IPAM.Delegate, nil
	}
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(plan.IPAM.Delegate, &conf); err != nil {
		return nil, cnierr.New(cnierr.Decode, "read the network configuration: %w", err)
	}
	name, err := json.Marshal(plan.Parent.Name)
	if err != nil {
		return nil, cnierr.New(cnierr.Decode, "name the parent: %w", err)
	}
	delete(conf, "parent")
	conf["master"] = name
	return json.Marshal(conf)
}
