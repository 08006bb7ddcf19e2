package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// OwnIPAM is the type of the IPAM plugin that can decline an address.
const OwnIPAM = "lhstorage-ipam"

// delegate calls an IPAM plugin with this process's CNI environment.
type delegate struct {
	kind string          // the plugin's type
	conf json.RawMessage // the NetConf to give it
	path string          // CNI_PATH
}

// executor runs a plugin as a child that dies with us: an IPAM plugin that went on
// after its caller was killed could claim an address behind the back of the DEL
// that cleans up.
type executor struct {
	version.PluginDecoder
	*invoke.RawExec
	said []byte // what the plugin printed last
}

func newExecutor() *executor {
	return &executor{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
}

// ExecPlugin implements invoke.Exec.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	out, err := execute(ctx, path, stdin, env)
	e.said = out
	return out, err
}

func execute(ctx context.Context, path string, stdin []byte, env []string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, path, args...) //nolint:gosec // the IPAM plugin that the network names, from CNI_PATH
	c.Env, c.Stdin, c.Stdout, c.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = time.Second // a process that the plugin started may keep its stdout open
	began := time.Now()
	err := c.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well; only that other process is still there
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return nil, cnierr.New(cnierr.TryAgain, "%s gave no answer within %s, the time for this call, and was killed (%w); it said %q on stderr",
			path, time.Since(began).Round(time.Millisecond), ctx.Err(), strings.TrimSpace(stderr.String()))
	}
	if err == nil {
		_, _ = stderr.WriteTo(os.Stderr)
		return stdout.Bytes(), nil
	}
	return nil, pluginError(path, err, stdout.Bytes(), stderr.String())
}

// pluginError is the CNI error object that a failed plugin printed, or else what
// it said on stderr.
func pluginError(path string, err error, stdout []byte, stderr string) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && (said.Msg != "" || said.Code != 0) {
		return &said
	}
	text := strings.TrimSpace(strings.TrimSpace(string(stdout)) + " " + strings.TrimSpace(stderr))
	return cnierr.New(cnierr.IO, "%s ended with %w and said %q", path, err, text)
}

func (d delegate) none() bool { return d.kind == "" }

func (d delegate) fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	code := cnierr.CodeOf(err)
	if code == cnierr.Unclassified {
		code = cnierr.IO
	}
	return cnierr.New(code, "IPAM plugin %s, %s: %w", d.kind, verb, err)
}

// find fails when the plugin isn't installed, which nothing needs to be undone for.
func (d delegate) find() error {
	_, err := d.binary()
	return err
}

func (d delegate) binary() (string, error) {
	path, err := invoke.FindInPath(d.kind, filepath.SplitList(d.path))
	if err != nil {
		return "", cnierr.New(cnierr.InvalidConfig, "IPAM plugin %s isn't in CNI_PATH %s: install it there, or correct ipam.type: %w", d.kind, d.path, err)
	}
	return path, nil
}

func (d delegate) add(ctx context.Context) (*types100.Result, error) {
	e := newExecutor()
	result, err := invoke.DelegateAdd(ctx, d.kind, d.conf, e)
	if err != nil && cnierr.CodeOf(err) != cnierr.Unclassified {
		return nil, d.fail("ADD", err)
	}
	var r *types100.Result
	if err == nil {
		r, err = types100.NewResultFromResult(result)
	}
	if err != nil {
		return nil, cnierr.New(cnierr.Decode, "IPAM plugin %s, ADD: it ended well, but printed what is no result: %.200q (%w)", d.kind, e.said, err)
	}
	if len(r.IPs) == 0 {
		return nil, cnierr.New(cnierr.InvalidConfig, "IPAM plugin %s gave no address: look at its configuration; "+
			"an interface without one would be attached but unusable", d.kind)
	}
	return r, nil
}

func (d delegate) del(ctx context.Context) error {
	if d.none() {
		return nil
	}
	return d.fail("DEL", invoke.DelegateDel(ctx, d.kind, d.conf, newExecutor()))
}

// check skips whereabouts, whose CHECK always fails ("CNI CHECK method is not
// implemented"); the addresses are checked on the interface in any case.
func (d delegate) check(ctx context.Context) error {
	if d.none() || d.kind == "whereabouts" {
		return nil
	}
	return d.fail("CHECK", invoke.DelegateCheck(ctx, d.kind, d.conf, newExecutor()))
}

func (d delegate) status(ctx context.Context) error {
	if d.none() {
		return nil
	}
	return d.fail("STATUS", invoke.DelegateStatus(ctx, d.kind, d.conf, newExecutor()))
}

func (d delegate) gc(ctx context.Context) error {
	if d.none() {
		return nil
	}
	return d.fail("GC", invoke.DelegateGC(ctx, d.kind, d.conf, newExecutor()))
}

// canDecline says that another address can be had for one that is taken.
func (d delegate) canDecline() bool { return d.kind == OwnIPAM }

// decline gives an address back that another device holds: the IPAM releases it
// and keeps it from everybody for a while.
func (d delegate) decline(ctx context.Context, addr netip.Addr, mac string) error {
	path, err := d.binary()
	if err != nil {
		return err
	}
	_, err = execute(ctx, path, d.conf, append(os.Environ(), "CNI_COMMAND=ADD"), "decline", addr.String(), mac)
	if err != nil {
		return fmt.Errorf("give back %s: %w", addr, d.fail("decline", err))
	}
	return nil
}
