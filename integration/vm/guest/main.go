// Command guest is the first process of the VM that tests run in. It is the only
// program in the initramfs: it loads the drivers of the root file system, puts a
// writable layer in memory over the host's root, which it can only read, and runs
// the programs of its plan there, one after the other.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lhstorage/lhstorage/integration/vm/wire"
)

const (
	portWait    = 20 * time.Second // for the host to announce the serial port
	longestLine = 1 << 20          // of output
	left        = 5 * time.Second  // for output of what a run left running
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a test's VM; run `make test-vm`")
		os.Exit(2)
	}
	if err := carryOut(); err != nil {
		fmt.Println("guest:", err) // on the console
	}
	// QEMU is told to end where the machine would reboot. Nothing is synced before: to
	// what is on a disk this is a power cut.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// carryOut does what the plan says. What it could not say on the serial port it
// returns.
func carryOut() error {
	if err := mountAll(kernels); err != nil {
		return err
	}
	data, err := os.ReadFile(wire.PlanFile)
	if err != nil {
		return err
	}
	var plan wire.Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	for _, file := range plan.ModuleFiles {
		if err := load(file); err != nil {
			return err
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	say := json.NewEncoder(port)
	if err := enterRoot(plan.Modules); err != nil {
		return say.Encode(wire.Event{Fault: err.Error()})
	}
	for _, run := range plan.Runs {
		if err := carryOutRun(run, plan.Env, say); err != nil {
			return err
		}
	}
	return say.Encode(wire.Event{Finished: true})
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

// openPort waits for the port: the host announces it after the driver is there.
func openPort() (*os.File, error) {
	for end := time.Now().Add(portWait); ; time.Sleep(10 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			if name, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(name)) == wire.Port {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_WRONLY, 0)
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no virtio serial port named %s after %s", wire.Port, portWait)
		}
	}
}

// enterRoot makes the host's root, with a writable layer in memory, this process's
// root.
func enterRoot(modules string) error {
	if err := errors.Join(os.MkdirAll("/host", 0o755), os.MkdirAll("/layer", 0o755), os.MkdirAll("/root", 0o755)); err != nil {
		return err
	}
	// Nobody changes what the tests use while they run, so that the cache may be loose.
	const options = "trans=virtio,version=9p2000.L,cache=loose,msize=512000"
	if err := unix.Mount(wire.RootTag, "/host", "9p", unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("mount the host's root: %w", err)
	}
	if err := unix.Mount("layer", "/layer", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount the writable layer: %w", err)
	}
	if err := errors.Join(os.Mkdir("/layer/upper", 0o755), os.Mkdir("/layer/work", 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("root", "/root", "overlay", 0, "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work"); err != nil {
		return fmt.Errorf("put the writable layer over the host's root: %w", err)
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return furnish(modules)
}

// mount is a file system that needs no device.
type mount struct{ kind, dir, options string }

// kernels are the file systems in which the kernel shows itself.
var kernels = []mount{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.dir, err)
		}
	}
	return nil
}

// furnish gives the root what a booted machine has.
func furnish(modules string) error {
	if err := mountAll(append(kernels, mount{"tmpfs", "/run", "mode=0755"}, mount{"devpts", "/dev/pts", ""}, mount{"tmpfs", "/dev/shm", ""})); err != nil {
		return err
	}
	here := "/lib/modules/" + filepath.Base(modules)
	if err := errors.Join(os.MkdirAll(here, 0o755), os.MkdirAll("/run/lock", 0o755), os.MkdirAll("/run/netns", 0o755)); err != nil {
		return err
	}
	if err := unix.Mount(modules, here, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", modules, here, err)
	}
	if out, err := exec.Command("/sbin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:noctx // it has nothing to wait for
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return unix.Sethostname([]byte("vm"))
}

// carryOutRun runs a program and says what it prints, line by line, and how it
// ended. The error is that of the serial port.
func carryOutRun(run wire.Run, env []string, say *json.Encoder) error {
	if err := say.Encode(wire.Event{Started: run.Name}); err != nil {
		return err
	}
	cmd := exec.Command(run.Argv[0], run.Argv[1:]...) //nolint:noctx // the plan is the host's, and so is the time limit
	cmd.Dir, cmd.Env, cmd.WaitDelay = run.Dir, env, left
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	said := make(chan error, 1)
	go func() { said <- sayLines(reader, say) }()
	runErr := cmd.Run()
	if errors.Is(runErr, exec.ErrWaitDelay) { // it left something running that holds its output
		runErr = nil
	}
	if err := errors.Join(writer.Close(), <-said); err != nil {
		return err
	}
	status := wire.Status{Code: -1}
	if cmd.ProcessState != nil {
		status.Code = cmd.ProcessState.ExitCode()
	}
	if runErr != nil {
		status.Error = runErr.Error()
	}
	return say.Encode(wire.Event{Ended: &status})
}

func sayLines(from io.Reader, say *json.Encoder) error {
	defer io.Copy(io.Discard, from) //nolint:errcheck // whatever happens here, the run must not wait for a reader
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		line := lines.Text()
		if err := say.Encode(wire.Event{Line: &line}); err != nil {
			return err
		}
	}
	return lines.Err()
}
