// Command lhstorage-ipam is the CNI plugin that gives addresses to pods of a
// storage network; under any main plugin. Its configuration is that of Whereabouts and a few
// keys more, see docs/ipam.md.
//
// Besides the verbs of CNI it has one of its own, called with the environment and the
// input of an ADD: `lhstorage-ipam decline ADDRESS MAC` gives up the attachment's claim on an address
// that another device holds, and keeps everyone from getting it for 10 minutes.
//
// And `lhstorage-ipam host-shim` claims this node's place on the parent of the network that it is given on stdin (package
// hostclaim), for the lhstorage plugin, which knows no Kubernetes.
//
// Where the node has a cluster the claims are kept there (package kube), else on its disk (package embedded).
package main

import (
	"context"
	"io"
	"log"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

func main() {
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		exit(serve(standby{}))
		return
	}
	s := standBy()
	switch {
	case len(os.Args) > 1 && os.Args[1] == "decline":
		exit(cnierr.ToCNI(declineMain(s, os.Args[2:])))
	case len(os.Args) > 1 && os.Args[1] == "host-shim":
		exit(cnierr.ToCNI(hostShimMain(s, os.Args[2:])))
	default:
		exit(serve(s))
	}
}

// serve serves the verbs of CNI.
func serve(s standby) *types.Error {
	return skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: s.verb(add), Del: s.verb(del), Check: s.verb(check), Status: s.verb(status), GC: s.verb(gc),
	}, cniversion.All, "lhstorage-ipam: addresses for a storage network, see docs/ipam.md")
}

// exit prints an error as the CNI error object on stdout, as runtimes and main
// plugins expect it.
func exit(err *types.Error) {
	if err == nil {
		return
	}
	if printErr := err.Print(); printErr != nil {
		log.Printf("write the error %v: %v", err, printErr)
	}
	os.Exit(1)
}

// verb gives a verb its errors' codes and its time.
func (s standby) verb(run func(context.Context, *call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := s.run(args, run); err != nil {
			return cnierr.ToCNI(err)
		}
		return nil
	}
}

func (s standby) run(args *skel.CmdArgs, run func(context.Context, *call) error) error {
	c, err := s.newCall(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Timeout)
	defer cancel()
	return run(ctx, c)
}

func declineMain(s standby, argv []string) error {
	if len(argv) != 2 {
		return cnierr.New(cnierr.InvalidEnvironment, "usage: lhstorage-ipam decline ADDRESS MAC, with the environment and the input of an ADD")
	}
	addr, err := netip.ParseAddr(argv[0])
	if err != nil {
		return cnierr.New(cnierr.InvalidEnvironment, "decline ADDRESS %q: must be an address without a prefix length", argv[0])
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return cnierr.New(cnierr.IO, "read the network configuration from stdin: %w", err)
	}
	args := &skel.CmdArgs{
		ContainerID: os.Getenv("CNI_CONTAINERID"), IfName: os.Getenv("CNI_IFNAME"),
		Netns: os.Getenv("CNI_NETNS"), Args: os.Getenv("CNI_ARGS"), StdinData: input,
	}
	for _, v := range []struct{ name, value string }{{"CNI_CONTAINERID", args.ContainerID}, {"CNI_IFNAME", args.IfName}} {
		if v.value == "" {
			return cnierr.New(cnierr.InvalidEnvironment, "required env variable %s missing", v.name)
		}
	}
	return s.run(args, func(ctx context.Context, c *call) error { return c.decline(ctx, addr, argv[1]) })
}
