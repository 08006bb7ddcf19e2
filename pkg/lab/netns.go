package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where named namespaces are mounted, as iproute2 does.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// netnsFree fails if one of the names is in use. It is asked before a name is
// written into the state: what is there already belongs to someone else, and
// must not be removed as ours.
func netnsFree(names ...string) error {
	var errs []error
	for _, name := range names {
		if _, err := os.Lstat(netnsPath(name)); err == nil {
			errs = append(errs, fmt.Errorf("network namespace %s exists already and isn't this lab's: `ip netns del %s` removes it", name, name))
		}
	}
	return errors.Join(errs...)
}

// makeNetns makes a named network namespace with its loopback up.
func makeNetns(name string) error {
	made := make(chan error)
	go func() {
		// Never unlocked: the thread now lives in the new namespace, so it has to
		// end with this goroutine.
		runtime.LockOSThread()
		handle, err := netns.NewNamed(name)
		if err == nil {
			err = errors.Join(loopbackUp(), handle.Close())
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlinksafe.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// deleteNetns removes a named network namespace and, unless a process is still
// in it, everything in it. One that isn't there is no error.
func deleteNetns(name string) error {
	path := netnsPath(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}

// within runs f on an OS thread that is in the named network namespace.
func within(name string, f func() error) error {
	return ns.WithNetNSPath(netnsPath(name), func(ns.NetNS) error { return f() })
}
