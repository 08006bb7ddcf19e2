// Package cniexec calls a CNI plugin as a runtime does: a process with CNI_* in
// its environment, the network's configuration on stdin and a result or an error
// on stdout. Beside the result it says what the process cost.
package cniexec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
)

// Call is one call of a plugin.
type Call struct {
	Plugin      string // the binary
	Command     string // ADD, DEL, CHECK, STATUS, GC or VERSION
	ContainerID string
	IfName      string
	Netns       string // the pod's, a path
	Args        string // CNI_ARGS
	Path        string // CNI_PATH
	Conf        []byte
	Env         []string // more of the environment
	Through     string   // a program that starts the binary, its argument; empty: none
	Argv        []string // arguments of the binary, for what isn't a verb of CNI
}

// Outcome is what a call printed and what it cost.
type Outcome struct {
	Stdout []byte
	Stderr []byte
	Wall   time.Duration // from before the fork to after the exit
	CPU    time.Duration // user and system, the IPAM plugin's included
}

// Run calls the plugin from the netns host (nil: this process's own). The error
// of a plugin that refused is a *types.Error, with its stderr in the text around it.
func Run(ctx context.Context, host ns.NetNS, call Call) (Outcome, error) {
	argv := append([]string{call.Plugin}, call.Argv...)
	if call.Through != "" {
		argv = append([]string{call.Through}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+call.Command,
		"CNI_CONTAINERID="+call.ContainerID,
		"CNI_IFNAME="+call.IfName,
		"CNI_NETNS="+call.Netns,
		"CNI_ARGS="+call.Args,
		"CNI_PATH="+call.Path,
	)
	cmd.Env = append(cmd.Env, call.Env...)
	cmd.Stdin = bytes.NewReader(call.Conf)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr

	start := time.Now()
	err := startIn(host, cmd, &start)
	if err == nil {
		err = cmd.Wait()
	}
	outcome := Outcome{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Wall: time.Since(start)}
	if state := cmd.ProcessState; state != nil {
		outcome.CPU = state.UserTime() + state.SystemTime()
	}
	if err != nil {
		return outcome, fmt.Errorf("%s %s: %w%s", call.Plugin, call.Command, refusal(stdout.Bytes(), err), quoted(stderr.Bytes()))
	}
	return outcome, nil
}

// startIn starts the process in a netns: it is in that of the thread which forks
// it. start is set right before, when the thread is there.
func startIn(host ns.NetNS, cmd *exec.Cmd, start *time.Time) error {
	if host == nil {
		*start = time.Now()
		return cmd.Start()
	}
	return host.Do(func(ns.NetNS) error {
		*start = time.Now()
		return cmd.Start()
	})
}

// refusal is the CNI error on stdout, or else how the process ended.
func refusal(stdout []byte, ended error) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	return fmt.Errorf("%w, with no CNI error on stdout but %q", ended, stdout)
}

func quoted(stderr []byte) string {
	if len(bytes.TrimSpace(stderr)) == 0 {
		return ""
	}
	return fmt.Sprintf(" (stderr: %s)", bytes.TrimSpace(stderr))
}
