package install

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

// Layout is where things lie on a host, as paths of the host.
type Layout struct {
	Distribution string // what was found; empty: nothing was looked for
	BinDir       string // of CNI plugins, as the container runtime is configured
	ConfDir      string // of lhstorage's node file, kubeconfig and manifest
}

// Directories of CNI plugins.
const (
	standardBinDir = "/opt/cni/bin"
	microK8sBinDir = "/var/snap/microk8s/current/opt/cni/bin"
	k3sBinDir      = "/var/lib/rancher/k3s/data/cni"         // from 1.28.15, 1.29.10, 1.30.6 and 1.31.2 on; it outlives upgrades
	oldK3sBinDir   = "/var/lib/rancher/k3s/data/current/bin" // of one release: gone with the next
)

// Where lhstorage's own files lie; a host whose /etc is read-only has them in the second place.
var (
	confDir       = filepath.Dir(nodefile.DefaultPath)
	secondConfDir = filepath.Dir(nodefile.SecondPath)
)

// distribution is how a distribution of Kubernetes is known by its directories.
type distribution struct {
	name   string
	mark   string // a directory that only it has
	binDir string
}

var distributions = []distribution{
	{"k3s", k3sBinDir, k3sBinDir},
	{"k3s", oldK3sBinDir, oldK3sBinDir},
	{"RKE2", "/var/lib/rancher/rke2", standardBinDir},
	{"MicroK8s", "/var/snap/microk8s/current", microK8sBinDir},
}

// FindLayout finds out what a host is. What given says isn't looked for.
func FindLayout(h Host, given Layout) (Layout, error) {
	found := given
	var faults []error
	if given.BinDir == "" {
		d, err := h.distribution()
		found.Distribution, found.BinDir = d.name, d.binDir
		faults = append(faults, err)
	}
	if given.ConfDir == "" {
		found.ConfDir = confDir
		if h.isTalos() {
			found.ConfDir = secondConfDir
		}
	}
	for _, d := range []struct {
		flag string
		path *string
	}{{"--cni-bin-dir", &found.BinDir}, {"--conf-dir", &found.ConfDir}} {
		if *d.path == "" {
			continue // it is said above why
		}
		var err error
		*d.path, err = clean(d.flag, *d.path)
		faults = append(faults, err)
	}
	return found, errors.Join(faults...)
}

// distribution looks for the marks. Two distributions on one host, one of which may have been removed without its files, are for people to tell apart.
func (h Host) distribution() (distribution, error) {
	if !h.isDir("/etc") {
		return distribution{}, fmt.Errorf("find the directory of CNI plugins: %s isn't a host's root (it has no /etc): mount the host's root there, or name the directory with --cni-bin-dir", h.Root)
	}
	if h.isTalos() {
		return distribution{name: "Talos", binDir: standardBinDir}, nil
	}
	var found []distribution
	for _, d := range distributions {
		known := len(found) > 0 && found[len(found)-1].name == d.name // the newer k3s' directory, beside an older one's
		if h.isDir(d.mark) && !known {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return distribution{name: "kubeadm", binDir: standardBinDir}, nil
	case 1:
		return found[0], nil
	}
	var words []string
	for _, d := range found {
		words = append(words, fmt.Sprintf("%s (%s exists; its directory is %s)", d.name, d.mark, d.binDir))
	}
	return distribution{}, fmt.Errorf("find the directory of CNI plugins: this host looks like %s: name the one that runs with --cni-bin-dir", strings.Join(words, " and like "))
}

// isTalos reads what Talos says of itself: no directory is its own.
func (h Host) isTalos() bool {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := h.read(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if strings.Trim(strings.TrimSpace(line), `"'`) == "ID=talos" || strings.TrimSpace(line) == `ID="talos"` {
				return true
			}
		}
	}
	return false
}
