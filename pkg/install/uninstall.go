package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/ipam/queue"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
	"github.com/lhstorage/lhstorage/pkg/record"
)

// Uninstall removes what Install put onto the host. It refuses while pods are attached: without the programs, no DEL takes their
// addresses back, and their sandboxes hang. What stays, and why, is returned in words.
func (i *Installer) Uninstall(ctx context.Context) (stays []string, err error) {
	m, found, err := readManifest(i.Host, i.Layout.ConfDir)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("nothing is installed: there is no %s/%s on the host", i.Layout.ConfDir, manifestFile)
	}
	node, err := i.checkNode()
	if err != nil {
		return nil, fmt.Errorf("find where attachments are recorded: %w", err)
	}
	if err := i.attached(node); err != nil {
		return nil, err
	}
	unlock, err := i.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The manifest goes last: until then to call it again goes on.
	kept, err := i.removePrograms(m)
	stays = append(stays, kept...)
	if err != nil {
		return stays, err
	}
	kept, err = i.removeNode(m)
	stays = append(stays, kept...)
	if err != nil {
		return stays, err
	}
	left, err := i.left(node)
	return append(stays, left...), errors.Join(err, i.remove(i.Layout.ConfDir+"/"+manifestFile), i.removeDir())
}

// attached refuses while there are attachment records, or none could be seen.
func (i *Installer) attached(node nodefile.File) error {
	if parent := filepath.Dir(node.RunDir); !i.Host.isDir(parent) {
		return fmt.Errorf("can't see whether pods are attached: the host's %s isn't below %s: mount it there", parent, i.Host.Root)
	}
	dir, err := i.Host.path(filepath.Join(node.RunDir, "attachments"))
	if err != nil {
		return err
	}
	list, err := record.Dir(dir).List()
	if err == nil && len(list) == 0 {
		return nil
	}
	faults := []error{err}
	for _, a := range list {
		who := a.PodRef
		if who == "" {
			who = "container " + a.ContainerID
		}
		var addresses []string
		for _, p := range a.Addresses {
			addresses = append(addresses, p.Addr().String())
		}
		faults = append(faults, fmt.Errorf("%s has %s on network %s (%s)", who, a.IfName, a.Network, strings.Join(addresses, ", ")))
	}
	return fmt.Errorf("%d pods of this node are attached to a storage network, and couldn't be detached any more: drain the node (for Longhorn: switch its storage network off first), then try again:\n%w", len(list), errors.Join(faults...))
}

// removePrograms removes those that are what the manifest says.
func (i *Installer) removePrograms(m Manifest) (stays []string, err error) {
	var faults []error
	for _, p := range m.Programs {
		host := m.BinDir + "/" + p.Name
		path, err := i.Host.file(host)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		there, err := readProgram(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			faults = append(faults, fmt.Errorf("remove %s: %w", host, err))
		case there.SHA256 != p.SHA256:
			stays = append(stays, host+": it isn't what was installed (another release's, or somebody else's)")
		default:
			faults = append(faults, i.remove(host))
		}
	}
	return stays, errors.Join(faults...)
}

// removeNode removes the kubeconfig, and the node file unless an admin set something in it.
func (i *Installer) removeNode(m Manifest) (stays []string, err error) {
	if m.Node.Kubeconfig != "" {
		if err := i.remove(m.Node.Kubeconfig); err != nil {
			return nil, err
		}
	}
	data, err := i.Host.read(i.nodeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if there, err := nodefile.ParseRaw(i.nodeFile(), data); err != nil || there != m.Node {
		return []string{i.nodeFile() + ": somebody else than the installer set something in it"}, nil //nolint:nilerr // what can't be read isn't what was installed
	}
	return nil, i.remove(i.nodeFile())
}

func (i *Installer) remove(host string) error {
	path, err := i.Host.file(host)
	if err != nil {
		return err
	}
	if err := atomicfile.Remove(path); err != nil {
		return explain(fmt.Errorf("remove %s from the host: %w", host, err))
	}
	i.Log.Info("removed", "path", host)
	return nil
}

// removeDir removes the directory of the configuration if nothing is in it any more.
func (i *Installer) removeDir() error {
	path, err := i.Host.path(i.Layout.ConfDir)
	if err == nil {
		_ = os.Remove(path)
	}
	return err
}

// left is what isn't the installer's to remove.
func (i *Installer) left(node nodefile.File) (stays []string, err error) {
	stays = []string{"parent devices, host shims, VTEP addresses, routes and firewall rules in the kernel: until the next boot, or `ip link delete`"}
	if i.Host.isDir(node.StateDir) && node.StateDir != i.Layout.ConfDir {
		stays = append(stays, node.StateDir+": the node's place and, without a cluster, its addresses; `rm -r` it if the node won't be back")
	}
	dir, err := i.Host.path(filepath.Join(node.StateDir, queue.DirName))
	if err != nil {
		return stays, err
	}
	n, err := queue.Open(dir).Len()
	if n > 0 {
		stays = append(stays, fmt.Sprintf("%d releases of addresses that are still to be carried out, in %s/%s: install again, or let another node's agent collect them", n, node.StateDir, queue.DirName))
	}
	stays = append(stays, "this node's HostShim and AddressClaims in the cluster: they are collected when the Node is deleted")
	return stays, err
}
