package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	first *process // of ADD: started ahead of time, nil otherwise
}

// executor runs a plugin as a child that dies with us: an IPAM plugin that went on
// after its caller was killed could claim an address behind the back of the DEL
// that cleans up.
type executor struct {
	version.PluginDecoder
	*invoke.RawExec
	first *process // is used for the first call, unless nil
	said  []byte   // what the plugin printed last
}

func newExecutor() *executor {
	return &executor{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
}

// ExecPlugin implements invoke.Exec.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var err error
	p := e.first
	if e.first = nil; p == nil {
		if p, err = start(ctx, path, env); err != nil {
			return nil, err
		}
	}
	e.said, err = p.run(ctx, stdin)
	return e.said, err
}

func execute(ctx context.Context, path string, stdin []byte, env []string, args ...string) ([]byte, error) {
	p, err := start(ctx, path, env, args...)
	if err != nil {
		return nil, err
	}
	return p.run(ctx, stdin)
}

// process is a plugin that was started and waits for its input. Until it has that it starts up, our own IPAM plugin connects to the API server, and nothing
// is changed anywhere.
type process struct {
	*exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr bytes.Buffer
}

// start starts a plugin. It ends with ctx.
func start(ctx context.Context, path string, env []string, args ...string) (p *process, err error) {
	p = &process{Cmd: exec.CommandContext(ctx, path, args...)} //nolint:gosec // the IPAM plugin that the network names, from CNI_PATH
	p.Env, p.Stdout, p.Stderr = env, &p.stdout, &p.stderr
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.WaitDelay = time.Second // a process that the plugin started may keep its stdout open
	if p.stdin, err = p.StdinPipe(); err == nil {
		err = p.Start()
	}
	if err != nil {
		return nil, pluginError(path, err, nil, "")
	}
	return p, nil
}

// run gives a plugin its input and waits for what it prints.
func (p *process) run(ctx context.Context, stdin []byte) ([]byte, error) {
	began := time.Now()
	_, _ = p.stdin.Write(stdin) // what ends without having read it says why
	_ = p.stdin.Close()
	err := p.Wait()
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well; only that other process is still there
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		return nil, cnierr.New(cnierr.TryAgain, "%s gave no answer within %s, the time for this call, and was killed (%w); it said %q on stderr",
			p.Path, time.Since(began).Round(time.Millisecond), ctx.Err(), strings.TrimSpace(p.stderr.String()))
	}
	if err == nil {
		_, _ = p.stderr.WriteTo(os.Stderr)
		return p.stdout.Bytes(), nil
	}
	return nil, pluginError(p.Path, err, p.stdout.Bytes(), p.stderr.String())
}

// end ends a plugin that got no input: it has changed nothing yet.
func (p *process) end() {
	_ = p.Process.Kill()
	_ = p.Wait()
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

// prepare starts our own IPAM plugin ahead of its ADD: it starts up while this process looks at the node. Whether it can be
// started at all its ADD says. Others may do more than wait before they have their input.
func (d *delegate) prepare(ctx context.Context) {
	path, err := d.binary()
	if d.kind != OwnIPAM || err != nil {
		return
	}
	if p, err := start(ctx, path, os.Environ()); err == nil {
		d.first = p
	}
}

// drop ends what was prepared and not used.
func (d *delegate) drop() {
	if d.first != nil {
		d.first.end()
		d.first = nil
	}
}

func (d *delegate) add(ctx context.Context) (*types100.Result, error) {
	e := newExecutor()
	e.first, d.first = d.first, nil
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
