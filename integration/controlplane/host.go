package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// ownDirs are the directories that each node has for itself, on its disk.
var ownDirs = []string{
	"/etc/cni", "/etc/lhstorage", "/opt/cni",
	"/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/lhstorage", "/var/lib/longhorn", "/var/log",
}

// Host is where a node's programs run: the node's network namespace and its mount
// namespace. It is an ns.NetNS whose Do enters both, so code that runs programs
// in a network namespace runs them on the node.
type Host struct {
	ns.NetNS

	mounts *os.File
}

// newHost makes a node's mount namespace over the given directory, which is the
// node's disk.
func newHost(netns, disk string) (*Host, error) {
	network, err := ns.GetNS(filepath.Join(netnsDir, netns))
	if err != nil {
		return nil, err
	}
	h := &Host{NetNS: network}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := mountNode(disk); err != nil {
			return err
		}
		h.mounts, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the file systems of %s: %w", netns, err), network.Close())
	}
	return h, nil
}

// Close gives up the mount namespace, which ends when no program is in it.
func (h *Host) Close() error { return errors.Join(h.mounts.Close(), h.NetNS.Close()) }

// Do runs f on a thread that is on the node; programs that it starts are on the
// node too. The thread's working directory is /.
func (h *Host) Do(f func(ns.NetNS) error) error {
	return onThread(func() error {
		before, err := ns.GetCurrentNS()
		if err != nil {
			return err
		}
		defer before.Close() //nolint:errcheck // read only
		if err := h.Enter(); err != nil {
			return err
		}
		return f(before)
	})
}

// Enter puts the current thread on the node, for good.
func (h *Host) Enter() error {
	// A thread can't change its mounts while it shares its root and working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's working directory: %w", err)
	}
	if err := unix.Setns(int(h.mounts.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the node's mount namespace: %w", err)
	}
	return h.Set()
}

// onThread runs f on a thread of its own that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: see there
		done <- f()
	}()
	return <-done
}

// mountNode makes the current, new mount namespace a node's: /run is empty but
// for the network namespaces, ownDirs are on the disk, and whatever else is
// written below /etc, /opt and /var/lib goes to memory.
func mountNode(disk string) error {
	// Slave: namespaces that are made and removed later come and go here too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach from the machine's mounts: %w", err)
	}
	scratch := filepath.Join(disk, "scratch")
	if err := mountTmpfs(scratch); err != nil {
		return err
	}
	if err := replaceRun(filepath.Join(scratch, "netns")); err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/opt", "/var/lib"} {
		if err := mountOverlay(dir, filepath.Join(scratch, strings.ReplaceAll(dir, "/", "_"))); err != nil {
			return err
		}
	}
	for _, dir := range ownDirs {
		if err := mountBind(filepath.Join(disk, dir), dir); err != nil {
			return err
		}
	}
	return nil
}

// replaceRun puts an empty /run in place of the machine's and keeps /run/netns.
func replaceRun(aside string) error {
	if err := os.Mkdir(aside, 0o750); err != nil {
		return err
	}
	if err := unix.Mount(netnsDir, aside, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s aside: %w", netnsDir, err)
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	if err := os.Mkdir(netnsDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(aside, netnsDir, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s back: %w", netnsDir, err)
	}
	return nil
}

func mountTmpfs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// mountOverlay lets what is written below dir go to scratch.
func mountOverlay(dir, scratch string) error {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on %s: %w", dir, err)
	}
	return nil
}

func mountBind(from, to string) error {
	for _, dir := range []string{from, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// shareNetnsDir makes /run/netns a shared mount, as `ip netns add` does, so that
// namespaces made after a node are seen on the node.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount of its own yet
		if err = unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s with the nodes: %w", netnsDir, err)
	}
	return nil
}

// mountSecrets gives the current thread, and what it starts, a mount namespace
// with the given files in a directory of memory.
func mountSecrets(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := mountTmpfs(dir); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
