package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/place"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const hostShimTime = 10 * time.Second

// question is what `host-shim` may be told besides the NetConf, as its only argument; what isn't said it looks up.
type question struct {
	Seen *place.Seen  `json:"seen"` // what the kernel has
	Last *place.Place `json:"last"` // the last answer
}

// hostShimMain claims this node's place on the parent of the network on stdin, and prints it.
func hostShimMain(s standby, argv []string) error {
	var q question
	if len(argv) > 1 {
		return cnierr.New(cnierr.InvalidEnvironment, `usage: lhstorage-ipam host-shim ['{"seen": …, "last": …}'], with a network's configuration on stdin`)
	}
	if len(argv) == 1 {
		if err := json.Unmarshal([]byte(argv[0]), &q); err != nil {
			return cnierr.New(cnierr.InvalidEnvironment, "host-shim: the argument isn't the JSON that is expected: %w", err)
		}
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return cnierr.New(cnierr.IO, "read the network configuration from stdin: %w", err)
	}
	plan, err := netconf.Parse(netconf.Add, input, os.Getenv("CNI_ARGS"))
	if err != nil {
		return err
	}
	if s.faults != nil {
		return s.faults
	}
	ctx, cancel := context.WithTimeout(context.Background(), hostShimTime)
	defer cancel()
	answer, err := s.claimPlace(ctx, plan, q)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		return cnierr.New(cnierr.IO, "print the node's place: %w", err)
	}
	return nil
}

func (s standby) claimPlace(ctx context.Context, plan *netconf.Plan, q question) (hostclaim.Answer, error) {
	if s.node.Kubeconfig == "" {
		return hostclaim.Answer{}, cnierr.New(cnierr.InvalidConfig, "host-shim: the node file %s names no kubeconfig: places are kept in a cluster", nodefile.Path())
	}
	if s.lost != nil {
		return hostclaim.Answer{}, s.lost
	}
	if q.Seen == nil {
		seen, err := see(plan)
		if err != nil {
			return hostclaim.Answer{}, cnierr.New(cnierr.Kernel, "read this node's addresses: %w", err)
		}
		q.Seen = &seen
	}
	if q.Last == nil {
		q.Last = &place.Place{}
	}
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return hostclaim.Answer{}, cnierr.New(cnierr.IO, "read this machine's id: %w", err)
	}
	c := hostclaim.Claimer{API: s.api, Node: s.node, MachineID: strings.TrimSpace(string(machine)), Answers: probe.Answers}
	return c.Claim(ctx, plan, *q.Seen, *q.Last)
}

// see reads the addresses that tell a place.
func see(plan *netconf.Plan) (place.Seen, error) {
	var seen place.Seen
	devices, err := net.Interfaces()
	if err != nil {
		return seen, err
	}
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			return seen, fmt.Errorf("%s: %w", d.Name, err)
		}
		for _, a := range addrs {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			addr := prefix.Addr()
			seen.Local = append(seen.Local, addr)
			if d.Name == plan.Parent.Name {
				seen.OnParent = append(seen.OnParent, addr)
			}
			if plan.HostShim != nil && d.Name == plan.HostShim.Name {
				seen.OnShim = append(seen.OnShim, addr)
			}
		}
	}
	return seen, nil
}
