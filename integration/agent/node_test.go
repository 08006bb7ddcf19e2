package agent

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"

	"github.com/lhstorage/lhstorage/integration/controlplane"
)

// delOnNode calls the plugin's DEL itself, on the node that the calling thread is in: Multus needs the API server.
func delOnNode(s *controlplane.Sandbox) error {
	cmd := exec.Command("/opt/cni/bin/lhstorage")
	cmd.Stdin = bytes.NewReader([]byte(nad))
	cmd.Env = []string{
		"CNI_COMMAND=DEL", "CNI_CONTAINERID=" + s.ID, "CNI_IFNAME=" + ifName, "CNI_NETNS=" + s.Netns.Path(),
		"CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH"),
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("DEL: %w: %s", err, out)
	}
	return nil
}

// lower lowers the parent's MTU, as something that manages devices might.
func lower() error { return exec.Command("ip", "link", "set", parent, "mtu", "1280").Run() }
