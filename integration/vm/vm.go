// Package vm runs programs in a virtual machine with Debian's kernel, for what the
// kernel that tests run on may lack: VLANs, bonds, dummies, netem, an iSCSI
// initiator, and for what has changed between the two.
//
// There is no image of a disk. The VM sees this machine's root, which it can't
// change, under a layer in its memory; so whatever is installed or built here is
// there, at the same path. It has no network but what the tests make.
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/integration/tools"
	"github.com/lhstorage/lhstorage/integration/vm/wire"
)

const (
	memory       = "2048" // MB; the layer over the root takes its space from it
	processors   = "2"
	consoleLines = 40 // of the kernel's messages that are shown when something went wrong
)

// rootModules are the drivers of the root file system and of the port for events.
var rootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// Machine is what a VM has besides processors and memory.
type Machine struct {
	Kernel Kernel

	// Disk is a file that is the VM's disk vda; empty: it has none. What the VM has
	// written and not synced when it ends is lost, as in a power cut.
	Disk string

	// NIC gives the VM an eth0, on which QEMU itself carries TCP out into the network
	// namespace in which it was started. The VM is 10.0.2.15/24 there, its gateway
	// 10.0.2.2 (QEMU's defaults for "-netdev user").
	NIC bool
}

// Outcome is how a run ended.
type Outcome struct {
	Name string
	wire.Status
}

// Boot boots a VM once and has it do its runs, one after the other. Their output
// goes to out as it comes. A run that failed is no error; a VM that did not come to
// the end of its plan is, and the outcomes are then those of the runs that it ended.
// When Boot returns the VM is gone, and so is all that it needed.
func Boot(ctx context.Context, machine Machine, runs []wire.Run, env []string, out io.Writer) ([]Outcome, error) {
	dir, err := os.MkdirTemp("", "lhstorage-vm-")
	if err != nil {
		return nil, fmt.Errorf("make room for a VM's files: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a left-over directory is no reason to fail
	plan := wire.Plan{Modules: machine.Kernel.Modules, Env: append(slices.Clone(env), testnode.InsideVM+"=1"), Runs: runs}
	if err := makeInitramfs(ctx, filepath.Join(dir, "initramfs"), plan); err != nil {
		return nil, fmt.Errorf("make the VM's initramfs: %w", err)
	}
	outcomes, err := boot(ctx, dir, machine, out)
	if err != nil {
		return outcomes, fmt.Errorf("%w\nthe VM's console:\n%s", err, lastLines(filepath.Join(dir, "console")))
	}
	return outcomes, nil
}

func makeInitramfs(ctx context.Context, path string, plan wire.Plan) error {
	programs, err := tools.Programs(ctx, "integration/vm/guest")
	if err != nil {
		return err
	}
	paths := map[string]string{"init": filepath.Join(programs, "guest")}
	modules, err := moduleFiles(plan.Modules, rootModules...)
	if err != nil {
		return err
	}
	for _, m := range modules {
		plan.ModuleFiles = append(plan.ModuleFiles, "/"+filepath.Base(m))
		paths[filepath.Base(m)] = filepath.Join(plan.Modules, m)
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	files := []file{{strings.TrimPrefix(wire.PlanFile, "/"), 0o644, data}}
	for name, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files = append(files, file{name, 0o755, data})
	}
	var archive bytes.Buffer
	if err := writeInitramfs(&archive, files); err != nil {
		return err
	}
	return os.WriteFile(path, archive.Bytes(), 0o600)
}

// boot starts QEMU and listens to its VM until that ends.
func boot(ctx context.Context, dir string, machine Machine, out io.Writer) ([]Outcome, error) {
	vm, end := context.WithCancel(ctx)
	defer end()
	cmd := exec.CommandContext(vm, "qemu-system-x86_64", arguments(dir, machine)...)
	// Should this process be killed, the VM goes with the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the VM: %w", err)
	}
	outcomes, err := listen(events, out)
	if err != nil {
		end() // whatever it still does is of no use
	}
	waitErr := cmd.Wait()
	switch {
	case err == nil:
		return outcomes, nil
	case ctx.Err() != nil:
		return outcomes, fmt.Errorf("the VM was ended before it had finished: %w; %w", context.Cause(ctx), err)
	}
	return outcomes, fmt.Errorf("%w (QEMU: %w %s)", err, waitErr, bytes.TrimSpace(stderr.Bytes()))
}

func arguments(dir string, machine Machine) []string {
	args := []string{
		// KVM hangs on some machines that are VMs themselves; TCG works everywhere.
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", processors, "-m", memory,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "file:" + filepath.Join(dir, "console"),
		"-kernel", machine.Kernel.Image, "-initrd", filepath.Join(dir, "initramfs"),
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check",
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=" + wire.RootTag,
		// Not "stdio": whose input has ended counts as unplugged, and the VM waits for the plug.
		"-chardev", "file,id=events,path=/dev/stdout", "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=events,name=" + wire.Port,
	}
	if machine.Disk != "" {
		args = append(args, "-drive", "if=virtio,format=raw,file="+machine.Disk)
	}
	if machine.NIC {
		args = append(args, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
	}
	return args
}

// listen reads events until the VM has finished.
func listen(from io.Reader, out io.Writer) ([]Outcome, error) {
	var outcomes []Outcome
	current := ""
	for events := json.NewDecoder(from); ; {
		var e wire.Event
		if err := events.Decode(&e); err != nil {
			at := "before its first run"
			if current != "" {
				at = "in or after " + current
			}
			return outcomes, fmt.Errorf("the VM fell silent %s: %w", at, err)
		}
		switch {
		case e.Fault != "":
			return outcomes, errors.New("in the VM: " + e.Fault)
		case e.Finished:
			return outcomes, nil
		case e.Started != "":
			current = e.Started
			fmt.Fprintf(out, "--- in the VM: %s\n", current)
		case e.Line != nil:
			fmt.Fprintln(out, *e.Line)
		case e.Ended != nil:
			outcomes = append(outcomes, Outcome{current, *e.Ended})
		}
	}
}

// lastLines are the end of the kernel's console.
func lastLines(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-consoleLines):], "\n")
}
