package longhornmanager

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/lhstorage/lhstorage/integration/cluster"
	"github.com/lhstorage/lhstorage/integration/image"
	"github.com/lhstorage/lhstorage/integration/tools"
)

const (
	// Namespace is where Longhorn lives.
	Namespace = "longhorn-system"

	imageName      = "lhstorage.test/longhorn:v1.10.0"
	webhookAddress = "10.96.95.2"
	managerModule  = "github.com/longhorn/longhorn-manager"
)

//go:embed longhorn.yaml
var manifest []byte

// Deploy installs Longhorn, whose namespace is there, and returns before its manager runs.
func Deploy(ctx context.Context, c *cluster.Cluster) error {
	made, err := makeImage(ctx, c.Dir)
	if err != nil {
		return fmt.Errorf("make Longhorn's image: %w", err)
	}
	if err := c.ImportImage(ctx, made); err != nil {
		return err
	}
	if err := leadToWebhook(ctx, c); err != nil {
		return err
	}
	definitions, err := definitions(ctx)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, nil, definitions); err != nil {
		return fmt.Errorf("apply Longhorn's definitions: %w", err)
	}
	return c.Apply(ctx, nil, manifest)
}

// templates are what Helm fills in: labels.
var templates = regexp.MustCompile(`(?m)\{\{.*\}\}`)

// definitions are Longhorn's CustomResourceDefinitions.
func definitions(ctx context.Context) ([]byte, error) {
	source, err := tools.Source(ctx, "longhorn", managerModule)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(source, "k8s", "crds.yaml"))
	return templates.ReplaceAll(text, nil), err
}

// leadToWebhook does what a kube-proxy would: on each node, the webhook of that node answers at the Service's address, and the API server asks the first node's.
func leadToWebhook(ctx context.Context, c *cluster.Cluster) error {
	for _, n := range c.Nodes {
		if _, err := n.Run(ctx, "/bin/sh", "-c", "ip addr replace "+webhookAddress+"/32 dev lo"); err != nil {
			return err
		}
	}
	return c.Within(func() error {
		out, err := exec.CommandContext(ctx, "ip", "route", "replace", webhookAddress, "via", c.Nodes[0].Address.String()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("lead the API server to Longhorn's webhook: %w: %s", err, out)
		}
		return nil
	})
}

// scripts are as much of other programs as Longhorn's probes want. Whether somebody listens is enough.
var scripts = map[string]string{
	"bin/nc":                          `exec 3<>"/dev/tcp/$2/$3"`,            // -zv HOST PORT
	"usr/local/bin/grpc_health_probe": `exec 3<>"/dev/tcp/${2%:*}/${2##*:}"`, // -addr HOST:PORT
}

// makeImage makes an image of all of Longhorn's programs. Its shell isn't busybox's, for that would call its own nc, which can't do what the probe asks for.
func makeImage(ctx context.Context, dir string) (image.Image, error) {
	i, err := cluster.BusyboxImage(ctx)
	if err != nil {
		return i, err
	}
	built, err := tools.Module(ctx, "longhorn")
	if err != nil {
		return i, err
	}
	i.Name, i.Entrypoint = imageName, []string{"/bin/bash", "-c", `exec "$@"`, "bash"}
	for _, name := range []string{"bash", "nc", "nsenter"} {
		delete(i.Links, "bin/"+name)
	}
	i.Links["bin/sh"] = "bash"
	for name, script := range scripts {
		i.Files[name] = filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(i.Files[name], []byte("#!/bin/bash\n"+script+"\n"), 0o755); err != nil {
			return i, err
		}
	}
	programs := map[string]string{
		"usr/sbin/longhorn-manager": filepath.Join(built, "longhorn-manager"), "usr/bin/instance-manager": filepath.Join(built, "longhorn-instance-manager"),
		"usr/local/bin/longhorn": filepath.Join(built, "longhorn"),
	}
	for _, name := range []string{"bash", "nsenter"} {
		if programs["bin/"+name], err = image.FindProgram(name); err != nil {
			return i, err
		}
	}
	for name, path := range programs {
		if err := i.AddProgram(ctx, name, path); err != nil {
			return i, err
		}
	}
	return i, nil
}
