package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	cgroupWait  = 10 * time.Second // for the kernel to let go of a process that has ended
)

// MakeCgroup makes a cgroup for a node's pods, in each hierarchy that the machine
// has, and returns its path below them. It is removed with the cluster.
func (n *Node) MakeCgroup() (string, error) {
	all, err := hierarchies()
	if err != nil {
		return "", err
	}
	for _, root := range all {
		if err := makeCgroup(root, n.Lab.Netns); err != nil {
			return "", fmt.Errorf("make a cgroup for %s: %w", n.Name, err)
		}
	}
	return "/" + n.Lab.Netns, nil
}

// RemoveCgroup removes the node's cgroup with all below it. No process may be left
// there.
func (n *Node) RemoveCgroup() error { return removeCgroups(n.Lab.Netns) }

// hierarchies are the directories at which cgroups begin: with version 2 one, with
// version 1 one for each controller.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return []string{cgroupMount}, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, fmt.Errorf("find the machine's cgroups: %w", err)
	}
	var all []string
	for _, e := range entries {
		dir := filepath.Join(cgroupMount, e.Name())
		// Links are second names of the same hierarchy, as cpu is of cpu,cpuacct.
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil && e.IsDir() {
			all = append(all, dir)
		}
	}
	return all, nil
}

func makeCgroup(root, name string) error {
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// With version 1 a new cgroup may use no CPU and no memory node until it is told.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(root, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(have), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return delegate(root, dir)
}

// delegate lets what is below dir use all controllers, which only version 2 asks
// for. kubelet and runc go on from there.
func delegate(root, dir string) error {
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, controller := range strings.Fields(string(have)) {
		for _, parent := range []string{root, dir} {
			// A controller that can't be delegated is one that the cluster can do without.
			_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		}
	}
	return err
}

// removeCgroups removes the cgroups whose names match, and all below them.
func removeCgroups(pattern string) error {
	all, err := hierarchies()
	faults := []error{err}
	for _, root := range all {
		dirs, err := filepath.Glob(filepath.Join(root, pattern))
		faults = append(faults, err)
		for _, dir := range dirs {
			faults = append(faults, removeCgroup(dir))
		}
	}
	return errors.Join(faults...)
}

// removeCgroup removes a cgroup's children and then itself. One that isn't there
// is no error.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) || time.Since(begin) > cgroupWait {
			if err = ignoreNotExist(err); err != nil {
				err = fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
			return err
		}
	}
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
