package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const (
	stopWait = 15 * time.Second // before a program that was asked to end is killed
	logLines = 15               // of a log that are shown when its program failed
)

// Process is a running program that is part of the cluster.
type Process struct {
	Name string

	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // of the end; read it after done only
}

// Launch starts a program from a thread that enter has put where the program is
// to run. Its output goes to the log file, after what is there already. It is
// killed when this process ends, however that does.
func Launch(name, log string, enter func() error, argv, env []string) (*Process, error) {
	return launch(name, log, enter, argv, env, syscall.SIGKILL)
}

// LaunchInside is [Launch] where enter has put the thread into another process
// namespace: the program ends with the first process of that. It must not be told
// of its parent's death, too: it can't see its parent, so Go's runtime would take
// that for dead already and kill it before it starts.
func LaunchInside(name, log string, enter func() error, argv, env []string) (*Process, error) {
	return launch(name, log, enter, argv, env, 0)
}

func launch(name, log string, enter func() error, argv, env []string, parentDeath syscall.Signal) (*Process, error) {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it outlives the call that starts it, and Kill ends it
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: parentDeath}
	p := &Process{Name: name, cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Never unlocked: the thread is elsewhere and has to end. It waits for the
		// program because the kernel sends the parent-death signal when the thread that
		// forked ends, not when the process does.
		runtime.LockOSThread()
		err := p.start(enter)
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

func (p *Process) start(enter func() error) error {
	out, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the program has its own descriptor
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := enter(); err != nil {
		return err
	}
	return p.cmd.Start()
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended; a nil process's never is.
func (p *Process) Done() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.done
}

// Stop asks the program to end and waits for that; after 15 s it is killed, which
// is an error.
func (p *Process) Stop() error {
	if p == nil || p.ended() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s (pid %d): %w", p.Name, p.PID(), err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopWait):
		return errors.Join(fmt.Errorf("stop %s (pid %d): it did not end within %s and was killed%s", p.Name, p.PID(), stopWait, p.logged()), p.Kill())
	}
}

// Kill ends the program at once, as a power cut would, and waits until it is gone.
func (p *Process) Kill() error {
	if p == nil || p.ended() {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s (pid %d): %w", p.Name, p.PID(), err)
	}
	<-p.done
	return nil
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// failure says how a program ended that should not have.
func (p *Process) failure() error {
	return fmt.Errorf("%s ended early: %w%s", p.Name, errors.Join(p.err, errEnded), p.logged())
}

var errEnded = errors.New("it should have gone on")

// logged is the end of the log, for an error's text.
func (p *Process) logged() string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("; the end of %s:\n%s", filepath.Base(p.log), tail(p.log))
}

// tail is the last lines of a file.
func tail(path string) []byte {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-logLines):], []byte("\n"))
}
