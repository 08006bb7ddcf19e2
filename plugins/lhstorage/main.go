// lhstorage is the CNI plugin: it attaches a pod to the storage network and makes
// the node ready for it. See docs/netconf.md for its configuration.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/lhstorage/lhstorage/pkg/attach"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/kernel"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// version is set at build time.
var version = "unknown"

func init() {
	// Namespaces belong to threads: what runs on the main goroutine runs in the
	// namespace that the process was started in.
	runtime.LockOSThread()
}

func main() {
	// Go ends a process that writes to a stdout or stderr whose reader is gone. A
	// runtime that died must not keep an ADD from being taken back.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add:    func(args *skel.CmdArgs) error { return run(netconf.Add, args) },
		Del:    func(args *skel.CmdArgs) error { return run("DEL", args) },
		Check:  func(args *skel.CmdArgs) error { return run(netconf.Check, args) },
		Status: func(args *skel.CmdArgs) error { return run(netconf.Status, args) },
		GC:     func(args *skel.CmdArgs) error { return run(netconf.GC, args) },
	}, cniversion.All, "CNI plugin lhstorage "+version)
	if err != nil {
		if err.Print() != nil {
			fmt.Fprintf(os.Stderr, "lhstorage: %v\n", err)
		}
		os.Exit(1)
	}
}

// run serves a verb. skel wants its errors as CNI error objects.
func run(verb netconf.Verb, args *skel.CmdArgs) error {
	if err := serve(verb, args); err != nil {
		return cnierr.ToCNI(err)
	}
	return nil
}

func serve(verb netconf.Verb, args *skel.CmdArgs) error {
	node, err := nodefile.Load()
	if err != nil {
		return cnierr.New(cnierr.InvalidConfig, "%w", err)
	}
	k, err := kernel.Host()
	if err != nil {
		return cnierr.New(cnierr.IO, "%w", err)
	}
	defer k.Close()
	ctx := context.Background()
	plugin := &attach.Plugin{Node: node, Kernel: k, Out: resultWriter()}
	request := attach.Request{ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName, Path: args.Path}
	if verb == "DEL" {
		return plugin.Del(ctx, netconf.Lenient(args.StdinData, args.Args), request)
	}
	plan, err := netconf.Parse(verb, args.StdinData, args.Args)
	if err != nil {
		return err
	}
	switch verb {
	case netconf.Add:
		return plugin.Add(ctx, plan, request)
	case netconf.Check:
		return plugin.Check(ctx, plan, request)
	case netconf.Status:
		return plugin.Status(ctx, plan, args.Path)
	default:
		return plugin.GC(ctx, plan, args.Path)
	}
}
