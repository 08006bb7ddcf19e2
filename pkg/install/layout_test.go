package install

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// host makes a host with directories; entries with " -> " are symbolic links, those with " = " files.
func host(t *testing.T, entries ...string) Host {
	t.Helper()
	root := t.TempDir()
	for _, e := range append([]string{"/etc"}, entries...) {
		if path, to, ok := cut(e, " -> "); ok {
			require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
			require.NoError(t, os.Symlink(to, root+path))
		} else if path, content, ok := cut(e, " = "); ok {
			require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
			require.NoError(t, os.WriteFile(root+path, []byte(content), 0o644))
		} else {
			require.NoError(t, os.MkdirAll(root+e, 0o755))
		}
	}
	return Host{Root: root}
}

func cut(text, at string) (before, after string, found bool) {
	for i := range len(text) - len(at) + 1 {
		if text[i:i+len(at)] == at {
			return text[:i], text[i+len(at):], true
		}
	}
	return "", "", false
}

func TestFindLayout(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []string
		want    Layout
	}{
		{"kubeadm", []string{"/opt/cni/bin", "/var/lib/kubelet"}, Layout{"kubeadm", "/opt/cni/bin", "/etc/lhstorage"}},
		{"kubeadm before its first plugin", nil, Layout{"kubeadm", "/opt/cni/bin", "/etc/lhstorage"}},
		{"RKE2", []string{"/var/lib/rancher/rke2/agent", "/opt/cni/bin"}, Layout{"RKE2", "/opt/cni/bin", "/etc/lhstorage"}},
		{"Talos", []string{"/etc/os-release = NAME=\"Talos\"\nID=talos\n"}, Layout{"Talos", "/opt/cni/bin", "/var/lib/lhstorage"}},
		{"Talos, quoted, linked", []string{"/usr/lib/os-release = ID=\"talos\"\n", "/etc/os-release -> ../usr/lib/os-release"}, Layout{"Talos", "/opt/cni/bin", "/var/lib/lhstorage"}},
		{"Debian", []string{"/etc/os-release = ID=debian\nID_LIKE=talos\n"}, Layout{"kubeadm", "/opt/cni/bin", "/etc/lhstorage"}},
		{"k3s", []string{"/var/lib/rancher/k3s/data/cni", "/opt/cni/bin"}, Layout{"k3s", "/var/lib/rancher/k3s/data/cni", "/etc/lhstorage"}},
		{"k3s that was an old one", []string{"/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"}, Layout{"k3s", "/var/lib/rancher/k3s/data/cni", "/etc/lhstorage"}},
		{"old k3s, whose link is absolute", []string{"/var/lib/rancher/k3s/data/0123/bin", "/var/lib/rancher/k3s/data/current -> /var/lib/rancher/k3s/data/0123"},
			Layout{"k3s", "/var/lib/rancher/k3s/data/current/bin", "/etc/lhstorage"}},
		{"MicroK8s", []string{"/var/snap/microk8s/7234/opt/cni/bin", "/var/snap/microk8s/current -> 7234"}, Layout{"MicroK8s", "/var/snap/microk8s/current/opt/cni/bin", "/etc/lhstorage"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := FindLayout(host(t, c.entries...), Layout{})
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestFindLayoutTakesWhatIsGiven(t *testing.T) {
	got, err := FindLayout(Host{Root: t.TempDir()}, Layout{BinDir: "/usr/libexec/cni/", ConfDir: "/data/lhstorage"})
	require.NoError(t, err, "nothing is looked for: the mounts may be those two alone")
	assert.Equal(t, Layout{BinDir: "/usr/libexec/cni", ConfDir: "/data/lhstorage"}, got)
}

func TestFindLayoutRefuses(t *testing.T) {
	_, err := FindLayout(Host{Root: t.TempDir()}, Layout{ConfDir: "etc"})
	require.ErrorContains(t, err, "isn't a host's root")
	require.ErrorContains(t, err, `--conf-dir "etc"`)

	_, err = FindLayout(host(t, "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/rke2"), Layout{})
	require.ErrorContains(t, err, "k3s (/var/lib/rancher/k3s/data/cni exists")
	require.ErrorContains(t, err, "RKE2 (/var/lib/rancher/rke2 exists")
	require.ErrorContains(t, err, "--cni-bin-dir")
}

// An absolute link of the host is the host's, not this container's.
func TestHostPathsStayOnTheHost(t *testing.T) {
	h := host(t, "/var/lib/rancher/k3s/data/0123/bin", "/var/lib/rancher/k3s/data/current -> /var/lib/rancher/k3s/data/0123", "/escape -> ../../../../etc")
	got, err := h.makeDir(oldK3sBinDir)
	require.NoError(t, err)
	assert.Equal(t, h.Root+"/var/lib/rancher/k3s/data/0123/bin", got)
	got, err = h.path("/escape")
	require.NoError(t, err)
	assert.Equal(t, h.Root+"/etc", got)
}
