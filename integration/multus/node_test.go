package multus

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// age makes the answers in a directory an hour old.
func age(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no answer in %s (%w)", dir, err)
	}
	old := time.Now().Add(-time.Hour)
	for _, f := range files {
		if err := os.Chtimes(f, old, old); err != nil {
			return err
		}
	}
	return nil
}

// delOnNode calls the plugin's DEL itself, on the node that the calling thread is
// in: Multus doesn't get that far without the API server.
func delOnNode(p pod) error {
	cmd := exec.Command("/opt/cni/bin/lhstorage")
	cmd.Stdin = bytes.NewReader([]byte(nad))
	cmd.Env = []string{
		"CNI_COMMAND=DEL", "CNI_CONTAINERID=" + p.ID, "CNI_IFNAME=" + ifName, "CNI_NETNS=" + p.Netns.Path(),
		"CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH"),
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("DEL: %w: %s", err, out)
	}
	return nil
}
