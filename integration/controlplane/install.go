package controlplane

import (
	"context"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/tools"
)

const (
	multusModule      = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
	whereaboutsModule = "github.com/k8snetworkplumbingwg/whereabouts"
)

// installed are the kinds that are taken from the projects' manifests: all but
// what only a controller could bring to life.
var installed = []string{crdKind, "ServiceAccount", "ClusterRole", "ClusterRoleBinding"}

// install applies the definitions and rights of Multus and whereabouts from the
// very modules that their programs are built from.
func (c *Cluster) install(ctx context.Context) error {
	for _, namespace := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem} {
		if err := c.addDefaultServiceAccount(ctx, namespace); err != nil {
			return err
		}
	}
	multus, err := tools.Source(ctx, "multus", multusModule)
	if err != nil {
		return err
	}
	whereabouts, err := tools.Source(ctx, "whereabouts", whereaboutsModule)
	if err != nil {
		return err
	}
	definitions, err := filepath.Glob(filepath.Join(whereabouts, "doc", "crds", "*_*.yaml"))
	if err != nil {
		return err
	}
	return c.ApplyFiles(ctx, installed, append(definitions,
		filepath.Join(multus, "deployments", "multus-daemonset-thick.yml"),
		filepath.Join(whereabouts, "doc", "crds", "daemonset-install.yaml"))...)
}

// InstallOwn applies lhstorage's definitions and the rights of its programs on nodes, as its installer does, and returns
// the kubeconfig of those programs.
func (c *Cluster) InstallOwn(ctx context.Context) (kubeconfig []byte, err error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	definitions, err := filepath.Glob(filepath.Join(root, "deploy", "crds", "*.yaml"))
	if err != nil {
		return nil, err
	}
	if err := c.ApplyFiles(ctx, nil, append(definitions, filepath.Join(root, "deploy", "rbac", "node.yaml"))...); err != nil {
		return nil, err
	}
	return c.ServiceAccountKubeconfig(ctx, metav1.NamespaceSystem, "lhstorage-node", "")
}
