// Package main is put beside the stock macvlan plugin's macvlan_test.go, in place
// of macvlan.go: what that suite calls in-process is an exec of a plugin binary
// here, with the environment that a runtime would give it.
//
// It is a file of tests so that it needs no main function, and in a module of its
// own because the suite needs the versions of ginkgo and gomega that it was
// written for.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/onsi/ginkgo/v2"
)

// PLUGIN in the environment is the binary under test, and its file name the
// type that it is called with. PATH must have the IPAM plugins, since the suite
// makes CNI_PATH of it.
var plugin = os.Getenv("PLUGIN")

// noAddress is what CNI before 0.3.0, which can't say that an interface has no
// address, makes of a result without one. The suite expects the same text.
const noAddress = "cannot convert: no valid IP addresses"

// NetConf is what the suite fills in for createMacvlan.
type NetConf struct {
	types.NetConf
	Master     string
	Mode       string
	MTU        int
	LinkContNs bool
}

func cmdAdd(args *skel.CmdArgs) error {
	out, err := run("ADD", args)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out) // the suite reads the result there
	return err
}

func cmdDel(args *skel.CmdArgs) error {
	_, err := run("DEL", args)
	return err
}

func cmdCheck(args *skel.CmdArgs) error {
	_, err := run("CHECK", args)
	return err
}

func cmdStatus(args *skel.CmdArgs) error {
	_, err := run("STATUS", args)
	return err
}

// createMacvlan makes a child without addresses. Of the interface the suite
// looks at nothing but its existence, and at that in the netns, not here.
func createMacvlan(conf *NetConf, ifName string, netns ns.NetNS) (*types100.Interface, error) {
	stdin, err := json.Marshal(map[string]any{
		"cniVersion": conf.CNIVersion, "name": conf.Name, "type": filepath.Base(plugin),
		"master": conf.Master, "mode": conf.Mode, "mtu": conf.MTU, "linkInContainer": conf.LinkContNs,
	})
	if err != nil {
		return nil, err
	}
	_, err = run("ADD", &skel.CmdArgs{ContainerID: "dummy", Netns: netns.Path(), IfName: ifName, StdinData: stdin})
	if err != nil && err.Error() != noAddress {
		return nil, err
	}
	return &types100.Interface{Name: ifName, Sandbox: netns.Path()}, nil
}

// run execs the plugin. The suite calls it with its thread locked and switched
// to the node's netns; a process starts in the netns of the thread that forks it.
func run(command string, args *skel.CmdArgs) ([]byte, error) {
	cmd := exec.Command(plugin)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+command,
		"CNI_CONTAINERID="+args.ContainerID,
		"CNI_NETNS="+args.Netns,
		"CNI_IFNAME="+args.IfName,
		"CNI_ARGS="+args.Args,
		"CNI_PATH="+os.Getenv("PATH"),
	)
	cmd.Stdin = bytes.NewReader(args.StdinData)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var said types.Error
	if json.Unmarshal(out, &said) == nil && said.Msg != "" {
		err = &said
	} else {
		err = errors.Join(err, fmt.Errorf("%s %s printed no CNI error but %q", plugin, command, out))
	}
	// For the report: of a failed ADD in the oldest versions the suite shows a
	// panic of its own only.
	fmt.Fprintf(ginkgo.GinkgoWriter, "%s: %v\n", command, err)
	return nil, err
}
