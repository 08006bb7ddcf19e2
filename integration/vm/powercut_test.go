package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/controlplane"
	"github.com/lhstorage/lhstorage/integration/testnode"
	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/lab"
)

const diskBytes = 64 << 20

// A machine in a cluster whose power is cut, and which comes up while the API
// server can't be reached: what it had synced to its disk is all that it has. What
// it does in its two lives is in integration/plugin.
func TestPowerCut(t *testing.T) {
	unlessOthersAreAsked(t)
	ctx, kernel := begin(t)
	before, after := life(ctx, t, "Before"), life(ctx, t, "After")
	cluster := controlplane.Up(t, controlplane.Options{UnsafeNoFsync: true, Bare: true, Lab: lab.Options{Nodes: 1, Plugin: lab.PluginMacvlan}})
	kubeconfig, err := cluster.InstallOwn(ctx)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, kubeconfig, 0o600))
	for _, p := range []*plan{&before, &after} {
		p.env = append(p.env, testnode.VMKubeconfig+"="+file)
	}
	api := addNodes(ctx, t, cluster)
	machine := Machine{Kernel: kernel, Disk: newDisk(ctx, t), NIC: true}

	require.NoError(t, cluster.Within(func() error {
		carryOut(ctx, t, machine, before)
		return nil
	}))
	var claimed v1alpha1.HostShim
	require.NoError(t, api.Get(ctx, hostclaim.Shims, "vxlan-storage-1", &claimed))
	assert.Equal(t, "node1", claimed.Spec.Node)

	machine.NIC = false
	carryOut(ctx, t, machine, after)
}

// life is one life of the machine.
func life(ctx context.Context, t *testing.T, name string) plan {
	t.Helper()
	return prepare(ctx, t, suite{"integration/plugin", "^TestPowerCut" + name + "$"})
}

// newDisk is an empty file system, in a file.
func newDisk(ctx context.Context, t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, diskBytes))
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", disk)
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := mkfs.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return disk
}

// addNodes tells the cluster of the two nodes. The machine is node1; node2 has its
// place already.
func addNodes(ctx context.Context, t *testing.T, cluster *controlplane.Cluster) *kubeapi.Client {
	t.Helper()
	for _, name := range []string{"node1", "node2"} {
		_, err := cluster.Kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	api, err := kubeapi.New(cluster.Config)
	require.NoError(t, err)
	require.NoError(t, api.Create(ctx, hostclaim.Shims, v1alpha1.HostShim{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{
			Name:   hostclaim.Name("vxlan-storage", 2),
			Labels: map[string]string{v1alpha1.LabelParent: "vxlan-storage", v1alpha1.LabelNode: "node2"},
		},
		Spec: v1alpha1.HostShimSpec{
			Node: "node2", Parent: "vxlan-storage", Index: 2, VTEP: "10.100.100.2", Address: "10.100.1.2",
			Networks: []v1alpha1.ShimNetwork{{Name: "storage", Addresses: []v1alpha1.ShimAddress{"10.100.1.2"}}},
		},
	}, nil))
	return api
}
