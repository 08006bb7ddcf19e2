package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lhstorage/lhstorage/pkg/lab"
	"github.com/lhstorage/lhstorage/pkg/probe"
)

const (
	targetName  = "iqn.2025-01.io.lhstorage:demo"
	targetLUN   = 1 // LUN 0 is tgtd's controller
	iscsiPort   = 3260
	diskBytes   = 16 << 20
	stepTimeout = 4 * time.Second  // for each command of the initiator
	startUp     = 10 * time.Second // for tgtd to answer its control socket
	controlPort = "1"              // any number: the control socket's directory is the target's own
)

// ISCSI is the outcome of logging in from a host to a target in a pod on it,
// asking it who it is and reading its whole disk.
type ISCSI struct {
	Plugin string `json:"plugin"`
	OK     bool   `json:"ok"`    // all steps worked, and what was read has the right checksum
	Bytes  int64  `json:"bytes"` // that were really read
	From   string `json:"from"`
	To     string `json:"to"`
	Steps  []Step `json:"steps"`
	Err    string `json:"err,omitempty"`
}

// Step is one command of the initiator.
type Step struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

// checkTools looks for the programs of Debian's packages.
func checkTools() error {
	var missing []string
	for _, tool := range []struct{ name, pkg string }{
		{"tgtd", "tgt"}, {"tgtadm", "tgt"}, {"iscsi-ls", "libiscsi-bin"}, {"iscsi-inq", "libiscsi-bin"}, {"iscsi-readcapacity16", "libiscsi-bin"},
	} {
		if _, err := toolPath(tool.name); err != nil {
			missing = append(missing, fmt.Sprintf("%s (package %s)", tool.name, tool.pkg))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the demo needs %s: `apt-get install tgt libiscsi-bin`", strings.Join(missing, ", "))
}

// toolPath finds a program; those for administrators are often not in PATH.
func toolPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

// readBlocks starts a target in a pod and reads its disk from the pod's node.
// That it can't be reached is a result; an error means that it couldn't be tried.
func readBlocks(ctx context.Context, l *lab.Lab, node, podName string) (ISCSI, error) {
	result := ISCSI{Plugin: l.Options().Plugin, From: node, To: node + "/" + podName}
	p, err := l.Pod(node, podName)
	if err != nil {
		return result, err
	}
	if len(p.Addresses) == 0 {
		return result, fmt.Errorf("pod %s has no address for an iSCSI target", result.To)
	}
	portal := netip.AddrPortFrom(p.Addresses[0].Addr(), iscsiPort)
	t, err := startTarget(ctx, l, node, podName, portal)
	if err != nil {
		return result, fmt.Errorf("iSCSI target in pod %s: %w", result.To, err)
	}
	defer t.stop()
	host, err := l.In(node, "")
	if err != nil {
		return result, err
	}
	err = result.tryAll(ctx, host, portal, t.sum)
	if ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	result.OK = err == nil
	if err != nil {
		result.Err = err.Error()
	}
	return result, nil
}

// tryAll runs the initiator's steps and stops at the first that fails.
func (i *ISCSI) tryAll(ctx context.Context, host probe.In, portal netip.AddrPort, sum [sha256.Size]byte) error {
	url := fmt.Sprintf("iscsi://%s/%s/%d", portal, targetName, targetLUN)
	for _, tool := range []initiator{
		{"iscsi-ls", []string{"--show-luns", fmt.Sprintf("iscsi://%s", portal)}, fmt.Sprintf("Lun:%d", targetLUN)},
		{"iscsi-inq", []string{url}, "Product:"},
		{"iscsi-readcapacity16", []string{url}, "Total size:"},
	} {
		says, err := tool.run(ctx, host)
		if err := i.step(tool.name, says, err); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var read probe.BlockRead
	err := host(func() (err error) {
		read, err = probe.ISCSIRead(ctx, probe.ISCSITarget{Portal: portal, Name: targetName, LUN: targetLUN}, diskBytes)
		return err
	})
	i.Bytes = read.Bytes
	if err == nil && read.SHA256 != sum {
		err = fmt.Errorf("%d bytes read, and their checksum isn't that of the disk", read.Bytes)
	}
	return i.step("read", fmt.Sprintf("%d bytes, sha256 %x…", read.Bytes, read.SHA256[:6]), err)
}

func (i *ISCSI) step(name, says string, err error) error {
	if err != nil {
		says = err.Error()
		err = fmt.Errorf("%s: %w", name, err)
	}
	i.Steps = append(i.Steps, Step{Name: name, OK: err == nil, Says: says})
	return err
}

// initiator is a program of libiscsi-bin.
type initiator struct {
	name   string
	args   []string
	answer string // how the line begins that shows that it worked
}

// run runs it in a namespace, bounded, and returns the line with the answer.
func (i initiator) run(ctx context.Context, in probe.In) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	path, err := toolPath(i.name)
	if err != nil {
		return "", err
	}
	var out []byte
	err = in(func() (err error) {
		out, err = exec.CommandContext(ctx, path, i.args...).CombinedOutput() //nolint:gosec // fixed programs
		return err
	})
	said := strings.TrimSpace(string(out))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("no answer within %s", stepTimeout)
	case err != nil:
		return "", fmt.Errorf("%w: %s", err, said)
	}
	for line := range strings.SplitSeq(said, "\n") {
		if strings.HasPrefix(line, i.answer) {
			return strings.Join(strings.Fields(line), " "), nil
		}
	}
	return "", fmt.Errorf("no line with %q in its answer: %s", i.answer, said)
}

// target is a tgtd of our own in a pod's namespace.
type target struct {
	cmd    *exec.Cmd
	sum    [sha256.Size]byte // of its disk
	dir    string
	output bytes.Buffer  // read only after ended is closed
	ended  chan struct{} // closed when the process is gone
}

func startTarget(ctx context.Context, l *lab.Lab, node, podName string, portal netip.AddrPort) (*target, error) {
	in, err := l.In(node, podName)
	if err != nil {
		return nil, err
	}
	path, err := toolPath("tgtd")
	if err != nil {
		return nil, err
	}
	t := &target{dir: filepath.Join(l.Dir(), "tgt"), ended: make(chan struct{})}
	disk, err := t.makeDisk()
	if err != nil {
		return nil, err
	}
	t.cmd = exec.Command(path, "-f", "-C", controlPort, "--iscsi", "portal="+portal.String()) //nolint:gosec,noctx // stop ends it, by its own pid
	t.cmd.Env = append(os.Environ(), t.socketEnv())
	t.cmd.Stdout, t.cmd.Stderr = &t.output, &t.output
	// Should this process be killed, tgtd goes with the thread that started it:
	// that thread lives as long as tgtd does.
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		defer close(t.ended)
		_ = in(func() error {
			err := t.cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			return t.cmd.Wait()
		})
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := t.configure(ctx, disk); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// makeDisk makes the directory that holds all files of the target, and a disk
// of random bytes in it.
func (t *target) makeDisk() (string, error) {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return "", err
	}
	content := make([]byte, diskBytes)
	if _, err := rand.Read(content); err != nil {
		return "", err
	}
	t.sum = sha256.Sum256(content)
	path := filepath.Join(t.dir, "disk")
	return path, os.WriteFile(path, content, 0o600)
}

// socketEnv keeps the control socket in the target's own directory, so that no
// other tgtd is ever spoken to.
func (t *target) socketEnv() string { return "TGT_IPC_SOCKET=" + filepath.Join(t.dir, "socket") }

func (t *target) configure(ctx context.Context, disk string) error {
	ctx, cancel := context.WithTimeout(ctx, startUp)
	defer cancel()
	for _, args := range [][]string{
		{"--op", "new", "--mode", "target", "--tid", "1", "--targetname", targetName},
		{"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", fmt.Sprint(targetLUN), "--backing-store", disk},
		{"--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "ALL"},
	} {
		if err := t.admin(ctx, args); err != nil {
			return err
		}
	}
	return nil
}

// admin runs tgtadm, again and again until tgtd listens on its control socket.
func (t *target) admin(ctx context.Context, args []string) error {
	path, err := toolPath("tgtadm")
	if err != nil {
		return err
	}
	for {
		cmd := exec.CommandContext(ctx, path, append([]string{"-C", controlPort, "--lld", "iscsi"}, args...)...) //nolint:gosec // fixed arguments
		cmd.Env = append(os.Environ(), t.socketEnv())
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-t.ended:
			return fmt.Errorf("tgtd ended: %s", strings.TrimSpace(t.output.String()))
		case <-ctx.Done():
			return fmt.Errorf("tgtadm %s: %w: %s", strings.Join(args, " "), context.Cause(ctx), strings.TrimSpace(string(out)))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends tgtd, which doesn't heed SIGTERM while it has a target, and removes
// its files.
func (t *target) stop() {
	_ = t.cmd.Process.Kill()
	<-t.ended
	_ = os.RemoveAll(t.dir)
}
