package multus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
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

// callOnNode calls the plugin itself, on the node that the calling thread is in: Multus doesn't get that far
// without the API server. A refusal is a *types.Error.
func callOnNode(verb, container string, netns ns.NetNS, conf string) error {
	cmd := exec.Command("/opt/cni/bin/lhstorage")
	cmd.Stdin = bytes.NewReader([]byte(conf))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_IFNAME=" + ifName, "CNI_NETNS=" + netns.Path(),
		"CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH"),
	}
	out, err := cmd.Output()
	var refusal types.Error
	if err != nil && json.Unmarshal(out, &refusal) == nil {
		return &refusal
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", verb, err, out)
	}
	return nil
}
