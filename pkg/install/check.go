package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Check says all that isn't as the manifest says, and whether a plugin could use the kubeconfig now. It changes nothing. release is
// what is installed.
func (i *Installer) Check(ctx context.Context) (release string, err error) {
	m, found, err := readManifest(i.Host, i.Layout.ConfDir)
	if err != nil {
		return "", err
	}
	if !found {
		return "", fmt.Errorf("nothing is installed: there is no %s/%s on the host", i.Layout.ConfDir, manifestFile)
	}
	faults := []error{i.checkPrograms(m)}
	node, err := i.checkNode()
	faults = append(faults, err)
	if m.Node.Kubeconfig != "" {
		faults = append(faults, i.checkAccess(ctx, m.Node, node))
	}
	return m.Release, errors.Join(faults...)
}

func (i *Installer) checkPrograms(m Manifest) error {
	var faults []error
	if i.Layout.BinDir != m.BinDir {
		faults = append(faults, fmt.Errorf("the programs were installed into %s, and the directory of CNI plugins is %s now: install again", m.BinDir, i.Layout.BinDir))
	}
	for _, want := range m.Programs {
		host := m.BinDir + "/" + want.Name
		path, err := i.Host.file(host)
		if err == nil {
			err = want.check(path)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("program %s of release %s: %w; install again", host, m.Release, err))
		}
	}
	return errors.Join(faults...)
}

// check says in which way what is at path isn't the program.
func (p Program) check(path string) error {
	there, err := readProgram(path)
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case there.SHA256 != p.SHA256:
		return fmt.Errorf("it has sha256 %s and not %s: something else replaced it", there.SHA256, p.SHA256)
	case info.Mode() != programMode:
		return fmt.Errorf("its mode is %s and not %s", info.Mode(), programMode)
	}
	return nil
}

// checkNode reads the node file as the programs do.
func (i *Installer) checkNode() (nodefile.File, error) {
	data, err := i.Host.read(i.nodeFile())
	if err != nil {
		return nodefile.File{}, fmt.Errorf("read the node file: %w; install again", err)
	}
	node, err := nodefile.Parse(i.nodeFile(), data)
	if err == nil && i.Node.NodeName != "" && node.NodeName != i.Node.NodeName {
		err = fmt.Errorf("node file %s says that this is node %s, and it is %s: install again", i.nodeFile(), node.NodeName, i.Node.NodeName)
	}
	return node, err
}

// checkAccess asks the API server whom it takes the kubeconfig's owner for.
func (i *Installer) checkAccess(ctx context.Context, wrote, node nodefile.File) error {
	var faults []error
	if node.Kubeconfig != wrote.Kubeconfig {
		faults = append(faults, fmt.Errorf("the node file names kubeconfig %q, and %s was installed", node.Kubeconfig, wrote.Kubeconfig))
	}
	path, err := i.Host.file(wrote.Kubeconfig)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return errors.Join(append(faults, fmt.Errorf("look at the kubeconfig: %w; install again", err))...)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); info.Mode() != kubeconfig.Mode || !ok || int(owner.Uid) != os.Geteuid() {
		faults = append(faults, fmt.Errorf("kubeconfig %s has mode %s and owner %d: others than root could read the token; install again", wrote.Kubeconfig, info.Mode(), owner.Uid))
	}
	return errors.Join(append(faults, usable(ctx, path, node.NodeName))...)
}

// usable fails unless a plugin on the node would be served.
func usable(ctx context.Context, path, node string) error {
	file, err := kubeconfig.Read(path)
	if err != nil {
		return err
	}
	token, err := kubeconfig.ParseToken(file.Token)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if now := time.Now(); now.After(token.Expires) {
		return fmt.Errorf("kubeconfig %s: its token expired %s ago: the node's agent, which renews it, doesn't run or isn't let", path, now.Sub(token.Expires).Round(time.Second))
	}
	client, err := kubeapi.Load(path, "install-cni")
	if err != nil {
		return err
	}
	who, err := kubeconfig.WhoAmI(ctx, client)
	if err != nil {
		return fmt.Errorf("try kubeconfig %s: %w", filepath.Clean(path), err)
	}
	if who.Node != node {
		return fmt.Errorf("kubeconfig %s: its token is bound to node %q, and this is %s: admission policies refuse what it writes; install again", path, who.Node, node)
	}
	return nil
}
