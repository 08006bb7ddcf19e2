package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const nodeKubeconfig = "/etc/lhstorage/kubeconfig"

// InstallLhstorage does what lhstorage's installer does: its definitions and
// rights in the cluster, its programs and files on each node.
func (c *Cluster) InstallLhstorage(ctx context.Context) error {
	access, err := c.InstallOwn(ctx)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		// The index is the node's own: the storage network's routes are made by it.
		file, err := json.Marshal(nodefile.File{NodeName: n.Name, Index: n.Lab.Index, Kubeconfig: nodeKubeconfig})
		if err != nil {
			return err
		}
		if err := n.WriteFile(nodefile.DefaultPath, file); err != nil {
			return err
		}
		if err := n.WriteFile(nodeKubeconfig, access); err != nil {
			return err
		}
		if err := n.ReplacePrograms(); err != nil {
			return err
		}
	}
	return nil
}

// pluginNames are the programs that a container runtime looks for on a node.
var pluginNames = []string{"lhstorage", "lhstorage-ipam"}

// removePrograms takes lhstorage's programs off the nodes.
func (c *Cluster) removePrograms() error {
	var faults []error
	for _, n := range c.Nodes {
		for _, name := range []string{"lhstorage", "lhstorage-ipam", "install-cni", "lhstorage-agent", "lhstoragectl"} {
			faults = append(faults, n.Do(func() error { return os.Remove(filepath.Join(binDir, name)) }))
		}
	}
	return errors.Join(faults...)
}

// ReplacePrograms puts lhstorage's programs into the node's CNI directory, each at
// once in place of what is there.
func (n *Node) ReplacePrograms() error {
	for _, name := range pluginNames {
		data, err := os.ReadFile(filepath.Join(n.cluster.own, name))
		if err != nil {
			return err
		}
		err = n.Do(func() error {
			temp := filepath.Join(binDir, "."+name+".new")
			if err := os.WriteFile(temp, data, 0o755); err != nil {
				return err
			}
			return os.Rename(temp, filepath.Join(binDir, name))
		})
		if err != nil {
			return err
		}
	}
	return nil
}
