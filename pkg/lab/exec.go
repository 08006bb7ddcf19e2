package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Exec runs a command in the network namespace of a node (pod empty) or of a
// pod, on this process's standard streams, and waits for it. Its environment
// says where the node's files are, for lhstorage's plugins and for cnitool.
func (l *Lab) Exec(ctx context.Context, node, pod string, argv []string) error {
	in, err := l.In(node, pod)
	if err != nil {
		return err
	}
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	return in(func() error {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // running the user's command is the purpose
		cmd.Env = append(os.Environ(), l.env(n)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	})
}

func (l *Lab) env(node Node) []string {
	return []string{
		nodefile.PathEnv + "=" + node.NodeFile(),
		"NETCONFPATH=" + node.ConfDir(),
		"CNI_PATH=" + strings.Join(l.opts.BinDirs, string(filepath.ListSeparator)),
	}
}
