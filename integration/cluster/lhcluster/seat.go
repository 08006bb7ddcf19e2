package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/lhstorage/lhstorage/integration/cluster"
)

const (
	seatDir  = "/run/lhstorage-cluster"
	downWait = time.Minute // for a cluster that was told to end
)

// seat is the right to run the one cluster that `down` knows. The kernel takes its
// lock back when the process ends, however it does.
type seat struct {
	lock *flock.Flock
}

func pidFile() string { return filepath.Join(seatDir, "pid") }

// kubeconfigFile is where the cluster's kubeconfig is.
func kubeconfigFile() string { return filepath.Join(seatDir, "kubeconfig") }

func take() (*seat, error) {
	if err := os.MkdirAll(seatDir, 0o755); err != nil {
		return nil, fmt.Errorf("make room for a cluster (as root?): %w", err)
	}
	s := &seat{lock: flock.New(filepath.Join(seatDir, "lock"))}
	free, err := s.lock.TryLock()
	if err != nil {
		return nil, err
	}
	if !free {
		return nil, fmt.Errorf("a cluster runs already: KUBECONFIG=%s; `make cluster-down` ends it", kubeconfigFile())
	}
	return s, os.WriteFile(pidFile(), []byte(strconv.Itoa(os.Getpid())), 0o644)
}

func (s *seat) free() {
	_ = os.Remove(pidFile())
	_ = os.Remove(kubeconfigFile())
	_ = s.lock.Close()
}

// keep starts a cluster and lets it run until ctx is done.
func (s *seat) keep(ctx context.Context, o cluster.Options, out io.Writer) (err error) {
	begin := time.Now()
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	if err := c.InstallLhstorage(ctx); err != nil {
		return err
	}
	stop, err := offer(ctx, c)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Fprintf(out, "%s is ready after %s: %s\n\n  export KUBECONFIG=%s PATH=%s:$PATH\n  kubectl get nodes\n\nLogs and disks: %s\n",
		c.Name, time.Since(begin).Round(time.Second), c.Conditions(), kubeconfigFile(), filepath.Dir(c.Program("kubectl")), c.Dir)
	<-ctx.Done()
	return nil
}

// offer makes the API server reachable from this machine's own network, by a port
// of the loopback interface, and writes a kubeconfig that says so.
func offer(ctx context.Context, c *cluster.Cluster) (func(), error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for kubectl: %w", err)
	}
	content, err := c.UserKubeconfig("https://"+listener.Addr().String(), "admin", "system:masters")
	if err == nil {
		err = os.WriteFile(kubeconfigFile(), content, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	go serve(ctx, c, listener)
	return func() { _ = listener.Close() }, nil
}

// serve carries connections to the API server until the listener is closed.
func serve(ctx context.Context, c *cluster.Cluster, listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			server, err := c.Dial(ctx, "tcp", strings.TrimPrefix(c.Server(), "https://"))
			if err != nil {
				_ = client.Close()
				return
			}
			go carry(server, client)
			carry(client, server)
		}()
	}
}

// carry copies one direction and closes both ends when that is over.
func carry(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}

// down tells the cluster to end, waits for that, and removes what crashed ones
// left.
func down(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, downWait)
	defer cancel()
	s, err := take()
	for ; err != nil; s, err = take() {
		if err := tell(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster doesn't end within %s: its process is in %s", downWait, pidFile())
		case <-time.After(200 * time.Millisecond):
		}
	}
	defer s.free()
	if err := cluster.Down(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "no cluster is running, and nothing is left of one")
	return nil
}

// tell asks the process that holds the seat to end. The lock is what says that the
// number is still that process's.
func tell() error {
	text, err := os.ReadFile(pidFile())
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", pidFile(), err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("tell process %d to end: %w", pid, err)
	}
	return nil
}
