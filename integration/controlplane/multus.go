package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Multus' configurations: which the node's runtime calls.
const (
	Thin  = "thin"  // the plugin does all
	Thick = "thick" // the plugin asks a daemon on the node
)

const (
	multusConfFile   = confDir + "/00-multus.conf"
	multusDaemonFile = "/etc/cni/multus/daemon-config.json"
	multusSocketDir  = "/run/multus"
)

// UseMultus makes the node's runtime call Multus in one of its two forms. It
// returns when pods can be run.
func (n *Node) UseMultus(ctx context.Context, form string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.stopMultus()
	switch {
	case err != nil:
	case form == Thin:
		err = n.WriteFile(multusConfFile, []byte(n.multusThin()))
	case form == Thick:
		err = n.startMultus(ctx)
	default:
		err = fmt.Errorf("%q: want %q or %q", form, Thin, Thick)
	}
	if err != nil {
		return fmt.Errorf("use Multus on %s: %w", n.Name, err)
	}
	return nil
}

// MultusDaemon is the node's Multus daemon, nil if there is none.
func (n *Node) MultusDaemon() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.multus
}

// stopMultus ends the daemon and removes the configuration of either form.
func (n *Node) stopMultus() error {
	daemon := n.multus
	n.multus = nil
	return errors.Join(daemon.Stop(), n.Do(func() error {
		if err := os.Remove(multusConfFile); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}))
}

// multusThin is what Multus' thin installer writes.
func (n *Node) multusThin() string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus", "kubeconfig": %q, "delegates": [%s]}`,
		multusKubeconfig, n.clusterNetwork())
}

// startMultus starts the daemon, which writes its shim's configuration itself, and
// does that when it answers.
func (n *Node) startMultus(ctx context.Context) error {
	// A path instead of "auto" makes the daemon end at once.
	config := fmt.Sprintf(`{"cniVersion": "1.0.0", "logToStderr": true, "logLevel": "verbose", "binDir": %q,
  "cniConfigDir": %q, "multusAutoconfigDir": %q, "multusConfigFile": "auto", "socketDir": %q, "daemonSocketDir": %q}`,
		binDir, confDir, confDir, multusSocketDir, multusSocketDir)
	if err := n.WriteFile(multusDaemonFile, []byte(config)); err != nil {
		return err
	}
	daemon, err := n.StartDaemon(ctx, Daemon{
		Name: "multus-daemon", ServiceAccount: metav1.NamespaceSystem + "/multus",
		Args: []string{filepath.Join(binDir, "multus-daemon"), "-config=" + multusDaemonFile},
		Env:  []string{"MULTUS_NODE_NAME=" + n.Name},
	})
	if err != nil {
		return err
	}
	n.multus = daemon
	return Until(ctx, daemon, "the Multus daemon has written "+multusConfFile, func(context.Context) error {
		return n.Do(func() error {
			_, err := os.Stat(multusConfFile)
			return err
		})
	})
}
